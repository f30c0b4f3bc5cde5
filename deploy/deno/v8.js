// V8's serialization of values, in JavaScript: for runtimes without V8 (Bun), and for views of
// buffers on Node, whose own `serialize` writes them in a form that no other runtime reads.
//
// Format 15 is written, 13 to 16 are read. A view of a part of a buffer is written with that part
// alone, unless the buffer itself was: buffers of Node and Bun lie in pools with foreign bytes.
// Private: `openKv` of `node.js` uses it.

import { types } from "node:util";

const WRITTEN_VERSION = 15;
const READABLE_VERSIONS = [13, 16];

// In V8's order of bits from 1 on; the seventh is V8's own.
const REGEXP_FLAGS = "gimyus?dv";
const ERRORS = { E: EvalError, R: RangeError, F: ReferenceError, S: SyntaxError, T: TypeError, U: URIError };
const VIEWS = {
  b: Int8Array,
  B: Uint8Array,
  C: Uint8ClampedArray,
  w: Int16Array,
  W: Uint16Array,
  d: Int32Array,
  D: Uint32Array,
  h: globalThis.Float16Array,
  f: Float32Array,
  F: Float64Array,
  q: BigInt64Array,
  Q: BigUint64Array,
  "?": DataView,
};
// By the numbers that Node's `serialize` gives them; 10 is Node's Buffer.
const NODE_VIEWS = [..."bBCwWdDfF?BqQh"];
const LENGTH_TRACKING = 1;
const RESIZABLE = 2;

const name = (view) => Object.prototype.toString.call(view).slice(8, -1);
const TAG_OF_VIEW = Object.fromEntries(Object.entries(VIEWS).filter(([, of]) => of).map(([tag, of]) => [of.name, tag]));
const PADDING = 0;

function uncloneable(value) {
  const text = typeof value === "symbol" ? value.toString() : typeof value === "function" ? `${value}` : `#<${name(value)}>`;
  return new DOMException(`${text} could not be cloned.`, "DataCloneError");
}

const UNCLONEABLE = ["Promise", "WeakMap", "WeakSet", "WeakRef", "SharedArrayBuffer", "Generator", "AsyncGenerator"];

class Writer {
  bytes = new Uint8Array(64);
  length = 0;
  ids = new Map();

  room(more) {
    if (this.length + more <= this.bytes.length) return;
    const bytes = new Uint8Array(Math.max(this.bytes.length * 2, this.length + more));
    bytes.set(this.bytes);
    this.bytes = bytes;
  }

  byte(byte) {
    this.room(1);
    this.bytes[this.length++] = byte;
  }

  tag(tag) {
    this.byte(tag.charCodeAt(0));
  }

  raw(bytes) {
    this.room(bytes.length);
    this.bytes.set(bytes, this.length);
    this.length += bytes.length;
  }

  // An unsigned number of up to 32 bits.
  varint(number) {
    for (; number >= 0x80; number = Math.floor(number / 0x80)) this.byte(number % 0x80 + 0x80);
    this.byte(number);
  }

  double(number) {
    this.room(8);
    new DataView(this.bytes.buffer).setFloat64(this.length, number, true);
    this.length += 8;
  }

  number(number) {
    if ((number | 0) === number && !Object.is(number, -0)) {
      this.tag("I");
      return this.varint(number < 0 ? -2 * number - 1 : 2 * number);
    }
    this.tag("N");
    this.double(number);
  }

  bigint(bigint) {
    const digits = [];
    for (let rest = bigint < 0n ? -bigint : bigint; rest > 0n; rest >>= 64n) digits.push(BigInt.asUintN(64, rest));
    this.varint(digits.length * 16 + (bigint < 0n ? 1 : 0));
    this.room(digits.length * 8);
    const view = new DataView(this.bytes.buffer);
    for (const digit of digits) {
      view.setBigUint64(this.length, digit, true);
      this.length += 8;
    }
  }

  string(string) {
    let isLatin1 = true;
    for (let i = 0; isLatin1 && i < string.length; i++) isLatin1 = string.charCodeAt(i) < 0x100;
    if (isLatin1) {
      this.tag('"');
      this.varint(string.length);
      this.room(string.length);
      for (let i = 0; i < string.length; i++) this.bytes[this.length++] = string.charCodeAt(i);
      return;
    }
    const size = string.length * 2;
    let head = 2;
    for (let rest = size; rest >= 0x80; rest = Math.floor(rest / 0x80)) head++;
    // Readers expect the units at an even place.
    if ((this.length + head) % 2 === 1) this.byte(PADDING);
    this.tag("c");
    this.varint(size);
    this.room(size);
    const view = new DataView(this.bytes.buffer);
    for (let i = 0; i < string.length; i++, this.length += 2) view.setUint16(this.length, string.charCodeAt(i), true);
  }

