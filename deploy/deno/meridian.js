// Deno KV's native client, completed for Meridian.
//
//   deno run --preload http://GATEWAY/.meridian/v1/deno.js main.ts
//
// or, where preload does not reach (`deno serve`, workers), as the first line of the entry point:
//
//   import "http://GATEWAY/.meridian/v1/deno.js";
//
// Databases that `Deno.openKv` opens at a Meridian gateway get, with the program unchanged:
// - writes that take effect once. The native client sends a write again after every broken
//   connection; here each write has an id of its own, by which Meridian knows it again.
// - queues. The native client refuses `enqueue` at a server, and its `listenQueue` hears nothing
//   there; here messages travel in the atomic write, and listeners hear them from the gateway.
// - `atomic().acknowledge(message)`: the message of a handler is done with the write, or neither is.
// - `changes()`: the change feed, transaction by transaction.
//
// Everything else (SQLite files, other servers) stays as it is: the module asks the server first.
// `node.js` beside this file completes `@deno/kv` by the same means.

const PREFIX = "/.meridian/v1/";
/** The first part of reserved keys, which gateways take out of a write. */
const MARK = new TextEncoder().encode("\u0000meridian\u0000").map((byte) => byte || 0xfd);
/** Mutations of one atomic write, as the clients count them. */
const MAX_MUTATIONS = 1000;
const MAX_DELAY_MS = 30 * 24 * 60 * 60 * 1000;
const MAX_INTERVAL_MS = 60 * 60 * 1000;
const MAX_INTERVALS = 10;
/** Of the name of a queue, in bytes. */
const MAX_NAME_BYTES = 64;
/** How long a server is waited for that does not say whether it is Meridian, in milliseconds. */
const PATIENCE_MS = 5000;

/** Messages that a listener works on at a time, unless the program says otherwise. */
const CONCURRENCY = 100;
/** For how long handlers that run when the database is closed may go on, unless the program says otherwise. */
const CLOSE_TIMEOUT_MS = 30_000;
const MAX_CLOSE_TIMEOUT_MS = 24 * 60 * 60 * 1000;
/** A stream that is silent for so long is broken: gateways send a line every five seconds. */
const SILENCE_MS = 15_000;
/** A stream that lived for so long was a good one, and the next is tried at once when it ends. */
const STEADY_MS = 5000;
/** Between two attempts, at most: below the time for which a broken stream's messages stay leased. */
const MAX_PAUSE_MS = 2000;
/** How long an answer to a report, or to a question for metadata, is waited for. */
const ANSWER_MS = 10_000;
/** Reports of one request. */
const MAX_REPORTS = 1000;
/** How long outcomes are still reported after the database was closed and no handler is waited for. */
const FAREWELL_MS = 30_000;

/** Of before the program could replace them. */
const request = globalThis.fetch;
const randomUUID = crypto.randomUUID.bind(crypto);

// `deno run --seed` repeats what is random in every process: start and number of the process, and a count, do not.
const began = performance.timeOrigin;
const pid = globalThis.Deno?.pid ?? globalThis.process?.pid ?? 0;
let ids = 0;

/** The id of a write. */
function newId() {
  return `${randomUUID()} ${began.toString(36)} ${pid} ${ids++}`;
}

/** The id of a listener: a UUID. */
function newListener() {
  const hex = (number, digits) => Math.floor(number % 16 ** digits).toString(16).padStart(digits, "0");
  return `${hex(began * 1000 + ids++, 8)}-${hex(pid, 4)}-${randomUUID().slice(14)}`;
}

const marker = Symbol.for("meridian.kv/1");

if (!(marker in globalThis) && typeof Deno === "object" && typeof Deno.openKv === "function") {
  Object.defineProperty(globalThis, marker, { value: true });
  install();
}

