"""Every operation of KV through denokv. Arguments: the URL of a gateway, and those of all gateways.

Ends with an error at the first wrong result.
"""

import asyncio
import sys
import time
import uuid
from datetime import datetime, timedelta, timezone

from denokv import ConsistencyLevel, KvU64, open_kv
from denokv._kv_writes import Set

EVENTUAL = ConsistencyLevel.EVENTUAL
ROOT = str(uuid.uuid4())


def key(*parts):
    return ("python", ROOT, *parts)


def equal(actual, expected, what):
    if actual != expected:
        raise AssertionError(f"{what}: {actual!r} instead of {expected!r}")


async def until(what, seconds, condition):
    deadline = time.monotonic() + seconds
    while not await condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        await asyncio.sleep(0.02)


async def value(kv, *parts, **options):
    _, entry = await kv.get(key(*parts), **options)
    return None if entry is None else entry.value


async def listed(kv, **options):
    return [entry.value async for entry in kv.list(**options)]


async def numbers(kv):
    return [int((await value(kv, name)).value) for name in ("sum", "min", "max")]


async def operations(kv):
    for stored in ("text", 7.5, True, b"\x00\xff", KvU64(2**63)):
        versionstamp = await kv.set(key("value"), stored)
        _, entry = await kv.get(key("value"))
        equal((entry.value, entry.versionstamp), (stored, versionstamp), "get")
    await kv.set(key("value"), {"a": [1.0, "b"]})
    equal((await value(kv, "value"))["a"][1], "b", "an object")
    await kv.delete(key("value"))
    equal(await value(kv, "value"), None, "get after delete")

    # Sums, minima and maxima of u64, also on what is absent, and wrapping.
    await kv.write(kv.atomic().sum(key("sum"), KvU64(5)).min(key("min"), KvU64(9)).max(key("max"), KvU64(3)))
    equal(await numbers(kv), [5, 9, 3], "on absent keys")
    await kv.write(kv.atomic().sum(key("sum"), KvU64(2)).min(key("min"), KvU64(4)).max(key("max"), KvU64(8)))
    await kv.write(kv.atomic().min(key("min"), KvU64(100)).max(key("max"), KvU64(1)))
    equal(await numbers(kv), [7, 4, 8], "sum, min and max")
    await kv.write(kv.atomic().sum(key("sum"), KvU64(2**64 - 8)).sum(key("sum"), KvU64(3)))
    equal((await numbers(kv))[0], 2, "sum wraps")
    await kv.sum(key("float"), 1.5)
    await kv.sum(key("float"), 2.25)
    equal(await value(kv, "float"), 3.75, "a sum of floats")
    await kv.set(key("text"), "text")
    try:
        result = await kv.write(kv.atomic().set(key("undone"), 1.0).sum(key("text"), KvU64(1)))
    except Exception:
        pass
    else:
        equal(result.ok, False, "a sum on a text")
    equal(await value(kv, "undone"), None, "a failing mutation undoes the whole write")

    # Checks.
    first = await kv.write(kv.atomic().check_key_not_set(key("checked")).set(key("checked"), 1.0))
    equal(first.ok, True, "a check for absence on an absent key")
    again = await kv.write(kv.atomic().check_key_not_set(key("absent")).check_key_not_set(key("checked")))
    equal((again.ok, list(again.failed_checks)), (False, [1]), "a check for absence on a present key")
    version = first.versionstamp
    second = await kv.write(kv.atomic().check_key_has_version(key("checked"), version).set(key("checked"), 3.0))
    equal(second.ok and second.versionstamp > version, True, "versionstamps grow")
    equal(await value(kv, "checked"), 3.0, "after checks")

    # Versionstamped keys.
    stamp = await kv.set(key("stamped"), "v", versioned=True)
    equal(await value(kv, "stamped", str(stamp)), "v", "a versionstamped key")

    # Ranges, in both directions, with limits, and in several batches.
    names = [float(at) for at in range(25)]
    write = kv.atomic()
    for name in names:
        write.set(key("list", name), name)
    await kv.write(write)
    prefix = key("list")
    equal(await listed(kv, prefix=prefix), names, "list")
    equal(await listed(kv, prefix=prefix, batch_size=4), names, "list in batches")
    equal(await listed(kv, prefix=prefix, batch_size=7, reverse=True), names[::-1], "list in reverse")
    equal(await listed(kv, prefix=prefix, limit=3), names[:3], "list with a limit")
    equal(await listed(kv, prefix=prefix, limit=3, reverse=True), names[:-4:-1], "list in reverse with a limit")
    equal(await listed(kv, start=key("list", 5.0), end=key("list", 8.0)), [5, 6, 7], "list from start to end")

    # Many keys in one snapshot.
    many = await kv.get(key("list", 3.0), key("list", "none"), key("list", 4.0))
    equal([entry and entry.value for _, entry in many], [3, None, 4], "many keys")

    # Limits.
    large = bytes(at % 251 for at in range(65536))
    await kv.set(key("large"), large)
    equal(await value(kv, "large"), large, "a large value")
    await kv.set((b"\x03" * 2046,), ROOT)
    equal((await kv.get((b"\x03" * 2046,)))[1].value, ROOT, "a key of 2048 bytes")
    for name, too_much in ((key("large"), large + b"1"), ((b"\x03" * 2047,), b"")):
        try:
            await kv.set(name, too_much)
        except Exception:
            continue
        raise AssertionError("what exceeds a limit is refused")

    # Messages are part of a write.
    due = datetime.now(timezone.utc) + timedelta(hours=1)
    before = await kv.set(key("enqueued"), 0.0)
    write = kv.atomic().set(key("enqueued"), 1.0)
    write.enqueue({"text": "text"}, delivery_time=due, retry_delays=[1, 5], dead_letter_keys=[key("dead")])
    await kv.write(write)
    _, entry = await kv.get(key("enqueued"))
    equal((entry.value, entry.versionstamp > before), (1.0, True), "a write with a message")
    try:
        await kv.write(kv.atomic().enqueue("text", delivery_time=due, retry_delays=[3601]))
    except Exception:
        pass
    else:
        raise AssertionError("an interval that exceeds the limit is refused")

    # Expiry: not before, and soon after.
    expires = datetime.now(timezone.utc) + timedelta(milliseconds=700)
    await kv.write(Set(key("expires"), 1.0, expire_at=expires))
    early = await value(kv, "expires")
    if datetime.now(timezone.utc) < expires:
        equal(early, 1.0, "before it expires")

    async def gone():
        return await value(kv, "expires") is None

    await until("a key expires", 20, gone)
    equal(datetime.now(timezone.utc) >= expires - timedelta(milliseconds=10), True, "it expires not before")


async def everywhere(kv, urls):
    """What was acknowledged here is seen at once through every gateway, and soon by eventual reads."""
    versionstamp = await kv.set(key("everywhere"), ROOT)
    for url in urls:
        async with await open_kv(url) as there:
            _, entry = await there.get(key("everywhere"))
            equal((entry.value, entry.versionstamp), (ROOT, versionstamp), f"a strong read through {url}")

            async def seen():
                return await value(there, "everywhere", consistency=EVENTUAL) == ROOT

            await until(f"an eventual read through {url}", 30, seen)
            values = await listed(there, prefix=key("list"), limit=2, reverse=True, consistency=EVENTUAL)
            equal(values, [24, 23], "an eventual list")


async def main():
    url, *urls = sys.argv[1:]
    async with await open_kv(url) as kv:
        await operations(kv)
        await everywhere(kv, urls)


asyncio.run(main())
