// Queues through the native client with the module. Arguments: the URL of a gateway to enqueue at, and of one to listen
// at. Run with `--preload URL/.meridian/v1/deno.js`. Ends with an error at the first wrong result.

import type { QueueHandler, QueueMessage } from "../../deploy/deno/meridian.d.ts";
import { Proxy } from "./proxy.ts";

function equal(actual: unknown, expected: unknown, what: string) {
  const [left, right] = [Deno.inspect(actual), Deno.inspect(expected)];
  if (left !== right) throw new Error(`${what}: ${left} instead of ${right}`);
}

async function rejects(promise: Promise<unknown>, expected: RegExp, what: string) {
  const error = await promise.then(() => "no error", String);
  if (!expected.test(error)) throw new Error(`${what}: ${error}`);
}

const late = setTimeout(() => {
  console.error("a message did not come");
  Deno.exit(1);
}, 80_000);

const [writing, listening] = Deno.args.slice(0, 2).map((url) => new Proxy(new URL(url)));
const open = (proxy: Proxy) => Deno.openKv(`http://127.0.0.1:${proxy.port}`);
const [kv, there] = await Promise.all([open(writing), open(listening)]);
const root = crypto.randomUUID();
const key = (name: string) => ["module queue", root, name];

/** Messages that came, and handlers that wait for them. */
const came: { value: unknown; about: QueueMessage; end: () => void; fail: (error: Error) => void }[] = [];
let arrived = () => {};
const handler: QueueHandler = (value, about) =>
  new Promise<void>((end, fail) => {
    came.push({ value, about, end, fail });
    arrived();
  });
async function next() {
  while (came.length === 0) await new Promise<void>((done) => arrived = done);
  return came.shift()!;
}
let isOver = false;
const over = there.listenQueue(handler).then(() => isOver = true);

// Values of all kinds are what the native client makes of them.
const values = [
  "text",
  { a: [1, { b: new Date(5) }], map: new Map([[1n, new Set(["x"])]]) },
  new Uint8Array([0, 255, 7]),
  new Uint8Array(65_000).fill(9),
  { inside: new Uint8Array([1, 2]) },
  undefined,
  null,
];
for (const value of values) {
  const enqueued = await kv.enqueue(value);
  equal(enqueued.ok, true, "an enqueue");
  const message = await next();
  equal(message.value, value, "what came");
  equal([message.about.attempt, message.about.signal.aborted], [1, false], "what is said of it");
  equal(message.about.id.startsWith(enqueued.versionstamp), true, "its id tells of its enqueue");
  message.end();
}
await kv.enqueue(new Deno.KvU64(5n));
const number = await next();
equal(number.value, { value: 5n }, "a u64 is an object, as natively");
number.end();
const mutable = { state: "before" };
const changed = kv.atomic().enqueue(mutable);
mutable.state = "after";
await changed.commit();
const unchanged = await next();
equal(unchanged.value, { state: "before" }, "a value is taken when it is enqueued");
unchanged.end();

// A message is of the write it stands in, with what is checked and set beside it.
const check = { key: key("beside"), versionstamp: null };
const write = () => kv.atomic().check(check).set(key("beside"), 1).enqueue("first").enqueue("second").commit();
const committed = await write();
equal([committed.ok, (await write()).ok], [true, false], "a check fails the whole write");
equal((await kv.get(key("beside"))).versionstamp, committed.ok && committed.versionstamp, "one version for all");
const both = [await next(), await next()];
equal(both.map(({ value }) => value), ["first", "second"], "both came, and once");
both.forEach(({ end }) => end());

// It takes effect once, though the client sends it again.
for (const value of [1, 2, 3]) {
  writing.swallow = true;
  await kv.enqueue(value);
  const message = await next();
  equal(message.value, value, "an enqueue whose answer was swallowed");
  message.end();
}
equal(writing.swallowed, 3, "answers that were swallowed");

// A handler that throws is tried again after its interval; when none is left, the keys are set.
const keysIfUndelivered = [key("dead"), [...key("dead"), new Uint8Array([0, 255]), 7n, true]];
await kv.enqueue("dies", { backoffSchedule: [10], keysIfUndelivered });
for (const attempt of [1, 2]) {
  const message = await next();
  equal([message.value, message.about.attempt], ["dies", attempt], "an attempt");
  equal((await kv.get(key("dead"))).value, null, "not dead yet");
  message.fail(new Error("as the test wants it"));
}
for await (const entries of kv.watch(keysIfUndelivered)) {
  if (entries.every(({ value }) => value === "dies")) break;
  equal(entries.map(({ value }) => value), [null, null], "all keys at once");
}
await kv.enqueue("only once", { backoffSchedule: [], keysIfUndelivered: [key("once")] });
(await next()).fail(new Error("as the test wants it"));
for await (const [{ value }] of kv.watch([key("once")])) if (value === "only once") break;

