// Sockets that subscribe to one topic, set keys, and count what they hear; and what a scenario needs around them.
//
// Two dialects: our frames over plain WebSocket, and the same frames as events of Socket.IO. The latter is spoken
// here by hand (Engine.IO 4 over WebSocket), so that counting costs the same whoever is measured.
import { readFileSync } from "node:fs";
import { WebSocket } from "ws";

export const TOPIC = "room";

/** What all sockets of this process have heard: changes, the frames they came in, and those frames' bytes on the wire. */
export const tally = { updates: 0, frames: 0, bytes: 0, errors: 0, lastError: "" };

const SOCKETIO_EVENT = '42["e",'.length;
const SET = 1, CLEAR = 2, BATCH = 3, SNAPSHOT = 4, OK = 5, ERROR = 6, PING = 7, OTHER = 8;

/** Which frame begins at `at`, by its discriminator: {"_orama":"ephemeral.X…. */
function kind(data, at) {
  switch (data[at + 21]) {
    case 115: return data[at + 22] === 101 ? SET : SNAPSHOT;
    case 99: return CLEAR;
    case 98: return BATCH;
    case 111: return OK;
    case 101: return ERROR;
    case 112: return PING;
  }
  return OTHER;
}

// All sockets get the same text, so each text is parsed once, as long as it is among the latest few thousand.
const parsed = new Array(4096);

// What stands for a key in batches: for all sockets the same, since one process tells them all.
const keys = new Map();

function hash(data) {
  let value = data.length;
  const step = data.length > 512 ? data.length >> 7 : 1;
  for (let index = data.length - 1; index > 20; index -= step) value = (Math.imul(value, 31) + data[index]) | 0;
  return value & 4095;
}

/** The changes in a set, clear or batch frame: [key, payload (base64, or JSON in a batch) or null]. */
function read(data, at) {
  const slot = hash(data);
  const known = parsed[slot];
  if (known !== undefined && known.data.length === data.length && known.data.equals(data)) return known.changes;
  const frame = JSON.parse(data.toString("utf8", at, at ? data.length - 1 : data.length));
  const events = frame.events ?? [[frame.key, frame._orama === "ephemeral.clear" ? null : (frame.payload ?? "")]];
  const changes = events.map(([name, payload, , number]) => {
    if (typeof number === "number") keys.set(number, name);
    const key = typeof name === "number" ? keys.get(name) : name;
    return { key, cleared: payload === null, value: value(payload) };
  });
  parsed[slot] = { data: Buffer.from(data), changes };
  return changes;
}

const entries = (data) =>
  JSON.parse(data).entries.map(({ key, payload, n }) => {
    if (n) keys.set(n, key);
    return { key, value: value(payload) };
  });
const value = (payload) => {
  if (payload && typeof payload === "object") return payload;
  return payload ? JSON.parse(Buffer.from(payload, "base64").toString()) : null;
};
export const encode = (object) => Buffer.from(JSON.stringify(object)).toString("base64");

/** The server would not do what was asked: the scenario cannot be run with it. */
export class Refused extends Error {}

export class Client {
  updates = 0;
  bytes = 0;
  closed = false;
  #waiting = []; // of commands, oldest first: answers come in the order of the commands
  #opened;

  /** Resolves when it is connected, and subscribed if `subscribe` is an object. `hear(client, changes)` is optional. */
  static async open({ url, dialect, subscribe }, hear) {
    const client = new Client(url, dialect, hear);
    await client.#opened;
    if (subscribe) await client.subscribe(subscribe);
    return client;
  }

  constructor(url, dialect, hear) {
    this.at = dialect === "socketio" ? SOCKETIO_EVENT : 0;
    this.hear = hear;
    const address = this.at ? `${url}socket.io/?EIO=4&transport=websocket` : url;
    this.ws = new WebSocket(address, { perMessageDeflate: false, skipUTF8Validation: true, handshakeTimeout: 30_000 });
    this.ws.on("message", (data) => this.#message(data));
    this.#opened = new Promise((resolve, reject) => {
      this.ready = resolve;
      this.ws.on("open", () => this.at || resolve()); // Socket.IO has a handshake of its own to come
      this.ws.on("error", reject);
      this.ws.on("close", () => {
        this.closed = true;
        reject(new Error("closed while opening"));
        for (const [, fail] of this.#waiting.splice(0)) fail(new Error("closed"));
      });
    });
    this.#opened.catch(() => {});
  }

  subscribe(wishes) {
    return this.#ask("subscribe", { topic: TOPIC, ...wishes });
  }

  /** Resolves when the server says that it is done. */
  set(key, payload) {
    return this.#ask("set", { topic: TOPIC, key, payload, ttl_ms: null });
  }

  /** The same, for those who count answers otherwise. */
  begin(key, payload) {
    this.set(key, payload).catch(() => {});
  }

  /** Says something, whatever it has read: not an answer to a ping, which would claim that it has read what came before. */
  sayAlive() {
    if (!this.closed && !this.at) this.ws.send('{"_orama":"ephemeral.unsubscribe","topic":"elsewhere"}');
  }

  /** Resolves when it is closed, by the closing handshake. */
  close() {
    return new Promise((resolve) => {
      if (this.closed) resolve();
      this.ws.once("close", resolve);
      this.ws.close(1000);
    });
  }

