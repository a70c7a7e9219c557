// Connections that have subscribed and do nothing: what the server's memory grows by.
import { main, memory, openMany, sleep, stretch } from "./client.mjs";

await main(async ({ pid, connections, seconds, settle, ...target }) => {
  await openMany(20, target); // code is loaded, pools are filled
  await sleep(settle * 1000);
  const before = memory(pid);
  const clients = await openMany(connections, target);
  await sleep(settle * 1000);
  const stop = stretch(pid);
  await sleep(seconds * 1000);
  const { server_cpu } = stop();
  const after = memory(pid);
  const open = clients.filter((client) => !client.closed).length;
  return { connections: open, before, after, bytes_per_connection: (after - before) / open, server_cpu };
});
