// `@deno/kv` for Node and Bun, completed for Meridian: writes take effect once, messages keep their
// schedules, `listenQueue` hears them, and `changes` follows the database. All else is of `@deno/kv`.
//
//   import { openKv } from "meridian-kv";
//   const kv = await openKv("http://GATEWAY", { accessToken });

import { KvU64, openKv as open } from "@deno/kv";
import { complete } from "./meridian.js";

export * from "@deno/kv";

export async function openKv(path, options = {}) {
  const kv = await open(path, options);
  // Under Deno it is the native client, which `meridian.js` has completed.
  const isNative = "Deno" in globalThis && !options.implementation;
  if (isNative || !/^https?:\/\//i.test(path ?? "")) return kv;
  const token = () => options.accessToken || globalThis.process?.env?.DENO_KV_ACCESS_TOKEN;
  return await complete(kv, { url: path, token, deserialize: options.decodeV8, KvU64 });
}
