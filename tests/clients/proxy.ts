// A proxy that passes requests on and, while it is to swallow, cuts a connection instead of passing on an answer.

export class Proxy {
  /** The next answer to a write is to be swallowed. */
  swallow = false;
  swallowed = 0;
  #sent = false;
  #gateway: URL;
  #connections = new Set<() => void>();
  #listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });

  constructor(gateway: URL) {
    this.#gateway = gateway;
    (async () => {
      for await (const client of this.#listener) this.#serve(client).catch(() => {});
    })();
  }

  get port() {
    return (this.#listener.addr as Deno.NetAddr).port;
  }

  /** Cuts all connections. */
  cut() {
    for (const close of this.#connections) close();
  }

  close() {
    this.#listener.close();
    this.cut();
  }

  async #serve(client: Deno.TcpConn) {
    const { hostname, port } = this.#gateway;
    const server = await Deno.connect({ hostname, port: Number(port) });
    const close = () => {
      this.#connections.delete(close);
      for (const end of [client, server]) {
        try {
          end.close();
        } catch {
          // It is closed.
        }
      }
    };
    this.#connections.add(close);
    const pass = async (from: Deno.TcpConn, to: Deno.TcpConn, answers: boolean) => {
      const buffer = new Uint8Array(65536);
      for (let count = await from.read(buffer); count !== null; count = await from.read(buffer)) {
        // The write has been sent, and what comes back is longer than acknowledgements of HTTP/2.
        this.#sent ||= !answers && this.swallow && count > 100;
        if (answers && this.swallow && this.#sent && count > 24) {
          this.swallowed++;
          this.swallow = this.#sent = false;
          return close();
        }
        let data = buffer.subarray(0, count);
        while (data.length > 0) data = data.subarray(await to.write(data));
      }
      close();
    };
    await Promise.allSettled([pass(client, server, false), pass(server, client, true)]);
    close();
  }
}
