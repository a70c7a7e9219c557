// The browser's side of ephemeral state, small: a topic as a live map, and a socket that comes back by itself.

/** One topic as this window sees it. Feed it every frame of the socket; it calls `changed(key, now, before)`, each
 *  `{ value, clientId }` or undefined, for what really changed. A snapshot is applied as a difference. */
export class LiveTopic {
  #entries = new Map();
  #changed;

  constructor(changed) {
    this.#changed = changed;
  }

  get(key) {
    return this.#entries.get(key);
  }

  /** `[key, { value, clientId }]` of every key that starts with the prefix. */
  startingWith(prefix) {
    return [...this.#entries].filter(([key]) => key.startsWith(prefix));
  }

  receive(frame) {
    switch (frame._orama) {
      case "ephemeral.snapshot": {
        const present = new Set(frame.entries.map((entry) => entry.key));
        for (const key of [...this.#entries.keys()]) if (!present.has(key)) this.#remove(key);
        for (const entry of frame.entries) this.#put(entry);
        break;
      }
      case "ephemeral.set":
        this.#put(frame);
        break;
      case "ephemeral.clear":
        this.#remove(frame.key);
        break;
    }
  }

  #put({ key, client_id: clientId, payload = "" }) {
    const before = this.#entries.get(key);
    if (before?.payload === payload && before.clientId === clientId) return;
    const now = { value: decode(payload), clientId, payload };
    this.#entries.set(key, now);
    this.#changed(key, now, before);
  }

  #remove(key) {
    const before = this.#entries.get(key);
    if (this.#entries.delete(key)) this.#changed(key, undefined, before);
  }
}

const utf8 = new TextDecoder();

/** The value in a payload: base64 of JSON; null for none. */
function decode(payload) {
  if (!payload) return null;
  return JSON.parse(utf8.decode(Uint8Array.from(atob(payload), (character) => character.charCodeAt(0))));
}

const FIRST_DELAY = 400; // ms; doubled with each failure
const LONGEST_DELAY = 8000;

/** A WebSocket that reconnects. `opened()` is where to say again what is yours: the server forgot it when the
 *  connection ended. `state(name)` gets "connecting", "live" or "offline". */
export class LiveSocket {
  #url;
  #on;
  #socket = null;
  #failures = 0;
  #timer = 0;

  constructor(path, { opened, received, state }) {
    this.#url = new URL(path, location.href);
    this.#url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    this.#on = { opened, received, state };
    addEventListener("online", () => this.#connect());
    addEventListener("offline", () => this.#drop());
    addEventListener("pageshow", (event) => event.persisted && this.#connect());
    document.addEventListener("visibilitychange", () => document.hidden || this.#connect());
    this.#on.state("connecting");
    this.#connect();
  }

  /** Whether it could be sent. */
  send(frame) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(JSON.stringify(frame));
    return true;
  }

  #connect() {
    if (this.#socket) return;
    clearTimeout(this.#timer);
    const socket = new WebSocket(this.#url);
    this.#socket = socket;
    socket.onopen = () => {
      this.#on.state("live");
      this.#on.opened();
    };
    socket.onmessage = ({ data }) => {
      this.#failures = 0;
      const frame = JSON.parse(data);
      // From here and not from a timer: a hidden tab is throttled to one timer a minute.
      if (frame._orama === "ephemeral.ping") this.send({ _orama: "ephemeral.pong" });
      else this.#on.received(frame);
    };
    socket.onclose = () => this.#drop();
  }

  #drop() {
    const socket = this.#socket;
    if (!socket) return;
    this.#socket = null;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
    this.#on.state("offline");
    // Full jitter: after a restart of the server its clients come back spread out and not all at once.
    const delay = Math.random() * Math.min(LONGEST_DELAY, FIRST_DELAY * 2 ** this.#failures++);
    this.#timer = setTimeout(() => this.#connect(), delay);
  }
}

/** `call`, at most once in `ms`, and always with the latest argument. `cancel()` forgets what is waiting. */
export function throttled(ms, call) {
  let timer = 0;
  let waiting = null;
  const next = () => {
    timer = 0;
    if (!waiting) return;
    const [argument] = waiting;
    waiting = null;
    timer = setTimeout(next, ms);
    call(argument);
  };
  return {
    push(argument) {
      waiting = [argument];
      if (!timer) next();
    },
    cancel() {
      waiting = null;
    },
  };
}
