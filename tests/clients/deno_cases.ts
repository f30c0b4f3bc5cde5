// What a program may expect of Deno KV, case by case, through native Deno. Argument: the URL of a gateway.
// Runs all cases, prints those that fail, and ends with an error if there are any. `kv_test.md` says which of Deno's
// own tests look at the same.

import { equal, fails, finish, holds, type Key, shown, test, until, VALUES } from "./cases.ts";

const [url] = Deno.args;
const kv = await Deno.openKv(url);

async function committed(write: Deno.AtomicOperation) {
  const result = await write.commit();
  if (!result.ok) throw new Error("a check failed");
  return result.versionstamp;
}

const u64 = (value: bigint) => new Deno.KvU64(value);
const value = async (key: Deno.KvKey) => (await kv.get(key)).value;

// One key.

await test("a key is absent, then set, overwritten and deleted, with versionstamps that grow", async (key) => {
  const absent = { key: key(), value: null, versionstamp: null };
  equal(await kv.get(key()), absent);
  let last = "00000000000000000000";
  for (const value of ["first", "second"]) {
    const { ok, versionstamp } = await kv.set(key(), value);
    equal(ok, true);
    holds(/^[0-9a-f]{20}$/.test(versionstamp) && versionstamp > last, `${versionstamp} follows ${last}`);
    equal(await kv.get(key()), { key: key(), value, versionstamp });
    last = versionstamp;
  }
  await kv.delete(key());
  equal(await kv.get(key()), absent);
});

for (const [name, stored, kept = stored] of VALUES) {
  await test(`${name} is read as it was written`, async (key) => {
    await kv.set(key(), stored);
    equal(await value(key()), kept);
  });
}

await test("an error keeps its kind, message and cause", async (key) => {
  await kv.set(key(), new RangeError("too far", { cause: "a cause" }));
  const error = await value(key()) as RangeError;
  equal([error.name, error.message, error.cause], ["RangeError", "too far", "a cause"]);
});

const NOT_STORED: [string, unknown][] = [
  ["a function", () => {}], ["a symbol", Symbol("s")], ["a WeakMap", new WeakMap()], ["a WeakSet", new WeakSet()],
  ["a SharedArrayBuffer", new SharedArrayBuffer(1)], ["an object with a function", { call() {} }],
  ["a WebAssembly module", new WebAssembly.Module(new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0]))],
];
for (const [name, refused] of NOT_STORED) {
  await test(`${name} is refused and nothing is stored`, async (key) => {
    await fails("", () => kv.set(key(), refused));
    equal((await kv.get(key())).versionstamp, null);
  });
}

const PARTS: Deno.KvKeyPart[] = [
  "a", "", "a\0b", "世界", 0, -0, 1, -1.5, 1e300, -Infinity, NaN, 0n, 1n, -1n, 255n, -256n, 2n ** 64n, -(2n ** 100n),
  true, false, new Uint8Array(), new Uint8Array([0, 255, 0]),
];
for (const part of PARTS) {
  await test(`${shown(part)} is a part of a key, at its end and within`, async (key) => {
    for (const parts of [[part], [part, "b"], ["a", part], [part, part, 1n, true]]) {
      await kv.set(key(...parts), parts.length);
      equal(await kv.get(key(...parts)).then((entry) => [entry.key, entry.value]), [key(...parts), parts.length]);
    }
  });
}

await test("what is no key is refused", async (key) => {
  for (const bad of [[], [null], [undefined], [{}], [new Date()], [new ArrayBuffer(3)], [["a"]], [Symbol("s")]]) {
    await fails("", () => kv.set(bad as unknown as Deno.KvKey, 1));
  }
  const text = "a" as unknown as Deno.KvKey;
  await fails("", () => kv.get(text));
  await fails("", () => kv.getMany([text]));
  await fails("", () => kv.set(text, 1));
  await fails("", () => kv.delete(text));
  await fails("", () => kv.atomic().mutate({ key: text, type: "set", value: 1 }).commit());
  await fails("", () => kv.atomic().check({ key: text, versionstamp: null }).set(key(), 1).commit());
});

