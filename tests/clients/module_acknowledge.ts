// Handlers whose writes acknowledge their messages, in a process that is killed meanwhile, and in the next one. Run with
// `--preload URL/.meridian/v1/deno.js`. Arguments:
//
//   before URL NAME      enqueues NAME, says `held` when its handler has begun, and does no more
//   behind URL NAME      says `held` when the write of that handler has committed
//   after URL NAME...    handles what is left, and says how often each took effect
//
// Ends with an error at the first wrong result.

import type { QueueMessage } from "../../deploy/deno/meridian.d.ts";

const [mode, url, ...names] = Deno.args;
const kv = await Deno.openKv(url);
const key = (name: string) => ["acknowledged", name];

async function work(name: string, message: QueueMessage) {
  const { ok } = await kv.atomic().sum(key(name), 1n).acknowledge(message).commit();
  if (!ok) throw new Error(`${name} was done before`);
}

/** Longer than the messages of a listener that is gone stay leased, and until they are due again. */
const LONG_MS = 7000;

if (mode === "after") {
  kv.listenQueue(async (name: string, message) => {
    if (name !== "last") return await work(name, message);
    const entries = await kv.getMany<Deno.KvU64[]>(names.map(key));
    console.log(entries.map((entry) => `${entry.value?.value}`).join(" "));
    await kv.atomic().acknowledge(message).commit();
    Deno.exit();
  });
  await kv.enqueue("last", { delay: LONG_MS });
} else {
  kv.listenQueue(async (name: string, message) => {
    if (mode === "behind" || name !== names[0]) await work(name, message);
    if (name !== names[0]) return;
    console.log("held");
    await new Promise(() => {});
  });
  await kv.enqueue(names[0]);
}
