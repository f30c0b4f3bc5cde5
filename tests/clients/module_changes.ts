// The change feed of the module. Arguments: the URL of a gateway. Ends with an error at the first
// wrong result.

import assert from "node:assert/strict";
import { Proxy } from "./proxy.ts";

const [url] = Deno.args;
const kv = await Deno.openKv(url);
const root = crypto.randomUUID();
const late = setTimeout(() => assert.fail("a change did not come"), 60_000);

const keys = [
  [new Uint8Array([0, 1, 255, 0])],
  ["a\0b", "", "é\u{10000}", "\ufeffmark"],
  [-1.5, 0, -0, Infinity, -Infinity, 1e300],
  [0n, 1n, -1n, 255n, -256n, 2n ** 64n - 1n, 2n ** 64n, -(2n ** 64n), 12345678901234567890123n],
  [true, false],
].map((parts) => [root, ...parts]);
const values = ["text", { at: new Date(5), parts: new Set([1n]) }, new Uint8Array([7]), new Deno.KvU64(9n), null];
const before = await kv.set([root], 1);
const stamps = [];
for (const [index, key] of keys.entries()) {
  stamps.push((await kv.atomic().set(key, values[index]).delete([root, "none"]).commit()).versionstamp);
}
await kv.set(["elsewhere", root], 1);
const expiring = await kv.set([root, "expiring"], 1, { expireIn: 3_600_000 });

// All of it, and then a place to go on from. A region may have it a moment later.
const told = [];
for await (const line of kv.changes({ prefix: [root], after: before.versionstamp })) {
  told.push(line);
  if (line.versionstamp >= expiring.versionstamp) break;
}
const transactions = told.filter(({ changes }) => changes.length > 0);
assert.deepEqual(transactions.map(({ versionstamp }) => versionstamp), [...stamps, expiring.versionstamp]);
for (const [index, key] of keys.entries()) {
  const [set, deleted] = transactions[index].changes.toSorted((a, b) => a.op < b.op ? 1 : -1);
  assert.deepEqual(set, { op: "set", key, value: values[index] });
  assert.deepEqual(deleted, { op: "delete", key: [root, "none"] });
}
const { expireAt } = transactions.at(-1).changes[0];
assert(Math.abs(expireAt - Date.now() - 3_600_000) < 600_000);
const place = told.at(-1).versionstamp;
assert(place >= expiring.versionstamp);
const rest = await Array.fromAsync(kv.changes({ prefix: [root], after: place, follow: false }));
assert.deepEqual(rest.flatMap(({ changes }) => changes), []);

// From now on: the first event says from when, and a program that is slow misses nothing.
const abort = new AbortController();
const heard = [];
for await (const { versionstamp, changes } of kv.changes({ prefix: [root, "new"], signal: abort.signal })) {
  if (heard.length === 0) await kv.set([root, "new", heard.length], "first");
  heard.push(...changes.map(({ value }) => value));
  if (heard.includes("first") && !heard.includes("second")) await kv.set([root, "new", versionstamp], "second");
  if (heard.includes("second")) abort.abort();
}
assert.deepEqual(heard.filter((value, index) => heard.indexOf(value) === index), ["first", "second"]);

// Over connections that break nothing is left out, and nothing comes twice.
const proxy = new Proxy(new URL(url));
const broken = await Deno.openKv(`http://127.0.0.1:${proxy.port}`);
const numbers = Array.from({ length: 40 }, (_, number) => number);
const seen = [];
let writing;
for await (const { changes } of broken.changes({ prefix: [root, "broken"] })) {
  writing ??= (async () => {
    for (const number of numbers) {
      await kv.set([root, "broken", number], number);
      if (number % 8 === 5) proxy.cut();
    }
  })();
  seen.push(...changes.map(({ value }) => value));
  if (seen.length >= numbers.length) break;
}
await writing;
assert.deepEqual(seen, numbers);
broken.close();
proxy.close();

// What cannot be served is an error, not an end.
const failed = (options) => Array.fromAsync(kv.changes(options)).then(() => assert.fail("it was served"), (error) => error);
assert.equal((await failed({ after: "zzz" })).status, 400);
assert((await failed({ prefix: [{}] })) instanceof TypeError);

const following = Array.fromAsync(kv.changes({ prefix: [root] }));
kv.close();
await following;
clearTimeout(late);
