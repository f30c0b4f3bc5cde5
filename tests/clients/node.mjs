// Every operation of KV through @deno/kv on Node. Arguments: the URL of a gateway, and those of all gateways.
// Ends with an error at the first wrong result.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { join } from "node:path";
import { randomUUID } from "node:crypto";

const { openKv, KvU64 } = createRequire(join(process.env.MERIDIAN_NODE_MODULES, "here.js"))("@deno/kv");
const [url, ...urls] = process.argv.slice(2);
const accessToken = process.env.DENO_KV_ACCESS_TOKEN;
const open = (url) => openKv(url, { accessToken });
const kv = await open(url);
const root = randomUUID();
const key = (...parts) => ["node", root, ...parts];

async function until(what, seconds, condition) {
  const deadline = performance.now() + seconds * 1000;
  while (!(await condition())) {
    assert(performance.now() < deadline, `not within ${seconds} s: ${what}`);
    await new Promise((done) => setTimeout(done, 20));
  }
}

async function list(selector, options) {
  const names = [];
  for await (const entry of kv.list(selector, options)) names.push(entry.key[2]);
  return names;
}

// set, get, delete; values of all kinds.
for (const value of ["text", 7, 2n ** 70n, true, new Uint8Array([0, 255]), { a: [1, { b: new Date(5) }] }]) {
  const { ok, versionstamp } = await kv.set(key("value"), value);
  assert(ok);
  assert.deepEqual(await kv.get(key("value")), { key: key("value"), value, versionstamp });
}
await kv.delete(key("value"));
assert.deepEqual(await kv.get(key("value")), { key: key("value"), value: null, versionstamp: null });

// Sums, minima and maxima of u64, also on what is absent, and wrapping.
const number = async (name) => (await kv.get(key(name))).value.value;
const numbers = async () => [await number("sum"), await number("min"), await number("max")];
await kv.atomic().sum(key("sum"), 5n).min(key("min"), 9n).max(key("max"), 3n).commit();
assert.deepEqual(await numbers(), [5n, 9n, 3n], "on absent keys");
await kv.atomic().sum(key("sum"), 2n).min(key("min"), 4n).max(key("max"), 8n).commit();
await kv.atomic().min(key("min"), 100n).max(key("max"), 1n).commit();
assert.deepEqual(await numbers(), [7n, 4n, 8n]);
await kv.atomic().sum(key("sum"), 2n ** 64n - 8n).sum(key("sum"), 3n).commit();
assert.equal(await number("sum"), 2n, "sum wraps");
await kv.set(key("u64"), new KvU64(40n));
await kv.atomic().sum(key("u64"), 2n).commit();
assert.equal(await number("u64"), 42n);
await kv.set(key("text"), "text");
await assert.rejects(kv.atomic().set(key("undone"), 1).sum(key("text"), 1n).commit(), "a sum on a text");
assert.equal((await kv.get(key("undone"))).value, null, "a failing mutation undoes the whole write");

// Checks.
const first = await kv.atomic().check({ key: key("checked"), versionstamp: null }).set(key("checked"), 1).commit();
assert(first.ok, "a check for absence on an absent key");
const again = await kv.atomic().check({ key: key("checked"), versionstamp: null }).set(key("checked"), 2).commit();
assert(!again.ok, "a check for absence on a present key");
const second = await kv.atomic().check({ key: key("checked"), versionstamp: first.versionstamp })
  .set(key("checked"), 3).commit();
assert(second.ok && second.versionstamp > first.versionstamp, "versionstamps grow");
assert.equal((await kv.get(key("checked"))).value, 3);

// Ranges, in both directions, with limits, and in several batches.
const all = Array.from({ length: 25 }, (_, at) => at);
await all.reduce((write, at) => write.set(["list", root, at], at), kv.atomic()).commit();
const prefix = ["list", root];
assert.deepEqual(await list({ prefix }), all);
assert.deepEqual(await list({ prefix }, { batchSize: 4 }), all);
assert.deepEqual(await list({ prefix }, { reverse: true, batchSize: 7 }), all.toReversed());
assert.deepEqual(await list({ prefix }, { limit: 3 }), [0, 1, 2]);
assert.deepEqual(await list({ prefix }, { limit: 3, reverse: true }), [24, 23, 22]);
assert.deepEqual(await list({ start: ["list", root, 5], end: ["list", root, 8] }), [5, 6, 7]);
assert.deepEqual(await list({ prefix, start: ["list", root, 22] }), [22, 23, 24]);
assert.deepEqual(await list({ prefix, end: ["list", root, 2] }, { reverse: true }), [1, 0]);