  value(value) {
    switch (typeof value) {
      case "undefined":
        return this.tag("_");
      case "boolean":
        return this.tag(value ? "T" : "F");
      case "number":
        return this.number(value);
      case "bigint":
        this.tag("Z");
        return this.bigint(value);
      case "string":
        return this.string(value);
      case "object":
        return value === null ? this.tag("0") : this.object(value);
      default:
        throw uncloneable(value);
    }
  }

  object(object) {
    const known = this.ids.get(object);
    if (known !== undefined) {
      this.tag("^");
      return this.varint(known);
    }
    if (types.isProxy(object) || types.isArgumentsObject(object)) throw uncloneable(object);
    if (ArrayBuffer.isView(object)) return this.view(object);
    this.ids.set(object, this.ids.size);
    if (Array.isArray(object)) return this.array(object);
    if (types.isMap(object)) return this.collection(";", ":", [...Map.prototype.entries.call(object)].flat());
    if (types.isSet(object)) return this.collection("'", ",", [...Set.prototype.values.call(object)]);
    if (types.isDate(object)) {
      this.tag("D");
      return this.double(Date.prototype.getTime.call(object));
    }
    if (types.isRegExp(object)) {
      this.tag("R");
      this.string(object.source);
      return this.varint([...object.flags].reduce((bits, flag) => bits | 1 << REGEXP_FLAGS.indexOf(flag), 0));
    }
    if (types.isArrayBuffer(object)) return this.buffer(object);
    if (types.isNativeError(object)) return this.error(object);
    if (types.isBooleanObject(object)) return this.tag(Boolean.prototype.valueOf.call(object) ? "y" : "x");
    if (types.isNumberObject(object)) {
      this.tag("n");
      return this.double(Number.prototype.valueOf.call(object));
    }
    if (types.isBigIntObject(object)) {
      this.tag("z");
      return this.bigint(BigInt.prototype.valueOf.call(object));
    }
    if (types.isStringObject(object)) {
      this.tag("s");
      return this.string(String.prototype.valueOf.call(object));
    }
    if (types.isSymbolObject(object) || UNCLONEABLE.includes(name(object))) throw uncloneable(object);
    this.tag("o");
    this.properties("{", object, Object.keys(object));
  }

  properties(end, object, keys) {
    let count = 0;
    for (const key of keys) {
      // An earlier one's getter may have removed it.
      if (!Object.hasOwn(object, key)) continue;
      if (String(key >>> 0) === key && key >>> 0 !== 0xffffffff) this.number(key >>> 0);
      else this.string(key);
      this.value(object[key]);
      count++;
    }
    this.tag(end);
    this.varint(count);
  }

  array(array) {
    const length = array.length;
    const keys = Object.keys(array);
    const isDense = keys.length >= length && keys[length - 1] === (length > 0 ? String(length - 1) : undefined);
    this.tag(isDense ? "A" : "a");
    this.varint(length);
    for (let i = 0; isDense && i < length; i++) this.value(array[i]);
    this.properties(isDense ? "$" : "@", array, isDense ? keys.slice(length) : keys);
    this.varint(length);
  }

  collection(begin, end, members) {
    this.tag(begin);
    for (const member of members) this.value(member);
    this.tag(end);
    this.varint(members.length);
  }

  buffer(buffer) {
    if (buffer.detached) throw uncloneable(buffer);
    this.tag(buffer.resizable ? "~" : "B");
    this.varint(buffer.byteLength);
    if (buffer.resizable) this.varint(buffer.maxByteLength);
    this.raw(new Uint8Array(buffer));
  }

  view(view) {
    const tag = TAG_OF_VIEW[name(view)];
    if (tag === undefined || name(view.buffer) === "SharedArrayBuffer") throw uncloneable(view);
    if (view.buffer.detached) throw uncloneable(view.buffer);
    const { buffer, byteOffset, byteLength } = view;
    const isPart = byteLength < buffer.byteLength || buffer.resizable;
    // Views of a buffer that is written go on sharing it.
    const isShared = !isPart || this.ids.has(buffer);
    this.object(isShared ? buffer : buffer.slice(byteOffset, byteOffset + byteLength));
    this.ids.set(view, this.ids.size);
    this.tag("V");
    this.tag(tag);
    this.varint(isShared ? byteOffset : 0);
    this.varint(byteLength);
    this.varint(isShared && buffer.resizable ? RESIZABLE : 0);
  }

