// A program of a fleet, as it would be written for Deno Deploy: one cron, whose first call of all
// hangs. A line for each thing that happens.

const kv = await Deno.openKv();

async function call(): Promise<number> {
  while (true) {
    const calls = await kv.get<number>(["calls"]);
    const number = (calls.value ?? 0) + 1;
    const written = await kv.atomic().check(calls).set(["calls"], number).commit();
    if (written.ok) return number;
  }
}

Deno.cron("each minute", "* * * * *", async () => {
  const number = await call();
  console.log(`call ${number}`);
  if (number === 1) await new Promise((resolve) => setTimeout(resolve, 600_000));
  console.log(`done ${number}`);
});

console.log(`runs ${Deno.pid}`);