// A message is done with its handler's write: once, though the client sends that again, and the handler throws.
const effects = key("effects");
const effect = (about: QueueMessage) => kv.atomic().sum(effects, 1n).acknowledge(about).commit();
for (const value of [1, 2]) {
  await kv.enqueue(value);
  const message = await next();
  equal(message.value, value, "a message to acknowledge");
  writing.swallow = true;
  equal((await effect(message.about)).ok, true, "a write whose answer was swallowed");
  equal((await effect(message.about)).ok, false, "another one");
  message.fail(new Error("as the test wants it"));
}
equal(writing.swallowed, 5, "answers that were swallowed");
equal((await kv.get(effects)).value, new Deno.KvU64(2n), "each took effect once");

// Where the write does not commit, the message comes again, and a write of the earlier attempt is too late.
await kv.enqueue("again", { backoffSchedule: [10] });
const early = await next();
equal((await kv.atomic().check(check).acknowledge(early.about).commit()).ok, false, "a check that fails");
early.end();
const again = await next();
equal([again.value, again.about.attempt], ["again", 2], "what was not acknowledged");
equal((await effect(early.about)).ok, false, "a write of the first attempt");
equal((await effect(again.about)).ok, true, "a write of the second");
equal(again.about.signal.aborted, false, "of a message that is done its handler hears nothing");
again.end();
equal((await kv.get(effects)).value, new Deno.KvU64(3n), "once");

// A delay.
const start = Date.now();
await kv.enqueue("later", { delay: 4000 });
await kv.enqueue("now");
for (const value of ["now", "later"]) {
  const message = await next();
  equal(message.value, value, "the order of due times");
  message.end();
}
equal(Date.now() - start >= 4000, true, "not before its time");

// A connection that breaks costs no attempt: the listener comes back, and its handler goes on.
await kv.enqueue("held");
const held = await next();
listening.cut();
await kv.enqueue("after the break");
const after = await next();
equal([after.value, after.about.attempt, held.about.signal.aborted], ["after the break", 1, false], "a break");
after.end();
held.end();

// What natively is an error is one.
await rejects(kv.enqueue("x", { delay: -1 }), /TypeError/, "a negative delay");
await rejects(kv.enqueue("x".repeat(65_537)), /TypeError/, "a larger payload");
await rejects((async () => await kv.enqueue(() => {}))(), /could not be cloned/, "a function");
const many = { keysIfUndelivered: Array.from({ length: 11 }, (_, at) => [...key("many"), at]) };
await rejects(kv.enqueue("x", many), /keys if undelivered/, "too many keys");

// A close ends the listener once its handlers have ended; what they did is reported.
await kv.enqueue("last");
const last = await next();
there.close();
await kv.get(key("beside"));
equal(isOver, false, "a handler is at work");
last.end();
await over;
await rejects(there.listenQueue(handler), /closed/, "a closed database");

// So nothing is left for another listener, which works on one message at a time.
const other = await open(listening);
const ended = other.listenQueue(handler, { concurrency: 1 });
await kv.atomic().enqueue("one").enqueue("two").commit();
const one = await next();
equal(one.value, "one", "all else was done");
await kv.get(key("beside"));
equal(came.length, 0, "one at a time");
one.end();
const two = await next();
equal([two.value, two.about.attempt], ["two", 1], "the next one");
two.end();
other.close();
await ended;

// Reserved keys are stored nowhere.
for await (const entry of kv.list({ prefix: [] })) equal(typeof entry.key[0], "string", "a key");

// A file of SQLite has its own queue, as ever.
const local = await Deno.openKv(":memory:");
const native = Promise.withResolvers<unknown>();
const nativeOver = local.listenQueue(native.resolve);
await local.atomic().set(["a"], 1).enqueue("native").commit();
equal(await native.promise, "native", "a message of SQLite");
local.close();
await nativeOver;

kv.close();
writing.close();
listening.close();
clearTimeout(late);