await test("keys are ordered by the types of their parts, then by their values", async (key) => {
  const ordered: Deno.KvKeyPart[] = [
    new Uint8Array([1]), new Uint8Array([1, 0]), new Uint8Array([2]), "", "a", "a\0", "aa", "b", -(2n ** 70n), -256n, -1n,
    0n, 1n, 255n, 256n, 2n ** 70n, -Infinity, -1.5, 0, 0.5, 3, Infinity, false, true,
  ];
  const write = kv.atomic();
  for (const part of ordered.toReversed()) write.set(key(part), 1);
  await committed(write);
  const entries = await Array.fromAsync(kv.list({ prefix: key() }));
  equal(entries.map((entry) => entry.key[1]), ordered);
});

// Atomic writes.

await test("a check of a version holds for that version alone", async (key) => {
  const { versionstamp: first } = await kv.set(key(), 1);
  const second = await committed(kv.atomic().check({ key: key(), versionstamp: first }).set(key(), 2));
  holds(second > first, "versionstamps grow");
  equal(await kv.get(key()), { key: key(), value: 2, versionstamp: second });
  const late = await kv.atomic().check({ key: key(), versionstamp: first }).set(key(), 3).commit();
  equal(late, { ok: false });
  equal(await kv.get(key()), { key: key(), value: 2, versionstamp: second });
});

await test("a check for absence holds once, and again after a deletion", async (key) => {
  const claim = () => kv.atomic().check({ key: key(), versionstamp: null }).set(key(), "claimed").commit();
  equal([(await claim()).ok, (await claim()).ok], [true, false]);
  await kv.delete(key());
  equal((await claim()).ok, true);
});

await test("one of several checks that fails fails the write", async (key) => {
  const versionstamp = await committed(kv.atomic().set(key(1), "a").set(key(2), "b"));
  const [one, two] = await kv.getMany([key(1), key(2)]);
  equal([one.versionstamp, two.versionstamp], [versionstamp, versionstamp], "the stamp of one write");
  await committed(kv.atomic().check(one, two).set(key(1), "c").set(key(2), "d"));
  const mixed = await kv.atomic().check({ key: key(3), versionstamp: null }, one).set(key(1), "e").set(key(3), "f").commit();
  equal(mixed.ok, false);
  equal((await kv.getMany([key(1), key(2), key(3)])).map((entry) => entry.value), ["c", "d", null]);
});

await test("a versionstamp that is none is refused", async (key) => {
  for (const versionstamp of ["", "xx".repeat(10), "aa".repeat(9), "aa".repeat(11)]) {
    await fails("", () => kv.atomic().check({ key: key(), versionstamp }).commit());
  }
});

await test("mutations of one write apply in their order", async (key) => {
  await kv.set(key(1), "before");
  await committed(kv.atomic().set(key(1), "x").delete(key(1)).delete(key(2)).set(key(2), "y").set(key(3), 1).set(key(3), 2));
  equal((await kv.getMany([key(1), key(2), key(3)])).map((entry) => entry.value), [null, "y", 2]);
});

await test("each type of mutation does what it says, on keys that are there and that are not", async (key) => {
  const mutate = (...mutations: Deno.KvMutation[]) => committed(kv.atomic().mutate(...mutations));
  await mutate({ key: key("set"), type: "set", value: 1 }, { key: key("gone"), type: "delete" });
  await mutate({ key: key("set"), type: "set", value: 2 });
  equal(await value(key("set")), 2);
  await mutate({ key: key("set"), type: "delete" });
  equal(await value(key("set")), null);
  for (const [type, steps] of [
    ["sum", [[10n, 10n], [1n, 11n], [2n ** 64n - 1n, 10n], [2n ** 64n - 10n, 0n]]],
    ["min", [[10n, 10n], [15n, 10n], [5n, 5n], [5n, 5n]]],
    ["max", [[10n, 10n], [5n, 10n], [15n, 15n], [2n ** 64n - 1n, 2n ** 64n - 1n]]],
  ] as const) {
    for (const [operand, expected] of steps) {
      await mutate({ key: key(type), type, value: u64(operand) });
      equal(await value(key(type)), u64(expected), `${type} of ${operand}`);
    }
  }
  await committed(kv.atomic().sum(key("helper"), 41n).sum(key("helper"), 1n).min(key("low"), 3n).max(key("high"), 4n));
  equal((await kv.getMany([key("helper"), key("low"), key("high")])).map((entry) => entry.value), [u64(42n), u64(3n), u64(4n)]);
});

