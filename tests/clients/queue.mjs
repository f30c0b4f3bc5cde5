// Messages that @deno/kv enqueues, through a listener of another gateway. Arguments: the URL to enqueue at, that to
// listen at, and the id of the database. Ends with an error at the first wrong result.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { join } from "node:path";
import { deserialize } from "node:v8";

const { openKv } = createRequire(join(process.env.MERIDIAN_NODE_MODULES, "here.js"))("@deno/kv");
const [writeUrl, listenUrl, database] = process.argv.slice(2);
const accessToken = process.env.DENO_KV_ACCESS_TOKEN;
const kv = await openKv(writeUrl, { accessToken });
const headers = {
  authorization: `Bearer ${accessToken}`,
  "x-denokv-version": "3",
  "x-denokv-database-id": database,
};
const ask = (path, body) =>
  fetch(`${listenUrl}/kv/queue/${path}`, { method: "POST", headers, body: JSON.stringify(body) });

const left = new AbortController();
const answer = await fetch(`${listenUrl}/kv/queue/listen`, {
  method: "POST",
  headers,
  body: JSON.stringify({ credits: 2 }),
  signal: left.signal,
});
assert.equal(answer.status, 200);

async function* lines() {
  const text = new TextDecoder();
  let read = "";
  for await (const bytes of answer.body) {
    read += text.decode(bytes, { stream: true });
    const whole = read.split("\n");
    read = whole.pop();
    for (const line of whole) yield JSON.parse(line);
  }
}

const heard = lines();
const next = async (type) => {
  for (;;) {
    const { value: line, done } = await heard.next();
    assert(!done, "the stream goes on");
    if (line.type === type) return line;
  }
};
const { listener } = await next("open");
const report = async (message, verdict, more) => {
  const { id, due } = message;
  const answer = await ask("report", { listener, reports: [{ id, due, verdict, ...more }] });
  assert.equal(answer.status, 200);
  assert.deepEqual(await answer.json(), { results: ["done"] });
};

// Of one transaction with what is set beside it.
const value = { order: 7, at: new Date(5), parts: new Set([1n]) };
assert((await kv.atomic().set(["queue", "beside"], 1).enqueue(value).commit()).ok);
let message = await next("message");
assert.equal(message.attempt, 1);
assert.deepEqual(deserialize(Buffer.from(message.payload, "base64")), value);
await report(message, "nack", { delayMs: 1 });
const again = await next("message");
assert.deepEqual([again.id, again.attempt], [message.id, 2]);
await report(again, "ack");

// A delay, and the order of commits.
const start = Date.now();
await kv.enqueue("later", { delay: 4000 });
await kv.enqueue("first");
await kv.enqueue("second");
for (const expected of ["first", "second", "later"]) {
  message = await next("message");
  assert.equal(deserialize(Buffer.from(message.payload, "base64")), expected);
  await report(message, "ack");
}
assert(Date.now() - start >= 4000, "not before its time");
left.abort();
kv.close();
