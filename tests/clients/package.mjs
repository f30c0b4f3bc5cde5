// The package for Node and Bun, `deploy/deno`, as it lies in a program's node_modules, beside `@deno/kv`.

import { cp, mkdtemp, rm, symlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const folder = await mkdtemp(join(tmpdir(), "meridian-kv-"));
await symlink(process.env.MERIDIAN_NODE_MODULES, join(folder, "node_modules"));
await cp(fileURLToPath(new URL("../../deploy/deno", import.meta.url)), join(folder, "meridian-kv"), { recursive: true });
export const { openKv, KvU64 } = await import(pathToFileURL(join(folder, "meridian-kv", "node.js")));
await rm(folder, { recursive: true });
