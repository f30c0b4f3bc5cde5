// The corpus of `deno.jsonl`: keys and values as Deno KV stores them, and the text that `Deno.inspect` shows for each
// value that was read back. From this folder:
//
//   deno run --unstable-kv --allow-read --allow-write corpus.ts > deno.jsonl
//
// One line a case: `name`, `key` and `value` in hex, `encoding` (1: V8, 2: u64, 3: bytes), `plain` and `coloured`, the
// texts of `Deno.inspect` without and with colours.

import { DatabaseSync } from "node:sqlite";

function cycle() {
  const a: Record<string, unknown> = { name: "a" };
  a.self = a;
  return a;
}

function twoCycles() {
  const a: Record<string, unknown> = {};
  const b: Record<string, unknown> = { a };
  a.b = b;
  b.b = b;
  return { first: a, list: [a, b], map: new Map<unknown, unknown>([[a, b]]), set: new Set([a]) };
}

function shared() {
  const leaf = { leaf: true };
  return { one: leaf, two: leaf, buffer: sharedBuffer() };
}

function sharedBuffer() {
  const buffer = new Uint8Array([1, 2, 3, 4, 5, 6, 7, 8]).buffer;
  return [buffer, new Uint8Array(buffer, 2, 3), new DataView(buffer, 1, 4), new Uint16Array(buffer)];
}

function error(make: () => Error, stack: string | undefined = undefined) {
  const made = make();
  made.stack = stack ?? `${made.name}: ${made.message}\n    at main (file:///app/main.ts:3:7)\n    at file:///app/b.ts:1:1`;
  return made;
}

function sparse(length: number, items: [number, unknown][]) {
  const array: unknown[] = [];
  array.length = length;
  for (const [at, item] of items) array[at] = item;
  return array;
}

function withExtra(array: unknown[], extra: Record<string, unknown>) {
  return Object.assign(array, extra);
}

function nested(depth: number): unknown {
  return depth === 0 ? "bottom" : { down: nested(depth - 1) };
}

function nestedArrays(depth: number): unknown {
  return depth === 0 ? "bottom" : [nestedArrays(depth - 1)];
}

function resizable(length: number, max: number) {
  // deno-lint-ignore no-explicit-any
  const buffer = new (ArrayBuffer as any)(length, { maxByteLength: max });
  new Uint8Array(buffer).fill(7);
  return buffer;
}

const range = (length: number) => Array.from({ length }, (_, at) => at);
// A generator with a seed: the corpus is the same each time.
let state = 12345;
const random = (below: number) => (state = (state * 1103515245 + 12345) % 2147483648) % below;

