// Types of `node.js`.

import type { AtomicOperation as NpmOperation, Kv as NpmKv, KvCommitResult, openKv as open } from "@deno/kv";
import type {
  ChangesOptions,
  EnqueueOptions,
  KvChanges,
  QueueHandler,
  QueueMessage,
  QueueOptions,
} from "./meridian.d.ts";

export * from "@deno/kv";
export type {
  ChangesOptions,
  EnqueueOptions,
  KvChange,
  KvChanges,
  QueueHandler,
  QueueMessage,
  QueueOptions,
} from "./meridian.d.ts";

export interface AtomicOperation extends NpmOperation {
  /** As `Deno.AtomicOperation` has it in `meridian.d.ts`. */
  acknowledge(message: QueueMessage): this;
  enqueue(value: unknown, options?: EnqueueOptions): this;
}

export interface Kv extends NpmKv {
  atomic(): AtomicOperation;
  /** As `Deno.Kv` has it in `meridian.d.ts`. */
  changes(options?: ChangesOptions): AsyncIterableIterator<KvChanges>;
  enqueue(value: unknown, options?: EnqueueOptions): Promise<KvCommitResult>;
  listenQueue(handler: QueueHandler, options?: QueueOptions): Promise<void>;
}

export function openKv(...args: Parameters<typeof open>): Promise<Kv>;
