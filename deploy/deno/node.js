// `@deno/kv` for Node and Bun, completed for Meridian: writes take effect once, messages keep their
// schedules, `listenQueue` hears them, and `changes` follows the database. Values are written as
// every client reads them: Bun has no V8 to do it, and Node writes views of buffers (`Uint8Array`
// within a value) in a form of its own. All else is of `@deno/kv`.
//
//   import { openKv } from "meridian-kv";
//   const kv = await openKv("http://GATEWAY", { accessToken });

import { KvU64, openKv as open } from "@deno/kv";
import { complete } from "./meridian.js";
import { decodeV8, encodeV8 } from "./v8.js";

export * from "@deno/kv";

// Node's own `serialize`, but for values with views of buffers.
async function codec() {
  if ("Bun" in globalThis) return { encodeV8, decodeV8 };
  const { DefaultSerializer, deserialize } = await import("node:v8");
  const encode = (value) => {
    const serializer = new DefaultSerializer();
    const write = serializer._writeHostObject;
    let hasViews = false;
    serializer._writeHostObject = function (view) {
      hasViews = true;
      return write.call(this, view);
    };
    serializer.writeHeader();
    serializer.writeValue(value);
    return hasViews ? encodeV8(value) : serializer.releaseBuffer();
  };
  return { encodeV8: encode, decodeV8: deserialize };
}

export async function openKv(path, options = {}) {
  const isOwn = "Deno" in globalThis || options.encodeV8 || options.decodeV8;
  if (!isOwn) options = { ...options, ...await codec() };
  const kv = await open(path, options);
  // Under Deno it is the native client, which `meridian.js` has completed.
  const isNative = "Deno" in globalThis && !options.implementation;
  if (isNative || !/^https?:\/\//i.test(path ?? "")) return kv;
  const token = () => options.accessToken || globalThis.process?.env?.DENO_KV_ACCESS_TOKEN;
  return await complete(kv, { url: path, token, deserialize: options.decodeV8, KvU64 });
}
