// The package for Node and Bun: `deploy/deno/node.js` over `@deno/kv`. Arguments: the URL of a gateway.
// Ends with an error at the first wrong result.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { KvU64, openKv } from "./package.mjs";

const late = setTimeout(() => assert.fail("a message did not come"), 60_000);
const [url] = process.argv.slice(2);
const accessToken = process.env.DENO_KV_ACCESS_TOKEN;
const kv = await openKv(url, { accessToken });
const root = randomUUID();
const key = (...parts) => ["node module", root, ...parts];

const came = [];
let arrived = () => {};
const over = kv.listenQueue((value, about) =>
  new Promise((end, fail) => {
    came.push({ value, about, end, fail });
    arrived();
  }), { concurrency: 3 });
async function next() {
  while (came.length === 0) await new Promise((done) => arrived = done);
  return came.shift();
}

for (const value of ["text", { at: new Date(5), parts: new Set([1n]) }, undefined]) {
  const { ok, versionstamp } = await kv.enqueue(value);
  assert(ok);
  const message = await next();
  assert.deepEqual(message.value, value);
  assert.equal(message.about.attempt, 1);
  assert(message.about.id.startsWith(versionstamp));
  message.end();
}
await kv.enqueue(new Uint8Array([0, 255]));
const bytes = await next();
assert.deepEqual([...bytes.value], [0, 255]);
bytes.end();
await kv.enqueue(new KvU64(5n));
const number = await next();
assert.deepEqual(number.value, { value: 5n });
number.end();

// A message is of the write it stands in.
const check = { key: key("beside"), versionstamp: null };
const write = () => kv.atomic().check(check).set(key("beside"), 1).enqueue("beside").commit();
assert((await write()).ok);
assert(!(await write()).ok);
const beside = await next();
// It is done with a write of its handler, once.
const effect = () => kv.atomic().sum(key("effect"), 1n).acknowledge(beside.about).commit();
assert((await effect()).ok);
assert(!(await effect()).ok);
assert.deepEqual((await kv.get(key("effect"))).value, new KvU64(1n));
assert.equal(beside.value, "beside");
beside.end();

// A queue with a name has listeners of its own.
const email = new Promise((done) => kv.listenQueue(done, { queue: "emails" }));
await kv.atomic().enqueue("an email", { queue: "emails" }).enqueue("no email").commit();
assert.equal(await email, "an email");
const unnamed = await next();
assert.equal(unnamed.value, "no email");
unnamed.end();
await assert.rejects(kv.enqueue("", { queue: "n".repeat(65) }), /at most 64 bytes/);

// Its schedule is the program's, which `@deno/kv` alone does not send.
await kv.enqueue("dies", { backoffSchedule: [1], keysIfUndelivered: [key("dead")] });
for (const attempt of [1, 2]) {
  const message = await next();
  assert.deepEqual([message.value, message.about.attempt], ["dies", attempt]);
  message.fail(new Error("as the test wants it"));
}
for await (const [{ value }] of kv.watch([key("dead")])) if (value === "dies") break;

// The other operations are those of `@deno/kv`, and writes have ids.
await kv.atomic().sum(key("count"), 1n).commit();
assert.equal((await kv.get(key("count"))).value.value, 1n);
await kv.set(key("set"), 1, { expireIn: 60_000 });
await kv.delete(key("set"));
assert.equal((await kv.get(key("set"))).value, null);
const told = [];
// What the gateway's node has not applied yet is not told.
while (told.length === 0) {
  for await (const { changes } of kv.changes({ prefix: key(), after: "0".repeat(20), follow: false })) {
    told.push(...changes.filter((change) => change.key[2] === "count"));
  }
}
assert.deepEqual(told, [{ op: "set", key: key("count"), value: new KvU64(1n) }]);
for await (const entry of kv.list({ prefix: [] })) assert.equal(typeof entry.key[0], "string");

kv.close();
await over;
assert.equal(came.length, 0);

// Without a server it is as ever.
const local = await openKv("");
await local.set(["a"], 1);
assert.equal((await local.get(["a"])).value, 1);
local.close();
clearTimeout(late);
