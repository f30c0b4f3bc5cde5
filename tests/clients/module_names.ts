// Named queues, through the native client with the module. Run with `--preload URL/.meridian/v1/deno.js`. Arguments:
//
//   enqueue URL NAME             enqueues `QUEUE NAME` into the queues `emails`, `reports`, `unheard` and the unnamed one
//   listen URL QUEUE MESSAGE...  says each message of the queue that it has handled, until these have come
//
// Ends with an error at the first wrong result.

const [mode, url, queue, ...messages] = Deno.args;
const late = setTimeout(() => {
  console.error(`a message did not come: ${mode} ${queue}`);
  Deno.exit(1);
}, 80_000);
const kv = await Deno.openKv(url);

if (mode === "enqueue") {
  for (const name of ["n".repeat(65), "a\nb", "\ud800", 7 as unknown as string]) {
    const refused = await kv.enqueue("", { queue: name }).then(() => "no error", String);
    if (!refused.includes("name of a queue")) throw new Error(refused);
  }
  const operation = kv.atomic();
  for (const name of ["emails", "reports", "unheard"]) operation.enqueue(`${name} ${queue}`, { queue: name });
  const { ok } = await operation.enqueue(`unnamed ${queue}`).commit();
  if (!ok) throw new Error("it was not enqueued");
} else {
  const left = new Set(messages);
  const { promise: came, resolve } = Promise.withResolvers<void>();
  const listening = kv.listenQueue(async (text: string, message) => {
    // It comes again, where it was refused.
    if (text === "emails second" && message.attempt === 1) throw new Error("the first attempt fails");
    if (queue === "emails") {
      const { ok } = await kv.atomic().sum(["handled", text], 1n).acknowledge(message).commit();
      if (!ok) return;
    }
    console.log(text);
    left.delete(text);
    if (left.size === 0) resolve();
  }, { queue });
  await came;
  kv.close();
  await listening;
}
clearTimeout(late);
if (mode === "enqueue") kv.close();
