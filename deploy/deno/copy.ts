// Copies all entries of one Deno KV database into another.
//
// deno run --unstable-kv -A copy.ts FROM TO [--go-on]
//
// FROM and TO are what Deno.openKv takes: a SQLite file, or the URL of a database. The access token
// of TO is in DENO_KV_ACCESS_TOKEN, that of FROM in FROM_ACCESS_TOKEN if it is another. TO has to be
// empty, unless --go-on says that a copy which was stopped is to be completed: it begins from the
// start, and entries of FROM take the place of those of TO. Deno KV does not tell when an entry
// expires, so that copies do not expire.

import { serialize } from "node:v8";

/** Bytes of keys and values that go in one atomic write; a gateway takes 819,200. */
const BATCH_BYTES = 400_000;
/** Each is one mutation; Deno's own client takes 1,000. */
const BATCH_ENTRIES = 500;

const [from, to, ...options] = Deno.args;
if (!from || !to || options.some((option) => option !== "--go-on")) {
  console.error("usage: copy.ts FROM TO [--go-on]");
  Deno.exit(2);
}

// Deno.openKv would make a file that is not there.
const isUrl = /^https?:/.test(from);
if (!isUrl && !(await Deno.stat(from).then((file) => file.isFile, () => false))) {
  console.error(`${from} is not a file. Nothing was copied.`);
  Deno.exit(1);
}

const target = await Deno.openKv(to);
if (!options.includes("--go-on")) {
  for await (const { key } of target.list({ prefix: [] }, { limit: 1 })) {
    console.error(`${to} is not empty: it has ${Deno.inspect(key)}. Nothing was copied.`);
    Deno.exit(1);
  }
}
const token = Deno.env.get("FROM_ACCESS_TOKEN");
const targetToken = Deno.env.get("DENO_KV_ACCESS_TOKEN");
if (token) Deno.env.set("DENO_KV_ACCESS_TOKEN", token);
const source = await Deno.openKv(from);
if (token && targetToken) Deno.env.set("DENO_KV_ACCESS_TOKEN", targetToken);

let [entries, bytes, batch, batchEntries, batchBytes] = [0, 0, target.atomic(), 0, 0];

async function flush() {
  if (batchEntries === 0) return;
  // Without checks it cannot be refused but by an error.
  await batch.commit();
  entries += batchEntries;
  bytes += batchBytes;
  console.error(`${entries} entries, ${(bytes / 1e6).toFixed(1)} MB`);
  [batch, batchEntries, batchBytes] = [target.atomic(), 0, 0];
}

/** Bytes of an entry, about. */
function size(key: Deno.KvKey, value: unknown): number {
  if (value instanceof Uint8Array) return value.length + serialize(key).length;
  return serialize([key, value instanceof Deno.KvU64 ? value.value : value]).length;
}

for await (const { key, value } of source.list({ prefix: [] })) {
  const more = size(key, value);
  if (batchEntries === BATCH_ENTRIES || batchBytes + more > BATCH_BYTES) await flush();
  batch.set(key, value);
  batchEntries += 1;
  batchBytes += more;
}
await flush();
source.close();
target.close();
console.error(`done: ${entries} entries`);
