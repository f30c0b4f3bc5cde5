// Enqueues through @deno/kv on Node. Arguments: the URL of a gateway, and how many messages. All are due in an hour;
// each is part of a write of a key, and none of a write that fails.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { join } from "node:path";
import { randomUUID } from "node:crypto";

const { openKv } = createRequire(join(process.env.MERIDIAN_NODE_MODULES, "here.js"))("@deno/kv");
const [url, count] = process.argv.slice(2);
const kv = await openKv(url, { accessToken: process.env.DENO_KV_ACCESS_TOKEN });
const root = randomUUID();
const options = { delay: 3_600_000, keysIfUndelivered: [["dead", root]] };

for (let at = 0; at < Number(count); at++) {
  const { ok } = await kv.atomic().set([root, at], at).enqueue({ root, at }, options).commit();
  assert(ok);
  assert.equal((await kv.get([root, at])).value, at);
}
await kv.set([root, "text"], "text");
await assert.rejects(kv.atomic().enqueue("undone", options).sum([root, "text"], 1n).commit(), "a sum on a text");
const checked = await kv.atomic().check({ key: [root, "text"], versionstamp: null }).enqueue("undone", options).commit();
assert(!checked.ok, "a check for absence on a present key");
kv.close();