await test("sums of numbers and bigints keep their type", async (key) => {
  const sum = (name: string, value: unknown) =>
    committed(kv.atomic().mutate({ key: key(name), type: "sum", value } as unknown as Deno.KvMutation));
  for (const [operand, expected] of [[1.5, 1.5], [2, 3.5], [-10, -6.5], [2 ** 53, 2 ** 53 - 6]]) {
    await sum("number", operand);
    equal(await value(key("number")), expected);
  }
  for (const [operand, expected] of [[2n ** 100n, 2n ** 100n], [-1n, 2n ** 100n - 1n], [-(2n ** 100n), -1n]]) {
    await sum("bigint", operand);
    equal(await value(key("bigint")), expected);
  }
  await fails("Cannot sum BigInt with Number", () => sum("bigint", 1));
  await fails("Cannot sum Number with BigInt", () => sum("number", 1n));
  await kv.set(key("u64"), u64(1n));
  await fails("Cannot sum KvU64 with Number", () => sum("u64", 1));
  await sum("u64", 2n);
  equal(await value(key("u64")), u64(3n), "a bigint added to a u64");
  await kv.set(key("text"), "text");
  await fails("unsupported value type", () => sum("text", 1));
  await fails("Some of the parameters are not valid V8 values", () => sum("number", "text"));
});

await test("a sum, min or max on another type fails, and undoes its whole write", async (key) => {
  await kv.set(key("number"), 1);
  for (const type of ["sum", "min", "max"] as const) {
    const text = `Failed to perform '${type}' mutation on a non-U64 value in the database`;
    const write = () => kv.atomic().set(key("undone"), 1).mutate({ key: key("number"), type, value: u64(1n) }).commit();
    await fails(text, write);
    if (type === "sum") continue;
    await kv.set(key("u64"), u64(1n));
    const operand = { key: key("u64"), type, value: 1 } as unknown as Deno.KvMutation;
    await fails(`Failed to perform '${type}' mutation on a non-U64 operand`, () => kv.atomic().mutate(operand).commit());
  }
  equal((await kv.getMany([key("undone"), key("number")])).map((entry) => entry.value), [null, 1]);
});

await test("a mutation that is none is refused", async (key) => {
  for (const bad of [{ type: "set" }, { type: "delete", value: 1 }, { type: "other" }, { type: "other", value: 1 }]) {
    await fails("", () => kv.atomic().mutate({ key: key(), ...bad } as unknown as Deno.KvMutation).commit());
  }
});

await test("an empty write commits, and one with checks alone may fail", async (key) => {
  const first = await committed(kv.atomic());
  const absent = { key: key(), versionstamp: null };
  holds(await committed(kv.atomic().check(absent)) > first, "each write has a versionstamp of its own");
  await kv.set(key(), 1);
  equal((await kv.atomic().check(absent).commit()).ok, false);
});

await test("a versionstamp behind a key is that of its write, and in order", async (key) => {
  const stamp = kv.commitVersionstamp() as unknown as Deno.KvKeyPart;
  const stamps: string[] = [];
  for (const name of ["b", "c"]) stamps.push((await kv.set(key("log", stamp), name)).versionstamp);
  stamps.push(await committed(kv.atomic().set(key("log", stamp), "d").set(key("other"), 1)));
  const entries = await Array.fromAsync(kv.list({ prefix: key("log") }));
  equal(entries, ["b", "c", "d"].map((value, at) => ({ key: key("log", stamps[at]), value, versionstamp: stamps[at] })));
  await fails("", () => kv.set(key(stamp, "behind"), 1));
});