function install() {
  const open = Deno.openKv;
  define(Deno, "openKv", async function openKv(path) {
    const kv = await open.call(Deno, path);
    const url = remote(path);
    return url ? await complete(kv, { url, token: () => variable("DENO_KV_ACCESS_TOKEN") }) : kv;
  }, true);
}

/**
 * Completes an open database if the server at `url` is Meridian or does not tell yet.
 *
 * `token` returns the access token, `deserialize` reads what V8's serializer made, and `KvU64` is the
 * client's class.
 */
export async function complete(kv, { url, token, deserialize, KvU64 }) {
  const database = new Database(new URL(url), token, deserialize, KvU64);
  if (await database.asked() !== false) completeDatabase(kv, database);
  return kv;
}

function completeDatabase(kv, database) {
  const { atomic, close, listenQueue } = kv;
  const dispose = kv[Symbol.dispose];
  const begin = () => completeOperation(atomic.call(kv), database);
  define(kv, "atomic", begin);
  define(kv, "set", async (key, value, options) => await begin().set(key, value, options).commit());
  define(kv, "delete", async (key) => void await begin().delete(key).commit());
  define(kv, "enqueue", async (value, options) => await begin().enqueue(value, options).commit());
  define(kv, "listenQueue", async (handler, options) => {
    if (database.isClosed) throw new Error("Queue already closed");
    const isMeridian = await database.isMeridian();
    if (isMeridian === false) {
      if (queueName(options)) throw new TypeError("Named queues are Meridian's");
      return await listenQueue.call(kv, handler);
    }
    if (isMeridian) await new Listener(database, handler, options).run();
  });
  define(kv, "changes", (options) => changes(database, options));
  define(kv, "close", () => {
    database.close();
    return close.call(kv);
  });
  if (dispose) {
    define(kv, Symbol.dispose, () => {
      database.close();
      dispose.call(kv);
    });
  }
}

function completeOperation(operation, database) {
  let mutations = 0;
  let messages = 0;
  const acknowledged = [];
  let hasId = false;
  const { commit, set } = operation;
  for (const name of ["set", "delete", "sum", "min", "max", "mutate"]) {
    const original = operation[name];
    define(operation, name, (...args) => {
      const before = mutations;
      original.apply(operation, args);
      // In `@deno/kv` all others call `mutate`, which has counted already.
      mutations = before + (name === "mutate" ? args.length : 1);
      return operation;
    });
  }
  const say = (parts, value) => {
    const before = mutations;
    set.call(operation, [MARK, ...parts], value);
    mutations = before + 1;
  };
  define(operation, "enqueue", (value, options) => {
    const number = String(messages);
    say(["enqueue", number, schedule(options)], payload(value));
    for (const key of options?.keysIfUndelivered ?? []) {
      const parts = key.map((part) => part instanceof Uint8Array ? part.slice() : part);
      say(["undelivered", number, ...parts], null);
    }
    messages += 1;
    return operation;
  });
  define(operation, "acknowledge", (about) => {
    const message = received.get(about);
    if (!message) throw new TypeError("acknowledge() takes the second argument of a handler of listenQueue()");
    say(["acknowledge", message.id, String(message.due), ...(message.queue ? [message.queue] : [])], null);
    acknowledged.push(message);
    return operation;
  });
  define(operation, "commit", async () => {
    // Also where nothing is sent: its handler has failed then, though it may return.
    for (const message of acknowledged) message.isLeftToWrites = true;
    // Keys and byte arrays are taken as they are when the client's own commit is called: nothing is awaited before,
    // but where the server has not told yet what it is and there are messages, which no other server may get.
    if ((messages > 0 || acknowledged.length > 0) && database.answer !== true) {
      const isMeridian = await database.isMeridian();
      const what = messages > 0 ? "Enqueue operations" : "Acknowledgements";
      if (isMeridian === false) throw new TypeError(`${what} are not supported in KV Connect`);
      if (!isMeridian) throw new Error("The database was closed before its server told whether it has queues");
    }
    if (database.answer === undefined) database.asked();
    if (mutations < MAX_MUTATIONS) {
      if (database.answer === true) {
        say(["request", newId()], null);
        hasId = true;
      }
    } else if (hasId) {
      // It would be taken for the write that it was before. One that never had an id goes without.
      throw new TypeError("This operation was committed before, and has no room for another id: make a new one");
    } else if (acknowledged.length > 0) {
      // Sent again without an id, it would be told that its message is done, and not that it has done it.
      throw new TypeError(`A write that acknowledges has room for an id: at most ${MAX_MUTATIONS - 1} mutations in all`);
    }
    const committed = commit.call(operation);
    for (const message of acknowledged) message.leaveTo(committed);
    return await committed;
  });
  return operation;
}

