// Types of `node.js`.

import type { Kv as NpmKv, openKv as open } from "@deno/kv";
import type { QueueOptions, QueueHandler } from "./meridian.d.ts";

export * from "@deno/kv";
export type { QueueOptions, QueueHandler, QueueMessage } from "./meridian.d.ts";

export interface Kv extends NpmKv {
  listenQueue(handler: QueueHandler, options?: QueueOptions): Promise<void>;
}

export function openKv(...args: Parameters<typeof open>): Promise<Kv>;
