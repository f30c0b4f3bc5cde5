// What a program may expect of queues, case by case, through native Deno with the module. Argument: the URL of a
// gateway. Run with `--preload URL/.meridian/v1/deno.js`. No other program may listen meanwhile.
// Runs all cases, prints those that fail, and ends with an error if there are any. `kv_test.md` says which of Deno's
// own tests look at the same.

import type { QueueHandler, QueueOptions } from "../../deploy/deno/meridian.d.ts";
import { equal, fails, finish, holds, type Key, shown, test, until, VALUES } from "./cases.ts";

// `loss`: the leader is lost meanwhile, and the next one may be a second ahead.
const [url, loss] = Deno.args;
const AHEAD_MS = loss ? 1000 : 0;
const DAY_MS = 24 * 60 * 60 * 1000;

/** Runs a case with a connection of its own, which it may close. */
function queueTest(name: string, run: (kv: Deno.Kv, key: Key) => Promise<void>) {
  return test(name, async (key) => {
    const kv = await Deno.openKv(url);
    const late = Promise.withResolvers<never>();
    const timer = setTimeout(() => late.reject(new Error("it did not end within 40 s")), 40_000);
    try {
      await Promise.race([run(kv, key), late.promise]);
    } finally {
      clearTimeout(timer);
      try {
        kv.close();
      } catch {
        // It is closed.
      }
    }
  });
}

/** A listener, and what it was handed. */
class Heard {
  readonly values: unknown[] = [];
  readonly times: number[] = [];
  readonly over: Promise<void>;
  #changed = () => {};

  constructor(kv: Deno.Kv, handler: QueueHandler = () => {}, options?: QueueOptions) {
    this.over = kv.listenQueue((value, message) => {
      this.values.push(value);
      this.times.push(performance.now());
      this.#changed();
      return handler(value, message);
    }, options);
  }

