// Two clients on a real server, whose address is the argument: what one does, the other sees.

import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";

import { WebSocket } from "ws";

import { EphemeralState } from "../../ephemeral_state/static/ephemeral_state/ephemeral-state.js";

const LIMIT = 20_000; // ms until it gives up on what it waits for
const [, , url] = process.argv;
const topic = `demo:${process.pid}`;
const problems = [];

/** What a page of the site sends along, and the server asks for. */
class FromItsPage extends WebSocket {
  constructor(address, protocols) {
    super(address, protocols, { origin: `http://${new URL(address).host}` });
  }
}

async function until(condition) {
  for (const end = Date.now() + LIMIT; !condition(); await sleep(5)) if (Date.now() > end) assert.fail(`never: ${condition}`);
}

function connect() {
  const state = new EphemeralState(url, { WebSocket: FromItsPage, minDelay: 10, maxDelay: 100 });
  state.onerror = ({ detail }) => problems.push(detail);
  return [state, state.topic(topic)];
}

const [ann, annsRoom] = connect();
const [bob, bobsRoom] = connect();
const heard = [];
bobsRoom.subscribe(({ type, key, reason }) => heard.push([type, key, reason]));
await until(() => ann.status === "live" && bob.status === "live");

annsRoom.set("here", { name: "Zoé <b>" });
annsRoom.set("typing", undefined, { ttl: 0.3 });
annsRoom.set("bytes", new Uint8Array([0, 255]));
await until(() => bobsRoom.entries.has("bytes"));
const here = bobsRoom.entries.get("here");
assert.deepEqual([here.value, here.mine, here.owner], [{ name: "Zoé <b>" }, false, ann.clientId]);
assert.deepEqual([...bobsRoom.entries.get("bytes").bytes], [0, 255]);
await until(() => annsRoom.entries.get("here")?.mine);
await until(() => heard.some(([type, key, reason]) => type === "clear" && key === "typing" && reason === "expired"));
annsRoom.clear("bytes");
await until(() => heard.some(([type, key, reason]) => type === "clear" && key === "bytes" && reason === "explicit"));

for (let n = 0; n <= 300; n++) annsRoom.set("cursor", n, { throttle: 50 });
await until(() => bobsRoom.entries.get("cursor")?.value === 300);

ann.close();
await until(() => bobsRoom.entries.size === 0);
assert.equal(heard.at(-1)[2], "disconnect");
ann.connect();
await until(() => bobsRoom.entries.get("here")?.value.name === "Zoé <b>" && bobsRoom.entries.get("cursor")?.value === 300);
assert.deepEqual([...bobsRoom.entries.keys()].sort(), ["cursor", "here"]);
bobsRoom.set("here", "Bob's now");
await until(() => annsRoom.entries.get("here")?.owner === bob.clientId);
assert.deepEqual(problems, []);

const forbidden = ann.topic("room:not mine");
await until(() => forbidden.status === "denied");
assert.deepEqual(problems.map(({ code, topic }) => [code, topic]), [["forbidden", "room:not mine"]]);
for (const state of [ann, bob]) state.close();
