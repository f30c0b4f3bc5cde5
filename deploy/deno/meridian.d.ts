// Types of that which `meridian.js` adds to Deno's own. In a program with a copy of this file:
//
//   /// <reference types="./meridian.d.ts" />

/** A message, as the second argument of a handler tells of it. */
export interface QueueMessage {
  /** The same for the whole life of the message, so that a handler can tell when it runs again. */
  readonly id: string;
  /** Counts from 1. */
  readonly attempt: number;
  readonly enqueuedAt: Date;
  /** Aborted when the message is no longer this listener's, unless the handler has acknowledged it. */
  readonly signal: AbortSignal;
}

export interface EnqueueOptions {
  /** Milliseconds before which the message is not handed out. */
  delay?: number;
  keysIfUndelivered?: (Uint8Array | string | number | bigint | boolean)[][];
  /** Milliseconds after each failure until the next attempt. */
  backoffSchedule?: number[];
  /** The name of the queue, up to 64 bytes without control characters; the queue without a name if left out. */
  queue?: string;
}

export interface QueueOptions {
  /** The name of the queue, as messages are enqueued; the queue without a name if left out. */
  queue?: string;
  /** Messages that the listener works on at a time, from 1 to 1,000. 100 if left out. */
  concurrency?: number;
  /** Milliseconds for which handlers may go on once the database is closed. 30,000 if left out, a day at most. */
  closeTimeout?: number;
}

// deno-lint-ignore no-explicit-any
export type QueueHandler = (value: any, message: QueueMessage) => Promise<void> | void;

export interface KvChange {
  /** `expire`: the value had expired, and reads have not shown it since. `drop`: the database is deleted. */
  readonly op: "set" | "delete" | "expire" | "drop";
  readonly key?: (Uint8Array | string | number | bigint | boolean)[];
  /** In place of `key`, of a key that another client has made, and that is no tuple. */
  readonly rawKey?: Uint8Array;
  /** Of a `set`: the value from then on. */
  // deno-lint-ignore no-explicit-any
  readonly value?: any;
  readonly expireAt?: Date;
}

/** What one transaction has done to keys with the prefix; a place in the feed alone where `changes` is empty. */
export interface KvChanges {
  /** The place to go on from, as `after`. */
  readonly versionstamp: string;
  readonly changes: KvChange[];
}

export interface ChangesOptions {
  /** Only changes of this key and those below it. */
  prefix?: readonly (Uint8Array | string | number | bigint | boolean)[];
  /** The versionstamp behind which the feed begins; 20 zeros for all that is kept. From now on if left out. */
  after?: string;
  /** Whether the feed goes on once it has told what was committed when it was asked for. True if left out. */
  follow?: boolean;
  /** Ends the feed, as the close of the database does. */
  signal?: AbortSignal;
}

declare global {
  namespace Deno {
    interface AtomicOperation {
      /**
       * The message is done when this write commits. Where it was settled before, or its attempt has
       * failed, the write does not commit, as after a failed check.
       */
      acknowledge(message: QueueMessage): this;
      enqueue(value: unknown, options?: EnqueueOptions): this;
    }

    interface Kv {
      /**
       * The change feed of the database. It goes on over connections that break, and leaves nothing
       * out. Throws an error with `status` 410 where `after` is no longer kept, or of commits that a
       * failover has lost: a copy is to be made anew.
       */
      changes(options?: ChangesOptions): AsyncIterableIterator<KvChanges>;
      enqueue(value: unknown, options?: EnqueueOptions): Promise<KvCommitResult>;
      listenQueue(handler: QueueHandler, options?: QueueOptions): Promise<void>;
    }
  }
}
