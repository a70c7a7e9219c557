// One writer, saturated: it keeps `window` sets on the way, and sends the next when one comes back to it.
import { encode, heardBy, main, openMany, settled, sleep, stretch, tally } from "./client.mjs";

const PAYLOAD = encode({ x: 0.4321, y: 0.1234 });

await main(async ({ pid, subscribers, window, keys, seconds, warmup, endless, ...target }) => {
  const clients = await openMany(subscribers, target);
  const writer = clients[0];
  let sent = 0;
  let lost = 0;
  let running = true;
  let heard = performance.now();

  const fill = () => {
    while (running && sent - lost - writer.updates < window) writer.begin(`cursor:${sent++ % keys}`, PAYLOAD);
  };
  writer.hear = () => {
    heard = performance.now();
    fill();
  };
  // A server that loses frames would stop the writer for ever.
  const watch = setInterval(() => {
    if (performance.now() - heard > 1000) {
      lost = sent - writer.updates;
      heard = performance.now();
      fill();
    }
  }, 100);

  fill();
  await sleep(warmup * 1000);
  const stop = stretch(pid);
  await sleep(seconds * 1000);
  const result = stop();
  running = false;
  clearInterval(watch);
  if (endless) return result; // it sends without being asked
  await settled(() => heardBy(clients) === sent * subscribers, 30);
  const all = heardBy(clients);
  if (all !== tally.updates) throw new Error(`${all} deliveries by socket, ${tally.updates} in all`);
  return { ...result, sent, expected: sent * subscribers, delivered: all, delivered_share: all / (sent * subscribers) };
});
