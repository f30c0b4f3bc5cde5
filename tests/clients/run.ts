// A program as `meridian run` runs it: KV, a queue, arguments, signals and its exit code.

const kv = await Deno.openKv();
await kv.set(["greeting"], "hello");
const heard = Promise.withResolvers<string>();
const listening = kv.listenQueue((value) => heard.resolve(value));
await kv.atomic().check({ key: ["absent"], versionstamp: null }).enqueue("a message").commit();
console.log(`heard ${await heard.promise}`);

// The socket that it was given speaks crons: an impossible day is refused, by name.
Deno.cron("never", "0 0 30 2 *", () => {});
for (let number = 0; ; number++) {
  try {
    Deno.cron(`later ${number}`, "0 0 1 1 *", () => {});
  } catch (error) {
    console.log(`refused ${(error as Error).message}`);
    break;
  }
  await new Promise((resolve) => setTimeout(resolve, 10));
}

Deno.addSignalListener("SIGTERM", () => {
  kv.close();
  listening.then(() => Deno.exit(Number(Deno.args[1])));
});
console.log(`waits with ${JSON.stringify(Deno.args)}`);
setInterval(() => {}, 1000);
