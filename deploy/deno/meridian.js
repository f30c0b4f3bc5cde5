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
//
// Everything else (SQLite files, other servers) stays as it is: the module asks the server first.

const PREFIX = "/.meridian/v1/";
/** The first part of reserved keys, which gateways take out of a write. */
const MARK = new TextEncoder().encode("\u0000meridian\u0000").map((byte) => byte || 0xfd);
/** Mutations of one atomic write, as the native client counts them. */
const MAX_MUTATIONS = 1000;
/** How long a server is waited for that does not say whether it is Meridian, in milliseconds. */
const PATIENCE_MS = 5000;

/** Of before the program could replace them. */
const request = globalThis.fetch;
const randomUUID = crypto.randomUUID.bind(crypto);

const marker = Symbol.for("meridian.kv/1");

if (!(marker in globalThis) && typeof Deno === "object" && typeof Deno.openKv === "function") {
  Object.defineProperty(globalThis, marker, { value: true });
  install();
}

function install() {
  /** Databases at servers: the URL of each, and whether the server is a Meridian gateway, as `ask` says. */
  const databases = new WeakMap();
  /** Atomic operations on databases that may be such, with how many mutations each has. */
  const operations = new WeakMap();

  const open = Deno.openKv;
  Object.defineProperty(Deno, "openKv", {
    configurable: true,
    enumerable: true,
    writable: true,
    value: async function openKv(path) {
      const kv = await open.call(Deno, path);
      const url = remote(path);
      if (url) databases.set(kv, { url, answer: await ask(url) });
      return kv;
    },
  });

  const mayBeMeridian = (kv) => databases.has(kv) && databases.get(kv).answer !== false;
  const kv = Deno.Kv.prototype;
  const { atomic, set, delete: remove } = kv;
  kv.atomic = function () {
    const operation = atomic.call(this);
    const database = databases.get(this);
    if (database && database.answer !== false) operations.set(operation, { database, mutations: 0 });
    return operation;
  };
  kv.set = function (key, value, options) {
    if (!mayBeMeridian(this)) return set.call(this, key, value, options);
    return later(() => this.atomic().set(key, value, options).commit());
  };
  kv.delete = function (key) {
    if (!mayBeMeridian(this)) return remove.call(this, key);
    return later(async () => void await this.atomic().delete(key).commit());
  };

  const operation = Deno.AtomicOperation.prototype;
  const { commit, set: setLater } = operation;
  for (const name of ["set", "delete", "sum", "min", "max", "mutate"]) {
    const original = operation[name];
    operation[name] = function (...args) {
      const result = original.apply(this, args);
      const state = operations.get(this);
      if (state) state.mutations += name === "mutate" ? args.length : 1;
      return result;
    };
  }
  operation.commit = async function () {
    const state = operations.get(this);
    if (state) addId(this, state);
    // Keys and byte arrays are taken as they are when the native commit is called: nothing is awaited before.
    return await commit.call(this);
  };

  function addId(operation, state) {
    const { database, mutations } = state;
    if (database.answer === undefined) askAgain(database);
    if (mutations < MAX_MUTATIONS) {
      if (database.answer !== true) return;
      setLater.call(operation, [MARK, "request", newId()], null);
      state.mutations += 1;
      state.hasId = true;
    } else if (state.hasId) {
      // It would be taken for the write that it was before. One that never had an id goes without.
      throw new TypeError("This operation was committed before, and has no room for another id: make a new one");
    }
  }
}

/** Runs `action`, so that what it throws is a rejection, as of an asynchronous function. */
async function later(action) {
  return await action();
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

let ids = 0;

/** The id of a write. `--seed` repeats what is random in every process: time, process and number do not. */
function newId() {
  return `${randomUUID()} ${performance.timeOrigin.toString(36)} ${Deno.pid} ${ids++}`;
}

/** Asks a server that has not told whether it is Meridian, one question at a time. */
function askAgain(database) {
  database.asking ??= ask(database.url).then((answer) => {
    database.answer = answer;
    database.asking = undefined;
  });
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
