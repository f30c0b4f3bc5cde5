// The module changes nothing at a server that is no Meridian: one that knows nothing below `/.meridian/`.
// Argument: the URL of a gateway, which plays that server. Run with `--preload URL/.meridian/v1/deno.js`.
// Ends with an error at the first wrong result.

function equal(actual: unknown, expected: unknown, what: string) {
  const [left, right] = [Deno.inspect(actual), Deno.inspect(expected)];
  if (left !== right) throw new Error(`${what}: ${left} instead of ${right}`);
}

async function rejects(action: () => Promise<unknown>, expected: RegExp, what: string) {
  const error = await action().then(() => "no error", String);
  if (!expected.test(error)) throw new Error(`${what}: ${error}`);
}

/** The bodies of writes, as text. */
const writes: string[] = [];
const asked: string[] = [];
const server = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, async (request) => {
  const { pathname } = new URL(request.url);
  asked.push(pathname);
  if (pathname.startsWith("/.meridian/")) return new Response(null, { status: 404 });
  const body = await request.arrayBuffer();
  if (pathname.endsWith("/atomic_write")) writes.push(new TextDecoder("latin1").decode(body));
  const { method, headers } = request;
  return await fetch(new URL(pathname, Deno.args[0]), { method, headers, body });
});

const kv = await Deno.openKv(`http://127.0.0.1:${server.addr.port}`);
equal(asked.includes("/.meridian/v1/server"), true, "the server is asked what it is");
const key = ["module other", crypto.randomUUID()];
equal((await kv.set(key, 1)).ok, true, "a set");
equal((await kv.atomic().check({ key, versionstamp: null }).set(key, 2).commit()).ok, false, "a check");
equal((await kv.get(key)).value, 1, "a value");
await kv.delete(key);
equal((await kv.get(key)).value, null, "a delete");
equal([writes.length, writes.some((body) => body.includes("meridian"))], [3, false], "writes without ids");
const native = Deno.Kv.prototype;
for (const name of ["set", "delete", "atomic", "enqueue", "listenQueue", "close"] as const) {
  equal(kv[name] === native[name], true, `${name} is the client's own`);
}
await rejects(() => kv.enqueue("x"), /Enqueue operations are not supported/, "an enqueue");
await rejects(() => kv.atomic().set(key, 3).enqueue("x").commit(), /Enqueue operations are not/, "one in a write");
equal((await kv.get(key)).value, null, "nothing of that write");
equal(asked.some((path) => path.includes("queue")), false, "nobody listens");
kv.close();
await server.shutdown();
