// The codec of the package for Node and Bun, `deploy/deno/v8.js`, with values that Deno wrote
// (crates/values/tests/deno.jsonl), and against V8 itself where the runtime has it. Ends with an error at the first
// wrong result.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { decodeV8, encodeV8 } from "../../deploy/deno/v8.js";

const hasV8 = !("Bun" in globalThis);
const v8 = hasV8 ? await import("node:v8") : undefined;
// An invalid date is not equal to another, and an error that is its own cause cannot be compared.
const same = (actual, expected, of) => {
  if (!(expected instanceof Date) || !isNaN(expected)) assert.deepEqual(actual, expected, of);
};
const bytes = (hex) => Buffer.from(hex, "hex");
const hex = (value) => Buffer.from(encodeV8(value)).toString("hex");

// Buffers that may grow larger than runtimes allow, and views that older ones do not know.
const rare = new Set(["buffer resizable vast", "view of resizable vast", "float16"]);
const corpus = readFileSync(new URL("../../crates/values/tests/deno.jsonl", import.meta.url), "utf8");
let [count, alike] = [0, 0];
for (const line of corpus.split("\n").filter(Boolean)) {
  const { name, encoding, value } = JSON.parse(line);
  if (encoding !== 1) continue;
  if (name === "cycle cause" || rare.has(name)) {
    try {
      encodeV8(decodeV8(bytes(value)));
    } catch (error) {
      assert.equal(error.name, "DataCloneError", name);
    }
    continue;
  }
  count++;
  const read = decodeV8(bytes(value));
  const written = encodeV8(read);
  assert.equal(hex(decodeV8(written)), hex(read), name);
  if (hex(read).slice(4) === value.slice(4)) alike++;
  if (hasV8) {
    const older = bytes(value);
    older[1] = 15;
    same(read, v8.deserialize(older), name);
    same(v8.deserialize(written), read, name);
  }
}
assert(count > 300 && alike > 280, `${alike} of ${count}`);

const cycle = new Error("a", { cause: "b" });
cycle.cause = cycle;
assert.equal(decodeV8(encodeV8(cycle)).cause.cause.message, "a");
const whole = new ArrayBuffer(4);
const shared = decodeV8(encodeV8([whole, new Uint8Array(whole, 1, 2), new DataView(whole)]));
assert.equal(shared[1].buffer, shared[0]);
assert.deepEqual([shared[1].byteOffset, shared[1].length, shared[2].buffer], [1, 2, shared[0]]);
// Bytes of the pool that a Buffer lies in stay where they are.
const pooled = Buffer.from("pooled");
assert.equal(hex(pooled), "ff0f4206706f6f6c65645642000600");
// Keys that are indexes are numbers, and the first number that is none is a string.
assert.equal(
  hex({ ["__proto__"]: 1, 4294967295: 2, 4294967294: 4, 7: 3 }),
  "ff0f6f490e49064e0000c0ffffffef41490822095f5f70726f746f5f5f4902220a3432393439363732393549047b04",
);
const odd = decodeV8(encodeV8(Object.defineProperty({}, "__proto__", { value: { polluted: 1 }, enumerable: true })));
assert.deepEqual([Object.keys(odd), odd.polluted, {}.polluted], [["__proto__"], undefined, undefined]);
// As Node writes views, which neither Deno nor Bun reads.
assert.deepEqual(decodeV8(bytes("ff0f6f2201625c010301020322016349027b02")), { b: new Uint8Array([1, 2, 3]), c: 1 });
assert.deepEqual(decodeV8(bytes("ff0f5c0a026869")), new Uint8Array([104, 105]));

for (const value of [() => 1, Symbol("s"), { f() {} }, Promise.resolve(), new WeakMap(), new SharedArrayBuffer(1)]) {
  assert.throws(() => encodeV8(value), { name: "DataCloneError" });
}
for (const value of [new Proxy({}, {}), (function () { return arguments; })()]) {
  assert.throws(() => encodeV8(value), { name: "DataCloneError" });
}
// The kind is what an object is made of, and not what it says.
class Odd extends Map {
  [Symbol.iterator]() {
    return [][Symbol.iterator]();
  }
}
assert.equal(hex(new Odd([[1, 2]])), "ff0f3b490249043a02");
assert.equal(hex(Object.create(Map.prototype)), "ff0f6f7b00");
// A view of a buffer that may grow says so.
const growing = new ArrayBuffer(4, { maxByteLength: 8 });
assert.equal(hex([growing, new Uint8Array(growing, 1, 2)]), "ff0f41027e0408000000005e015642010202240002");
assert.equal(decodeV8(bytes("ff0f5303efbbbf")), "\ufeff");
// Arrays that claim all bytes that are left, within each other.
const claims = Array.from({ length: 6000 }, (_, at) => [0x41, (65_000 - at * 4) % 128 + 128, (65_000 - at * 4 >> 7) % 128 + 128, 65_000 - at * 4 >> 14]);
assert.throws(() => decodeV8(Buffer.concat([bytes("ff0f"), Buffer.from(claims.flat()), Buffer.alloc(41_000)])), { name: "DataCloneError" });
const deep = Buffer.concat([bytes("ff0f"), Buffer.alloc(60_000, bytes("4101"))]);
for (const broken of [
  "", "ff", "ff0f", "ff0c5f", "ff115f", "490a", "ff0f57", "ff0f2205616263", "ff0f6303616263", "ff0f5e00", "ff0f6f5f49027b01",
  "ff0f41ffffffff0f", "ff1042ffffffffffffffffff01", "ff0f61ffffffffffffff01400000", "ff0f42025f5f5662010200", "ff0f42025f5f5677010000",
  "ff0f42025f5f566b000000", "ff0f5c0f00", "ff0f7258", "ff0f52220128220000", "ff0f5afeffffff0f", "ff0f612206",
]) {
  assert.throws(() => decodeV8(bytes(broken)), { name: "DataCloneError" }, broken);
}
assert.throws(() => decodeV8(deep), { name: "DataCloneError" });