  #ask(verb, fields) {
    const answered = new Promise((resolve, reject) => this.#waiting.push([resolve, reject]));
    if (this.at) this.ws.send(`420${JSON.stringify([verb, fields])}`);
    else this.ws.send(JSON.stringify({ _orama: `ephemeral.${verb}`, ...fields }));
    return answered;
  }

  #message(data) {
    if (this.at && !(data[0] === 52 && data[1] === 50)) return this.#socketio(data.toString());
    switch (kind(data, this.at)) {
      case SET:
      case CLEAR:
        this.updates++;
        tally.updates++;
        if (this.hear !== undefined) this.hear(this, read(data, this.at));
        break;
      case BATCH: {
        const changes = read(data, this.at);
        this.updates += changes.length;
        tally.updates += changes.length;
        if (this.hear !== undefined) this.hear(this, changes);
        break;
      }
      case SNAPSHOT:
        if (this.hearSnapshot !== undefined) this.hearSnapshot(entries(data));
        else if (data.includes('"n":')) entries(data);
      // falls through
      case OK:
        return this.#waiting.shift()?.[0]();
      case ERROR:
        tally.errors++;
        tally.lastError = data.toString();
        return this.#waiting.shift()?.[1](new Refused(data.toString()));
      case PING:
        return this.ws.send(data.toString().replace("ping", "pong"));
      case OTHER:
        return;
    }
    const wire = data.length + (data.length < 126 ? 2 : data.length < 65_536 ? 4 : 10);
    tally.frames++;
    tally.bytes += wire;
    this.bytes += wire;
  }

  #socketio(text) {
    if (text === "2") this.ws.send("3");
    else if (text.startsWith("0")) this.ws.send("40");
    else if (text.startsWith("40")) this.ready();
    else if (text.startsWith("43")) this.#waiting.shift()?.[0]();
    else throw new Error(`unknown packet: ${text}`);
  }
}

/** `count` clients, a few connecting at a time. */
export async function openMany(count, target, hear, atOnce = 20) {
  const clients = [];
  const opener = async () => {
    while (count-- > 0) clients.push(await Client.open(target, hear));
  };
  await Promise.all(Array.from({ length: Math.min(count, atOnce) }, opener));
  return clients;
}

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** True as soon as `condition()` is; false if it is not within `seconds`. */
export async function until(condition, seconds, pause = 5) {
  const end = performance.now() + seconds * 1000;
  while (!condition()) {
    if (performance.now() > end) return false;
    await sleep(pause);
  }
  return true;
}

/** Returns when `done()` is true, or nothing has been heard for 1.5 s, or after `seconds`. */
export async function settled(done, seconds) {
  const end = performance.now() + seconds * 1000;
  let before = -1;
  while (performance.now() < end && tally.updates !== before && !done()) {
    before = tally.updates;
    await until(() => tally.updates !== before, 1.5);
  }
}

/** How many updates these clients have heard. */
export const heardBy = (clients) => clients.reduce((sum, client) => sum + client.updates, 0);

/** Seconds of CPU that a process has used. */
function cpu(pid) {
  const fields = readFileSync(`/proc/${pid}/stat`, "latin1").split(") ").pop().split(" ");
  return (Number(fields[11]) + Number(fields[12])) / 100; // ticks of 10 ms since its start, user and system
}

/** Bytes of memory that a process has to itself. */
export function memory(pid) {
  const lines = readFileSync(`/proc/${pid}/smaps_rollup`, "latin1").matchAll(/^Private_(?:Clean|Dirty): +(\d+) kB/gm);
  return [...lines].reduce((sum, [, kilobytes]) => sum + Number(kilobytes), 0) * 1024;
}

/** Call it at the end of a stretch of time: what was heard meanwhile, and what it cost the server and this process. */
export function stretch(pid) {
  const then = { ...tally, at: performance.now(), server: cpu(pid), own: process.cpuUsage() };
  return () => {
    const seconds = (performance.now() - then.at) / 1000;
    const updates = tally.updates - then.updates;
    const server = cpu(pid) - then.server;
    const own = process.cpuUsage(then.own);
    return {
      seconds,
      updates,
      frames: tally.frames - then.frames,
      bytes: tally.bytes - then.bytes,
      updates_per_s: updates / seconds,
      frames_per_s: (tally.frames - then.frames) / seconds,
      bytes_per_update: updates ? (tally.bytes - then.bytes) / updates : 0,
      cpu_us_per_update: updates ? (server / updates) * 1e6 : 0,
      server_cpu: server / seconds,
      load_cpu: (own.user + own.system) / 1e6 / seconds,
    };
  };
}

/** A histogram of milliseconds, in steps of 0.1 ms up to 20 s. */
export class Latencies {
  #buckets = new Uint32Array(200_001);
  count = 0;

  add(ms) {
    this.#buckets[Math.min(200_000, Math.max(0, Math.round(ms * 10)))]++;
    this.count++;
  }

  /** The nearest rank; null if there is nothing. */
  quantile(share) {
    let rank = Math.ceil(this.count * share);
    if (rank === 0) return null;
    for (let bucket = 0; ; bucket++) if ((rank -= this.#buckets[bucket]) <= 0) return bucket / 10;
  }
}

/** Runs a scenario with the options on the command line, and prints its result. */
export async function main(scenario) {
  let result;
  try {
    result = await scenario(JSON.parse(process.argv[2]));
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    result = { skipped: error.message };
  }
  process.stdout.write(JSON.stringify({ ...result, errors: tally.errors, last_error: tally.lastError }) + "\n", () =>
    process.exit(0),
  );
}
