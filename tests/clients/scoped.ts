// A token for the keys of `["carts"]`, through the native client with the module. Run with
// `--preload URL/.meridian/v1/deno.js`. Arguments:
//
//   scope URL    does what the token may, and is refused what it may not
//   watch URL    says each value of `["carts", "watched"]`, and at last why the watch has ended
//
// Ends with an error at the first wrong result.

const [mode, url] = Deno.args;
const kv = await Deno.openKv(url);

/** Fails unless the gateway refuses it for want of a right, at once and for good. */
async function refused(what: string, work: () => Promise<unknown>, expected = "is for some keys alone") {
  const began = Date.now();
  const outcome = await work().then(() => "no error", String);
  if (!outcome.includes(expected)) throw new Error(`${what}: ${outcome}`);
  if (Date.now() - began > 20_000) throw new Error(`${what}: it was tried again and again`);
}

async function first<T>(stream: ReadableStream<T>): Promise<T | undefined> {
  const reader = stream.getReader();
  const { value } = await reader.read();
  await reader.cancel();
  return value;
}

async function list(selector: Deno.KvListSelector): Promise<unknown[]> {
  const values = [];
  for await (const { value } of kv.list(selector)) values.push(value);
  return values;
}

async function scope() {
  const entry = await kv.get(["carts", 1]);
  const { ok } = await kv.atomic().check(entry).set(["carts", 1], "one").sum(["carts", "n"], 1n).commit();
  if (!ok) throw new Error("a write within the prefix");
  const [one] = await kv.getMany([["carts", 1], ["carts"]]);
  if (one.value !== "one") throw new Error("a read within the prefix");
  const listed = await list({ prefix: ["carts"] });
  if (listed.length !== 2 || listed[1] !== "one") throw new Error(`a list of the prefix: ${listed}`);
  const [watched] = (await first(kv.watch([["carts", 1]]))) ?? [];
  if (watched?.value !== "one") throw new Error("a watch within the prefix");
  const { promise: came, resolve } = Promise.withResolvers<unknown>();
  const listening = kv.listenQueue(resolve);
  await kv.enqueue("a message", { keysIfUndelivered: [["carts", "undelivered"]] });
  if (await came !== "a message") throw new Error("a message");

  await refused("a read of another key", () => kv.get(["secret"]));
  await refused("a read of a key that begins with the same text", () => kv.get(["cartsandmore"]));
  await refused("a list of all", () => list({ prefix: [] }));
  await refused("a list beyond the prefix", () => list({ start: ["carts"], end: ["cat"] }));
  await refused("a write of another key", () => kv.set(["secret"], "mine"));
  await refused("one of two mutations", () => kv.atomic().set(["carts", 2], 2).delete(["secret"]).commit());
  await refused(
    "a check of another key",
    () => kv.atomic().check({ key: ["secret"], versionstamp: null }).set(["carts", 2], 2).commit(),
  );
  await refused("a watch of another key", () => first(kv.watch([["carts", 1], ["secret"]])));
  await refused("another key if undelivered", () => kv.enqueue("", { keysIfUndelivered: [["secret"]] }));
  if ((await kv.get(["carts", 2])).value !== null) throw new Error("half of a write was made");
  kv.close();
  await listening;
}

async function watch() {
  try {
    for await (const [{ value }] of kv.watch<[Uint8Array]>([["carts", "watched"]])) {
      console.log(`value ${value && new TextDecoder().decode(value)}`);
    }
    console.log("ended");
  } catch (error) {
    console.log(`ended: ${error}`);
  }
  Deno.exit(0);
}

await (mode === "scope" ? scope() : watch());