/** When a message is due, and in which queue, as the text in its key. */
export function schedule(options) {
  const { delay = 0, backoffSchedule } = options ?? {};
  if (!(delay >= 0 && delay <= MAX_DELAY_MS)) {
    throw new TypeError(`Delay must be between 0 and ${MAX_DELAY_MS} milliseconds: received ${delay}`);
  }
  if (backoffSchedule?.length > MAX_INTERVALS) {
    throw new TypeError(`Invalid backoffSchedule: it has at most ${MAX_INTERVALS} intervals`);
  }
  for (const interval of backoffSchedule ?? []) {
    if (!(interval >= 0 && interval <= MAX_INTERVAL_MS)) {
      throw new TypeError(`Invalid backoffSchedule: an interval is between 0 and ${MAX_INTERVAL_MS} milliseconds`);
    }
  }
  const queue = queueName(options);
  return JSON.stringify({ delayMs: Math.ceil(delay), backoffMs: backoffSchedule?.map(Math.ceil), queue });
}

/** The queue that options name; `undefined` where it is the one without a name. */
export function queueName(options) {
  const name = options?.queue ?? "";
  if (typeof name !== "string") throw new TypeError(`The name of a queue is a string: received ${typeof name}`);
  if (!name.isWellFormed()) throw new TypeError("The name of a queue has half of a surrogate pair");
  if (/\p{Cc}/u.test(name)) throw new TypeError("The name of a queue has a control character");
  const { length } = new TextEncoder().encode(name);
  if (length > MAX_NAME_BYTES) throw new TypeError(`The name of a queue has at most ${MAX_NAME_BYTES} bytes: ${length}`);
  return name || undefined;
}

/**
 * A value that the client serializes as a payload has to be. Clients send byte arrays and u64 as
 * such, while payloads are always of V8's serializer: bytes are sent serialized already.
 */
export function payload(value) {
  if (value instanceof Uint8Array) return serializedBytes(value);
  const isU64 = typeof value?.value === "bigint" && /^_?KvU64$/.test(value.constructor?.name);
  return isU64 ? { value: value.value } : value;
}

/** What V8's serializer makes of a byte array: a buffer, and a view of all of it. */
function serializedBytes(bytes) {
  const length = [];
  let rest = bytes.length;
  for (; rest > 0x7f; rest >>>= 7) length.push(rest & 0x7f | 0x80);
  length.push(rest);
  const [header, buffer, view] = [[0xff, 0x0f], 0x42, [0x56, 0x42]];
  const before = [...header, buffer, ...length];
  const after = [...view, 0, ...length, 0];
  const serialized = new Uint8Array(before.length + bytes.length + after.length);
  serialized.set(before);
  serialized.set(bytes, before.length);
  serialized.set(after, before.length + bytes.length);
  return serialized;
}

/** A database at a server. */
class Database {
  #url;
  #token;
  #deserialize;
  #KvU64;
  /** Whether the server is a Meridian gateway, as `ask` says. */
  #answer;
  /** The question under way: one at a time. */
  #asking;
  #connection;
  #closing = new AbortController();

  constructor(url, token, deserialize, KvU64) {
    this.#url = url;
    this.#token = token;
    this.#deserialize = deserialize;
    this.#KvU64 = KvU64;
  }

