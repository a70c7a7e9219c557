// The client on real sockets, against servers that do what servers do when things go wrong.

import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import { afterEach, beforeEach, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import { WebSocket, WebSocketServer } from "ws";

import { EphemeralState } from "../../ephemeral_state/static/ephemeral_state/ephemeral-state.js";
import { base64, wire } from "./fixtures.js";

const LIMIT = 10_000; // ms until a test gives up on what it waits for

let server, port, states, warnings, thrown;
const note = (error) => thrown.push(error);

beforeEach(async () => {
  [states, warnings, thrown] = [[], [], []];
  console.warn = (line) => warnings.push(line);
  process.on("uncaughtException", note).on("unhandledRejection", note);
  await listen();
});

afterEach(async () => {
  for (const state of states) state.close();
  await stop();
  process.off("uncaughtException", note).off("unhandledRejection", note);
  assert.deepEqual(thrown, []);
});

/** A server that welcomes everybody, unless `answer` says what to do with a frame, and keeps what it got. */
async function listen(at = 0, answer = null) {
  const http = createServer();
  server = new WebSocketServer({ server: http });
  Object.assign(server, { http, got: [], entries: [], count: 0 });
  server.on("connection", (socket) => {
    const tell = (kind, fields) => socket.send(JSON.stringify({ _orama: `ephemeral.${kind}`, ...fields }));
    tell("hello", { client_id: `client ${++server.count}` });
    socket.on("message", (data) => {
      const frame = JSON.parse(data);
      server.got.push(frame);
      if (answer) return answer(frame, tell, socket);
      if (frame._orama === "ephemeral.subscribe") tell("snapshot", { topic: frame.topic, entries: server.entries });
      else if (frame.ref) tell("ok", { ref: frame.ref });
    });
  });
  http.listen(at, "127.0.0.1");
  await once(http, "listening");
  port = http.address().port;
}

async function stop() {
  for (const socket of server.clients) socket.terminate();
  server.close();
  server.http.close();
  server.http.closeAllConnections();
  if (server.http.listening) await once(server.http, "close");
}

function connect(options = {}, url = `ws://127.0.0.1:${port}/`) {
  const state = new EphemeralState(url, { WebSocket, minDelay: 5, maxDelay: 40, ...options });
  state.problems = [];
  state.statuses = [state.status];
  state.onerror = ({ detail }) => state.problems.push(detail.code);
  state.addEventListener("status", ({ detail }) => state.statuses.push(detail));
  states.push(state);
  return state;
}

async function until(condition, what = condition) {
  for (const end = Date.now() + LIMIT; !condition(); await sleep(2)) if (Date.now() > end) assert.fail(`never: ${what}`);
}

const verbs = () => server.got.map(({ _orama, key }) => [_orama.replace("ephemeral.", ""), key]);

test("it is live when every topic is, and closes for good", async () => {
  const state = connect();
  assert.equal(state.status, "connecting");
  const room = state.topic("room:1");
  assert.equal(state.topic("room:1"), room);
  await until(() => state.status === "live");
  assert.equal(room.status, "live");
  assert.equal(state.clientId, "client 1");
  const [socket] = server.clients;
  const closed = once(socket, "close");
  state.close();
  assert.equal((await closed)[0], 1000);
  assert.equal(state.status, "offline");
  await sleep(100);
  assert.equal(server.count, 1);
  assert.deepEqual(state.statuses, ["connecting", "live", "offline"]);
  state.connect();
  await until(() => state.status === "live");
});

test("a lost connection: stale, then live again with its own keys, and nothing that stayed is told", async () => {
  server.entries = [{ key: "here:2", client_id: "other", payload: base64({ name: "Bob" }), expires_in_ms: null }];
  const state = connect();
  const room = state.topic("room:1");
  const changes = [];
  room.subscribe(({ type, key }) => changes.push([type, key]));
  room.set("here:1", { name: "Zoé" });
  await until(() => verbs().some(([verb]) => verb === "set"));
  const bob = room.entries.get("here:2");
  assert.deepEqual([bob.value, bob.mine, bob.stale, bob.expires], [{ name: "Bob" }, false, false, null]);
  for (const socket of server.clients) socket.terminate();
  await until(() => state.status === "stale");
  assert.deepEqual([room.stale, bob.stale, room.status, room.entries.get("here:2")], [true, true, "stale", bob]);
  await until(() => state.status === "live");
  await until(() => verbs().filter(([verb]) => verb === "set").length === 2);
  assert.deepEqual(changes, [["set", "here:2"]]);
  assert.equal(room.entries.get("here:2"), bob);
  assert.deepEqual(state.statuses, ["connecting", "live", "stale", "live"]);
});

test("a server that restarts is found again, and that it was gone is said once", async () => {
  const state = connect();
  const room = state.topic("room:1");
  await until(() => state.status === "live");
  const at = port;
  await stop();
  await sleep(150);
  room.set("k", 1);
  await listen(at);
  await until(() => state.status === "live");
  await until(() => verbs().some(([verb, key]) => verb === "set" && key === "k"));
  assert.equal(warnings.length, 1);
  assert.match(warnings[0], /unreachable: cannot connect to ws/);
  assert.deepEqual(state.problems, ["unreachable"]);
});

test("a refused handshake is said once, and tried on with longer waits", async () => {
  let asked = 0;
  server.options.verifyClient = () => (asked++, false);
  const waits = [];
  const state = connect({ random: () => 0.5, minDelay: 2, maxDelay: 32 });
  const [setTimer] = [globalThis.setTimeout];
  globalThis.setTimeout = (call, ms, ...rest) => (waits.push(ms), setTimer(call, ms, ...rest));
  try {
    for (const end = Date.now() + LIMIT; asked < 8 && Date.now() < end; ) await new Promise((resolve) => setTimer(resolve, 5));
  } finally {
    globalThis.setTimeout = setTimer;
  }
  assert.ok(asked >= 8);
  assert.deepEqual(state.problems, ["unreachable"]);
  assert.equal(state.status, "connecting");
  assert.deepEqual([1, 2, 4, 8, 16, 16].filter((ms, at) => waits.filter((wait) => wait <= 16)[at] !== ms), []);
});

test("revoked rights: everything seen is forgotten, and it does not come back by itself", async () => {
  server.entries = [{ key: "k", client_id: "other", expires_in_ms: null }];
  const state = connect();
  const room = state.topic("room:1");
  await until(() => room.entries.size === 1);
  const changes = [];
  room.subscribe((change) => changes.push(change.reason));
  for (const socket of server.clients) socket.close(4403, "you were logged out");
  await until(() => state.status === "offline");
  assert.deepEqual([room.entries.size, changes, state.problems], [0, ["revoked"], ["revoked"]]);
  await sleep(100);
  assert.equal(server.count, 1);
  state.connect();
  await until(() => room.entries.size === 1);
});

for (const code of [4000, 4008, 4999, 1011, 1012])
  test(`closed with ${code}, it comes back`, async () => {
    const state = connect();
    await until(() => state.status === "live");
    for (const socket of server.clients) socket.close(code);
    await until(() => server.count === 2 && state.status === "live");
  });

test("an old server without batches is followed all the same, and without a word", async () => {
  const at = port;
  await stop();
  await listen(at, (frame, tell) => {
    if ("batch" in frame) tell("error", { code: "bad_frame", message: "no field batch", ref: frame.ref });
    else tell("snapshot", { topic: frame.topic, entries: [{ key: "k", client_id: "c", expires_in_ms: null }], ref: frame.ref });
  });
  const state = connect();
  const room = state.topic("room:1", { maxRate: 5 });
  await until(() => room.entries.size === 1);
  assert.deepEqual([state.problems, warnings], [[], []]);
});

test("whatever a server sends, the page hears of it once and goes on", async () => {
  const state = connect();
  const room = state.topic("room:1");
  await until(() => state.status === "live");
  const [socket] = server.clients;
  const frames = ['{"_orama":"ephemeral.snapshot"}', '{"_orama":"ephemeral.set","topic":5}', '{"_orama":"ephemeral.of_the_future"}',
    '{"_orama":"ephemeral.batch","topic":"room:1","events":[[]]}', '{"_orama":"ephemeral.error"}'];
  for (let round = 0; round < 3; round++) for (const frame of frames) socket.send(frame);
  socket.send(JSON.stringify({ _orama: "ephemeral.set", topic: "room:1", key: "k", client_id: "c" }));
  await until(() => room.entries.size === 1);
  assert.deepEqual(warnings.map((line) => line.split(":")[1].trim()), ["bad_server_frame", "unknown_frame"]);
});

test("frames of the application share the socket", async () => {
  const state = connect();
  const heard = [];
  state.onmessage = ({ detail }) => heard.push(detail);
  assert.equal(state.send({ type: "hello" }), false);
  await until(() => state.status === "live");
  assert.equal(state.send({ type: "hello" }), true);
  assert.equal(state.send({ n: 1n }), false);
  await until(() => server.got.some(({ type }) => type === "hello"));
  const [socket] = server.clients;
  for (const text of ['{"type":"message","text":"hi"}', "null", "7", "no JSON", '{"_orama":"other.thing"}']) socket.send(text);
  await until(() => heard.length === 5);
  assert.deepEqual(heard, [{ type: "message", text: "hi" }, null, 7, "no JSON", { _orama: "other.thing" }]);
});

test("what cannot be set is said and not thrown", async () => {
  const state = connect();
  const room = state.topic("room:1");
  await until(() => state.status === "live");
  const loop = {};
  loop.loop = loop;
  for (const value of [1n, loop, () => {}, Symbol("x")]) room.set("k", value);
  for (const ttl of [0, -1, NaN, Infinity, "5s", {}]) room.set("k", 1, { ttl });
  for (const options of [{ grace: -1 }, { throttle: NaN }]) room.set("k", 1, options);
  for (const key of ["", undefined, 7, null]) room.set(key, 1), room.clear(key);
  await sleep(20);
  assert.deepEqual(verbs().map(([verb]) => verb), ["subscribe"]);
  const count = (code) => state.problems.filter((problem) => problem === code).length;
  assert.deepEqual([count("payload_invalid"), count("ttl_invalid"), count("name_required")], [4, 8, 8]);
  assert.equal(warnings.length, 3);
});

/** Values that have no text, or none in JSON. */
const ODD = [5n, Symbol("x"), Object.create(null), () => {}, { toJSON: () => { throw Object.create(null); } }];

test("a topic that cannot be is said and not thrown, is denied, and keeps no other from being followed", async () => {
  const state = connect();
  const changes = [];
  for (const name of ["", undefined, null, 7, NaN, ...ODD]) {
    const room = state.topic(name);
    assert.equal(state.topic(name), room);
    assert.deepEqual([room.status, room.stale, room.entries.size, typeof room.name], ["denied", false, 0, "string"]);
    room.subscribe((change) => changes.push(change));
    room.set("k", 1);
    room.clear("k");
    for await (const change of room) changes.push(change); // ends at once
    room.use()();
    room.leave();
  }
  const count = 5 + ODD.length;
  assert.deepEqual(state.problems, Array(count).fill("name_required"));
  const room = state.topic("room:1"); // all this before there was a connection
  await until(() => room.status === "live");
  assert.equal(state.status, "live");
  state.topic(["room:2"]).leave();
  room.set("k", 1);
  await until(() => verbs().some(([verb]) => verb === "set"));
  assert.deepEqual(verbs(), [["subscribe", undefined], ["set", "k"]]);
  assert.deepEqual([state.problems.length, changes, warnings.length], [count + 1, [], 1]);
});

test("an option of a topic that cannot be is said, and the topic is followed without it", async () => {
  const state = connect();
  const cases = [null, 7, "x", ...ODD.slice(0, 2), ...[-1, 0, NaN, "20", {}, ...ODD].map((maxRate) => ({ maxRate })),
    ...["no", 0, ...ODD].map((subscribe) => ({ subscribe })), { maxRate: null, subscribe: null }, { maxRate: 5, subscribe: true }];
  for (const [at, options] of cases.entries()) state.topic(`room:${at}`, options);
  await until(() => state.status === "live");
  const asked = server.got.map(({ topic, batch, max_rate }) => [topic, batch, max_rate]);
  assert.deepEqual(asked, cases.map((_, at) => [`room:${at}`, true, at === cases.length - 1 ? 5 : undefined]));
  assert.deepEqual(state.problems, Array(cases.length - 3).fill("bad_option"));
  assert.deepEqual(warnings.length, 1);
  assert.match(warnings[0], /bad_option: the options of a topic are an object, not 7 \("room:1"\)/);
});

test("whatever a key or an option is, it is said and not thrown", async () => {
  const state = connect();
  const room = state.topic("room:1");
  for (const odd of ODD) {
    room.set(odd, 1);
    room.set(odd, 1, { ttl: odd });
    room.clear(odd);
    for (const options of [{ ttl: odd }, { grace: odd }, { throttle: odd }]) room.set("k", 1, options);
  }
  room.set("k", ODD.at(-1)); // its toJSON throws what has no text
  assert.equal(state.problems.length, 6 * ODD.length + 1);
  assert.equal(warnings.length, 3);
});

test("values go as JSON, bytes as they are", async () => {
  const state = connect();
  const room = state.topic("room:1");
  const big = new Uint8Array(12_000).map((_, at) => at);
  room.set("json", { é: [1, null] });
  room.set("text", "x");
  room.set("bytes", new Uint8Array([1, 2, 3, 4]).subarray(1, 3));
  room.set("buffer", new Uint8Array([255]).buffer);
  room.set("big", big);
  room.set("nothing");
  await until(() => verbs().length === 7);
  const payload = (key) => server.got.find((frame) => frame.key === key).payload;
  assert.equal(payload("json"), base64({ é: [1, null] }));
  assert.equal(payload("text"), base64("x"));
  assert.equal(payload("bytes"), Buffer.from([2, 3]).toString("base64"));
  assert.equal(payload("buffer"), "/w==");
  assert.equal(payload("big"), Buffer.from(big).toString("base64"));
  assert.equal(payload("nothing"), undefined);
});

test("a throttled key arrives with its last value", async () => {
  const state = connect();
  const room = state.topic("room:1");
  await until(() => state.status === "live");
  for (let n = 0; n <= 100; n++) room.set("cursor", n, { throttle: 30 });
  await until(() => server.got.at(-1).payload === base64(100));
  assert.deepEqual(verbs().filter(([verb]) => verb === "set").length, 2);
});

test("changes can be iterated; a slow reader gets the newest of each key, and leaving ends it", async () => {
  const state = connect();
  const room = state.topic("room:1");
  await until(() => state.status === "live");
  const [socket] = server.clients;
  const put = (key, value) => socket.send(JSON.stringify({ _orama: "ephemeral.set", topic: "room:1", key, client_id: "c", payload: base64(value) }));
  const seen = [];
  const reading = (async () => {
    for await (const change of room) {
      seen.push([change.type, change.key, change.entry?.value, change.before?.value]);
      if (seen.length === 1) await until(() => room.entries.get("last"));
    }
  })();
  put("a", 1);
  await until(() => seen.length === 1);
  put("a", 2);
  put("b", 1);
  put("a", 3);
  socket.send(JSON.stringify({ _orama: "ephemeral.clear", topic: "room:1", key: "b", client_id: "c", reason: "expired" }));
  put("last", 1);
  await until(() => seen.length === 3);
  assert.deepEqual(seen, [["set", "a", 1, undefined], ["set", "a", 3, 1], ["set", "last", 1, undefined]]);
  room.leave();
  await reading;
  await until(() => verbs().some(([verb]) => verb === "unsubscribe"));
  assert.notEqual(state.topic("room:1"), room);
});

test("a listener that fails keeps no other from hearing", async () => {
  const errors = [];
  const log = console.error;
  console.error = (error) => errors.push(error.message);
  try {
    const state = connect();
    const room = state.topic("room:1");
    const heard = [];
    room.subscribe(() => { throw new Error("the page's own"); });
    const stopListening = room.subscribe(({ key }) => heard.push(key));
    state.onstatus = () => { throw new Error("of a status"); };
    await until(() => state.status === "live");
    const [socket] = server.clients;
    socket.send('{"_orama":"ephemeral.set","topic":"room:1","key":"k","client_id":"c"}');
    await until(() => heard.length === 1);
    stopListening();
    socket.send('{"_orama":"ephemeral.set","topic":"room:1","key":"l","client_id":"c"}');
    await until(() => room.entries.size === 2);
    assert.deepEqual([heard, errors.toSorted()], [["k"], ["of a status", "the page's own", "the page's own"]]);
  } finally {
    console.error = log;
  }
});

for (const url of ["nonsense://x", "http://", "/relative", "ws://127.0.0.1:99999/"])
  test(`an address that cannot be is said and not thrown: ${url}`, async () => {
    const state = connect({}, url);
    state.topic("room:1").set("k", 1);
    await sleep(20);
    assert.equal(state.status, "offline");
    assert.match(warnings[0], /bad_url: cannot connect to/);
    assert.equal(warnings.length, 1);
  });

test("a silent server that pinged before counts as gone", async (t) => {
  const state = connect();
  await until(() => state.status === "live");
  const [socket] = server.clients;
  t.mock.timers.enable({ apis: ["setTimeout", "Date"], now: Date.now() });
  socket.send('{"_orama":"ephemeral.ping","n":7}');
  const answered = async (wanted) => {
    for (let turn = 0; turn < 5000 && !wanted(); turn++) await new Promise(setImmediate);
    assert.ok(wanted());
  };
  await answered(() => server.got.some(({ _orama }) => _orama === "ephemeral.pong"));
  t.mock.timers.tick(29_000);
  assert.equal(state.status, "live");
  t.mock.timers.tick(2000);
  assert.equal(state.status, "stale");
  await answered(() => state.status === "live");
  assert.equal(server.count, 2);
});

/** Sockets on which nothing happens by itself, for a clock that stands still; and their class. */
function sockets() {
  const made = [];
  class Socket {
    sent = [];
    constructor() { made.push(this); }
    send(text) { this.sent.push(text); }
    close(code) { Object.assign(this, { closed: true, code }); }
    tell(kind, fields) { this.onmessage({ data: JSON.stringify({ _orama: `ephemeral.${kind}`, ...fields }) }); }
    welcome(topic) { this.onopen(), this.tell("hello", { client_id: `client ${made.length}` }), this.tell("snapshot", { topic, entries: [] }); }
  }
  return [made, Socket];
}

test("a server that pinged once is watched from the beginning of the next connection", (t) => {
  const [made, Socket] = sockets();
  t.mock.timers.enable({ apis: ["setTimeout", "Date"], now: 1_000_000 });
  const state = connect({ WebSocket: Socket });
  made[0].onopen();
  t.mock.timers.tick(60_000);
  assert.equal(state.status, "live"); // one that never pings may be silent
  made[0].onmessage({ data: '{"_orama":"ephemeral.ping"}' });
  made[0].onclose({ code: 1006, reason: "" });
  t.mock.timers.tick(100);
  made[1].onopen();
  t.mock.timers.tick(29_000);
  assert.deepEqual([state.status, made.length], ["live", 2]);
  t.mock.timers.tick(2000);
  assert.deepEqual([state.status, made.length], ["stale", 3]);
  state.close();
});

test("a handshake that is never answered is given up, and tried again later", async (t) => {
  const [made, Socket] = sockets();
  t.mock.timers.enable({ apis: ["setTimeout", "Date"], now: 1_000_000 });
  const state = connect({ WebSocket: Socket });
  t.mock.timers.tick(29_000);
  assert.deepEqual([made.length, state.problems], [1, []]);
  t.mock.timers.tick(2000);
  t.mock.timers.tick(100); // of the wait that began in it
  assert.deepEqual([made.length, made[0].closed, state.problems], [2, true, ["unreachable"]]);
  state.close();
});

test("a connection that is cut every 60 s is back each time after the first wait, and nothing is said but the status", (t) => {
  const [made, Socket] = sockets();
  t.mock.timers.enable({ apis: ["setTimeout", "Date"], now: 1_000_000 });
  const state = connect({ WebSocket: Socket, minDelay: 500, maxDelay: 15_000, random: () => 1 }); // always the longest wait
  const room = state.topic("room:1");
  made[0].welcome("room:1");
  for (let cut = 1; cut <= 5; cut++) {
    for (let second = 0; second < 60; second += 10) t.mock.timers.tick(10_000), made.at(-1).tell("ping");
    assert.deepEqual([room.status, made.length], ["live", cut]);
    made.at(-1).onclose({ code: 1006, reason: "" });
    assert.equal(room.status, "stale");
    t.mock.timers.tick(499);
    assert.equal(made.length, cut);
    t.mock.timers.tick(1);
    assert.equal(made.length, cut + 1);
    made.at(-1).welcome("room:1");
  }
  assert.deepEqual(state.statuses, ["connecting", "live", ...Array(5).fill(["stale", "live"]).flat()]);
  assert.deepEqual([state.problems, warnings], [[], []]);
  state.close();
});

test("a connection that does not hold is tried again later each time", (t) => {
  const [made, Socket] = sockets();
  t.mock.timers.enable({ apis: ["setTimeout", "Date"], now: 1_000_000 });
  const state = connect({ WebSocket: Socket, minDelay: 500, maxDelay: 15_000, random: () => 1 });
  state.topic("room:1");
  for (const wait of [500, 1000, 2000, 4000, 8000, 15_000, 15_000]) {
    const count = made.length;
    made.at(-1).welcome("room:1");
    t.mock.timers.tick(9000);
    made.at(-1).onclose({ code: 1006, reason: "" });
    t.mock.timers.tick(wait - 1);
    assert.equal(made.length, count);
    t.mock.timers.tick(1);
    assert.equal(made.length, count + 1);
  }
  assert.deepEqual([state.problems, warnings], [[], []]);
  state.close();
});

test("whoever was sent away for too much comes back later than otherwise", async (t) => {
  const [made, Socket] = sockets();
  t.mock.timers.enable({ apis: ["setTimeout", "Date"], now: 1_000_000 });
  const state = connect({ WebSocket: Socket, minDelay: 500, maxDelay: 15_000, random: () => 1 });
  made[0].onopen();
  t.mock.timers.tick(60_000);
  made[0].onclose({ code: 4008, reason: "" });
  t.mock.timers.tick(7900);
  assert.equal(made.length, 1);
  t.mock.timers.tick(200);
  assert.equal(made.length, 2);
  state.close();
});

/** What the client needs of a browser's page; `happens` is one of its events, `navigates` one of its `navigation`. */
function pageWith(t) {
  const before = new Map(["document", "addEventListener", "removeEventListener", "navigation"].map((name) => [name, globalThis[name]]));
  const where = new EventTarget();
  const document = Object.assign(new EventTarget(), { hidden: false });
  const listen = { addEventListener: where.addEventListener.bind(where), removeEventListener: where.removeEventListener.bind(where) };
  const navigation = new EventTarget();
  Object.assign(globalThis, { document, navigation, ...listen });
  t.after(() => {
    for (const [name, value] of before) value === undefined ? delete globalThis[name] : (globalThis[name] = value);
  });
  return {
    navigates: (navigationType) => navigation.dispatchEvent(Object.assign(new Event("navigate"), { navigationType })),
    happens: (type, fields) => where.dispatchEvent(Object.assign(new Event(type), fields)),
    shown: (shown) => (document.hidden = !shown, document.dispatchEvent(new Event("visibilitychange"))),
  };
}

/** A page with a live topic, on sockets and a clock on which nothing happens by itself; its server pings. */
function live(t) {
  const [made, Socket] = sockets();
  t.mock.timers.enable({ apis: ["setTimeout", "Date"], now: 1_000_000 });
  const page = pageWith(t);
  const state = connect({ WebSocket: Socket, minDelay: 500, random: () => 1 });
  const room = state.topic("room:1");
  made[0].welcome("room:1");
  made[0].tell("ping");
  return { page, made, state, room };
}

test("after sleep there is a new connection as soon as the page is looked at", (t) => {
  const { page, made, state, room } = live(t);
  page.shown(false);
  t.mock.timers.setTime(1_000_000 + 29_000);
  page.shown(true);
  assert.deepEqual([made.length, room.status], [1, "live"]); // a server may be silent so long
  page.shown(false);
  t.mock.timers.setTime(1_000_000 + 31_000); // no timer has run: the machine slept
  assert.deepEqual([made.length, room.status], [1, "live"]);
  page.shown(true);
  assert.deepEqual([made.length, room.status, made[0].code], [2, "stale", 4001]);
  page.shown(true);
  assert.equal(made.length, 2); // it has just been made
  made[1].welcome("room:1");
  assert.deepEqual(state.statuses, ["connecting", "live", "stale", "live"]);
  assert.deepEqual(state.problems, []);
  state.close();
});

test("a wait is over when the page is looked at, or the network is back", (t) => {
  const { page, made, state } = live(t);
  made[0].onclose({ code: 1006, reason: "" });
  page.shown(false);
  assert.equal(made.length, 1);
  page.shown(true);
  assert.equal(made.length, 2);
  made[1].welcome("room:1");
  page.happens("offline");
  assert.deepEqual([state.status, made[1].code], ["offline", 4001]);
  page.shown(true);
  t.mock.timers.tick(60_000);
  assert.equal(made.length, 2);
  page.happens("online");
  assert.equal(made.length, 3);
  made[2].welcome("room:1");
  t.mock.timers.tick(20_000); // and no second one, of a wait that was cut short
  assert.deepEqual([made.length, state.statuses.slice(2)], [3, ["stale", "live", "offline", "stale", "live"]]);
  state.close();
});

test("a page that is left says goodbye, and is back at once when it is shown again", (t) => {
  const { page, made, state, room } = live(t);
  page.happens("pagehide", { persisted: true });
  assert.deepEqual([state.status, room.status, room.stale, made[0].code], ["offline", "offline", true, 1000]);
  t.mock.timers.setTime(1_000_000 + 3_600_000); // kept as it was, without a timer
  page.happens("pageshow", { persisted: true });
  assert.deepEqual([made.length, state.status], [2, "stale"]);
  made[1].welcome("room:1");
  assert.deepEqual([state.statuses.slice(1), state.problems], [["live", "offline", "stale", "live"], []]);
  page.happens("pageshow", { persisted: false }); // as every page hears it once
  assert.equal(made.length, 2);
  state.close();
});

test("what the page has closed stays closed, whatever happens to the page", (t) => {
  const { page, made, state } = live(t);
  const everything = () => {
    for (const type of ["pagehide", "pageshow", "offline", "online"]) page.happens(type);
    for (const shown of [false, true]) page.shown(shown);
  };
  state.close();
  everything();
  assert.deepEqual([made.length, state.status], [1, "offline"]);
  state.connect();
  made[1].onclose({ code: 4403, reason: "" });
  everything();
  t.mock.timers.tick(60_000);
  assert.deepEqual([made.length, state.status], [2, "offline"]);
  state.close();
});

test("an option that is no number is said, and a big number is one that is none", async () => {
  const state = connect();
  const room = state.topic("room:1");
  room.set("k", 1, { throttle: "50" });
  room.set("k", 1, { ttl: 5n });
  room.set("k", 1, { grace: "1" });
  assert.deepEqual(state.problems, ["ttl_invalid", "ttl_invalid", "ttl_invalid"]);
});

test("a topic is left when the last of those that use it has let go", async () => {
  const state = connect();
  const room = state.topic("room:1");
  const [first, second] = [room.use(), room.use()];
  await until(() => state.status === "live");
  first();
  await sleep(20);
  const third = room.use();
  second();
  third();
  const fourth = room.use(); // taken over in the same moment
  await sleep(20);
  assert.deepEqual(verbs().map(([verb]) => verb), ["subscribe"]);
  fourth();
  await until(() => server.got.length === 2);
  assert.deepEqual(verbs().map(([verb]) => verb), ["subscribe", "unsubscribe"]);
});

test("what is let go of or stopped twice ends nothing that others use", async () => {
  const state = connect();
  const room = state.topic("room:1");
  const [first, second] = [room.use(), room.use()];
  const heard = [];
  const listener = ({ key }) => heard.push(key);
  const [stop] = [room.subscribe(listener), room.subscribe(listener)];
  await until(() => state.status === "live");
  for (let times = 0; times < 3; times++) first(), stop();
  await sleep(20);
  const [socket] = server.clients;
  socket.send(JSON.stringify({ _orama: "ephemeral.set", topic: "room:1", key: "k", client_id: "c" }));
  await until(() => room.entries.size === 1);
  assert.deepEqual([heard, verbs()], [["k"], [["subscribe", undefined]]]);
  second();
  await until(() => server.got.length === 2);
  assert.deepEqual(verbs().at(-1), ["unsubscribe", undefined]);
});

test("a silent server is given up after as long, whatever the wall clock is set to", (t) => {
  let [mono, wall] = [5000, 1_800_000_000_000];
  t.mock.method(performance, "now", () => mono);
  t.mock.method(Date, "now", () => wall);
  const [made, Socket] = sockets();
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const state = connect({ WebSocket: Socket });
  made[0].welcome("room:1");
  made[0].tell("ping");
  wall -= 600_000;
  for (let second = 0; second < 31; second++) (mono += 1000), (wall += 1000), t.mock.timers.tick(1000);
  assert.deepEqual([state.status, made.length, made[0].code], ["stale", 2, 4001]);
  state.close();
});

test("a topic tells its own status, whatever that of the connection is", async () => {
  const at = port;
  await stop();
  await listen(at, (frame, tell) => {
    if (frame.topic === "denied") tell("error", { code: "forbidden", message: "", ref: frame.ref });
    else if (frame._orama === "ephemeral.subscribe") tell("snapshot", { topic: frame.topic, entries: [], ref: frame.ref });
    else tell("ok", { ref: frame.ref });
  });
  const state = connect();
  const told = {};
  const follow = (name) => {
    const room = state.topic(name);
    told[name] = [];
    room.onstatus = (event) => (told[name].push(event.detail), assert.equal(event.detail, room.status));
    room.addEventListener("status", ({ detail, target }) => told[name].push(`${target.name} ${detail}`));
    return room;
  };
  follow("first");
  await until(() => state.status === "live");
  follow("second");
  follow("denied");
  await until(() => told.second.length && told.denied.length);
  assert.deepEqual(state.statuses, ["connecting", "live"]);
  for (const socket of server.clients) socket.terminate();
  await until(() => told.denied.length === 6);
  await until(() => told.second.length === 6 && state.status === "live");
  state.close();
  const twice = (name, ...statuses) => statuses.flatMap((status) => [status, `${name} ${status}`]);
  assert.deepEqual(told, {
    first: twice("first", "live", "stale", "live", "offline"),
    second: twice("second", "live", "stale", "live", "offline"),
    denied: twice("denied", "denied", "connecting", "denied", "offline"),
  });
});

test("a topic that is revoked says so; one that was left says nothing more", async () => {
  const state = connect();
  const rooms = ["revoked", "left"].map((name) => state.topic(name));
  const told = [];
  for (const room of rooms) room.onstatus = ({ detail }) => told.push([room.name, detail]);
  await until(() => state.status === "live");
  rooms[1].leave();
  const [socket] = server.clients;
  socket.send('{"_orama":"ephemeral.revoked","topic":"revoked"}');
  await until(() => rooms[0].status === "denied");
  socket.terminate();
  await until(() => state.statuses.length === 4);
  assert.deepEqual(told.filter(([name]) => name === "left"), [["left", "live"]]);
  assert.deepEqual(told.filter(([name]) => name === "revoked").map(([, status]) => status).slice(0, 2), ["live", "denied"]);
});

const BYE = wire("commands").find(({ bye }) => bye).text;

for (const [what, leaves, code, bye] of [
  ["it is closed", ({ state }) => state.close(), 1000, true],
  ["its page is left", ({ page }) => page.happens("pagehide", { persisted: true }), 1000, true],
  ["its page is left after a reload that did not come", ({ page }) => (page.navigates("reload"), page.navigates("push"), page.happens("pagehide")), 1000, true],
  ["its page reloads itself", ({ page }) => (page.navigates("reload"), page.happens("pagehide")), 4001, false],
  ["its network goes", ({ page }) => page.happens("offline"), 4001, false],
])
  test(`a client says goodbye in a frame of its own only if it leaves on purpose: ${what}`, (t) => {
    const there = live(t);
    const [socket] = there.made;
    leaves(there);
    assert.deepEqual([socket.code, socket.sent.at(-1) === BYE], [code, bye]);
    assert.equal(there.state.status, "offline");
    there.state.close();
    assert.equal(socket.sent.filter((text) => text === BYE).length, Number(bye)); // once
  });

test("a server that has shown nothing of the protocol gets no goodbye, nor does a connection that is not there yet", (t) => {
  const [made, Socket] = sockets();
  pageWith(t);
  for (const opens of [() => {}, () => made.at(-1).onopen(), () => (made.at(-1).onopen(), made.at(-1).onmessage({ data: '{"type":"chat"}' }))]) {
    const state = connect({ WebSocket: Socket });
    opens();
    state.close();
    assert.deepEqual([made.at(-1).code, made.at(-1).sent], [1000, []]);
  }
});
