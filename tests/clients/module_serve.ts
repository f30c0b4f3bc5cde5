// A program for `deno serve`, where `--preload` does nothing: the module is imported by a line that `tests/module.rs`
// puts in front. A POST enqueues its body; a GET answers with what the handler has got.

const kv = await Deno.openKv(Deno.env.get("MERIDIAN_URL"));
const heard: string[] = [];
const listening = kv.listenQueue((value: string) => {
  heard.push(value);
});
Deno.addSignalListener("SIGTERM", async () => {
  kv.close();
  await listening;
  Deno.exit();
});

export default {
  onListen({ port }: Deno.NetAddr) {
    console.error(`Listening on http://127.0.0.1:${port}`);
  },
  async fetch(request: Request) {
    if (request.method === "GET") return Response.json(heard);
    const { ok } = await kv.enqueue(await request.text());
    return Response.json({ ok });
  },
};
