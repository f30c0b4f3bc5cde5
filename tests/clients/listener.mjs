// The listener of `deploy/deno/meridian.js` over a gateway that is played here: streams that break and fall silent,
// reports that are not answered, refusals, and a close while a handler runs. Runs on Node and on Deno.
// Ends with an error at the first wrong result.

import assert from "node:assert/strict";
import { createServer } from "node:http";
import { serialize } from "node:v8";
import process from "node:process";

// The module's timers go fifty times as fast. Not so those by which it gives up, unless a scenario is about that: this
// process may stand still for some time.
let givesUpSoon = false;
const timer = globalThis.setTimeout;
globalThis.setTimeout = (action, ms, ...more) => timer(action, ms < 5000 || givesUpSoon ? ms / 50 : ms, ...more);
// Random numbers repeat, as with `deno run --seed`.
const random = "00000000-0000-4000-8000-000000000000";
Object.defineProperty(crypto, "randomUUID", { value: () => random, configurable: true });
const { complete, payload, schedule } = await import("../../deploy/deno/meridian.js");

setInterval(() => {}, 1000);
timer(() => {
  console.error("a scenario did not end");
  process.exit(1);
}, 60_000);

/** A gateway; what it is asked comes out of `asked`, one question at a time. */
class Gateway {
  #questions = [];
  #waiting = [];
  #server = createServer(async (request, answer) => {
    let body = "";
    for await (const bytes of request) body += bytes;
    const operation = request.url.split("/").at(-1);
    if (operation === "server") return this.#serve(answer);
    const question = { operation, body: JSON.parse(body), answer };
    if (operation === "" && this.metadata) return this.metadata(question);
    const waiting = this.#waiting.shift();
    waiting ? waiting(question) : this.#questions.push(question);
  });

  /** The status with which the gateway says that it is Meridian. */
  serves = () => 200;
  #refusals = 0;
  #refused = () => {};

  get questions() {
    return this.#refusals;
  }

  #serve(answer) {
    const status = this.serves();
    answer.writeHead(status).end(status === 200 ? '{"server":"meridian"}' : "");
    if (status !== 200) this.#refused(++this.#refusals);
  }

  /** The gateway has not said what it is, so many times. */
  refused(times) {
    return new Promise((done) => {
      this.#refused = (count) => count >= times && done();
      this.#refused(this.#refusals);
    });
  }

  exchanges = 0;

  metadata({ body, answer }) {
    this.exchanges += 1;
    assert.deepEqual(body, { supportedVersions: [2, 3] });
    const endpoints = [{ url: "./kv/strong", consistency: "strong" }];
    answer.end(JSON.stringify({ version: 3, databaseId: "database", endpoints, token: "token" }));
  }

  async start() {
    await new Promise((done) => this.#server.listen(0, "127.0.0.1", done));
    this.url = `http://127.0.0.1:${this.#server.address().port}/`;
  }

  asked() {
    const question = this.#questions.shift();
    return question ? Promise.resolve(question) : new Promise((done) => this.#waiting.push(done));
  }

  /** The next question is for a stream, which begins, and pings ten times as often as is due. */
  async stream({ isSilent = false } = {}) {
    const { operation, body, answer } = await this.asked();
    assert.equal(operation, "listen");
    const say = (line) => answer.write(`${JSON.stringify(line)}\n`);
    say({ type: "open", listener: body.listener });
    const pings = isSilent ? undefined : setInterval(() => say({ type: "ping" }), 30);
    const left = new Promise((done) => answer.on("close", done)).finally(() => clearInterval(pings));
    return { body, say, left, cut: () => answer.destroy(), end: () => answer.end() };
  }

  /** The next question is a report, which is answered. */
  async reported() {
    const { operation, body, answer } = await this.asked();
    assert.equal(operation, "report");
    answer.end(JSON.stringify({ results: body.reports.map(() => "done") }));
    return body;
  }

  stop() {
    this.#server.close();
    this.#server.closeAllConnections();
  }
}

const message = (id, value = id) => ({
  type: "message",
  ...{ id, due: 1, attempt: 1, enqueued: 0, encoding: "v8" },
  payload: serialize(value).toString("base64"),
});
const key = (id) => ({ id, due: 1 });

/** Handlers that go on until the scenario lets them end. */
function handlers() {
  const begun = new Map();
  let changed = () => {};
  const handler = (value, about) =>
    new Promise((end, fail) => {
      assert(!begun.has(value), `${value} is handed to a handler twice`);
      begun.set(value, { about, end, fail });
      changed();
    });
  const running = async (value) => {
    while (!begun.has(value)) await new Promise((done) => changed = done);
    return begun.get(value);
  };
  return { handler, running };
}

/** Another message, done and reported: reports go one after another, so the answer to the last one was read. */
async function reportsAreRead({ gateway, running }, stream) {
  stream.say(message("last"));
  (await running("last")).end();
  await gateway.reported();
}

/** What a listener says that it holds, but for the message of `reportsAreRead`. */
const held = ({ body }) => body.held.filter(({ id }) => id !== "last");

const client = () => ({ atomic() {}, close() {}, listenQueue: () => assert.fail("the client's own") });

async function scenario(what, play) {
  givesUpSoon = false;
  const gateway = new Gateway();
  await gateway.start();
  const kv = await complete(client(), { url: gateway.url, token: () => "secret" });
  const { handler, running } = handlers();
  try {
    await play({ gateway, kv, handler, running });
  } catch (error) {
    throw new Error(what, { cause: error });
  }
  kv.close();
  gateway.stop();
}

await scenario("a stream that breaks is opened again with what is held", async ({ gateway, kv, handler, running }) => {
  const over = kv.listenQueue(handler, { concurrency: 7 });
  const first = await gateway.stream();
  assert.deepEqual([first.body.credits, first.body.held], [7, []]);
  first.say(message("a"));
  first.say(message("b"));
  const a = await running("a");
  assert.deepEqual([a.about.id, a.about.attempt], ["a", 1]);
  (await running("b")).end();
  assert.deepEqual((await gateway.reported()).reports, [{ ...key("b"), verdict: "ack" }]);
  await reportsAreRead({ gateway, running }, first);
  first.cut();
  const second = await gateway.stream();
  assert.deepEqual([second.body.listener, second.body.credits], [first.body.listener, 7]);
  assert.deepEqual(held(second), [key("a")]);
  // The gateway does not know yet that it is held: the handler runs once.
  second.say(message("a"));
  second.say(message("c"));
  (await running("c")).fail(new Error("as the scenario wants it"));
  assert.deepEqual((await gateway.reported()).reports, [{ ...key("c"), verdict: "nack" }]);
  a.end();
  const { listener, reports } = await gateway.reported();
  assert.deepEqual([listener, reports], [first.body.listener, [{ ...key("a"), verdict: "ack" }]]);
  kv.close();
  await second.left;
  await over;
});

await scenario("a silent stream is broken, and no other", async ({ gateway, kv, handler }) => {
  givesUpSoon = true;
  const over = kv.listenQueue(handler);
  const first = await gateway.stream({ isSilent: true });
  const began = performance.now();
  await first.left;
  assert(performance.now() - began < 14_000, "the silence was too long");
  // It is broken, too, where this process stands still.
  let [second, brokenBy] = [undefined, "listener"];
  for (let tries = 0; brokenBy && tries < 5; tries++) {
    second = await gateway.stream();
    brokenBy = await Promise.race([second.left.then(() => "listener"), new Promise((done) => timer(done, 900))]);
  }
  assert.equal(brokenBy, undefined);
  second.say({ type: "end", reason: "enough" });
  await gateway.stream();
  kv.close();
  await over;
});

await scenario("an outcome is reported until it is answered", async ({ gateway, kv, handler, running }) => {
  const over = kv.listenQueue(handler);
  const first = await gateway.stream();
  first.say(message("a"));
  (await running("a")).end();
  const unanswered = [];
  for (const refuse of [(answer) => answer.destroy(), (answer) => answer.writeHead(503).end()]) {
    const { operation, body, answer } = await gateway.asked();
    assert.equal(operation, "report");
    unanswered.push(body);
    refuse(answer);
  }
  // Not answered yet, it is held.
  const late = await gateway.asked();
  first.cut();
  const second = await gateway.stream();
  assert.deepEqual(second.body.held, [key("a")]);
  late.answer.writeHead(502).end();
  const answered = await gateway.reported();
  assert.deepEqual([...unanswered, late.body], [answered, answered, answered]);
  await reportsAreRead({ gateway, running }, second);
  second.cut();
  assert.deepEqual(held(await gateway.stream()), []);
  kv.close();
  await over;
});

await scenario("a message that is released is not held", async ({ gateway, kv, handler, running }) => {
  const over = kv.listenQueue(handler);
  const first = await gateway.stream();
  first.say(message("a"));
  const a = await running("a");
  first.say({ type: "release", ...key("a") });
  await new Promise((done) => a.about.signal.addEventListener("abort", done));
  first.end();
  const second = await gateway.stream();
  assert.deepEqual(second.body.held, []);
  // Late success is success.
  a.end();
  assert.deepEqual((await gateway.reported()).reports, [{ ...key("a"), verdict: "ack" }]);
  kv.close();
  await over;
});

await scenario("a close waits for handlers and takes no message", async ({ gateway, kv, handler, running }) => {
  let isOver = false;
  const over = kv.listenQueue(handler).then(() => isOver = true);
  const first = await gateway.stream();
  first.say(message("a"));
  first.say(message("b"));
  const [a, b] = [await running("a"), await running("b")];
  kv.close();
  const second = await gateway.stream();
  assert.deepEqual(second.body, { listener: first.body.listener, credits: 2, held: [key("a"), key("b")] });
  // An outcome that is reported makes room for a message, so both come at the end.
  a.end();
  second.cut();
  const third = await gateway.stream();
  assert.deepEqual([third.body.credits, third.body.held], [1, [key("a"), key("b")]]);
  assert(!isOver);
  b.end();
  await third.left;
  const { reports } = await gateway.reported();
  assert.deepEqual(reports, [{ ...key("a"), verdict: "ack" }, { ...key("b"), verdict: "ack" }]);
  await over;
  await assert.rejects(kv.listenQueue(handler), /Queue already closed/);
});

await scenario("a close gives up handlers that do not end", async ({ gateway, kv, handler, running }) => {
  const over = kv.listenQueue(handler, { closeTimeout: 5000 });
  const first = await gateway.stream();
  first.say(message("a"));
  first.say(message("b"));
  const [a, b] = [await running("a"), await running("b")];
  kv.close();
  const second = await gateway.stream();
  b.end();
  await second.left;
  assert(a.about.signal.aborted && !b.about.signal.aborted);
  const asked = await gateway.asked();
  // Too late: its attempt has failed.
  a.end();
  assert.deepEqual(asked.body.reports, [{ ...key("b"), verdict: "ack" }, { ...key("a"), verdict: "nack" }]);
  asked.answer.end(JSON.stringify({ results: ["done", "done"] }));
  await over;
  for (const closeTimeout of [-1, NaN, 86_400_001]) {
    const other = await complete(client(), { url: gateway.url, token: () => "secret" });
    await assert.rejects(other.listenQueue(handler, { closeTimeout }), /timeout of a close/);
  }
});

await scenario("a close does not wait for ever for a gateway", async ({ gateway, kv, handler, running }) => {
  const over = kv.listenQueue(handler);
  const first = await gateway.stream();
  first.say(message("a"));
  (await running("a")).end();
  givesUpSoon = true;
  kv.close();
  const refuse = async () => {
    for (;;) (await gateway.asked()).answer.writeHead(503).end();
  };
  refuse();
  await over;
});

await scenario("a listener and a message wait for a server that does not tell", async ({ gateway, handler }) => {
  const served = gateway.serves;
  gateway.serves = () => 503;
  const said = [];
  const operation = () => ({
    set: (key, value) => said.push([key.slice(1), value]),
    ...{ delete() {}, sum() {}, min() {}, max() {}, mutate() {}, commit: () => Promise.resolve("committed") },
  });
  const late = await complete({ ...client(), atomic: operation }, { url: gateway.url, token: () => "secret" });
  const over = late.listenQueue(handler);
  const write = late.atomic().enqueue("a", { delay: 5, keysIfUndelivered: [["k", 1]] });
  const committed = write.commit();
  await gateway.refused(3);
  gateway.serves = served;
  assert.equal(await committed, "committed");
  assert.deepEqual(said.slice(0, 2), [
    [["enqueue", "0", '{"delayMs":5}'], "a"],
    [["undelivered", "0", "k", 1], null],
  ], "as they were when they were enqueued");
  assert.equal(said[2][0][0], "request");
  await gateway.stream();
  late.close();
  await over;
  // Another server has neither.
  gateway.serves = () => 404;
  const native = { ...client(), atomic: operation, listenQueue: () => "the client's own" };
  const other = await complete(native, { url: gateway.url, token: () => "secret" });
  assert.equal(other.listenQueue(), "the client's own");
  // One that tells too late that it is another one is no Meridian either.
  gateway.serves = () => 503;
  const found = await complete({ ...native }, { url: gateway.url, token: () => "secret" });
  gateway.serves = () => 404;
  assert.equal(await found.listenQueue(handler), "the client's own");
  await assert.rejects(found.atomic().enqueue("a").commit(), /not supported in KV Connect/);
  // Nor is one that is left before it tells: nothing of the write goes there.
  gateway.serves = () => 503;
  const fails = () => ({ ...operation(), commit: () => assert.fail("reserved keys at a server that has not told") });
  const left = await complete({ ...native, atomic: fails }, { url: gateway.url, token: () => "secret" });
  const dropped = left.atomic().enqueue("a").commit();
  left.close();
  await assert.rejects(dropped, /closed before its server told/);
});

/** An operation that keeps what it is given until it is committed, as those of the clients do. */
function recorded(commits) {
  const operation = {
    calls: [],
    mutate(...mutations) {
      operation.calls.push(...mutations.map(({ key, value }) => [key, value]));
      return operation;
    },
  };
  // As in `@deno/kv`, where all others go through `mutate`.
  for (const type of ["set", "delete", "sum", "min", "max"]) {
    operation[type] = (key, value) => operation.mutate({ type, key, value });
  }
  operation.commit = () => {
    const isReserved = ([key]) => typeof key[0] !== "string";
    const id = operation.calls.findLast(isReserved)?.[0][2];
    const text = ([key, value]) => [key.join("/"), value instanceof Uint8Array ? [...value] : value];
    commits.push({ id, sets: operation.calls.filter((call) => !isReserved(call)).map(text) });
    return Promise.resolve({ ok: true });
  };
  return operation;
}

await scenario("a write is what it is when it is committed, and no other has its id", async ({ gateway }) => {
  const commits = [];
  const atomic = () => recorded(commits);
  const kv = await complete({ ...client(), atomic }, { url: gateway.url, token: () => "secret" });
  const [key, bytes, all] = [["n", 0], new Uint8Array(1), []];
  for (let at = 0; at < 3; at++) {
    [key[1], bytes[0]] = [at, at];
    all.push(kv.set(key, bytes));
  }
  await Promise.all(all);
  assert.deepEqual(commits.map(({ sets }) => sets), [0, 1, 2].map((at) => [[`n/${at}`, [at]]]));
  const ids = commits.map(({ id }) => id);
  assert.equal(new Set(ids).size, 3);
  assert(ids.every((id) => id.length <= 128 && id.includes(String(process.pid))));
  const changed = kv.atomic().set(["a"], 1);
  const committed = changed.commit();
  changed.set(["b"], 2);
  await committed;
  assert.deepEqual(commits.at(-1).sets, [["a", 1]]);
  // One id fits, and no second one.
  const large = kv.atomic();
  for (let at = 0; at < 999; at++) large.sum(["c"], 1n);
  await large.commit();
  await assert.rejects(large.commit(), /was committed before/);
  // Until the server has told, writes go as they are, and one question at a time is asked.
  gateway.serves = () => 503;
  const late = await complete({ ...client(), atomic }, { url: gateway.url, token: () => "secret" });
  const before = gateway.questions;
  await Promise.all([late.set(["d"], 1), late.set(["d"], 2), late.set(["d"], 3)]);
  assert.deepEqual(commits.slice(-3).map(({ id, sets }) => [id, sets[0][1]]), [[undefined, 1], [undefined, 2], [undefined, 3]]);
  await gateway.refused(2);
  assert.equal(gateway.questions, before + 1);
});

await scenario("streams that end at once are opened again more and more seldom", async ({ gateway, kv, handler }) => {
  const over = kv.listenQueue(handler);
  const began = performance.now();
  for (let stream = 0; stream < 8; stream++) (await gateway.stream()).end();
  // At least half of 100, 200, 400, 800, 1600, 2000 and 2000 ms.
  assert(performance.now() - began > 3550 / 50);
  kv.close();
  await over;
});

await scenario("a message is done with a write that acknowledges it", async ({ gateway, handler, running }) => {
  const commits = [];
  const atomic = () => {
    const operation = recorded([]);
    operation.commit = () => new Promise((end, fail) => commits.push({ calls: operation.calls, end, fail }));
    return operation;
  };
  const kv = await complete({ ...client(), atomic }, { url: gateway.url, token: () => "secret" });
  const over = kv.listenQueue(handler);
  const first = await gateway.stream();
  const begin = async (id) => {
    first.say(message(id));
    return await running(id);
  };
  const reports = async (verdicts) => {
    const expected = Object.entries(verdicts).map(([id, verdict]) => ({ ...key(id), verdict }));
    assert.deepEqual((await gateway.reported()).reports, expected);
  };
  const a = await begin("a");
  const write = kv.atomic().set(["effect"], 1).acknowledge(a.about);
  const committed = write.commit();
  const [, said, id] = commits[0].calls.map(([key]) => key.slice(1));
  assert.deepEqual([said, id[0]], [["acknowledge", "a", "1"], "request"]);
  // The gateway may say first that it is gone.
  first.say({ type: "release", ...key("a") });
  const b = await begin("b");
  assert(!a.about.signal.aborted);
  commits[0].end({ ok: true });
  assert((await committed).ok);
  a.fail(new Error("as the scenario wants it"));
  // A write that fails, in whatever way, leaves its message undone, though the handler does not throw.
  const failed = kv.atomic().acknowledge(b.about).commit();
  commits[1].end({ ok: false });
  assert(!(await failed).ok);
  b.end();
  await reports({ b: "nack" });
  const c = await begin("c");
  const broken = assert.rejects(kv.atomic().acknowledge(c.about).commit(), /cut/);
  commits[2].fail(new Error("cut"));
  await broken;
  c.end();
  await reports({ c: "nack" });
  // So does one that is refused before it is sent.
  const unsent = await begin("unsent");
  const refused = kv.atomic().acknowledge(unsent.about);
  for (let at = 0; at < 999; at++) refused.sum(["c"], 1n);
  await assert.rejects(refused.commit(), /room for an id/);
  unsent.end();
  await reports({ unsent: "nack" });
  // One of two is enough; and a handler that does not wait for its write is waited for.
  const d = await begin("d");
  kv.atomic().acknowledge(d.about).commit();
  kv.atomic().acknowledge(d.about).commit();
  d.end();
  (await begin("e")).end();
  await reports({ e: "ack" });
  commits[3].end({ ok: false });
  commits[4].end({ ok: true });
  const f = await begin("f");
  kv.atomic().acknowledge(f.about).commit();
  commits[5].end({ ok: true });
  await reportsAreRead({ gateway, running }, first);
  first.cut();
  const second = await gateway.stream();
  assert.deepEqual(held(second), [], "neither is done, nor held");
  for (const other of [undefined, {}, { ...f.about }]) assert.throws(() => kv.atomic().acknowledge(other), TypeError);
  const large = kv.atomic().acknowledge(f.about);
  for (let at = 0; at < 999; at++) large.set(["k"], at);
  await assert.rejects(large.commit(), /has room for an id/);
  assert.equal(commits.length, 6);
  // A message that is released, and was not acknowledged.
  second.say(message("g"));
  const g = await running("g");
  second.say({ type: "release", ...key("g") });
  await new Promise((done) => g.about.signal.addEventListener("abort", done));
  g.fail(new Error("as the scenario wants it"));
  await reports({ g: "nack" });
  // A handler that goes on is waited for, and is no reason for another stream.
  kv.close();
  await second.left;
  f.end();
  await over;
});

await scenario("a refusal that stays ends a listener", async ({ gateway, kv, handler }) => {
  const refused = assert.rejects(kv.listenQueue(handler), /401 not you/);
  for (let time = 1; time <= 2; time++) {
    (await gateway.asked()).answer.writeHead(401).end("not you");
    // The token may be another by now.
    assert.equal(gateway.exchanges, time);
  }
  await refused;
  const over = kv.listenQueue(handler);
  (await gateway.asked()).answer.writeHead(503).end();
  (await gateway.asked()).answer.writeHead(401).end("not yet");
  await gateway.stream();
  kv.close();
  await over;
});

// Payloads and schedules, as they go into a write.
const bytes = new Uint8Array(300).fill(7);
const { deserialize } = await import("node:v8");
for (const value of [bytes, bytes.subarray(0, 127), new Uint8Array()]) {
  assert.deepEqual(new Uint8Array(deserialize(payload(value))), new Uint8Array(value));
}
class KvU64 {
  value = 5n;
}
assert.deepEqual(payload(new KvU64()), { value: 5n });
assert.equal(payload("text"), "text");
assert.equal(schedule(), '{"delayMs":0}');
assert.equal(schedule({ delay: 0.5, backoffSchedule: [] }), '{"delayMs":1,"backoffMs":[]}');
for (const delay of [-1, NaN, 2_592_000_001]) assert.throws(() => schedule({ delay }), TypeError);
assert.equal(JSON.parse(schedule({ backoffSchedule: Array(10).fill(3_600_000) })).backoffMs.length, 10);
for (const backoffSchedule of [[3_600_001], [-1], [NaN], Array(11).fill(1)]) {
  assert.throws(() => schedule({ backoffSchedule }), /TypeError: Invalid backoffSchedule/);
}
process.exit(0);
