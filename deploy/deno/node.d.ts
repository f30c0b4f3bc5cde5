// Types of `node.js`.

import type { AtomicOperation as NpmOperation, Kv as NpmKv, openKv as open } from "@deno/kv";
import type { QueueHandler, QueueMessage, QueueOptions } from "./meridian.d.ts";

export * from "@deno/kv";
export type { QueueOptions, QueueHandler, QueueMessage } from "./meridian.d.ts";

export interface AtomicOperation extends NpmOperation {
  /** As `Deno.AtomicOperation` has it in `meridian.d.ts`. */
  acknowledge(message: QueueMessage): this;
}

export interface Kv extends NpmKv {
  atomic(): AtomicOperation;
  listenQueue(handler: QueueHandler, options?: QueueOptions): Promise<void>;
}

export function openKv(...args: Parameters<typeof open>): Promise<Kv>;
