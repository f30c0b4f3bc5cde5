// Tests of a program, for `deno test --preload`: a database is opened and closed within each of them, and nothing is
// left behind that Deno's sanitizers would name.

const url = Deno.env.get("MERIDIAN_URL");

Deno.test("a message is heard and its listener ends", async () => {
  const kv = await Deno.openKv(url);
  const { promise, resolve } = Promise.withResolvers<unknown>();
  const listening = kv.listenQueue(resolve);
  const { ok } = await kv.enqueue({ of: "a test" });
  if (!ok) throw new Error("not enqueued");
  const value = await promise as { of: string };
  if (value.of !== "a test") throw new Error(Deno.inspect(value));
  kv.close();
  await listening;
});

Deno.test("a write has an id and takes effect", async () => {
  const kv = await Deno.openKv(url);
  const key = ["deno test", crypto.randomUUID()];
  await kv.atomic().sum(key, 1n).commit();
  await kv.set([...key, "beside"], 1);
  if ((await kv.get<Deno.KvU64>(key)).value?.value !== 1n) throw new Error("not there");
  kv.close();
});
