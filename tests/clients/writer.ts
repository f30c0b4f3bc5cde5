// Writes through every URL given, until told to finish; then checks that every acknowledged write is there,
// and that the counter of each loop has counted each write once. No request may fail.
// Watches on both endpoints hear of each loop's writes: versions do not go back, and the last one comes.
//
// On stdin: `count` prints the number of acknowledged writes, `finish` ends.

const LOOPS_PER_URL = 2;
const run = crypto.randomUUID();
const databases = await Promise.all(Deno.args.map((url) => Deno.openKv(url)));
let stopping = false;
let acknowledged = 0;
let slowestMs = 0;

async function write(kv: Deno.Kv, name: string): Promise<number> {
  let number = 0;
  let version: string | null = null;
  while (!stopping) {
    const started = performance.now();
    // The check makes a write that is applied twice, or applied and then refused, visible.
    const result = await kv.atomic()
      .check({ key: ["loop", run, name], versionstamp: version })
      .set(["loop", run, name], number)
      .set(["writes", run, name, number], number)
      .sum(["counter", run, name], 1n)
      .commit();
    if (!result.ok) throw new Error(`${name}: the check of write ${number} failed`);
    if (version !== null && result.versionstamp <= version) throw new Error(`${name}: versions went back`);
    version = result.versionstamp;
    slowestMs = Math.max(slowestMs, performance.now() - started);
    number += 1;
    acknowledged += 1;
  }
  return number;
}

async function verify(kv: Deno.Kv, name: string, count: number) {
  let next = 0;
  for await (const entry of kv.list<number>({ prefix: ["writes", run, name] }, { batchSize: 500 })) {
    if (entry.key[3] !== next || entry.value !== next) throw new Error(`${name}: expected ${next}: ${entry.key}`);
    next += 1;
  }
  if (next !== count) throw new Error(`${name}: ${count} acknowledged, ${next} there`);
  const counter = await kv.get<Deno.KvU64>(["counter", run, name]);
  if (counter.value?.value !== BigInt(count)) throw new Error(`${name}: counted ${counter.value?.value} of ${count}`);
}

// What a watch has told last.
class Watched {
  number = -1;
  version = "";

  constructor(readonly what: string) {}

  async follow(kv: Deno.Kv, name: string) {
    for await (const [entry] of kv.watch<[number]>([["loop", run, name]])) {
      if (entry.versionstamp === null) {
        if (this.version !== "") throw new Error(`${this.what}: what was there is told to be absent`);
        continue;
      }
      if (entry.versionstamp < this.version || entry.value < this.number) {
        throw new Error(`${this.what}: it went back from ${this.number} to ${entry.value}`);
      }
      [this.version, this.number] = [entry.versionstamp, entry.value];
    }
    throw new Error(`${this.what} ended`);
  }

  async tellsOf(number: number) {
    const deadline = performance.now() + 30_000;
    while (this.number !== number) {
      if (performance.now() > deadline) throw new Error(`${this.what} tells of ${this.number}, not of ${number}`);
      await new Promise((done) => setTimeout(done, 20));
    }
  }
}

const loops = databases.flatMap((kv, at) =>
  Array.from({ length: LOOPS_PER_URL }, (_, loop) => ({ kv, name: `${at}/${loop}` }))
);
const eventual = await Promise.all(Deno.args.map((url) => Deno.openKv(`${url}?consistency=eventual`)));
const watches = loops.flatMap(({ kv, name }, at) => {
  const near = eventual[Math.floor(at / LOOPS_PER_URL)];
  return [{ kv, how: "strong" }, { kv: near, how: "eventual" }].map(({ kv, how }) => {
    const watched = new Watched(`the ${how} watch of ${name}`);
    return { at, watched, following: watched.follow(kv, name) };
  });
});
const writing = Promise.all(loops.map(({ kv, name }) => write(kv, name)));
for (const working of [writing, ...watches.map(({ following }) => following)]) {
  working.catch((error) => {
    console.error(error);
    Deno.exit(1);
  });
}

for await (const chunk of Deno.stdin.readable.pipeThrough(new TextDecoderStream())) {
  for (const line of chunk.split("\n").filter((line) => line !== "")) {
    if (line === "count") {
      console.log(acknowledged);
    } else {
      stopping = true;
      const counts = await writing;
      await Promise.all(loops.map(({ name }, at) => verify(databases[0], name, counts[at])));
      await Promise.all(watches.map(({ at, watched }) => watched.tellsOf(counts[at] - 1)));
      console.log(`${acknowledged} ${slowestMs.toFixed(0)}`);
      Deno.exit(0);
    }
  }
}
