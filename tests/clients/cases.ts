// The frame of programs that run case by case: a failing case is noted, and the others go on.

const failures: string[] = [];
let cases = 0;

export type Key = (...parts: Deno.KvKeyPart[]) => Deno.KvKey;

/** Runs a case on keys of its own. */
export async function test(name: string, run: (key: Key) => Promise<void>) {
  const root = crypto.randomUUID();
  cases += 1;
  try {
    await run((...parts) => [root, ...parts]);
  } catch (error) {
    failures.push(`${name}: ${error instanceof Error ? error.message : error}`);
  }
}

/** Prints the cases that failed, and ends the program with an error if there are any. */
export function finish() {
  if (failures.length > 0) {
    console.error(`${failures.length} of ${cases} cases fail:\n${failures.join("\n")}`);
    Deno.exit(1);
  }
  console.log(`${cases} cases hold`);
}

export function shown(value: unknown) {
  return Deno.inspect(value, { depth: 9, iterableLimit: 2000, strAbbreviateSize: 1000, sorted: true });
}

export function equal(actual: unknown, expected: unknown, what = "it") {
  if (shown(actual) !== shown(expected)) throw new Error(`${what} is ${shown(actual)}, not ${shown(expected)}`);
}

export function holds(condition: boolean, what: string) {
  if (!condition) throw new Error(`it does not hold that ${what}`);
}

/** The call fails, with a text that has these words. */
export async function fails(words: string, call: () => unknown) {
  try {
    await call();
  } catch (error) {
    holds(String(error).includes(words), `"${words}" is in "${error}"`);
    return;
  }
  throw new Error(`what should say "${words}" succeeded`);
}

export async function until(what: string, condition: () => Promise<boolean>) {
  const deadline = performance.now() + 30_000;
  while (!(await condition())) {
    holds(performance.now() < deadline, what);
    await new Promise((done) => setTimeout(done, 20));
  }
}

class Own {
  field = 1;
}
const cyclic: Record<string, unknown> = { name: "cycle" };
cyclic.self = cyclic;
/** Values that can be stored, by name, and what is read of those that change. */
export const VALUES: [name: string, stored: unknown, kept?: unknown][] = [
  ["a string", "text"], ["an empty string", ""], ["a string beyond Latin-1", "Grüße, 世界 \u{1f980}"],
  ["a number", 42], ["a fraction", -0.25], ["a negative zero", -0], ["NaN", NaN], ["infinity", -Infinity],
  ["a bigint", 42n], ["a large bigint", -(2n ** 200n)], ["true", true], ["false", false], ["null", null],
  ["undefined", undefined], ["a date", new Date(86_400_000)], ["an invalid date", new Date(NaN)],
  ["a Uint8Array", new Uint8Array([1, 2, 255])], ["an empty Uint8Array", new Uint8Array()],
  ["an ArrayBuffer", new Uint8Array([1, 2, 3]).buffer], ["a Float64Array", new Float64Array([0.5, -1])],
  ["a DataView", new DataView(new Uint8Array([1, 2]).buffer)], ["a BigInt64Array", new BigInt64Array([-1n])],
  ["an array", [1, "two", 3n]], ["an empty array", []], ["a sparse array", [1, , 3]], ["nested arrays", [[1], [[2]]]],
  ["an object", { a: 1, b: "x" }], ["nested objects", { a: { b: { c: [null, undefined] } } }],
  ["an object of a class", new Own(), { field: 1 }], ["a map", new Map<unknown, unknown>([["a", 1], [{ b: 2 }, [3]]])],
  ["a set", new Set([1, "1", 1n])], ["a regular expression", /a+b/giu], ["a boxed string", Object("boxed")],
  ["an object that holds itself", cyclic], ["a KvU64", new Deno.KvU64(2n ** 64n - 1n)],
];