await test("sums of twenty connections at a time are all counted", async (key) => {
  const connections = await Promise.all(Array.from({ length: 20 }, () => Deno.openKv(url)));
  for (let round = 0; round < 5; round += 1) {
    await Promise.all(connections.map((each) => each.atomic().sum(key(), 1n).commit()));
  }
  equal(await value(key()), u64(100n));
  connections.forEach((each) => each.close());
});

// Several keys.

async function alphabet(key: Key) {
  const write = kv.atomic().set(key("a"), -1).set(key("b"), 99).set(key("b", "a"), 100);
  ["a", "b", "c", "d", "e"].forEach((name, at) => write.set(key("a", name), at));
  return await committed(write);
}

await test("several keys are read from one moment, in the order asked for", async (key) => {
  const versionstamp = await alphabet(key);
  equal(await kv.getMany([key("b", "a"), key("a"), key("none"), key("a")]), [
    { key: key("b", "a"), value: 100, versionstamp },
    { key: key("a"), value: -1, versionstamp },
    { key: key("none"), value: null, versionstamp: null },
    { key: key("a"), value: -1, versionstamp },
  ]);
  equal(await kv.getMany([]), []);
});

await test("lists have what lies between their ends, in either direction, however it is cut", async (key) => {
  const versionstamp = await alphabet(key);
  const all = [0, 1, 2, 3, 4];
  const a = key("a");
  const lists: [Deno.KvListSelector, number[]][] = [
    [{ prefix: a }, all],
    [{ prefix: key("c") }, []],
    [{ prefix: key("a", "f") }, []],
    [{ prefix: a, start: key("a", "c") }, [2, 3, 4]],
    [{ prefix: a, start: key("a", "f") }, []],
    [{ prefix: a, end: key("a", "c") }, [0, 1]],
    [{ prefix: a, end: key("a", "a") }, []],
    [{ start: key("a", "a"), end: key("a", "z") }, all],
    [{ start: key("a", "b"), end: key("a", "d") }, [1, 2]],
    [{ start: a, end: key("a", "d") }, [-1, 0, 1, 2]],
    [{ start: a, end: key("b", "b") }, [-1, ...all, 99, 100]],
    [{ start: a, end: a }, []],
  ];
  for (const [selector, expected] of lists) {
    for (const reverse of [false, true]) {
      for (const batchSize of [undefined, 1, 2, 5, 500]) {
        for (const limit of [undefined, 1, 2, 3, 100]) {
          const options = { reverse, batchSize, limit };
          const entries = await Array.fromAsync(kv.list<number>(selector, options));
          const wanted = (reverse ? expected.toReversed() : expected).slice(0, limit);
          equal(entries.map((entry) => entry.value), wanted, `the list of ${shown(selector)}, ${shown(options)}`);
          holds(entries.every((entry) => entry.versionstamp === versionstamp), "entries have their versionstamp");
        }
      }
    }
  }
  const [first] = await Array.fromAsync(kv.list({ prefix: a }, { limit: 1 }));
  equal(first, { key: key("a", "a"), value: 0, versionstamp });
});

await test("a cursor goes on where a list ended, in either direction", async (key) => {
  await alphabet(key);
  for (const selector of [{ prefix: key("a") }, { start: key("a", "a"), end: key("a", "z") }]) {
    for (const reverse of [false, true]) {
      const seen = [];
      let cursor: string | undefined = undefined;
      do {
        const list: Deno.KvListIterator<number> = kv.list<number>(selector, { limit: 2, reverse, cursor });
        const page = await Array.fromAsync(list);
        seen.push(...page.map((entry) => entry.value));
        cursor = page.length > 0 ? list.cursor : "";
        if (seen.length === 2 && "prefix" in selector) equal(cursor, reverse ? "AmQA" : "AmIA", "the cursor");
      } while (cursor !== "");
      equal(seen, reverse ? [4, 3, 2, 1, 0] : [0, 1, 2, 3, 4]);
    }
  }
});