const values: Record<string, unknown> = {
  undefined: undefined,
  null: null,
  true: true,
  false: false,
  zero: 0,
  "minus zero": -0,
  one: 1,
  "minus one": -1,
  "int32 max": 2147483647,
  "int32 min": -2147483648,
  "beyond int32": 2147483648,
  fraction: 1.5,
  tenth: 0.1,
  "third": 1 / 3,
  "small": 1e-7,
  "not so small": 1e-6,
  "e21": 1e21,
  "e20": 123456789012345680000,
  "max": Number.MAX_VALUE,
  "min": Number.MIN_VALUE,
  "max safe": Number.MAX_SAFE_INTEGER,
  nan: NaN,
  infinity: Infinity,
  "minus infinity": -Infinity,
  "bigint 0": 0n,
  "bigint": 42n,
  "bigint minus": -42n,
  "bigint long": 2n ** 200n,
  "u64": new Deno.KvU64(5n),
  "u64 max": new Deno.KvU64(2n ** 64n - 1n),
  "bytes": new Uint8Array([1, 2, 255]),
  "bytes empty": new Uint8Array(),
  "bytes long": new Uint8Array(range(120)),
  "string empty": "",
  "string": "hello",
  "string latin": "grüße",
  "string wide": "日本語 🦕",
  "string lone surrogate": "a\ud800b",
  "string double quotes": 'say "hi"',
  "string both quotes": `"it's"`,
  "string all quotes": "\"it's\" `so`",
  "string escapes": "a\nb\tc\\d\u0000\u0007\u001b\u007f\u0085\u00a0",
  "string lines": "first line of some length that goes on\nsecond line of some length that goes on\nthird",
  "string long": "x".repeat(200),
  "string very long": "y".repeat(10_020),
  "string in object long": { text: "first line of some length that goes on\nsecond line of some length that goes on\nthird" },
  "object empty": {},
  "object": { a: 1, b: "two", c: [3], d: { e: null, f: undefined } },
  "object keys": { 1: "a", "two words": 2, $dollar: 3, _under: 4, "ünder": 5, "__proto__x": 6, "it's": 7, "": 8, "9z": 9, "a\nb": 10 },
  "object proto key": JSON.parse('{"__proto__": 1}'),
  "object cause": { cause: 1, a: 2 },
  "object wide": Object.fromEntries(range(30).map((at) => [`property${at}`, at])),
  "object just below the break": { aaaaaaaaaaaaaaaaaaaa: "bbbbbbbbbbbbbbbbbbbb", cccccccccccc: "dddddddddd" },
  "object at the break": { aaaaaaaaaaaaaaaaaaaa: "bbbbbbbbbbbbbbbbbbbb", cccccccccccc: "ddddddddddddd", e: 1 },
  "object beyond the break": { aaaaaaaaaaaaaaaaaaaa: "bbbbbbbbbbbbbbbbbbbb", cccccccccccc: "dddddddddddddddddd", e: 1 },
  "object of objects": { a: { b: { c: {} } } },
  "object of three levels": { a: { b: { c: { d: 1 } } } },
  "object depth 4": nested(4),
  "object depth 5": nested(5),
  "object depth 6": nested(6),
  "object depth 8": nested(8),
  "arrays depth 4": nestedArrays(4),
  "arrays depth 5": nestedArrays(5),
  "arrays depth 6": nestedArrays(6),
  "depth of all kinds": [[[[[new Map([[1, 2]]), new Set([1]), new Date(0), /x/g, new Uint8Array(3), error(() => new Error("deep")), {}, [], new ArrayBuffer(2), Object(1), [1], { a: 1 }, new Map(), new Set(), new DataView(new ArrayBuffer(1))]]]]],
  "array empty": [],
  "array": [1, "two", 3n, true, null, undefined],
  "array of seven": [1, 2, 3, 4, 5, 6, 7],
  "array of numbers": range(100),
  "array of 101": range(101),
  "array of 250": range(250),
  "array of random numbers": range(60).map(() => random(1000000)),
  "array of bigints": range(30).map((at) => BigInt(at) ** 5n),
  "array of strings": range(40).map((at) => "s".repeat(1 + (at * 7) % 13)),
  "array of long strings": range(8).map((at) => "long".repeat(10 + at)),
  "array of wide strings": range(12).map((at) => "語".repeat(1 + at % 4)),
  "array of emoji": ["🦕", "a", "👩‍👩‍👧", "é", "e\u0301", "b", "c", "d"],
  "array mixed": range(20).map((at) => at % 2 ? at : `n${at}`),
  "array of objects": range(8).map((at) => ({ id: at, name: `n${at}` })),
  "array of arrays": range(8).map((at) => range(at)),
  "array of undefined": [undefined, undefined, null, undefined, undefined, undefined, undefined],
  "array with a hole": [1, , 3],
  "array with holes": [, , 3, , ,],
  "array only holes": sparse(5, []),
  "array with one hole": sparse(1, []),
  "array sparse": sparse(1000, [[0, "a"], [500, "b"], [999, "c"]]),
  "array very sparse": sparse(4294967295, [[7, "x"]]),
  "array sparse long": sparse(300, range(140).map((at) => [at * 2, at])),
  "array with extras": withExtra([1, 2, 3], { extra: "yes", "more words": 2 }),
  "array long with extras": withExtra(range(120), { extra: "yes" }),
  "array sparse with extras": withExtra(sparse(10, [[2, 1]]), { extra: "yes" }),
  "array empty with extras": withExtra([], { extra: "yes" }),
  "date": new Date(1234567890123),
  "date invalid": new Date(NaN),
  "date early": new Date(-62198755200000),
  "date late": new Date(8.64e15),
  "date before": new Date(-1),
  "boxed number": Object(5),
  "boxed minus zero": Object(-0),
  "boxed string": Object("abc"),
  "boxed string quotes": Object('a"b'),
  "boxed true": Object(true),
  "boxed false": Object(false),
  "boxed bigint": Object(7n),
  "boxed in array": [Object(1), Object("two"), Object(false), Object(3n)],
  "regexp": /ab+c/gi,
  "regexp empty": new RegExp(""),
  "regexp slash": /a\/b/,
  "regexp newline": new RegExp("a\nb"),
  "regexp all flags": /x/dgimsuy,
  "regexp v": /x/v,
  "map empty": new Map(),
  "map": new Map<unknown, unknown>([["a", 1], [2, { b: 3 }], [{ k: 1 }, [1, 2]]]),
  "map of 101": new Map(range(101).map((at) => [at, at])),
  "map long": new Map(range(12).map((at) => [`key number ${at}`, { value: at, more: "text" }])),
  "set empty": new Set(),
  "set": new Set([1, "two", { three: 3 }]),
  "set of 101": new Set(range(101)),
  "set of ten": new Set(range(10)),
  "buffer empty": new ArrayBuffer(0),
  "buffer": new Uint8Array([1, 2, 254]).buffer,
  "buffer long": new Uint8Array(range(130)).buffer,
  "buffer resizable": resizable(4, 16),
  "buffer resizable vast": resizable(4, 2 ** 33),
  "views": [
    new Int8Array([1, -2]), new Uint8ClampedArray([1, 300]), new Int16Array([1, -2]), new Uint16Array([1, 2]),
    new Int32Array([1, -2]), new Uint32Array([1, 4294967295]), new Float32Array([1.5, 0.1, NaN, -0]),
    new Float64Array([1.5, 0.1, -Infinity]), new BigInt64Array([1n, -2n]), new BigUint64Array([1n, 2n ** 64n - 1n]),
  ],
  "float16": new Float16Array([1.5, 0.1, 65504, -0, NaN, 6e-8]),
  "view of nothing": new Float32Array(0),
  "view long": new Uint16Array(range(200)),
  "view of doubles": new Float64Array(range(20).map((at) => at / 7)),
  "view in object": { view: new Uint8Array([1, 2]) },
  "dataview": new DataView(new Uint8Array([1, 2, 3, 4]).buffer, 1, 2),
  "view tracking length": [new Uint8Array(resizable(4, 16))],
  "view of resizable": [new Uint8Array(resizable(6, 16), 1, 3)],
  "view of resizable vast": [new Uint8Array(resizable(2, 2 ** 33))],
  "shared buffer": sharedBuffer(),
  "error": error(() => new Error("message")),
  "error empty": error(() => new Error("")),
  "error type": error(() => new TypeError("message")),
  "error range": error(() => new RangeError("message")),
  "error syntax": error(() => new SyntaxError("message")),
  "error reference": error(() => new ReferenceError("message")),
  "error eval": error(() => new EvalError("message")),
  "error uri": error(() => new URIError("message")),
  "error cause": error(() => new Error("message", { cause: "a cause" })),
  "error cause number": error(() => new Error("message", { cause: 1 })),
  "error cause object": error(() => new Error("message", { cause: { code: 7 } })),
  "error cause error": error(() => new Error("outer", { cause: error(() => new TypeError("inner")) })),
  "error cause undefined": error(() => new Error("message", { cause: undefined })),
  "error three causes": error(() => new Error("1", { cause: error(() => new Error("2", { cause: error(() => new Error("3")) })) })),
  "error in object": { failed: error(() => new Error("message")), after: 1 },
  "error in array": [error(() => new Error("message")), 1],
  "error without frames": error(() => new Error("message"), "Error: message"),
  "error empty stack": error(() => new Error("message"), ""),
  "error in object without frames": { failed: error(() => new Error("message"), "Error: message") },
  "error lines": error(() => new Error("two\nlines")),
  "error node frames": error(() => new Error("m"), "Error: m\n    at f (ext:deno_web/1.js:1:1)\n    at node:internal/x:2:2\n    at file:///app/node_modules/a/b.js:1:2"),
  "error other stack": error(() => new Error("message"), "a stack that says something else\n    at somewhere"),
  "cycle": cycle(),
  "cycles": twoCycles(),
  "cycle array": (() => { const a: unknown[] = [1]; a.push(a); return a; })(),
  "cycle map": (() => { const m = new Map(); m.set("m", m); m.set(m, 1); return m; })(),
  "cycle set": (() => { const s = new Set(); s.add(s); return s; })(),
  "cycle cause": (() => { const e = error(() => new Error("m")); e.cause = e; return e; })(),
  "shared": shared(),
  "user": {
    id: "0193b1e8-4b7a-7c3e-8d2f-1a2b3c4d5e6f",
    name: "Ada Lovelace",
    emails: ["ada@example.com", "countess@example.org"],
    born: new Date("1815-12-10"),
    roles: new Set(["admin", "author"]),
    visits: 12345678901234567890n,
    settings: { theme: { colours: { background: "#fff", foreground: { text: "#000" } } }, limits: new Map([["a", 1]]) },
    avatar: new Uint8Array(range(40)),
    tags: range(30).map((at) => `tag-${at}`),
  },
  "nested lists": { matrix: range(4).map((row) => range(8).map((column) => row * column * 101)), list: range(7) },
  "wide in object": { text: "語".repeat(30), more: "語".repeat(10) },
  "long key": { ["k".repeat(90)]: 1 },
};