// Many keys in one snapshot.
const many = await kv.getMany([["list", root, 3], ["list", root, "none"], ["list", root, 4]]);
assert.deepEqual(many.map((entry) => entry.value), [3, null, 4]);

// Limits.
const value = new Uint8Array(65536).map((_, at) => at % 251);
await kv.set(key("large"), value);
assert.deepEqual((await kv.get(key("large"))).value, value);
await assert.rejects(kv.set(key("large"), new Uint8Array(65537)), "a larger value");
const longKey = [new Uint8Array(2046).fill(2)];
await kv.set(longKey, root);
assert.equal((await kv.get(longKey)).value, root, "a key of 2048 bytes");
await assert.rejects(kv.set([new Uint8Array(2047).fill(2)], root), "a longer key");

// Messages: the write's versionstamp is theirs, and they have limits.
const delay = 3_600_000;
const enqueued = await kv.enqueue({ text: "text" }, { delay, keysIfUndelivered: [key("dead")] });
assert(enqueued.ok && enqueued.versionstamp > second.versionstamp);
assert((await kv.enqueue(new Uint8Array(65_000), { delay })).ok);
await assert.rejects(kv.enqueue(new Uint8Array(65_537), { delay }), "a larger payload");
const keysIfUndelivered = Array.from({ length: 11 }, (_, at) => key("dead", at));
await assert.rejects(kv.enqueue("text", { delay, keysIfUndelivered }), "more keys");
await assert.rejects(kv.enqueue("text", { delay: 31 * 24 * delay }), "a longer delay");

// Expiry: not before, and soon after.
const set = performance.now();
await kv.set(key("expires"), 1, { expireIn: 700 });
const early = (await kv.get(key("expires"))).value;
if (performance.now() - set < 690) assert.equal(early, 1);
await until("a key expires", 20, async () => (await kv.get(key("expires"))).value === null);
assert(performance.now() - set >= 690, "it expired too soon");

// A watch tells of the present state first, and then of what changes, through every gateway.
async function told(reader, what, expected) {
  const late = setTimeout(() => reader.cancel(`not within 20 s: ${what}`), 20_000);
  for (;;) {
    const { done, value } = await reader.read();
    assert(!done, `the watch ended: ${what}`);
    const values = value.map((entry) => entry.value);
    assert.deepEqual(values[0], values[2], `${what}: one key, watched twice`);
    assert.equal(values[0] === "together", values[1] === "together", `${what}: half of a write`);
    if (JSON.stringify(values) === JSON.stringify(expected)) break;
  }
  clearTimeout(late);
}
for (const [at, other] of urls.entries()) {
  const there = await open(other);
  const [a, b] = [key("watched", at, "a"), key("watched", at, "b")];
  await kv.set(a, "before");
  const reader = there.watch([a, b, a]).getReader();
  await told(reader, `a watch through ${other}`, ["before", null, "before"]);
  await kv.set(b, 1);
  await told(reader, `a change through ${other}`, ["before", 1, "before"]);
  await kv.atomic().set(a, "together").set(b, "together").commit();
  await told(reader, `one write through ${other}`, ["together", "together", "together"]);
  await kv.atomic().delete(a).delete(b).commit();
  await told(reader, `a deletion through ${other}`, [null, null, null]);
  const setAt = performance.now();
  await kv.set(b, "kept", { expireIn: 300 });
  await kv.set(a, "later");
  await told(reader, `an expiry through ${other}`, ["later", null, "later"]);
  assert(performance.now() - setAt >= 290, "a watch told that it had expired too soon");
  await reader.cancel();
  there.close();
}

// What was acknowledged here is seen at once through every gateway, and soon by eventual reads.
const { versionstamp } = await kv.set(key("everywhere"), root);
for (const other of urls) {
  const there = await open(other);
  const entry = await there.get(key("everywhere"));
  assert.deepEqual([entry.value, entry.versionstamp], [root, versionstamp], other);
  const eventual = { consistency: "eventual" };
  await until(`an eventual read through ${other}`, 30, async () =>
    (await there.get(key("everywhere"), eventual)).value === root);
  const listed = [];
  for await (const entry of there.list({ prefix }, { limit: 2, reverse: true, ...eventual })) listed.push(entry.value);
  assert.deepEqual(listed, [24, 23], "an eventual list");
  there.close();
}
kv.close();