await test("a list that is longer than a batch has all of it, and the empty prefix has everything", async (key) => {
  const write = kv.atomic();
  for (let at = 0; at < 1000; at += 1) write.set(key(at), at);
  await committed(write);
  const all = await Array.fromAsync(kv.list<number>({ prefix: key() }));
  equal(all.map((entry) => entry.value), Array.from({ length: 1000 }, (_, at) => at));
  const reversed = await Array.fromAsync(kv.list<number>({ prefix: key() }, { reverse: true, batchSize: 1000 }));
  equal(reversed.map((entry) => entry.value), all.map((entry) => entry.value).toReversed());
  let own = 0;
  for await (const entry of kv.list({ prefix: [] })) own += entry.key[0] === key()[0] ? 1 : 0;
  equal(own, 1000);
});

await test("a selector that selects nothing sensible is refused", async (key) => {
  const list = (selector: unknown) => () => Array.fromAsync(kv.list(selector as Deno.KvListSelector));
  const a = key("a");
  await fails("not in the keyspace", list({ prefix: a, start: a }));
  await fails("not in the keyspace", list({ prefix: key("b"), start: a }));
  await fails("not in the keyspace", list({ prefix: a, end: a }));
  await fails("not in the keyspace", list({ prefix: a, end: key("b") }));
  await fails("greater than end", list({ start: key("b"), end: a }));
  for (const bad of [{ prefix: a, start: key("a", "b"), end: key("a", "c") }, { start: a }, { end: a }, {}]) {
    await fails("", list(bad));
  }
});

// Limits. Deno's client has them itself; what is at a limit goes to the server.

await test("keys and values are as large as they may be and no larger", async (key) => {
  const part = (length: number) => new Uint8Array(length).fill(1);
  const { versionstamp } = await kv.set([part(2046)], 1);
  equal((await kv.get([part(2046)])).versionstamp, versionstamp);
  await fails("2048", () => kv.set([part(2047)], 1));
  await fails("2049", () => kv.get([part(2048)]));
  await kv.delete([part(2046)]);
  const large = crypto.getRandomValues(new Uint8Array(65_536));
  await kv.set(key(), large);
  const found = await value(key()) as Uint8Array;
  holds(found.length === large.length && found.every((byte, at) => byte === large[at]), "all bytes are there");
  await fails("65536", () => kv.set(key(), new Uint8Array(65_537)));
});

await test("reads and writes have as many parts as they may have and no more", async (key) => {
  const keys = (count: number) => Array.from({ length: count }, (_, at) => key(at));
  equal((await kv.getMany(keys(10))).length, 10);
  await fails("10", () => kv.getMany(keys(11)));
  const list = (options: Deno.KvListOptions) => Array.fromAsync(kv.list({ prefix: key() }, options));
  equal(await list({ batchSize: 1000 }), []);
  await fails("1000", () => list({ batchSize: 1001 }));
  equal(await list({ limit: 1001 }), []);
  const absent = (count: number) => keys(count).map((each) => ({ key: each, versionstamp: null }));
  await committed(kv.atomic().check(...absent(100)));
  await fails("100", () => kv.atomic().check(...absent(101)).commit());
  const sets = (count: number) => keys(count).map((each) => ({ key: each, type: "set", value: 1 }) as const);
  await committed(kv.atomic().check(...absent(10)).mutate(...sets(1000)));
  await fails("1000", () => kv.atomic().mutate(...sets(1001)).commit());
  equal((await list({ batchSize: 1000 })).length, 1000);
});

await test("a write is as large in all as it may be and no larger", async (key) => {
  const of = (count: number, length: number) => {
    const write = kv.atomic();
    for (let at = 0; at < count; at += 1) write.set(key(at), new Uint8Array(length));
    return write;
  };
  await committed(of(12, 65_536));
  await fails("819200", () => of(13, 65_536).commit());
  await fails("819200", () => of(1000, 3000).commit());
  const long = Array.from({ length: 80 }, () => "a".repeat(1100));
  const write = kv.atomic();
  for (const part of long) write.set(key(part), 1);
  await fails("81920", () => write.commit());
});