  /** Whether the server is Meridian, as far as it has told. */
  get answer() {
    return this.#answer;
  }

  /** The same, after a server that has not told was asked again; `undefined` if it still does not. */
  async asked() {
    if (this.#answer !== undefined) return this.#answer;
    this.#asking ??= ask(this.#url).then((answer) => {
      this.#asking = undefined;
      this.#answer = answer;
    });
    await this.#asking;
    return this.#answer;
  }

  /** The same, once the server has told or the database was closed. */
  async isMeridian() {
    for (let attempt = 1;; attempt++) {
      const answer = await this.asked();
      if (answer !== undefined || this.isClosed) return answer;
      await pause(attempt, this.closing);
    }
  }

  get closing() {
    return this.#closing.signal;
  }

  get isClosed() {
    return this.closing.aborted;
  }

  close() {
    this.#closing.abort();
  }

  async deserialize(bytes) {
    this.#deserialize ??= (await import("node:v8")).deserialize;
    return this.#deserialize(bytes);
  }

  /** A value by its encoding in the protocol. */
  async value(bytes, encoding) {
    if (encoding === "V8") return await this.deserialize(bytes);
    if (encoding !== "LE64") return bytes;
    const KvU64 = this.#KvU64 ?? Deno.KvU64;
    return new KvU64(new DataView(bytes.buffer).getBigUint64(0, true));
  }

  /** The lines of an answer, each a JSON object, until it ends, or is silent for too long while it is read. */
  async *lines(path, body, cut) {
    let watchdog;
    const heard = () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => cut.abort(), SILENCE_MS);
    };
    heard();
    try {
      const answer = await this.ask(path, body, cut.signal);
      for await (const line of lines(answer.body, heard)) {
        clearTimeout(watchdog);
        yield line;
        heard();
      }
    } finally {
      clearTimeout(watchdog);
      cut.abort();
    }
  }

  /** Sends a request; one without a body is a GET. An answer that stays the same is a `Refused`. */
  async ask(path, body, signal) {
    try {
      const { endpoint, headers } = await (this.#connection ??= this.#connect());
      return await send(new URL(path, endpoint), headers, body, signal);
    } catch (error) {
      // A refusal may be of a token or an address that is the server's no more.
      this.#connection = undefined;
      throw error;
    }
  }

  async #connect() {
    const token = this.#token();
    if (!token) {
      throw new Refused(
        "listenQueue() and changes() need the access token: set DENO_KV_ACCESS_TOKEN and let the program " +
          "read it (--allow-env=DENO_KV_ACCESS_TOKEN)",
      );
    }
    const headers = { authorization: `Bearer ${token}` };
    const signal = AbortSignal.timeout(ANSWER_MS);
    const answer = await send(this.#url, headers, { supportedVersions: [2, 3] }, signal);
    const { databaseId, endpoints, token: own, version } = await answer.json();
    const { url } = endpoints.find(({ consistency }) => consistency === "strong");
    return {
      endpoint: new URL(url, answer.url),
      headers: {
        authorization: `Bearer ${own}`,
        "x-denokv-version": String(version),
        "x-denokv-database-id": databaseId,
      },
    };
  }
}

/** An answer that does not change when the request is sent again. */
class Refused extends Error {
  name = "Refused";

  /** `status` is that of HTTP. */
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function send(url, headers, body, signal) {
  const answer = await request(url, {
    method: body ? "POST" : "GET",
    headers: body ? { ...headers, "content-type": "application/json" } : headers,
    body: body && JSON.stringify(body),
    signal,
  });
  if (answer.ok) return answer;
  const text = `${url.pathname}: ${answer.status} ${await answer.text()}`;
  const isFinal = answer.status < 500 && answer.status !== 408 && answer.status !== 429;
  throw isFinal ? new Refused(text, answer.status) : new Error(text);
}

/** Messages by what their handlers were told of them. */
const received = new WeakMap();

/** A message that was handed to a handler. */
class Message {
  #released = new AbortController();
  /** Writes under way that acknowledge it. */
  #writes = new Set();
  /** A write was to acknowledge it, so that nothing else does. */
  isLeftToWrites = false;
  /** Such a write has committed. */
  isAcknowledged = false;

