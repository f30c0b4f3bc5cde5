// Every operation of KV through native Deno. Arguments: the URL of a gateway, and those of all gateways.
// Ends with an error at the first wrong result.

const [url, ...urls] = Deno.args;
const kv = await Deno.openKv(url);
const root = crypto.randomUUID();
const key = (...parts: Deno.KvKeyPart[]) => ["deno", root, ...parts];

function equal(actual: unknown, expected: unknown, what: string) {
  const text = (value: unknown) =>
    Deno.inspect(value, { depth: 9, iterableLimit: 2000, strAbbreviateSize: 200000, sorted: true });
  if (text(actual) !== text(expected)) throw new Error(`${what}: ${text(actual)} instead of ${text(expected)}`);
}

async function fails(what: string, expected: RegExp, attempt: () => unknown) {
  try {
    await attempt();
  } catch (error) {
    if (expected.test(String(error))) return;
    throw new Error(`${what} failed in another way: ${error}`);
  }
  throw new Error(`${what} should fail`);
}

async function until(what: string, seconds: number, condition: () => Promise<boolean>) {
  const deadline = performance.now() + seconds * 1000;
  while (!(await condition())) {
    if (performance.now() > deadline) throw new Error(`not within ${seconds} s: ${what}`);
    await new Promise((done) => setTimeout(done, 20));
  }
}

async function list(selector: Deno.KvListSelector, options?: Deno.KvListOptions) {
  const names = [];
  for await (const entry of kv.list(selector, options)) names.push(entry.key[2]);
  return names;
}

// set, get, delete; values of all kinds.
for (const value of ["text", 7, 2n ** 70n, true, null, new Uint8Array([0, 255]), { a: [1, { b: new Date(5) }] }]) {
  const { ok, versionstamp } = await kv.set(key("value"), value);
  equal(ok, true, "set");
  const entry = await kv.get(key("value"));
  equal([entry.value, entry.versionstamp], [value, versionstamp], "get");
}
await kv.delete(key("value"));
equal(await kv.get(key("value")), { key: key("value"), value: null, versionstamp: null }, "get after delete");

// Sums, minima and maxima of u64, also on what is absent, and wrapping.
const number = async (name: string) => (await kv.get<Deno.KvU64>(key(name))).value?.value;
await kv.atomic().sum(key("sum"), 5n).min(key("min"), 9n).max(key("max"), 3n).commit();
equal([await number("sum"), await number("min"), await number("max")], [5n, 9n, 3n], "on absent keys");
await kv.atomic().sum(key("sum"), 2n).min(key("min"), 4n).max(key("max"), 8n).commit();
await kv.atomic().min(key("min"), 100n).max(key("max"), 1n).commit();
equal([await number("sum"), await number("min"), await number("max")], [7n, 4n, 8n], "sum, min and max");
await kv.atomic().sum(key("sum"), 2n ** 64n - 8n).sum(key("sum"), 3n).commit();
equal(await number("sum"), 2n, "sum wraps");
await kv.set(key("text"), "text");
await fails("a sum on a text", /sum/i, () => kv.atomic().set(key("undone"), 1).sum(key("text"), 1n).commit());
equal((await kv.get(key("undone"))).value, null, "a failing mutation undoes the whole write");

// Checks.
const first = await kv.atomic().check({ key: key("checked"), versionstamp: null }).set(key("checked"), 1).commit();
if (!first.ok) throw new Error("a check for absence on an absent key");
const again = await kv.atomic().check({ key: key("checked"), versionstamp: null }).set(key("checked"), 2).commit();
equal(again.ok, false, "a check for absence on a present key");
const second = await kv.atomic().check({ key: key("checked"), versionstamp: first.versionstamp })
  .set(key("checked"), 3).commit();
if (!second.ok || second.versionstamp <= first.versionstamp) throw new Error("versionstamps grow");
equal((await kv.get(key("checked"))).value, 3, "after checks");
equal((await kv.atomic().commit()).ok, true, "an empty write");

// Versionstamped keys.
const stamped = await kv.set(key("stamped", kv.commitVersionstamp() as unknown as Deno.KvKeyPart), "v");
equal((await kv.get(key("stamped", stamped.versionstamp))).value, "v", "a versionstamped key");

// Ranges, in both directions, with limits, and in several batches.
const all = Array.from({ length: 25 }, (_, at) => at);
await all.reduce((write, at) => write.set(["list", root, at], at), kv.atomic()).commit();
const prefix = ["list", root];
equal(await list({ prefix }), all, "list");
equal(await list({ prefix }, { batchSize: 4 }), all, "list in batches");
equal(await list({ prefix }, { reverse: true, batchSize: 7 }), all.toReversed(), "list in reverse");
equal(await list({ prefix }, { limit: 3 }), [0, 1, 2], "list with a limit");
equal(await list({ prefix }, { limit: 3, reverse: true }), [24, 23, 22], "list in reverse with a limit");
equal(await list({ start: ["list", root, 5], end: ["list", root, 8] }), [5, 6, 7], "list from start to end");
equal(await list({ prefix, start: ["list", root, 22] }), [22, 23, 24], "list from start");
equal(await list({ prefix, end: ["list", root, 2] }, { reverse: true }), [1, 0], "list to end in reverse");