// Objects and arrays of a seed, for the layout.
function generated(depth: number): unknown {
  switch (random(depth > 0 ? 12 : 7)) {
    case 0:
      return random(100);
    case 1:
      return random(1000000000) / 8;
    case 2:
      return "w".repeat(random(20));
    case 3:
      return "word ".repeat(random(12));
    case 4:
      return [null, undefined, true, false][random(4)];
    case 5:
      return BigInt(random(1000000000)) ** 2n;
    case 6:
      return new Uint8Array(random(20));
    case 7:
    case 8:
      return Array.from({ length: random(12) }, () => generated(depth - 1));
    case 9:
      return new Map(Array.from({ length: random(4) }, () => [generated(0), generated(depth - 1)]));
    case 10:
      return new Set(Array.from({ length: random(4) }, () => generated(depth - 1)));
    default:
      return Object.fromEntries(Array.from({ length: random(6) }, (_, at) => ["k".repeat(1 + random(9)) + at, generated(depth - 1)]));
  }
}
for (let at = 0; at < 150; at += 1) values[`generated ${at}`] = { value: generated(6) };

const keys: Deno.KvKey[] = [
  [], ["a"], [""], ["\u0000"], ["a\u0000b", "\u0000\u0000"], ["grüße", "日本語 🦕"], ["a\ud800b"],
  [0], [-0], [1], [-1], [1.5], [-1.5], [NaN], [Infinity], [-Infinity], [Number.MAX_VALUE], [Number.MIN_VALUE],
  [0n], [1n], [-1n], [255n], [-255n], [256n], [-256n], [2n ** 64n - 1n], [2n ** 64n], [-(2n ** 64n)],
  [2n ** 2000n], [-(2n ** 2000n)], [2n ** 2040n - 1n], [true], [false], [new Uint8Array()],
  [new Uint8Array([0, 1, 255, 0])], ["users", 42n, true, new Uint8Array([1, 2])], ["a", 1, 2n, false, new Uint8Array([0])],
];

