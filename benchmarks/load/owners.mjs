// Sockets that own keys and then are gone at once: a child of storm.mjs, which shall not be busy with their end.
import { Refused, encode, openMany } from "./client.mjs";

const { owners, keys, ...target } = JSON.parse(process.argv[2]);
const payload = encode({ x: 0.4321, y: 0.1234 });
const clients = await openMany(owners, target).catch((error) => {
  if (!(error instanceof Refused)) throw error;
  process.send({ refused: error.message });
  process.exit();
});
for (const [number, client] of clients.entries()) {
  // One client after the other, so that no server is hurried into losing something.
  await Promise.all(Array.from({ length: keys }, (_, key) => client.set(`owner:${number}:${key}`, payload)));
}
process.once("message", () => {
  for (const { ws } of clients) ws._socket.resetAndDestroy();
});
process.send("ready");