  error(error) {
    this.tag("r");
    for (const [tag, kind] of Object.entries(ERRORS)) if (error.name === kind.name) this.tag(tag);
    if (Object.hasOwn(error, "message")) {
      this.tag("m");
      this.string(String(error.message));
    }
    if (typeof error.stack === "string") {
      this.tag("s");
      this.string(error.stack);
    }
    if (Object.hasOwn(error, "cause")) {
      this.tag("c");
      this.value(error.cause);
    }
    this.tag(".");
  }
}

class Reader {
  at = 0;
  objects = [];

  constructor(bytes) {
    // Not as the Buffer that it may be, whose slices share its memory.
    this.bytes = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  failure(why) {
    return new DOMException(`Unable to deserialize cloned data: byte ${this.at}: ${why}`, "DataCloneError");
  }

  fail(why) {
    throw this.failure(why);
  }

  take(length) {
    if (length > this.bytes.length - this.at) this.fail("the value ends too early");
    this.at += length;
    return this.at - length;
  }

  byte() {
    return this.bytes[this.take(1)];
  }

  peek() {
    while (this.bytes[this.at] === PADDING) this.at++;
    return this.at < this.bytes.length ? String.fromCharCode(this.bytes[this.at]) : this.fail("the value ends too early");
  }

  tag() {
    const tag = this.peek();
    this.at++;
    return tag;
  }

  // Up to 53 bits.
  varint() {
    for (let number = 0, scale = 1;; scale *= 0x80) {
      const byte = this.byte();
      number += byte % 0x80 * scale;
      if (number > Number.MAX_SAFE_INTEGER) this.fail("a number is too large");
      if (byte < 0x80) return number;
    }
  }

  double() {
    return this.view.getFloat64(this.take(8), true);
  }

  bigint() {
    const bits = this.varint();
    const length = Math.floor(bits / 2);
    const begin = this.take(length);
    let hex = "0x0";
    for (let i = length; i-- > 0;) hex += this.bytes[begin + i].toString(16).padStart(2, "0");
    const bigint = BigInt(hex);
    return bits % 2 === 1 ? -bigint : bigint;
  }

  string(tag = this.tag()) {
    const size = this.varint();
    const begin = this.take(size);
    const bytes = this.bytes.subarray(begin, begin + size);
    if (tag === "S") return new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
    if (tag !== '"' && (tag !== "c" || size % 2 === 1)) this.fail("no string where one should be");
    let string = "";
    for (let i = 0; i < size;) {
      const units = [];
      for (; i < size && units.length < 4096; i += tag === "c" ? 2 : 1) {
        units.push(tag === "c" ? this.view.getUint16(begin + i, true) : bytes[i]);
      }
      string += String.fromCharCode(...units);
    }
    return string;
  }

  whole() {
    const [oldest, newest] = READABLE_VERSIONS;
    if (this.byte() !== 0xff) this.fail("no value of V8's serializer");
    this.version = this.varint();
    if (this.version < oldest || this.version > newest) this.fail(`format ${this.version} is not known`);
    return this.value();
  }

  value() {
    const value = this.one();
    // A view comes behind its buffer.
    if (!(value instanceof ArrayBuffer)) return value;
    while (this.bytes[this.at] === PADDING) this.at++;
    if (this.at === this.bytes.length || this.peek() !== "V") return value;
    this.tag();
    const View = VIEWS[String.fromCharCode(this.byte())] ?? this.fail("no view that is known here");
    const [offset, length] = [this.varint(), this.varint()];
    const flags = this.version >= 14 ? this.varint() : 0;
    const size = View.BYTES_PER_ELEMENT ?? 1;
    if (offset + length > value.byteLength || offset % size > 0 || length % size > 0) this.fail("a view is not of its buffer");
    return this.add(flags & LENGTH_TRACKING ? new View(value, offset) : new View(value, offset, length / size));
  }

  add(object) {
    this.objects.push(object);
    return object;
  }

  one() {
    const tag = this.tag();
    switch (tag) {
      case "?": // A count for debugging.
        this.varint();
        return this.one();
      case "_":
        return undefined;
      case "0":
        return null;
      case "T":
      case "F":
        return tag === "T";
      case "I": {
        const number = this.varint();
        return number % 2 === 1 ? -(number + 1) / 2 : number / 2;
      }
      case "U":
        return this.varint();
      case "N":
        return this.double();
      case "Z":
        return this.bigint();
      case "S":
      case '"':
      case "c":
        return this.string(tag);
      case "^": {
        const number = this.varint();
        return number < this.objects.length ? this.objects[number] : this.fail("a reference to nothing");
      }
      case "y":
      case "x":
        return this.add(Object(tag === "y"));
      case "n":
        return this.add(Object(this.double()));
      case "z":
        return this.add(Object(this.bigint()));
      case "s":
        return this.add(Object(this.string()));
      case "D":
        return this.add(new Date(this.double()));
      case "R": {
        const source = this.string();
        const bits = this.varint();
        return this.add(new RegExp(source, [...REGEXP_FLAGS].filter((flag, bit) => bits >> bit & 1 && flag !== "?").join("")));
      }
      case "o": {
        const object = this.add({});
        this.properties("{", object);
        return object;
      }
      case "A": {
        const length = this.varint();
        if (length > this.bytes.length - this.at) this.fail("the value ends too early");
        // Grows as its elements come: arrays within arrays may all claim the bytes that are left.
        const array = this.add([]);
        for (let i = 0; i < length; i++) {
          if (this.peek() === "-") this.tag();
          else array[i] = this.value();
        }
        array.length = length;
        this.properties("$", array);
        this.varint();
        return array;
      }
      case "a": {
        const array = this.add([]);
        array.length = this.varint();
        this.properties("@", array);
        this.varint();
        return array;
      }
      case ";": {
        const map = this.add(new Map());
        this.members(":", () => map.set(this.value(), this.value()));
        return map;
      }
      case "'": {
        const set = this.add(new Set());
        this.members(",", () => set.add(this.value()));
        return set;
      }
      case "B":
      case "~": {
        const length = this.varint();
        const maxByteLength = tag === "~" ? this.varint() : undefined;
        const begin = this.take(length);
        const buffer = tag === "~" ? new ArrayBuffer(length, { maxByteLength }) : new ArrayBuffer(length);
        new Uint8Array(buffer).set(this.bytes.subarray(begin, begin + length));
        return this.add(buffer);
      }
      case "\\": {
        const View = VIEWS[NODE_VIEWS[this.varint()]] ?? this.fail("no view that is known here");
        const length = this.varint();
        const begin = this.take(length);
        return this.add(new View(this.bytes.slice(begin, begin + length).buffer));
      }
      case "r":
        return this.error();
      default:
        return this.fail(`nothing is known by the tag ${JSON.stringify(tag)}`);
    }
  }

  members(end, one) {
    while (this.peek() !== end) one();
    this.tag();
    this.varint();
  }

  properties(end, object) {
    this.members(end, () => {
      const key = this.value();
      if (typeof key !== "string" && typeof key !== "number") this.fail("no key of an object");
      // Also where it is `__proto__`.
      Object.defineProperty(object, key, { value: this.value(), configurable: true, enumerable: true, writable: true });
    });
  }

  error() {
    let tag = this.tag();
    const Kind = ERRORS[tag];
    if (Kind) tag = this.tag();
    // Its cause may lead back to it.
    const error = this.add(new (Kind ?? Error)());
    const set = (key, value) => Object.defineProperty(error, key, { value, configurable: true, writable: true });
    set("stack", undefined);
    for (; tag !== "."; tag = this.tag()) {
      if (tag === "m") set("message", this.string());
      else if (tag === "s") set("stack", this.string());
      else if (tag === "c") set("cause", this.value());
      else this.fail("no part of an error");
    }
    return error;
  }
}

/** The bytes of a value. Throws a `DataCloneError` for what cannot be cloned. */
export function encodeV8(value) {
  const writer = new Writer();
  writer.byte(0xff);
  writer.varint(WRITTEN_VERSION);
  writer.value(value);
  return writer.bytes.slice(0, writer.length);
}

/** The value in these bytes. Throws a `DataCloneError` where there is none. */
export function decodeV8(bytes) {
  const reader = new Reader(bytes);
  try {
    return reader.whole();
  } catch (error) {
    // Too deep, or of a size that the runtime does not have.
    throw error instanceof DOMException ? error : reader.failure(error.message);
  }
}
