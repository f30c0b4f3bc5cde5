// A listener of the module over the loss of its leader. Arguments: the URL of a gateway to enqueue at, of one to listen
// at, and the id of the database. Run with `--preload URL/.meridian/v1/deno.js`.
// Prints `held` when its handlers are at work, and goes on when its input ends: the leader is gone then.
// Ends with an error at the first wrong result.

import type {} from "../../deploy/deno/meridian.d.ts";

function equal(actual: unknown, expected: unknown, what: string) {
  const [left, right] = [Deno.inspect(actual), Deno.inspect(expected)];
  if (left !== right) throw new Error(`${what}: ${left} instead of ${right}`);
}

const CREDITS = 20;
const BEFORE = 60;
const AFTER = 20;

const [writing, listening, database] = Deno.args;
const [kv, there] = await Promise.all([Deno.openKv(writing), Deno.openKv(listening)]);

/** How often each message came, and how many handlers were at work at most. */
const runs = new Map<number, number>();
let [working, most] = [0, 0];
const held = Promise.withResolvers<void>();
const gone = Promise.withResolvers<void>();
const all = Promise.withResolvers<void>();
const over = there.listenQueue(async (number: number, { attempt, signal }) => {
  most = Math.max(most, ++working);
  runs.set(number, (runs.get(number) ?? 0) + 1);
  if (runs.size === CREDITS) held.resolve();
  if (runs.size === BEFORE + AFTER) all.resolve();
  await gone.promise;
  // No sooner than the new leader serves: until then the handlers' messages are nobody else's.
  await kv.get(["any"]);
  equal([attempt, signal.aborted], [1, false], `message ${number}`);
  working -= 1;
}, { concurrency: CREDITS });

const enqueue = (from: number, count: number) =>
  Promise.all(Array.from({ length: count }, async (_, at) => equal((await kv.enqueue(from + at)).ok, true, "enqueue")));
await enqueue(0, BEFORE);
await held.promise;
equal([runs.size, most], [CREDITS, CREDITS], "as many as the listener works on at a time");
console.log("held");

for await (const _ of Deno.stdin.readable) { /* Until it ends. */ }
const writes = enqueue(BEFORE, AFTER);
gone.resolve();
await Promise.all([writes, all.promise]);
there.close();
await over;
equal([...runs.values()].every((times) => times === 1), true, "each handler ran once");
equal([runs.size, most], [BEFORE + AFTER, CREDITS], "all messages, a few at a time");

// Everything that the handlers did was reported: nothing is left, also of that which a new leader keeps back at first.
const answer = await fetch(`${writing}/kv/queue/poll`, {
  method: "POST",
  headers: {
    authorization: `Bearer ${Deno.env.get("DENO_KV_ACCESS_TOKEN")}`,
    "x-denokv-version": "3",
    "x-denokv-database-id": database,
  },
  body: JSON.stringify({ max: 100, waitMs: 7000 }),
});
equal((await answer.json()).messages, [], "what is left");
kv.close();
