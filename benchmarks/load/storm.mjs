// Owners of keys reset their connections, all at once: when has the last observer heard the last clear?
import { fork } from "node:child_process";
import { fileURLToPath } from "node:url";
import { Refused, main, openMany, sleep, stretch, until } from "./client.mjs";

const OWNERS = fileURLToPath(new URL("owners.mjs", import.meta.url));

await main(async ({ pid, observers, owners, keys, patience, ...target }) => {
  const child = fork(OWNERS, [JSON.stringify({ owners, keys, ...target })]);
  await new Promise((resolve, reject) => {
    child.once("message", ({ refused }) => (refused ? reject(new Refused(refused)) : resolve()));
    child.once("exit", () => reject(new Error("the owners ended")));
  });
  // The owners were first, so that a newcomer hears of a set only in its snapshot, if at all.
  const left = new Map();
  const heard = [];
  let last = 0;
  const clients = await openMany(observers, target, (client, changes) => {
    for (const { key, cleared } of changes) {
      if (!cleared) continue;
      const mine = left.get(client);
      if (mine?.delete(key)) last = performance.now();
    }
    if (left.get(client)?.size === 0 && !heard.includes(client)) heard.push(client);
  });
  const all = Array.from({ length: owners * keys }, (_, number) => `owner:${Math.floor(number / keys)}:${number % keys}`);
  for (const client of clients) left.set(client, new Set(all));
  await sleep(1000); // daphne looks at a new connection once a second; and whatever is under way arrives

  const stop = stretch(pid);
  const started = performance.now();
  child.send("go");
  const complete = await until(() => heard.length === observers, patience, 1);
  const missing = clients.reduce((sum, client) => sum + left.get(client).size, 0);
  const result = stop();
  child.kill();
  return {
    ...result,
    last_ms: complete ? last - started : null,
    missing,
    missing_share: missing / (observers * owners * keys),
    incomplete_observers: observers - heard.length,
    expected: observers * owners * keys,
    delivered: result.updates,
    server_cpu_ms: result.server_cpu * result.seconds * 1000,
  };
});
