// Reads what formats.ts wrote, with `@deno/kv` alone, or writes the same with the package. Arguments: the URL of a
// database, and `read` or `write`.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { join } from "node:path";

const [url, verb] = process.argv.slice(2);
const { openKv } = verb === "write"
  ? await import("./package.mjs")
  : createRequire(join(process.env.MERIDIAN_NODE_MODULES, "here.js"))("@deno/kv");
const kv = await openKv(url, { accessToken: process.env.DENO_KV_ACCESS_TOKEN });
const values = {
  bigints: [2n ** 70n, -1n],
  bytes: { inner: new Uint8Array([0, 255]) },
  dates: [new Date(5), new Date("2024-05-01")],
  map: new Map([["a", 1], [2, { b: [true, null, undefined] }]]),
  numbers: [0, -0, 1.5, 2 ** 31, -1],
  set: new Set(["x", "y"]),
  text: ["grüße", "日本語 🦕", ""],
};
for (const [name, value] of Object.entries(values)) {
  if (verb === "write") await kv.set(["formats", name], value);
  assert.deepEqual((await kv.get(["formats", name])).value, value, name);
}
kv.close();
