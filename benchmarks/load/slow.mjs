// One subscriber stops reading while others read on: the server's memory, how long the others wait, and whether the
// one knows everything when it reads again.
import { Client, Latencies, encode, heardBy, main, memory, openMany, settled, sleep, stretch, until } from "./client.mjs";

await main(async ({ pid, others, keys, rate, payload, before, seconds, patience, settle, ...target }) => {
  let latencies = new Latencies();
  const known = new Map(); // what the slow one holds: key -> time stamp
  const truth = new Map();
  const clients = await openMany(others, target, (_, changes) => {
    const now = performance.now();
    for (const { value } of changes) latencies.add(now - value.t);
  });
  const writer = await Client.open({ ...target, subscribe: null });
  const learn = (client) => {
    client.hear = (_, changes) => {
      for (const { key, cleared, value } of changes) {
        if (cleared) known.delete(key);
        else known.set(key, value.t);
      }
    };
    client.hearSnapshot = (entries) => {
      known.clear();
      for (const { key, value } of entries) known.set(key, value.t);
    };
    return client;
  };
  let slow = learn(await Client.open(target));

  const filler = "x".repeat(payload);
  const start = performance.now();
  let sent = 0;
  const timer = setInterval(() => {
    for (const due = ((performance.now() - start) / 1000) * rate; sent < due; sent++) {
      const t = Math.floor(performance.now() * 10) / 10;
      const key = `key:${sent % keys}`;
      truth.set(key, t);
      writer.begin(key, encode({ t, filler }));
    }
  }, 2);

  const measure = async (duration, used = memory(pid)) => {
    await sleep(settle * 1000);
    latencies = new Latencies();
    const stop = stretch(pid);
    let peak = used;
    for (const end = performance.now() + duration * 1000; performance.now() < end; peak = Math.max(peak, memory(pid))) {
      // It is alive, only it does not read: it says so, or some servers would end it after some seconds.
      if (slow.ws.isPaused) slow.sayAlive();
      await sleep(Math.min(500, duration * 250));
    }
    return { ...stop(), p50: latencies.quantile(0.5), p99: latencies.quantile(0.99), growth: peak - used };
  };
  const without = await measure(before);
  const used = memory(pid); // what is sent in its first second of not reading counts, too
  slow.ws.pause();
  const beside = await measure(seconds, used);
  clearInterval(timer);
  await settled(() => heardBy(clients) === sent * others, 30);
  const ofOthers = heardBy(clients);

  const again = performance.now();
  if (!slow.closed) slow.ws.resume();
  const equal = () => [...truth].every(([key, t]) => known.get(key) === t);
  let reconnected = false;
  const end = again + patience * 1000;
  while (!equal() && performance.now() < end) {
    if (slow.closed && !reconnected) {
      reconnected = true; // as a browser would
      slow = learn(await Client.open({ ...target, subscribe: null }));
      await slow.subscribe(target.subscribe ?? {});
    }
    await sleep(5);
  }
  const wrong = [...truth].filter(([key, t]) => known.get(key) !== t).length;
  return {
    ...beside,
    without,
    sent,
    expected: sent * others,
    delivered: ofOthers,
    delivered_share: ofOthers / (sent * others),
    p99_without: without.p99,
    p99_ratio: beside.p99 / without.p99,
    wrong_at_the_end: wrong,
    caught_up_ms: wrong ? null : performance.now() - again,
    reconnected: Number(reconnected),
  };
});
