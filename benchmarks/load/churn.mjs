// People come, say one thing and leave, a few at a time, as fast as they can; the server's memory at some milestones.
import { Client, encode, main, memory, sleep, stretch } from "./client.mjs";

const PAYLOAD = encode({ x: 0.4321, y: 0.1234 });

await main(async ({ pid, milestones, at_once: atOnce, settle, ...target }) => {
  const used = {};
  let done = 0;
  let seconds = 0;
  let cpu = 0;
  let load = 0;
  for (const milestone of milestones) {
    let left = milestone - done;
    const visit = async () => {
      while (left-- > 0) {
        const client = await Client.open(target);
        await client.set(`visitor:${++done}`, PAYLOAD);
        await client.close();
      }
    };
    const stop = stretch(pid);
    await Promise.all(Array.from({ length: atOnce }, visit));
    const { seconds: took, server_cpu, load_cpu } = stop();
    seconds += took;
    cpu += server_cpu * took;
    load += load_cpu * took;
    await sleep(settle * 1000); // what it does after a goodbye is done
    used[milestone] = memory(pid);
  }
  const points = Object.values(used);
  return {
    connections: done,
    connections_per_s: done / seconds,
    cpu_ms_per_connection: (cpu / done) * 1000,
    server_cpu: cpu / seconds,
    load_cpu: load / seconds,
    memory: used,
    memory_first: points[0],
    memory_last: points.at(-1),
    memory_growth: points.length > 1 ? points.at(-1) - points.at(-2) : null, // the first milestone fills caches
  };
});
