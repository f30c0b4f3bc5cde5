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

export interface QueueOptions {
  /** Messages that the listener works on at a time, from 1 to 1,000. 100 if left out. */
  concurrency?: number;
  /** Milliseconds for which handlers may go on once the database is closed. 30,000 if left out, a day at most. */
  closeTimeout?: number;
}

// deno-lint-ignore no-explicit-any
export type QueueHandler = (value: any, message: QueueMessage) => Promise<void> | void;

declare global {
  namespace Deno {
    interface AtomicOperation {
      /**
       * The message is done when this write commits. Where it was settled before, or its attempt has
       * failed, the write does not commit, as after a failed check.
       */
      acknowledge(message: QueueMessage): this;
    }

    interface Kv {
      listenQueue(handler: QueueHandler, options?: QueueOptions): Promise<void>;
    }
  }
}