  /** `queue` is its name, if it has one. */
  constructor({ id, due, attempt, enqueued }, queue) {
    this.queue = queue;
    this.id = id;
    this.due = due;
    this.name = name(id, due);
    this.about = { id, attempt, enqueuedAt: new Date(enqueued), signal: this.#released.signal };
    received.set(this.about, this);
  }

  leaveTo(write) {
    const over = write.then(({ ok }) => this.isAcknowledged ||= ok, () => {}).then(() => this.#writes.delete(over));
    this.#writes.add(over);
  }

  /** No write that acknowledges it is under way. */
  async written() {
    while (this.#writes.size > 0) await Promise.all(this.#writes);
  }

  /** It is the listener's no more. Of a message that is done its handler need not hear. */
  async release() {
    await this.written();
    if (!this.isAcknowledged) this.#released.abort();
  }
}

/** One call of `listenQueue`. */
export class Listener {
  #database;
  #handler;
  #queue;
  #concurrency;
  #closeTimeout;
  /** Names this listener when it comes back after a break. */
  #id = newListener();
  /** Messages that are this listener's: leased to it, and not settled yet. */
  #held = new Map();
  /** Messages whose handlers have not ended. */
  #running = new Map();
  /** Outcomes that are not logged yet. */
  #outcomes = new Map();
  #reporting;
  /** The database was closed, and no handler is waited for, since `FAREWELL_MS`. */
  #isLate = false;
  /** Ends the stream in progress. */
  #cut = new AbortController();

  constructor(database, handler, options) {
    const { concurrency = CONCURRENCY, closeTimeout = CLOSE_TIMEOUT_MS } = options ?? {};
    if (!(Number.isInteger(concurrency) && concurrency > 0 && concurrency <= 1000)) {
      throw new TypeError(`Concurrency must be an integer between 1 and 1000: received ${concurrency}`);
    }
    if (!(closeTimeout >= 0 && closeTimeout <= MAX_CLOSE_TIMEOUT_MS)) {
      throw new TypeError(
        `The timeout of a close must be between 0 and ${MAX_CLOSE_TIMEOUT_MS} milliseconds: received ${closeTimeout}`,
      );
    }
    this.#database = database;
    this.#handler = handler;
    this.#queue = queueName(options);
    this.#concurrency = concurrency;
    this.#closeTimeout = closeTimeout;
  }

  /** Hears messages until the database is closed, and then until no handler is waited for. */
  async run() {
    const { closing } = this.#database;
    let closed;
    const close = () => {
      closed = setTimeout(() => this.#giveUp(), this.#closeTimeout);
      this.#cut.abort();
    };
    closing.addEventListener("abort", close);
    let [attempt, refusals] = [0, 0];
    while (!closing.aborted || this.#running.size > 0) {
      const began = performance.now();
      this.#cut = new AbortController();
      try {
        await this.#hear();
        refusals = 0;
      } catch (error) {
        // The first may be of a token or a gateway of before.
        if (error instanceof Refused && ++refusals > 1) throw error;
      }
      attempt = performance.now() - began >= STEADY_MS ? 0 : attempt + 1;
      // Cut by the close of the database and the last handler behind it: the stream's own end has cut the one before.
      this.#cut = new AbortController();
      if (!closing.aborted || this.#running.size > 0) await pause(attempt, this.#cut.signal);
    }
    closing.removeEventListener("abort", close);
    clearTimeout(closed);
    const late = setTimeout(() => this.#isLate = true, FAREWELL_MS);
    await this.#reporting;
    await this.#report();
    clearTimeout(late);
  }

  /** One stream, to its end. */
  async #hear() {
    const cut = this.#cut;
    const isHeld = ({ isAcknowledged }) => !isAcknowledged;
    const working = [...this.#running.values()].filter(isHeld).length;
    // While the database is being closed, nothing new is to come: all credits are in use.
    const credits = this.#database.isClosed ? working : this.#concurrency;
    if (credits === 0) return await new Promise((done) => cut.signal.addEventListener("abort", done));
    const held = [...this.#held.values()].filter(isHeld).map(({ id, due }) => ({ id, due }));
    const body = { listener: this.#id, credits, held, queue: this.#queue };
    for await (const line of this.#database.lines("queue/listen", body, cut)) {
      if (line.type === "message") this.#begin(line);
      if (line.type === "release") this.#released(line);
      if (line.type === "end") break;
    }
  }

  #released({ id, due }) {
    const message = this.#held.get(name(id, due));
    this.#held.delete(name(id, due));
    message?.release();
  }

  #begin(line) {
    // A gateway may say again what this listener works on; and it may have room where that is done by a write.
    if (this.#held.has(name(line.id, line.due)) || this.#database.isClosed) return;
    const message = new Message(line, this.#queue);
    this.#held.set(message.name, message);
    this.#running.set(message.name, message);
    this.#handle(line.payload, message).then((verdict) => this.#ended(message, verdict));
  }

  #ended(message, verdict) {
    const { name, id, due } = message;
    // It may have been given up.
    if (!this.#running.delete(name)) return;
    if (message.isAcknowledged) this.#held.delete(name);
    else this.#outcomes.set(name, { id, due, verdict: message.isLeftToWrites ? "nack" : verdict });
    if (!this.#database.isClosed) {
      if (this.#outcomes.size > 0) this.#reporting ??= this.#report();
    } else if (this.#running.size === 0) {
      // Outcomes wait until the last handler has ended: each that is reported makes room for a message.
      this.#cut.abort();
    }
  }

  /** The attempts of handlers that have not ended fail. */
  #giveUp() {
    for (const message of [...this.#running.values()]) {
      message.release();
      this.#ended(message, "nack");
    }
  }

  async #handle(payload, message) {
    let verdict = "ack";
    try {
      await this.#handler(await this.#database.deserialize(fromBase64(payload)), message.about);
    } catch (error) {
      console.error("Exception in queue handler", error);
      verdict = "nack";
    }
    await message.written();
    return verdict;
  }

  /** Reports outcomes until none is left: sent again until answered, whatever becomes of a request. */
  async #report() {
    let [attempt, refusals] = [0, 0];
    while (this.#outcomes.size > 0 && !this.#isLate) {
      // `run` reports the rest, once the last handler has ended.
      if (this.#database.isClosed && this.#running.size > 0) break;
      const some = [...this.#outcomes].slice(0, MAX_REPORTS);
      const reports = some.map(([, report]) => report);
      const body = { listener: this.#id, reports, queue: this.#queue };
      try {
        const answer = await this.#database.ask("queue/report", body, AbortSignal.timeout(ANSWER_MS));
        await answer.text();
        attempt = refusals = 0;
      } catch (error) {
        if (!(error instanceof Refused && ++refusals > 1)) {
          await pause(++attempt);
          continue;
        }
        console.error("Outcomes of messages are not reported", error);
      }
      for (const [name] of some) {
        this.#outcomes.delete(name);
        this.#held.delete(name);
      }
    }
    this.#reporting = undefined;
  }
}

function name(id, due) {
  return `${id} ${due}`;
}

/** HTTP statuses of the reasons for which a feed ends. */
const END_STATUS = { gone: 410, not_of_history: 410, ahead: 400, no_access: 401 };

/**
 * Transactions that have changed keys with a prefix, in the order of their commits, and at times the
 * place that the feed has come to: `changes` is empty then.
 */
async function* changes(database, { prefix = [], after, follow = true, signal } = {}) {
  const query = new URLSearchParams({ prefix: toBase64(encodeKey(prefix)), follow });
  if (after !== undefined) query.set("after", after);
  if (await database.isMeridian() === false) throw new TypeError("Change feeds are Meridian's");
  const over = signal ? AbortSignal.any([database.closing, signal]) : database.closing;
  for await (const line of feed(database, query, over)) {
    const changes = (line.changes ?? []).map((change) => readChange(database, change));
    yield { versionstamp: place(line), changes: await Promise.all(changes) };
  }
}

/** The lines of a feed, over connections that break, until it is `over` or there is a reason to end. */
async function* feed(database, query, over) {
  let [attempt, refusals] = [0, 0];
  while (!over.aborted) {
    const cut = new AbortController();
    const end = () => cut.abort();
    over.addEventListener("abort", end);
    try {
      for await (const line of database.lines(`changes?${query}`, undefined, cut)) {
        if (line.end === "told" || over.aborted) return;
        if (line.end) throw new Refused(line.message, END_STATUS[line.end]);
        yield line;
        query.set("after", place(line));
        attempt = refusals = 0;
      }
    } catch (error) {
      // The first may be of a token or a gateway of before; a place that is gone stays gone.
      if (error instanceof Refused && (error.status === 410 || ++refusals > 1)) throw error;
    } finally {
      over.removeEventListener("abort", end);
    }
    await pause(++attempt, over);
  }
}

/** The place that a feed has come to with a line. */
function place({ versionstamp, bookmark }) {
  return versionstamp ?? bookmark;
}

async function readChange(database, { op, key, encoding, value, expireAt }) {
  const change = { op };
  if (key !== undefined) {
    const bytes = fromBase64(key);
    try {
      change.key = decodeKey(bytes);
    } catch {
      change.rawKey = bytes;
    }
  }
  if (value !== undefined) change.value = await database.value(fromBase64(value), encoding);
  if (expireAt !== undefined) change.expireAt = new Date(expireAt);
  return change;
}

/** A key as Deno's clients encode it, which sorts as its parts do: each is a byte of its type, and then its own. */
export function encodeKey(key) {
  return Uint8Array.from(key.flatMap(encodePart));
}

function encodePart(part) {
  const escaped = (bytes) => [...bytes].flatMap((byte) => byte === 0 ? [0, 0xff] : [byte]);
  if (part instanceof Uint8Array) return [1, ...escaped(part), 0];
  if (typeof part === "string") return [2, ...escaped(new TextEncoder().encode(part)), 0];
  if (typeof part === "boolean") return [part ? 0x27 : 0x26];
  if (typeof part === "number") {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setFloat64(0, part);
    const isNegative = bytes[0] > 0x7f;
    return [0x21, ...bytes.map((byte, at) => isNegative ? ~byte : at === 0 ? byte ^ 0x80 : byte)];
  }
  if (typeof part !== "bigint") {
    throw new TypeError("A part of a key is a Uint8Array, a string, a number, a bigint or a boolean");
  }
  const isNegative = part < 0n;
  const digits = part === 0n ? "" : (isNegative ? -part : part).toString(16);
  const magnitude = (digits.padStart(digits.length + digits.length % 2, "0").match(/../g) ?? []).map((hex) => {
    const byte = parseInt(hex, 16);
    return isNegative ? 0xff - byte : byte;
  });
  const { length } = magnitude;
  if (length > 0xff) throw new RangeError("A bigint of a key has at most 255 bytes");
  if (length <= 8) return [0x14 + (isNegative ? -length : length), ...magnitude];
  return [...(isNegative ? [0x0b, 0xff - length] : [0x1d, length]), ...magnitude];
}

/** The inverse of `encodeKey`. */
export function decodeKey(bytes) {
  let at = 0;
  const take = (length) => {
    if (at + length > bytes.length) throw new RangeError("The key is cut off");
    return bytes.subarray(at, at += length);
  };
  const unescaped = () => {
    const output = [];
    for (;;) {
      const [byte] = take(1);
      if (byte === 0 && bytes[at++] !== 0xff) {
        at -= 1;
        return Uint8Array.from(output);
      }
      output.push(byte);
    }
  };
  const bigint = (length, isNegative) => {
    let magnitude = 0n;
    for (const byte of take(length)) magnitude = magnitude << 8n | BigInt(isNegative ? 0xff - byte : byte);
    return isNegative ? -magnitude : magnitude;
  };
  const key = [];
  while (at < bytes.length) {
    const [type] = take(1);
    if (type === 1) key.push(unescaped());
    else if (type === 2) key.push(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(unescaped()));
    else if (type === 0x26 || type === 0x27) key.push(type === 0x27);
    else if (type === 0x21) {
      const sorted = take(8);
      const isNegative = sorted[0] <= 0x7f;
      const number = sorted.map((byte, at) => isNegative ? ~byte : at === 0 ? byte ^ 0x80 : byte);
      key.push(new DataView(number.buffer).getFloat64(0));
    } else if (type === 0x0b) key.push(bigint(0xff - take(1)[0], true));
    else if (type === 0x1d) key.push(bigint(take(1)[0], false));
    else if (type > 0x0b && type < 0x1d) key.push(bigint(Math.abs(type - 0x14), type < 0x14));
    else throw new TypeError(`Byte ${at - 1} of the key begins no part: ${type}`);
  }
  return key;
}

function toBase64(bytes) {
  const text = btoa(String.fromCharCode(...bytes));
  return text.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** The bytes of base64, also of base64url. */
function fromBase64(text) {
  return Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (char) => char.charCodeAt(0));
}

/** The lines of a stream, each a JSON object. Calls `heard` whenever bytes come. */
export async function* lines(stream, heard) {
  const text = new TextDecoder();
  let parts = [];
  for await (const bytes of stream) {
    heard();
    const [first, ...others] = text.decode(bytes, { stream: true }).split("\n");
    parts.push(first);
    for (const other of others) {
      yield JSON.parse(parts.join(""));
      parts = [other];
    }
  }
}

/** Waits before the next attempt: longer each time, and not the same for all. Ends with `signal`. */
function pause(attempt, signal) {
  if (attempt === 0 || signal?.aborted) return Promise.resolve();
  const longest = Math.min(MAX_PAUSE_MS, 50 * 2 ** Math.min(attempt, 16));
  return new Promise((done) => {
    const end = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", end);
      done();
    };
    const timer = setTimeout(end, longest * (0.5 + Math.random() / 2));
    signal?.addEventListener("abort", end);
  });
}

function define(object, name, value, enumerable = false) {
  Object.defineProperty(object, name, { configurable: true, enumerable, writable: true, value });
}

/** What a variable of the environment says, where the program may read it. */
function variable(name) {
  const { state } = Deno.permissions.querySync({ name: "env", variable: name });
  return state === "granted" ? Deno.env.get(name) : undefined;
}

/** The URL that a database is opened at, as Deno puts it together; `undefined` where it is no server's. */
function remote(path) {
  const name = path ?? variable("DENO_KV_DEFAULT_PATH");
  if (!name) return undefined;
  const url = (variable("DENO_KV_PATH_PREFIX") ?? "") + name;
  return /^https?:\/\//.test(url) ? new URL(url) : undefined;
}

/** Whether the server at a URL is a Meridian gateway with this interface; `undefined` where it does not tell. */
async function ask(url) {
  try {
    const answer = await request(new URL(`${PREFIX}server`, url), { signal: AbortSignal.timeout(PATIENCE_MS) });
    const text = await answer.text();
    if (answer.ok) return text === '{"server":"meridian"}';
    return answer.status >= 500 ? undefined : false;
  } catch {
    return undefined;
  }
}