// Time, connections, refusals.

await test("what expires goes, also when set in one write, and what is set again stays", async (key) => {
  const expireIn = 800;
  const set = performance.now();
  await kv.set(key("a"), 1, { expireIn });
  await kv.set(key("b"), 2, { expireIn });
  await committed(kv.atomic().set(key("c"), 3, { expireIn }).set(key("d"), 4, { expireIn }).set(key("e"), 5));
  const keys = ["a", "b", "c", "d", "e"].map((name) => key(name));
  const values = async () => (await kv.getMany(keys)).map((entry) => entry.value);
  const early = await values();
  if (performance.now() - set < expireIn - 10) equal(early, [1, 2, 3, 4, 5]);
  await kv.set(key("b"), 2, { expireIn: 3_600_000 });
  await until("what expires is gone", async () => shown(await values()) === shown([null, 2, null, null, 5]));
  holds(performance.now() - set >= expireIn, "nothing expires too soon");
  await committed(kv.atomic().check({ key: key("a"), versionstamp: null }).set(key("a"), 6));
  const listed = await Array.fromAsync(kv.list({ prefix: key() }));
  equal(listed.map((entry) => entry.key[1]), ["a", "b", "e"]);
});

await test("an expiry that is no duration is refused", async (key) => {
  for (const expireIn of [-1, 0.5, NaN]) await fails("", () => kv.set(key(), 1, { expireIn }));
});

await test("a closed connection is not used any more, and closes at the end of its scope", async (key) => {
  let kept: Deno.Kv;
  {
    using scoped = await Deno.openKv(url);
    kept = scoped;
    equal((await scoped.get(key())).value, null);
  }
  await fails("BadResource", () => kept.get(key()));
  using twice = await Deno.openKv(url);
  twice.close();
  await fails("BadResource", () => twice.get(key()));
});

await test("many connections open and close at once", async () => {
  const connections = await Promise.all(Array.from({ length: 30 }, () => Deno.openKv(url)));
  connections.forEach((each) => each.close());
});

await test("the classes of KV are there and make nothing by themselves", async () => {
  holds(kv instanceof Deno.Kv && kv.atomic() instanceof Deno.AtomicOperation, "both are classes");
  await fails("", () => new (Deno.Kv as unknown as new () => Deno.Kv)());
  equal([u64(1n).value, u64(1n).valueOf(), `${u64(1n)}`, shown(u64(1n))], [1n, 1n, "1", "[Deno.KvU64: 1n]"]);
  equal([u64(1n) as unknown as bigint + 1n, shown(u64(1n)) === shown(u64(2n))], [2n, false]);
  await fails("RangeError", () => u64(2n ** 64n));
  await fails("RangeError", () => u64(-1n));
});

await test("a watch tells the present state, and then what it becomes", async (key) => {
  const reader = kv.watch<number[]>([key()]).getReader();
  equal((await reader.read()).value, [{ key: key(), value: null, versionstamp: null }]);
  for (const value of [1, 2]) {
    const { versionstamp } = await kv.set(key(), value);
    equal((await reader.read()).value, [{ key: key(), value, versionstamp }]);
  }
  await kv.delete(key());
  equal((await reader.read()).value, [{ key: key(), value: null, versionstamp: null }]);
  await reader.cancel();
});

await test("a watch ends with its connection", async (key) => {
  const other = await Deno.openKv(url);
  const told: unknown[] = [];
  const over = (async () => {
    for await (const entries of other.watch([key()])) {
      told.push(entries.map((entry) => entry.value));
      other.close();
    }
  })();
  const late = Promise.withResolvers<void>();
  const timer = setTimeout(() => late.reject(new Error("it did not end")), 10_000);
  await Promise.race([over, late.promise]);
  clearTimeout(timer);
  equal(told, [[null]]);
});

await test("a database that is not there cannot be used", async (key) => {
  await fails("no such database", async () => {
    using absent = await Deno.openKv(`${url}/db/absent`);
    await absent.get(key());
  });
});

kv.close();
finish();
