// People in a room, and somebody who means harm beside them, by turns: how long the people wait for each other with and
// without, and the server's memory.
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { TOPIC, Latencies, encode, heardBy, main, memory, openMany, settled, sleep, stretch } from "./client.mjs";

await main(async ({ pid, people, rate, seconds, turns, settle, begins, hostile, attacked, ...target }) => {
  let latencies = new Latencies();
  const readers = await openMany(people, target, (_, changes) => {
    const now = performance.now();
    for (const { value } of changes) latencies.add(now - value.t);
  });
  const writers = await openMany(people, { ...target, subscribe: null });
  const start = performance.now();
  let sent = 0;
  const timer = setInterval(() => {
    for (const due = ((performance.now() - start) / 1000) * rate; sent < due; sent++) {
      const t = Math.floor(performance.now() * 10) / 10;
      writers[sent % people].begin(`key:${sent % people}`, encode({ t }));
    }
  }, 2);

  const victim = attacked ?? target.url;
  const where = ["--url", `${victim}hostile`, "--denied", `${victim}denied`, "--room", TOPIC];
  const child = spawn(hostile[0], [...hostile.slice(1), ...where], { stdio: ["ignore", "pipe", "ignore"] });
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]();
  if ((await lines.next()).value !== begins) throw new Error("the hostile client does not begin");
  const hold = () => child.kill("SIGUSR1"); // or go on

  const base = memory(pid);
  let peak = base;
  const look = setInterval(() => (peak = Math.max(peak, memory(pid))), 200);
  const measure = async (seconds) => {
    await sleep(settle * 1000);
    latencies = new Latencies();
    const stop = stretch(pid);
    await sleep(seconds * 1000);
    return { ...stop(), p50: latencies.quantile(0.5), p99: latencies.quantile(0.99) };
  };
  const pairs = [];
  for (let turn = 0; turn < turns; turn++) {
    hold();
    const without = await measure(seconds / turns / 2);
    hold();
    pairs.push({ without, beside: await measure(seconds / turns) });
  }
  child.kill("SIGTERM");
  const { value: attacks } = await lines.next();
  clearInterval(look);
  clearInterval(timer);
  await settled(() => heardBy(readers) === sent * people, 30);
  const median = (values) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)];
  const of = (which, name) => median(pairs.map((pair) => pair[which][name]));
  return {
    pairs,
    attacks: JSON.parse(attacks),
    p50: of("beside", "p50"),
    p99: of("beside", "p99"),
    p50_without: of("without", "p50"),
    p99_without: of("without", "p99"),
    p99_ratio: median(pairs.map(({ without, beside }) => beside.p99 / without.p99)),
    server_cpu: of("beside", "server_cpu"),
    load_cpu: of("beside", "load_cpu"),
    growth: peak - base,
    sent,
    lost: [...readers, ...writers].filter(({ closed }) => closed).length,
    delivered: heardBy(readers),
    delivered_share: heardBy(readers) / (sent * people),
  };
});
