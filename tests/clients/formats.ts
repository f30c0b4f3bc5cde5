// Writes values of every kind that Node and Python know, and prints them as `Deno.inspect` shows them. Arguments: the
// URL of a database, and `write` or `read`: `read` prints what is there.

const [url, verb] = Deno.args;
const kv = await Deno.openKv(url);

const values: Record<string, unknown> = {
  bigints: [2n ** 70n, -1n],
  bytes: { inner: new Uint8Array([0, 255]) },
  dates: [new Date(5), new Date("2024-05-01")],
  map: new Map<unknown, unknown>([["a", 1], [2, { b: [true, null, undefined] }]]),
  numbers: [0, -0, 1.5, 2 ** 31, -1],
  set: new Set(["x", "y"]),
  text: ["grüße", "日本語 🦕", ""],
};
if (verb === "write") {
  for (const [name, value] of Object.entries(values)) {
    await kv.set(["formats", name], value);
  }
  // A buffer that may grow beyond what format 15 can say.
  // deno-lint-ignore no-explicit-any
  await kv.set(["vast"], [new (ArrayBuffer as any)(2, { maxByteLength: 2 ** 33 })]);
  // deno-lint-ignore no-explicit-any
  const [vast] = (await kv.get<any[]>(["vast"])).value!;
  if (vast.maxByteLength !== 2 ** 33) throw new Error(`${vast.maxByteLength}`);
}
for await (const entry of kv.list({ prefix: ["formats"] })) {
  console.log(`${Deno.inspect(entry.key)} => ${Deno.inspect(entry.value)}`);
}