// Many keys in one snapshot.
const many = await kv.getMany([["list", root, 3], ["list", root, "none"], ["list", root, 4]]);
equal(many.map((entry) => entry.value), [3, null, 4], "getMany");

// Limits.
const value = crypto.getRandomValues(new Uint8Array(65536));
await kv.set(key("large"), value);
equal((await kv.get<Uint8Array>(key("large"))).value?.length, value.length, "a large value");
if ((await kv.get<Uint8Array>(key("large"))).value?.some((byte, at) => byte !== value[at])) throw new Error("its bytes");
await fails("a larger value", /too large|limit/i, () => kv.set(key("large"), new Uint8Array(65537)));
const longKey = [new Uint8Array(2046).fill(1)];
await kv.set(longKey, root);
equal((await kv.get(longKey)).value, root, "a key of 2048 bytes");
await fails("a longer key", /too large|limit/i, () => kv.set([new Uint8Array(2047).fill(1)], root));

// Expiry: not before, and soon after.
const set = performance.now();
await kv.set(key("expires"), 1, { expireIn: 700 });
const early = (await kv.get(key("expires"))).value;
if (performance.now() - set < 690) equal(early, 1, "before it expires");
await until("a key expires", 20, async () => (await kv.get(key("expires"))).value === null);
if (performance.now() - set < 690) throw new Error("it expired too soon");

// A watch tells of the present state first, and then of what changes, through every gateway and both endpoints.
async function told(
  reader: ReadableStreamDefaultReader<Deno.KvEntryMaybe<unknown>[]>,
  what: string,
  expected: unknown[],
) {
  const late = setTimeout(() => reader.cancel(`not within 20 s: ${what}`), 20_000);
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error(`the watch ended: ${what}`);
    const values = value.map((entry) => entry.value);
    equal(values[0], values[2], `${what}: one key, watched twice`);
    if ((values[0] === "together") !== (values[1] === "together")) throw new Error(`${what}: half of a write`);
    if (Deno.inspect(values) === Deno.inspect(expected)) break;
  }
  clearTimeout(late);
}
for (const [at, other] of [...urls, ...urls.map((url) => `${url}?consistency=eventual`)].entries()) {
  const there = await Deno.openKv(other);
  const [a, b] = [key("watched", at, "a"), key("watched", at, "b")];
  await kv.set(a, "before");
  const reader = there.watch<unknown[]>([a, b, a]).getReader();
  if (at < urls.length) {
    const { value } = await reader.read();
    equal(value?.map((entry) => entry.value), ["before", null, "before"], `a strong watch through ${other}`);
  } else {
    await told(reader, `an eventual watch through ${other}`, ["before", null, "before"]);
  }
  await kv.set(b, 1);
  await told(reader, `a change through ${other}`, ["before", 1, "before"]);
  await kv.atomic().set(a, "together").set(b, "together").commit();
  await told(reader, `one write through ${other}`, ["together", "together", "together"]);
  await kv.atomic().delete(a).delete(b).commit();
  await told(reader, `a deletion through ${other}`, [null, null, null]);
  const setAt = performance.now();
  await kv.set(b, "kept", { expireIn: 300 });
  await kv.set(a, "later");
  await told(reader, `an expiry through ${other}`, ["later", null, "later"]);
  if (performance.now() - setAt < 290) throw new Error("a watch told that it had expired too soon");
  await reader.cancel();
  there.close();
}
const nothing = kv.watch([], { raw: true }).getReader();
equal((await nothing.read()).value, [], "a watch of no keys");
await nothing.cancel();
const eleven = Array.from({ length: 11 }, (_, at) => key(at));
await fails("a watch of eleven keys", /too many|10/i, () => kv.watch(eleven).getReader().read());

// What was acknowledged here is seen at once through every gateway, and soon by eventual reads.
const { versionstamp } = await kv.set(key("everywhere"), root);
for (const other of urls) {
  const there = await Deno.openKv(other);
  const entry = await there.get(key("everywhere"));
  equal([entry.value, entry.versionstamp], [root, versionstamp], `a strong read through ${other}`);
  there.close();
  const near = await Deno.openKv(`${other}?consistency=eventual`);
  const eventual = { consistency: "eventual" } as const;
  await until(`an eventual read through ${other}`, 30, async () =>
    (await near.get(key("everywhere"), eventual)).value === root);
  const listed = [];
  for await (const entry of near.list({ prefix }, { limit: 2, reverse: true, ...eventual })) listed.push(entry.value);
  equal(listed, [24, 23], "an eventual list");
  await fails("a strong read of an eventual connection", /strong/i, () => near.get(key("everywhere")));
  near.close();
}
kv.close();
