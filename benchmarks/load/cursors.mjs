// Everybody moves a cursor of their own, `rate` times a second, and sees those of all.
import { Latencies, encode, heardBy, main, openMany, settled, sleep, stretch } from "./client.mjs";

await main(async ({ pid, clients: count, rate, seconds, warmup, ...target }) => {
  const staleness = new Latencies();
  const clients = await openMany(count, target);
  const key = clients.map((_, number) => `cursor:${number}`);
  const numbers = new Map(key.map((each, number) => [each, number]));
  const sent = new Float64Array(count); // by cursor: the last time stamp
  const seen = clients.map(() => new Float64Array(count));
  let sets = 0;
  let measuring = false;
  clients.forEach((client, viewer) => {
    client.hear = (_, changes) => {
      const now = performance.now();
      for (const { key, value } of changes) {
        seen[viewer][numbers.get(key)] = value.t;
        if (measuring) staleness.add(now - value.t);
      }
    };
  });

  const period = 1000 / rate;
  const timers = [];
  clients.forEach((client, number) => {
    const move = () => {
      // The time is our own clock's, in ms; cut to tenths so that the text stays short.
      const t = Math.floor(performance.now() * 10) / 10;
      sent[number] = t;
      sets++;
      client.begin(key[number], encode({ x: 0.4321, y: 0.1234, t }));
    };
    // Each at a moment of its own, as people are.
    setTimeout(() => timers.push(setInterval(move, period)), (number / count) * period);
  });
  await sleep(warmup * 1000);
  const stop = stretch(pid);
  const before = { sets, bytes: clients.reduce((sum, client) => sum + client.bytes, 0) };
  measuring = true;
  await sleep(seconds * 1000);
  const result = stop();
  measuring = false;
  const expected = (sets - before.sets) * count;
  const bytes = clients.reduce((sum, client) => sum + client.bytes, 0) - before.bytes;
  timers.forEach(clearInterval);
  await settled(() => heardBy(clients) === sets * count, 15);
  const wrong = seen.reduce((sum, view) => sum + view.filter((t, number) => t !== sent[number]).length, 0);
  const all = heardBy(clients);
  return {
    ...result,
    sets,
    expected,
    delivered: all,
    in_time_share: result.updates / expected,
    delivered_share: all / (sets * count),
    wrong_at_the_end: wrong,
    bytes_per_subscriber_per_s: bytes / count / result.seconds,
    staleness_p50: staleness.quantile(0.5),
    staleness_p99: staleness.quantile(0.99),
  };
});