const file = await Deno.makeTempFile({ suffix: ".sqlite3" });
const kv = await Deno.openKv(file);
const texts: [string, string, string][] = [];
for (const [at, key] of keys.entries()) await kv.set(["keys", at, ...key], at);
for (const [at, [name, value]] of Object.entries(values).entries()) {
  await kv.set(["values", at], value);
  const read = (await kv.get(["values", at])).value;
  texts.push([name, Deno.inspect(read), Deno.inspect(read, { colors: true })]);
}
kv.close();

const hex = (bytes: Uint8Array) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
const database = new DatabaseSync(file);
const rows = database.prepare("select k, v, v_encoding from kv order by k").all();
let value = 0;
let at = 0;
for (const { k, v, v_encoding } of rows as { k: Uint8Array; v: Uint8Array; v_encoding: number }[]) {
  const isKey = hex(k).startsWith("026b657973");
  // The two parts in front are taken away again: a string, and a number of nine bytes.
  const line = isKey
    ? { name: `key ${at}`, key: hex(k.slice(6 + 9)), parts: Deno.inspect(keys[at++], { depth: 9, breakLength: Infinity, compact: true, strAbbreviateSize: 1e6 }) }
    : { name: texts[value][0], encoding: v_encoding, value: hex(v), plain: texts[value][1], coloured: texts[value++][2] };
  console.log(JSON.stringify(line));
}
database.close();
await Deno.remove(file);