  /** So many messages came. */
  async count(count: number) {
    while (this.values.length < count) await new Promise<void>((done) => this.#changed = done);
    return this.values;
  }
}

await queueTest("a message that is enqueued reaches the listener", async (kv) => {
  const heard = new Heard(kv);
  const { ok, versionstamp } = await kv.enqueue("test");
  holds(ok && /^[0-9a-f]{20}$/.test(versionstamp), "the enqueue has a versionstamp");
  equal(await heard.count(1), ["test"]);
  kv.close();
  await heard.over;
});

/** A u64 is an object in a message, as natively. */
const inMessage = (value: unknown) => value instanceof Deno.KvU64 ? { value: value.value } : value;

for (const [name, sent, kept = sent] of VALUES) {
  await queueTest(`${name} is handed out as it was enqueued, ten times`, async (kv) => {
    const heard = new Heard(kv);
    await Promise.all(Array.from({ length: 10 }, () => kv.enqueue(sent)));
    for (const value of await heard.count(10)) equal(value, inMessage(kept));
    equal(heard.values.length, 10, "how many came");
    kv.close();
    await heard.over;
  });
}

await queueTest("one listener is handed values of all kinds", async (kv) => {
  const heard = new Heard(kv);
  for (const [at, [name, sent, kept = sent]] of VALUES.entries()) {
    await kv.enqueue(sent);
    equal((await heard.count(at + 1)).at(-1), inMessage(kept), name);
  }
});

await queueTest("a delay holds back its message alone, also in a write", async (kv, key) => {
  const heard = new Heard(kv);
  const begun = performance.now();
  // Longer than this machine stands still.
  await kv.enqueue("after 4000", { delay: 4000 });
  const write = kv.atomic().set(key(), 1).enqueue("after 5000", { delay: 5000 }).enqueue("at once");
  holds((await write.commit()).ok, "the write commits");
  equal(await heard.count(3), ["at once", "after 4000", "after 5000"]);
  const [, second, third] = heard.times;
  holds(second - begun >= 4000 && third - begun >= 5000, `nothing comes too soon, and not at ${second - begun} ms`);
});

await queueTest("a delay that is none is refused, and the longest is not", async (kv) => {
  for (const delay of [-100, NaN, 30 * DAY_MS + 1]) {
    await fails("TypeError", () => kv.enqueue("test", { delay }));
    await fails("TypeError", () => kv.atomic().enqueue("test", { delay }).commit());
  }
  equal((await kv.enqueue("test", { delay: 30 * DAY_MS })).ok, true);
});

await queueTest("a schedule that is none is refused, and the longest is not", async (kv) => {
  // Deno itself takes five intervals.
  for (const backoffSchedule of [[3_600_001], [-1], [NaN], Array(11).fill(1)]) {
    await fails("TypeError: Invalid backoffSchedule", () => kv.enqueue("test", { backoffSchedule }));
  }
  const heard = new Heard(kv);
  for (const count of [0, 5, 10]) await kv.enqueue(count, { backoffSchedule: Array(count).fill(3_600_000) });
  equal(await heard.count(3), [0, 5, 10]);
});

await queueTest("a promise of a handler is waited for, and a close waits for it", async (kv, key) => {
  const other = await Deno.openKv(url);
  const heard = new Heard(kv, async () => {
    // Several round trips.
    for (let at = 0; at < 5; at += 1) await other.set(key(), at);
  });
  await kv.enqueue("test");
  await heard.count(1);
  kv.close();
  await heard.over;
  equal((await other.get(key())).value, 4, "what the handler did last");
  other.close();
});

await queueTest("a handler that throws is tried again after 100 ms, 1 s and 5 s", async (kv) => {
  let attempts = 0;
  const heard = new Heard(kv, async () => {
    if ((attempts += 1) < 4) throw new TypeError("as the test wants it");
  });
  await kv.enqueue("test");
  equal(await heard.count(4), Array(4).fill("test"));
  const pauses = heard.times.slice(1).map((time, at) => time - heard.times[at]);
  [100, 1000, 5000].forEach((pause, at) => holds(pauses[at] >= pause - AHEAD_MS && pauses[at] < pause + 8000 + 8 * AHEAD_MS, `${pauses} ms`));
});

await queueTest("a handler that throws is tried as often as its schedule says", async (kv, key) => {
  const heard = new Heard(kv, (value) => {
    if (value === "fails") throw new TypeError("as the test wants it");
  });
  await kv.enqueue("fails", { backoffSchedule: [1], keysIfUndelivered: [key("dead")] });
  await heard.count(2);
  await until("it is dead", async () => (await kv.get(key("dead"))).value === "fails");
  await kv.enqueue("last");
  equal(await heard.count(3), ["fails", "fails", "last"]);
});

await queueTest("several listeners share the messages, each of which goes to one", async (kv) => {
  const came: string[] = [];
  let changed = () => {};
  const listeners = Array.from({ length: 10 }, () =>
    kv.listenQueue((value) => {
      came.push(value);
      changed();
    }));
  const expected = Array.from({ length: 10 }, (_, at) => `message ${at}`);
  for (const [at, value] of expected.entries()) {
    await kv.enqueue(value);
    while (came.length <= at) await new Promise<void>((done) => changed = done);
  }
  equal(came, expected);
  kv.close();
  await Promise.all(listeners);
});

await queueTest("a message is enqueued with the write in which it stands, or not", async (kv, key) => {
  const heard = new Heard(kv);
  await kv.set(key(), "before");
  const entry = await kv.get(key());
  const write = (message: string) => kv.atomic().check(entry).set(key(), "after").enqueue(message).commit();
  equal([(await write("first")).ok, (await write("second")).ok], [true, false]);
  await kv.enqueue("third");
  equal(await heard.count(2), ["first", "third"]);
  equal((await kv.get(key())).value, "after");
});

await queueTest("a nonce lets a handler do once what it does, though it runs twice", async (kv, key) => {
  const nonce = crypto.randomUUID();
  let effects = 0;
  const heard = new Heard(kv, async (value) => {
    const entry = await kv.get(key("nonces", value.nonce));
    if (entry.versionstamp === null) return;
    const done = await kv.atomic().check(entry).delete(entry.key).set(key("done"), value.text).commit();
    if (done.ok) effects += 1;
    throw new Error("as the test wants it");
  });
  const absent = { key: key("nonces", nonce), versionstamp: null };
  const write = kv.atomic().check(absent).set(absent.key, true).enqueue({ text: "test", nonce });
  holds((await write.commit()).ok, "the write commits");
  await heard.count(2);
  kv.close();
  await heard.over;
  using again = await Deno.openKv(url);
  const [done, left] = await again.getMany([key("done"), key("nonces", nonce)]);
  equal([effects, done.value, left.versionstamp], [1, "test", null]);
});

await queueTest("messages of handlers that do not end come to the next listener after a close", async (kv) => {
  const first = new Heard(kv, () => new Promise(() => {}), { closeTimeout: 300 });
  for (const value of [0, 1, 2]) await kv.enqueue(value);
  await first.count(3);
  kv.close();
  await first.over;
  using again = await Deno.openKv(url);
  const second = new Heard(again, (_, { attempt }) => equal(attempt, 2, "the attempt"));
  equal((await second.count(3)).toSorted(), [0, 1, 2]);
});

await queueTest("messages that are delayed come to a listener of later", async (kv) => {
  const first = new Heard(kv);
  for (const value of [0, 1, 2]) await kv.enqueue(value, { delay: 4000 });
  kv.close();
  await first.over;
  using again = await Deno.openKv(url);
  const second = new Heard(again);
  equal(await second.count(3), [0, 1, 2]);
  equal(first.values, []);
});

await queueTest("a listener hears what another connection enqueues", async (kv) => {
  using other = await Deno.openKv(url);
  const heard = new Heard(kv);
  holds((await other.enqueue("test")).ok, "the enqueue commits");
  equal(await heard.count(1), ["test"]);
  kv.close();
  await heard.over;
});

await queueTest("a listener ends with its connection, also at once", async (kv) => {
  const heard = new Heard(kv);
  kv.close();
  await heard.over;
  await fails("Queue already closed", () => kv.listenQueue(() => {}));
  let scoped: Heard;
  {
    using short = await Deno.openKv(url);
    scoped = new Heard(short);
  }
  await scoped.over;
  equal(shown(scoped.values), "[]");
});

finish();
