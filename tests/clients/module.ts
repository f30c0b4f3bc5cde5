// The module that completes the native client, over a connection that breaks after a commit and before its
// answer. Argument: the URL of a gateway. Run with `--preload URL/.meridian/v1/deno.js`.
// Ends with an error at the first wrong result.

import { Proxy } from "./proxy.ts";

const gateway = new URL(Deno.args[0]);

function equal(actual: unknown, expected: unknown, what: string) {
  const [left, right] = [Deno.inspect(actual), Deno.inspect(expected)];
  if (left !== right) throw new Error(`${what}: ${left} instead of ${right}`);
}

const proxy = new Proxy(gateway);
const kv = await Deno.openKv(`http://127.0.0.1:${proxy.port}`);
const root = crypto.randomUUID();
const key = (name: string) => ["module", root, name];
const count = async () => (await kv.get<Deno.KvU64>(key("count"))).value?.value;

for (let round = 1n; round <= 5n; round++) {
  proxy.swallow = true;
  const committed = await kv.atomic().sum(key("count"), 1n).commit();
  equal(committed.ok, true, "a sum whose answer was swallowed");
  equal(await count(), round, "a sum takes effect once");
}
proxy.swallow = true;
const created = await kv.atomic().check({ key: key("new"), versionstamp: null }).set(key("new"), 1).commit();
equal(created.ok, true, "a write does not fail by its own check");
proxy.swallow = true;
const set = await kv.set(key("set"), "value");
equal([set.ok, (await kv.get(key("set"))).versionstamp], [true, set.versionstamp], "a set");
proxy.swallow = true;
await kv.delete(key("set"));
equal((await kv.get(key("set"))).value, null, "a delete");
if (proxy.swallowed < 8) throw new Error(`only ${proxy.swallowed} answers were swallowed`);

// One operation may be committed twice, and means two writes then.
const twice = kv.atomic().sum(key("twice"), 1n);
await twice.commit();
await twice.commit();
equal((await kv.get<Deno.KvU64>(key("twice"))).value?.value, 2n, "an operation that was committed twice");

const full = kv.atomic();
for (let at = 0; at < 999; at++) full.sum(key("full"), 1n);
await full.commit();
const counted = await full.commit().then(() => 1998n, () => 999n);
equal((await kv.get<Deno.KvU64>(key("full"))).value?.value, counted, "a commit that does nothing is an error");

// Ids differ also where the program's chance repeats.
const chance = crypto.randomUUID;
crypto.randomUUID = () => "00000000-0000-4000-8000-000000000000";
for (let round = 0; round < 2; round++) await kv.atomic().sum(key("alike"), 1n).commit();
crypto.randomUUID = chance;
equal((await kv.get<Deno.KvU64>(key("alike"))).value?.value, 2n, "two writes that are alike");

// A write is what it is when it is committed, though the program goes on using its key and its bytes.
const [reused, bytes, writes] = [["module", root, 0], new Uint8Array(1), [] as Promise<unknown>[]];
for (let at = 0; at < 3; at++) {
  [reused[2], bytes[0]] = [at, at];
  writes.push(kv.set(reused, bytes));
}
const grows = kv.atomic().set(key("grows"), 1);
writes.push(grows.commit());
grows.set(key("later"), 1);
await Promise.all(writes);
const kept = await kv.getMany<Uint8Array[]>([0, 1, 2].map((at) => ["module", root, at]));
equal(kept.map(({ value }) => value?.[0]), [0, 1, 2], "a key and bytes that the program goes on using");
equal((await kv.get(key("later"))).value, null, "a mutation that was added after the commit");

// Nothing of it is there to be read, and a write of the greatest number of mutations fits.
const names = [];
for await (const entry of kv.list({ prefix: [] })) names.push(entry.key[0]);
equal(names.every((name) => typeof name === "string"), true, "reserved keys are stored nowhere");
const many = kv.atomic();
for (let index = 0; index < 1000; index++) many.set(["module", root, "many", index], index);
equal((await many.commit()).ok, true, "a write of 1,000 mutations");
const stamped = await kv.set([...key("stamped"), kv.commitVersionstamp() as unknown as Deno.KvKeyPart], 1);
equal(stamped.ok, true, "a versionstamped key");
await kv.set(key("short"), 1, { expireIn: 60_000 });

// A database that the prefix of the environment names is one, too.
Deno.env.set("DENO_KV_PATH_PREFIX", `http://127.0.0.1:${proxy.port}/db/`);
const named = await Deno.openKv(Deno.args[1]);
Deno.env.delete("DENO_KV_PATH_PREFIX");
proxy.swallow = true;
await named.atomic().sum(key("named"), 1n).commit();
equal((await named.get<Deno.KvU64>(key("named"))).value?.value, 1n, "a sum in a database with a prefix");
named.close();

// A file of SQLite is what it was.
const local = await Deno.openKv(":memory:");
await local.set(["a"], 1);
await local.atomic().set(["b"], 2).commit();
equal([(await local.get(["a"])).value, (await local.get(["b"])).value], [1, 2], "another database");
local.close();

kv.close();
proxy.close();
