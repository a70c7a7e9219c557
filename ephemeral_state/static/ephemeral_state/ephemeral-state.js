/**
 * Ephemeral state in the browser: topics as live maps, over a WebSocket that comes back by itself.
 *
 *     const state = new EphemeralState("/ws/state/");
 *     const room = state.topic("room:1");
 *     room.subscribe(({ key, entry }) => console.log(key, entry ? entry.value : "is gone"));
 *     room.set("here:7", { name: "Zoé" });
 *
 * No dependencies and no build. Nothing here throws into the page: what goes wrong is an "error" event, and once a warning
 * in the console. From the bottom: `View` and `Session` are the rules of `docs/protocol.md`, without a socket, a timer or
 * a clock of their own; `Topic` and `EphemeralState` are what a page uses.
 *
 * @module
 */

/**
 * connecting: nothing was seen yet. live: what `entries` show is true. stale: it was true when the connection was lost,
 * which is being made again. offline: not connected, and not trying until the network, the page or `connect()` is back.
 * @typedef {"connecting" | "live" | "stale" | "offline"} Status
 */

/**
 * Why an entry went. missed: it went while there was no connection. revoked: you may not see it any more.
 * @typedef {"explicit" | "disconnect" | "expired" | "missed" | "revoked"} Reason
 */

/**
 * What happened to one key: `entry` is there unless it went, `before` unless it is new.
 * @typedef {{ type: "set", key: string, entry: Entry, before?: Entry, reason?: undefined }
 *   | { type: "clear", key: string, entry?: undefined, before: Entry, reason: Reason }} Change
 */

/**
 * What went wrong. `code` is one of the server's, or `unreachable`, `bad_url`, `bad_option`, `bad_server_frame`,
 * `unknown_frame`, `revoked`, `refused_too_often`.
 * @typedef {{ code: string, message: string, topic?: string, key?: string, retryAfter?: number }} Problem
 */

/**
 * `ttl`: seconds the entry lives; without it, as long as this connection. `grace`: seconds it stays when the connection
 * is lost rather than closed. `throttle`: send this key at most once in so many milliseconds, and always the last value.
 * @typedef {{ ttl?: number | null, grace?: number, throttle?: number }} SetOptions
 */

/**
 * `maxRate`: frames a second that this topic may cost at most. `subscribe: false`: the server's consumer subscribes
 * this connection by itself.
 * @typedef {{ maxRate?: number, subscribe?: boolean }} TopicOptions
 */

/** @typedef {Record<string, any>} Frame */

const utf8 = new TextEncoder();
const text = new TextDecoder("utf-8", { fatal: true });
const EMPTY = new Uint8Array();

/**
 * A clock in ms that is never set back, for waits and deadlines. It follows `mono`, which in some browsers stands still
 * while the machine sleeps: where `wall` has moved on by more than a second longer, that was a sleep, and counts too.
 */
function steady(mono = () => performance.now(), wall = () => Date.now()) {
  let [time, before, day] = [mono(), mono(), wall()];
  return () => {
    const [since, slept] = [mono() - before, wall() - day];
    [before, day] = [before + since, day + slept];
    return (time += slept - since > SLEEP ? slept : since);
  };
}

const SLEEP = 1000; // ms; the wall clock counts whole ms, and in some browsers only each hundredth

/** One key's value and owner. It never changes, but for the time when it expires: a new value is a new `Entry`. */
export class Entry {
  #view;
  /** @type {Uint8Array | undefined} */ #bytes;
  /** @type {{ value: any } | undefined} */ #json;

  /**
   * @param {string} key
   * @param {string} owner
   * @param {string} payload base64
   * @param {number | null | undefined} expires
   * @param {View} view
   */
  constructor(key, owner, payload, expires, view) {
    this.key = key;
    /** The `client_id` of the connection that it belongs to. */
    this.owner = owner;
    /** When it expires, as `Date.now()` counts; null: with its owner's connection; undefined: the server did not say. */
    this.expires = expires;
    /** The payload as the wire has it: base64. */
    this.payload = payload;
    this.#view = view;
  }

  /** The payload as it was sent. */
  get bytes() {
    return (this.#bytes ??= decode(this.payload));
  }

  /** The payload read as JSON; undefined if it is empty or something else. */
  get value() {
    this.#json ??= { value: parse(this.bytes) };
    return this.#json.value;
  }

  /** Whether this page's connection owns it, or a former one of it did. */
  get mine() {
    return this.#view.ids.has(this.owner);
  }

  /** Whether it may have changed or gone since, because there is no connection; one's own is known. */
  get stale() {
    return !this.#view.live && !this.mine;
  }

  /** @param {string} owner @param {string} payload */
  is(owner, payload) {
    return this.owner === owner && this.payload === payload;
  }

  toJSON() {
    return { key: this.key, owner: this.owner, value: this.value, mine: this.mine };
  }
}

/** One topic as its frames tell it. Pure: frames in, changes out, the same view whatever way it was told. */
export class View {
  /** @type {Map<string, Entry>} */
  entries = new Map();
  /** Whether what is here is true now. */
  live = false;
  /** A frame spoke of what this view has never heard of: it needs a snapshot. */
  lost = false;
  /** @type {{ entries: Frame[], more: number } | null} a snapshot of which so many sets are still to come */
  partial = null;
  /** @type {Map<number, string>} keys by the numbers that stand for them in batches */
  #keys = new Map();
  /** @type {Map<string, number>} */
  #numbers = new Map();

  /** @param {string} name @param {Set<string>} [ids] the ids that are one's own @param {() => number} [now] ms */
  constructor(name, ids = new Set(), now = Date.now) {
    this.name = name;
    this.ids = ids;
    this.now = now;
  }

  /**
   * @param {Frame} frame of this topic; unknown ones change nothing
   * @returns {Change[]} what really changed, when all of it has
   */
  apply(frame) {
    switch (frame._orama) {
      case "ephemeral.snapshot":
        return this.#begin({ entries: list(frame.entries).map(checked), more: Number(frame.more) || 0 });
      case "ephemeral.set":
        return this.partial ? this.#gather(this.partial, checked(frame)) : this.#put(checked(frame));
      case "ephemeral.clear":
        return this.#remove(string(frame.key), frame.reason);
      case "ephemeral.batch":
        return this.#batch(list(frame.events).map(list));
    }
    return [];
  }

  /** @param {Reason} reason @returns {Change[]} */
  forget(reason) {
    return [...this.entries.keys()].flatMap((key) => this.#remove(key, reason));
  }

  /** A long snapshot comes in several frames, and only with the last one it is known who is gone. @param {{ entries: Frame[], more: number }} told */
  #begin(told) {
    this.partial = told.more > 0 ? told : null;
    return this.partial ? [] : this.#snapshot(told.entries);
  }

  /** @param {{ entries: Frame[], more: number }} told @param {Frame} fields */
  #gather(told, fields) {
    told.entries.push(fields);
    told.more -= 1;
    return this.#begin(told);
  }

  /** @param {Frame[]} entries */
  #snapshot(entries) {
    const there = new Set(entries.map(({ key }) => key));
    const gone = [...this.entries.keys()].filter((key) => !there.has(key));
    this.lost = false;
    return [...gone.flatMap((key) => this.#remove(key, "missed")), ...entries.flatMap((entry) => this.#put(entry))];
  }

  /** @param {any[][]} events */
  #batch(events) {
    for (const [name, payload, owner] of events) {
      const numbered = typeof name === "number" && owner === undefined;
      if (!numbered) string(name);
      if (!numbered) string(owner);
      if (payload === undefined) string(payload);
    }
    return events.flatMap(([name, told, owner, more]) => {
      if (told === null) return this.#remove(name, more);
      const payload = typeof told === "string" ? told : encode(told); // JSON may stand there as it is
      if (owner !== undefined) {
        const fields = { key: name, client_id: owner, payload, n: more };
        return this.partial ? this.#gather(this.partial, fields) : this.#put(fields);
      }
      const before = this.entries.get(this.#keys.get(name) ?? "");
      if (before) return this.#put({ key: before.key, client_id: before.owner, payload });
      this.lost = true;
      return [];
    });
  }

  /** @param {string} key @param {unknown} number what stands for it from now on, until it goes */
  #name(key, number) {
    const before = this.#numbers.get(key);
    if (before !== undefined && this.#keys.get(before) === key) this.#keys.delete(before);
    this.#numbers.delete(key);
    if (typeof number !== "number") return;
    this.#numbers.set(key, number);
    this.#keys.set(number, key);
  }

  /** @param {Frame} fields @returns {Change[]} */
  #put({ key, client_id: owner, payload = "", expires_in_ms: left, n: number }) {
    if (number !== undefined) this.#name(key, number);
    const expires = typeof left === "number" ? this.now() + left : left;
    const before = this.entries.get(key);
    if (before?.is(owner, payload)) {
      before.expires = expires; // also to undefined: it was set again, and until when is not said
      return [];
    }
    const entry = new Entry(key, owner, payload, expires, this);
    this.entries.set(key, entry);
    return [{ type: "set", key, entry, before }];
  }

  /** @param {string} key @param {Reason} reason @returns {Change[]} */
  #remove(key, reason) {
    const before = this.entries.get(key);
    this.#name(key, undefined);
    return this.entries.delete(key) && before ? [{ type: "clear", key, before, reason }] : [];
  }
}

/**
 * What a page wants of one key: sent when there is a connection, and again when there is a new one.
 * @typedef {{ op: "set" | "clear", payload: string, grace: number, deadline: number | null, due: number,
 *   confirmed: boolean, lost: boolean }} Want
 */

/**
 * The server may have something of ours under a key, and not for longer than `until`: so many `sets` were sent and not
 * refused, the last of them with the ref `ref` at the time `at`. `former`: it may be there in the name of a former
 * connection, and no set of this one has been confirmed.
 * @typedef {{ sets: number, ref: number, at: number, until: number, grace: number, former: boolean }} Held
 */

/**
 * One topic of a session. `state` is how far this connection is with it. `unsent` are the keys of `wants` that are yet
 * to be sent, none of them before `wake`. `parted`: whether the server was told, or has confirmed, that it is left.
 * @typedef {{ view: View, options: TopicOptions, wants: Map<string, Want>, held: Map<string, Held>, unsent: Set<string>,
 *   wake: number, sweep: number, state: "new" | "asked" | "again" | "live" | "denied", due: number, plain: boolean,
 *   seen: boolean, parted: "" | "told" | "done" }} Line
 */

/** @typedef {{ verb: string, name: string, fields: Frame, key?: string, want?: Want, cost: number }} Asked */

const RETRY = 2000; // ms until what the server could not do now is asked for again
const FORMER = 16; // ids of former connections that are remembered
const MAX_RATE = 1000;
const OPEN = 64; // commands without an answer; a hundred that are refused in a row would end the connection
const PASSING = ["rate_limited", "unavailable", "gone"]; // `gone` comes from a server that stops
const LONG = 16384; // characters of a command; each time so many, it counts once more
const LINGERS = 60_000; // ms that a server may take to see that a connection is gone
const SWEEP = 256; // keys of a topic that are kept before those are looked for whose time is over
/** @type {Omit<Want, "confirmed" | "lost">} */
const CLEAR = { op: "clear", payload: "", grace: 0, deadline: null, due: 0 };

/** The rules of a connection and of what outlives it. Pure but for what it is given: `send`, `now` and the callbacks. */
export class Session {
  /** @type {Map<string, Line>} */
  lines = new Map();
  /** @type {Map<string, Line>} topics that were left, of which the server may still have something of ours */
  left = new Map();
  /** @type {Set<string>} */
  ids = new Set();
  /** @type {string | null} one's own, of this connection or the last; null if the server does not say */
  clientId = null;
  open = false;
  #ref = 0;
  /** @type {Map<number, Asked>} commands without an answer yet */
  #asked = new Map();
  #cost = 0;
  #hold = 0;
  #on;

  /**
   * @param {{ send: (text: string) => void, now?: () => number, change: (name: string, change: Change) => void,
   *   problem: (problem: Problem) => void }} on
   */
  constructor(on) {
    this.#on = on;
    this.now = on.now ?? steady();
  }

  /** What cannot be a name is denied here, and no server is asked. @param {string} name @param {TopicOptions} [options] */
  follow(name, options = {}) {
    const before = this.left.get(name); // what it has not cleared yet is this one's to clear, or to set again
    /** @type {Line} */
    const line = {
      view: new View(name, this.ids),
      options,
      wants: before?.wants ?? new Map(),
      held: before?.held ?? new Map(),
      unsent: before?.unsent ?? new Set(),
      ...{ wake: 0, sweep: SWEEP, state: "new", due: 0, plain: false, seen: false, parted: "" },
    };
    if (!isName(name)) return Object.assign(line, { state: "denied" });
    this.left.delete(name);
    this.lines.set(name, line);
    if (this.open) this.#subscribe(name, line);
    return line;
  }

  /** Clear what the server may have of ours in the topic, and hear no more of it. @param {string} name */
  leave(name) {
    const followed = this.lines.get(name);
    if (!followed) return;
    this.lines.delete(name);
    const line = { ...followed, view: new View(name, this.ids) }; // the page keeps the other as it was
    for (const key of line.wants.keys()) if (!line.held.has(key)) this.#forget(line, key);
    for (const key of line.held.keys()) if (line.wants.get(key)?.op !== "clear") this.#want(line, key, CLEAR);
    this.left.set(name, line);
    this.#part(name, line);
  }

  /** @param {string} name @param {string} key @param {string} payload base64 @param {SetOptions} options */
  set(name, key, payload, { ttl = null, grace = 0, throttle = 0 }) {
    const line = this.#line(name);
    const deadline = ttl === null ? null : this.now() + ttl * 1000;
    const due = (line.held.get(key)?.at ?? -Infinity) + throttle;
    this.#want(line, key, { op: "set", payload, grace: grace * 1000, deadline, due });
    if (line.wants.size + line.held.size > line.sweep) this.#sweep(line);
    this.#flush(name, line);
  }

  /** @param {string} name @param {string} key */
  clear(name, key) {
    const line = this.#line(name);
    const mine = line.held.has(key) || line.view.entries.get(key)?.mine;
    if (!mine && (!this.open || line.wants.get(key)?.op === "set")) return this.#forget(line, key);
    this.#want(line, key, CLEAR);
    this.#flush(name, line);
  }

  opened() {
    this.open = true;
    this.#hold = 0;
    for (const [name, line] of this.lines) {
      line.plain = false; // the server may be a newer one than the last
      this.#subscribe(name, line);
    }
    for (const [name, line] of this.left) {
      // Only a snapshot tells what of a former connection is still there.
      this.#sweep(line);
      if (line.held.size && line.options.subscribe !== false) this.#subscribe(name, line);
      else this.left.delete(name);
    }
  }

  closed() {
    const now = this.now();
    this.open = false;
    this.#asked.clear();
    this.#cost = 0;
    for (const line of [...this.lines.values(), ...this.left.values()]) {
      Object.assign(line, { state: "new", parted: "", wake: 0 });
      line.view.live = false;
      line.view.partial = null;
      for (const [key, want] of line.wants) if (!want.confirmed) line.unsent.add(key);
      for (const held of line.held.values()) {
        held.at = -Infinity;
        held.former = true;
        held.until = Math.min(held.until, now + held.grace + LINGERS);
      }
    }
  }

  /** When there is something to send again, in ms; Infinity: there is not. */
  get due() {
    let due = Infinity;
    if (!this.open) return due;
    const now = this.now();
    for (const lines of [this.lines, this.left])
      for (const line of lines.values()) {
        if (line.state === "again") due = Math.min(due, line.due);
        if (line.unsent.size && this.#cost < OPEN) due = Math.min(due, line.wake);
        if (lines === this.left && !line.unsent.size && !line.parted && !this.#unknown(line)) due = Math.min(due, now);
      }
    return Math.max(due, this.#hold);
  }

  /** Send what is due. */
  flush() {
    if (!this.open) return;
    const now = this.now();
    for (const lines of [this.lines, this.left])
      for (const [name, line] of lines) {
        if (line.state === "again" && line.due <= now && this.#hold <= now) this.#subscribe(name, line);
        if (lines === this.left) this.#part(name, line);
        else this.#flush(name, line);
      }
  }

  /** @param {Frame} frame @returns {boolean} whether it was one of ours */
  received(frame) {
    const kind = frame._orama;
    if (typeof kind !== "string" || !kind.startsWith("ephemeral.")) return false;
    switch (kind) {
      case "ephemeral.ping":
        // From here, and not from a timer: a hidden tab is throttled to one timer a minute.
        this.#on.send(JSON.stringify({ _orama: "ephemeral.pong", n: frame.n }));
        break;
      case "ephemeral.hello":
        this.clientId = string(frame.client_id);
        this.ids.delete(this.clientId);
        this.ids.add(this.clientId);
        if (this.ids.size > FORMER) this.ids.delete([...this.ids][0]);
        break;
      case "ephemeral.ok":
        this.#confirmed(frame.ref);
        break;
      case "ephemeral.error":
        this.#refused(frame);
        break;
      case "ephemeral.revoked":
        this.#revoked(string(frame.topic));
        break;
      case "ephemeral.snapshot":
      case "ephemeral.set":
      case "ephemeral.clear":
      case "ephemeral.batch":
        this.#told(kind, frame);
        break;
      default:
        this.#on.problem({ code: "unknown_frame", message: `${kind} is not known here: the server may be newer` });
    }
    return true;
  }

  /** All rights have ended: nothing of what was seen may stay. */
  revoked() {
    for (const [name, line] of this.lines) this.#tell(name, line.view.forget("revoked"));
  }

  /** @param {string} name */
  #line(name) {
    return this.lines.get(name) ?? this.follow(name);
  }

  /** Also one that was left. @param {string} name */
  #any(name) {
    return this.lines.get(name) ?? this.left.get(name);
  }

  /** @param {Line} line @param {string} key @param {Omit<Want, "confirmed" | "lost">} want */
  #want(line, key, want) {
    line.wants.set(key, { ...want, confirmed: false, lost: false });
    this.#again(line, key, want.due);
  }

  /** What is wanted of the key is to be sent. @param {Line} line @param {string} key @param {number} due */
  #again(line, key, due) {
    const wake = this.#may(line, key) ? due : Infinity;
    line.wake = line.unsent.size ? Math.min(line.wake, wake) : wake;
    line.unsent.add(key);
  }

  /** @param {Line} line @param {string} key */
  #forget(line, key) {
    line.wants.delete(key);
    line.unsent.delete(key);
  }

  /**
   * Before there is a snapshot nothing is set: somebody else may have set the key meanwhile.
   * @param {Line} line @param {string} key
   */
  #may(line, key) {
    return settled(line.state) || (line.wants.get(key)?.op === "clear" && this.#holds(line, key));
  }

  /** Whether only this connection may have something under the key. @param {Line} line @param {string} key */
  #holds(line, key) {
    return line.held.get(key)?.former === false;
  }

  /** Whether a former connection may have left something that has not been looked for yet. @param {Line} line */
  #unknown(line) {
    return !settled(line.state) && [...line.held.keys()].some((key) => !this.#holds(line, key));
  }

  /** Forget what is over: of a topic that cannot be read, nobody says what has expired. @param {Line} line */
  #sweep(line) {
    const now = this.now();
    for (const [key, { deadline }] of line.wants) if (deadline !== null && deadline <= now) this.#forget(line, key);
    for (const [key, { until }] of line.held) if (until <= now) line.held.delete(key);
    line.sweep = SWEEP + 2 * (line.wants.size + line.held.size); // so that a set costs the same however many there are
  }

  /** @param {string} name @param {Line} line */
  #flush(name, line) {
    const now = this.now();
    if (!this.open || now < this.#hold || now < line.wake) return;
    let wake = Infinity;
    for (const key of line.unsent) {
      if (this.#cost >= OPEN) return;
      const want = line.wants.get(key);
      if (!want || !this.#may(line, key)) continue;
      if (want.due > now) wake = Math.min(wake, want.due);
      else this.#send(name, line, key, want);
    }
    line.wake = wake;
  }

  /** Send what is left to be said of a topic that was left. @param {string} name @param {Line} line */
  #part(name, line) {
    const asks = line.options.subscribe !== false;
    if (this.open) {
      this.#flush(name, line);
      if (line.unsent.size || this.#unknown(line) || this.now() < this.#hold) return;
      if (asks && !line.parted) {
        line.parted = "told";
        this.#ask("unsubscribe", name, {});
      }
    }
    const over = this.open ? !line.wants.size && (!asks || line.parted === "done") : !asks || !line.held.size;
    if (over) this.left.delete(name);
  }

  /** @param {string} name @param {Line} line @param {string} key @param {Want} want */
  #send(name, line, key, want) {
    const now = this.now();
    if (want.deadline !== null && want.deadline <= now) return this.#forget(line, key);
    line.unsent.delete(key);
    if (want.op === "set") return this.#put(name, line, key, want.payload, want);
    const there = line.view.entries.get(key);
    // What a former connection left: only an owner can clear.
    const lingers = there?.mine && there.owner !== this.clientId && !this.#holds(line, key);
    if (lingers) this.#put(name, line, key, there.payload, want);
    this.#ask("clear", name, { key }, key, want);
    const held = line.held.get(key);
    if (!held) return;
    held.at = -Infinity; // a set after it need not wait
    if (!lingers && line.view.live) held.former = false;
  }

  /** @param {string} name @param {Line} line @param {string} key @param {string} payload @param {Want} want */
  #put(name, line, key, payload, want) {
    const now = this.now();
    /** @type {Frame} */
    const fields = { key };
    if (payload) fields.payload = payload;
    fields.ttl_ms = want.deadline === null ? null : Math.ceil(want.deadline - now);
    if (want.grace) fields.grace_ms = want.grace;
    this.#ask("set", name, fields, key, want);
    const { sets, until, grace, former } = line.held.get(key) ?? { sets: 0, until: 0, grace: 0, former: false };
    line.held.set(key, {
      former,
      sets: sets + 1,
      ref: this.#ref,
      at: now,
      until: Math.max(until, want.deadline ?? Infinity),
      grace: Math.max(grace, want.grace),
    });
  }

  /** @param {string} name @param {Line} line */
  #subscribe(name, line) {
    line.state = "asked";
    const { subscribe = true, maxRate } = line.options;
    if (!subscribe) return;
    const wishes = line.plain ? {} : maxRate ? { batch: true, max_rate: Math.min(maxRate, MAX_RATE) } : { batch: true };
    this.#ask("subscribe", name, wishes);
  }

  /** @param {string} verb @param {string} name @param {Frame} fields @param {string} [key] @param {Want} [want] */
  #ask(verb, name, fields, key, want) {
    const ref = ++this.#ref;
    const text = JSON.stringify({ _orama: `ephemeral.${verb}`, topic: name, ...fields, ref });
    const cost = 1 + Math.floor(text.length / LONG);
    this.#asked.set(ref, { verb, name, fields, key, want, cost });
    this.#cost += cost;
    this.#on.send(text);
  }

  /** What it is that was answered. @param {any} ref */
  #answered(ref) {
    const asked = this.#asked.get(ref);
    if (asked) this.#cost -= asked.cost;
    this.#asked.delete(ref);
    return asked;
  }

  /** @param {string} kind @param {Frame} frame */
  #told(kind, frame) {
    const name = string(frame.topic);
    this.#answered(frame.ref);
    const line = this.#any(name);
    const left = line === this.left.get(name);
    if (!line || line.state === "denied" || (left && line.parted)) return; // it was on its way when we left
    const begun = line.view.partial !== null;
    const changes = line.view.apply(frame);
    if (line.view.partial) return;
    if (begun || kind === "ephemeral.snapshot") this.#welcomed(name, line);
    else for (const change of changes) this.#owned(line, change);
    if (line.view.lost && line.state === "live" && !left) this.#subscribe(name, line);
    if (left) this.#part(name, line);
    else this.#tell(name, changes);
  }

  /** @param {string} name @param {Line} line */
  #welcomed(name, line) {
    const again = line.view.live;
    line.state = "live";
    line.view.live = line.seen = true;
    if (!again) this.#return(line);
    this.#flush(name, line);
  }

  /** What is still wanted of a topic that this connection has only now. @param {Line} line */
  #return(line) {
    for (const [key, want] of line.wants) {
      const there = line.view.entries.get(key);
      const foreign = there && !there.mine && this.ids.size > 0;
      // A clear: it went with the former connection, but for what lingers. A set: somebody set it later than we did.
      const over = want.op === "clear" ? !there?.mine : want.lost || (foreign && want.confirmed);
      if (this.#holds(line, key)) continue;
      if (over) this.#forget(line, key);
      else Object.assign(want, { confirmed: false, due: 0 }), line.unsent.add(key);
    }
    for (const key of line.held.keys())
      if (!this.#holds(line, key) && !line.view.entries.get(key)?.mine) line.held.delete(key);
    line.wake = 0;
  }

  /** Whether what we own is still ours. @param {Line} line @param {Change} change */
  #owned(line, { type, key, entry, reason }) {
    const want = line.wants.get(key);
    if (!want?.confirmed) return;
    if (type === "set") want.lost = this.ids.size > 0 && !entry.mine;
    else if (reason === "expired") this.#forget(line, key), line.held.delete(key);
    else want.lost = true;
  }

  /** @param {number} ref */
  #confirmed(ref) {
    const asked = this.#answered(ref);
    const line = asked && this.#any(asked.name);
    if (!asked || !line) return;
    const { verb, key, want } = asked;
    if (verb === "unsubscribe" && line.parted) line.parted = "done";
    if (key === undefined || !want) return;
    const held = line.held.get(key);
    if (verb === "set" && held) held.former = false;
    // Only an owner can clear: what a former connection has left may still be there.
    if (verb === "clear" && held && held.ref < ref && !held.former) line.held.delete(key);
    else if (verb === "set" && held?.ref === ref) Object.assign(held, { sets: 1, until: want.deadline ?? Infinity, grace: want.grace });
    // Not if it is to be said again: of a key that had to be set first, that may have been refused.
    if (line.wants.get(key) !== want || line.unsent.has(key) || verb !== want.op) return;
    if (verb === "clear" && held?.former && line.options.subscribe !== false) return this.#look(asked.name, line, key);
    want.confirmed = true;
    if (verb === "clear") line.wants.delete(key);
  }

  /** Clear the key once more: what a former connection left was not. @param {string} name @param {Line} line @param {string} key */
  #look(name, line, key) {
    this.#again(line, key, 0);
    if (line !== this.left.get(name) || line.state !== "live") return;
    // The topic was left: only another snapshot tells whether it is still there.
    line.parted = "";
    line.view.live = false;
    this.#subscribe(name, line);
  }

  /** @param {Frame} frame */
  #refused({ ref, code, message, retry_after_ms: ms }) {
    const asked = this.#answered(ref);
    const line = asked && this.#any(asked.name);
    const later = this.now() + (typeof ms === "number" ? ms : RETRY);
    const passing = PASSING.includes(code);
    if (code === "rate_limited") this.#hold = Math.max(this.#hold, later);
    if (line && asked.key !== undefined) {
      const held = line.held.get(asked.key);
      // Where the store did not answer it may have it all the same.
      if (asked.verb === "set" && held && code !== "unavailable" && --held.sets <= 0) line.held.delete(asked.key);
      if (asked.want && line.wants.get(asked.key) === asked.want) {
        // The newest want of the key is the one to try again; what was refused for good is not wanted any more.
        asked.want.due = later;
        if (passing) this.#again(line, asked.key, later);
        else this.#forget(line, asked.key);
      }
    } else if (line && asked.verb === "unsubscribe") {
      if (line.parted) line.parted = passing ? "" : "done";
      if (passing) this.#hold = Math.max(this.#hold, later);
    } else if (line && asked.verb === "subscribe" && line.state === "asked") {
      if (code === "bad_frame" && !line.plain) {
        line.plain = true; // a server that does not know batches
        return this.#subscribe(asked.name, line);
      }
      line.state = passing ? "again" : "denied";
      line.due = later;
      if (!passing) this.#deny(asked.name, line);
      if (!passing && line === this.left.get(asked.name)) return; // the page does not follow it, and did not ask
    }
    /** @type {Problem} */
    const problem = { code: string(code), message: String(message) };
    if (asked) problem.topic = asked.name;
    if (asked?.key !== undefined) problem.key = asked.key;
    if (typeof ms === "number") problem.retryAfter = ms;
    this.#on.problem(problem);
  }

  /** @param {string} name */
  #revoked(name) {
    const line = this.lines.get(name);
    if (!line) return;
    line.state = "denied";
    line.wants.clear();
    line.unsent.clear();
    this.#deny(name, line);
    this.#on.problem({ code: "revoked", message: "the right to follow the topic has ended", topic: name });
  }

  /** @param {string} name @param {Line} line */
  #deny(name, line) {
    line.view.live = false;
    this.#tell(name, line.view.forget("revoked"));
    this.#return(line);
    this.#flush(name, line); // who may not read may still be allowed to write
  }

  /** @param {string} name @param {Change[]} changes */
  #tell(name, changes) {
    for (const change of changes) this.#on.change(name, change);
  }
}

/**
 * One topic, live: `entries` is what everybody in it sees. Made by `EphemeralState.topic`. Its event "status" has the new
 * status as `detail`.
 */
export class Topic extends EventTarget {
  /** @type {((event: CustomEvent<Status | "denied">) => void) | null} */ onstatus = null;
  #session;
  #line;
  /** @type {Set<(change: Change) => void>} */ #listeners = new Set();
  /** @type {Set<() => void>} */ #ends = new Set();
  #users = 0;
  /** @type {Status | "denied"} */ #told;

  /** @param {string} name @param {EphemeralState} state @param {Session} session @param {TopicOptions} options */
  constructor(name, state, session, options) {
    super();
    this.name = printed(name);
    /** The connection that it belongs to. */
    this.state = state;
    this.#session = session;
    this.#line = session.follow(name, options);
    /** @type {ReadonlyMap<string, Entry>} every key that is set now */
    this.entries = this.#line.view.entries;
    this.#told = this.status;
  }

  /** As of the whole, and `denied` if you may not follow this topic. @returns {Status | "denied"} */
  get status() {
    if (this.#line.state === "live" || this.#line.state === "denied") return this.#line.state;
    return this.state.status === "offline" ? "offline" : this.#line.seen ? "stale" : "connecting";
  }

  /** Whether `entries` may have changed since: there is no connection. */
  get stale() {
    return this.#line.seen && !this.#line.view.live;
  }

  /**
   * Set a key, and own it. JSON for any value, bytes for a `Uint8Array` or `ArrayBuffer`, nothing for `undefined`. It is
   * set again after a lost connection, unless somebody else has set it meanwhile.
   * @param {string} key @param {any} [value] @param {SetOptions} [options]
   */
  set(key, value, options) {
    const { ttl, grace, throttle } = (options ??= {});
    if (ttl !== undefined && ttl !== null && !(Number.isFinite(ttl) && ttl > 0))
      return this.#wrong("ttl_invalid", `ttl is a number of seconds above 0, not ${printed(ttl)}`, key);
    if (![grace ?? 0, throttle ?? 0].every((number) => Number.isFinite(number) && number >= 0))
      return this.#wrong("ttl_invalid", "grace and throttle are numbers from 0", key);
    let payload;
    try {
      payload = encode(value);
    } catch (error) {
      return this.#wrong("payload_invalid", `the value is not JSON: ${printed(error)}`, key);
    }
    if (!this.#named(key)) return;
    this.#session.set(this.name, key, payload, options);
    this.state._sent();
  }

  /** Clear a key that is one's own. @param {string} key */
  clear(key) {
    if (!this.#named(key)) return;
    this.#session.clear(this.name, key);
    this.state._sent();
  }

  /**
   * Hear of every change from now on. When it is called, `entries` has all changes of the frame that brought it.
   * @param {(change: Change) => void} listener
   * @returns {() => void} stops it
   */
  subscribe(listener) {
    const own = (/** @type {Change} */ change) => listener(change); // one listener may be here twice, and be stopped once
    this.#listeners.add(own);
    return () => void this.#listeners.delete(own);
  }

  /** Every change from now on. A reader that is slow gets the newest change per key. @returns {AsyncGenerator<Change>} */
  async *[Symbol.asyncIterator]() {
    /** @type {Map<string, Change>} */
    const waiting = new Map();
    let wake = () => {};
    const end = () => wake();
    const stop = this.subscribe((change) => {
      merge(waiting, change);
      wake();
    });
    this.#ends.add(end);
    try {
      while (this.#session.lines.get(this.name) === this.#line) {
        const [next] = waiting.values();
        if (next) {
          waiting.delete(next.key);
          yield next;
        } else {
          await new Promise((resolve) => (wake = () => resolve(undefined)));
        }
      }
    } finally {
      stop();
      this.#ends.delete(end);
    }
  }

  /** Follow it no more, and clear what is one's own in it. `state.topic(name)` begins anew. */
  leave() {
    if (this.#session.lines.get(this.name) === this.#line) this.#session.leave(this.name);
    this.state._left(this);
    for (const end of this.#ends) end();
    this.#listeners.clear();
  }

  /**
   * Count one more part of the page that uses it. When the last of them has let go, it is left: not at once, since
   * another may take over.
   * @returns {() => void} lets go, once
   */
  use() {
    this.#users++;
    let uses = true;
    return () => {
      if (!uses) return; // not what others use
      uses = false;
      this.#users--;
      setTimeout(() => this.#users === 0 && this.leave());
    };
  }

  /** @internal Say what the status is, if it is another. */
  _update() {
    const status = this.status;
    if (status === this.#told) return;
    this.#told = status;
    emit(this, "status", status);
  }

  /** @internal @param {Change} change */
  _tell(change) {
    for (const listener of [...this.#listeners]) guarded(() => listener(change));
  }

  /** @param {string} key */
  #named(key) {
    if (this.#session.lines.get(this.name) !== this.#line) return false; // left
    if (isName(key)) return true;
    this.#wrong("name_required", "a key is text, and not empty", key);
    return false;
  }

  /** @param {string} code @param {string} message @param {string} key */
  #wrong(code, message, key) {
    this.state._problem({ code, message, topic: this.name, key: printed(key) });
  }
}

const GOODBYE = 1000;
const DROPPED = 4001; // by us, and no goodbye: what has a grace keeps it
const REVOKED = 4403;
const REFUSED = 4008;
const STEADY = 10_000; // ms after which a connection counts as a good one
const SILENCE = 30_000; // ms after which a server that pings counts as gone
const LONGEST = 2 ** 31 - 1; // ms of a timer

/** @param {unknown} interval ms of silence before a ping. One that we speak to in between asks after three times as long. */
function silence(interval) {
  return typeof interval === "number" && interval > 0 ? Math.min(Math.max(SILENCE, 3 * interval + 6000), LONGEST) : SILENCE;
}

/**
 * A connection to a server of `django-ephemeral-state`. It begins at once, comes back by itself when it is lost, follows
 * its topics again and sets its own keys again. Events: "status", "error" (`detail` is a `Problem`), and "message" for
 * frames of the application's own (`detail` is what it sent).
 */
export class EphemeralState extends EventTarget {
  /** @type {((event: CustomEvent<Problem>) => void) | null} */ onerror = null;
  /** @type {((event: CustomEvent<Status>) => void) | null} */ onstatus = null;
  /** @type {((event: CustomEvent<any>) => void) | null} */ onmessage = null;
  #url;
  #options;
  #session;
  #now = steady();
  /** @type {Map<string, Topic>} */ #topics = new Map();
  /** @type {WebSocket | null} */ #socket = null;
  /** @type {Status} */ #status = "connecting";
  /** @type {"" | "page" | "told"} who said that there shall be no connection */ #halted = "told";
  #seen = false;
  #failures = 0;
  #opened = 0;
  #heard = 0;
  #unreached = false;
  #pings = false;
  #knows = false; // whether this connection's server has shown that it knows the protocol
  #reloads = false;
  #silence = SILENCE;
  /** @type {Set<string>} */ #warned = new Set();
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #retry;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #tick;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #watch;
  /** @param {Event} event */
  #page = (event) => this.#event(event);

  /**
   * @param {string | URL} url a path of this site, or a whole address
   * @param {{ WebSocket?: any, protocols?: string | string[], minDelay?: number, maxDelay?: number, random?: () => number }} [options]
   *   `minDelay` and `maxDelay`: ms, the range of the first wait before connecting again and of the longest.
   *   `WebSocket`: another implementation, for Node.
   */
  constructor(url, options = {}) {
    super();
    this.#url = url;
    this.#options = { minDelay: 500, maxDelay: 15_000, random: Math.random, ...options };
    this.#session = new Session({
      send: (frame) => this.#socket?.send(frame),
      now: this.#now,
      change: (name, change) => this.#topics.get(name)?._tell(change),
      problem: (problem) => this._problem(problem),
    });
    this.connect();
  }

  /** @returns {Status} */
  get status() {
    return this.#status;
  }

  /** One's own `client_id`; null until a server has said it. */
  get clientId() {
    return this.#session.clientId;
  }

  /**
   * The topic of this name, the same object for the same name. One whose name is empty or no text is `denied` and stays
   * empty; an option that cannot be is as if left out.
   * @param {string} name @param {TopicOptions} [options]
   */
  topic(name, options) {
    let topic = this.#topics.get(name);
    if (!topic) {
      if (!isName(name)) this._problem({ code: "name_required", message: "a topic's name is text, and not empty", topic: printed(name) });
      topic = new Topic(name, this, this.#session, this.#possible(printed(name), options));
      this.#topics.set(name, topic);
      this.#update();
    }
    return topic;
  }

  /** The options that a server would take; of others it is said why not. @param {string} topic @param {any} options @returns {TopicOptions} */
  #possible(topic, options) {
    const { maxRate, subscribe } = Object(options);
    const wrong = (/** @type {string} */ what, /** @type {any} */ value) =>
      this._problem({ code: "bad_option", message: `${what}, not ${printed(value)}`, topic });
    if (typeof (options ?? {}) !== "object") wrong("the options of a topic are an object", options);
    const bounded = typeof maxRate === "number" && maxRate > 0;
    if (!bounded && (maxRate ?? null) !== null) wrong("maxRate is a number above 0", maxRate);
    const said = typeof subscribe === "boolean";
    if (!said && (subscribe ?? null) !== null) wrong("subscribe is true or false", subscribe);
    return { ...(bounded && { maxRate }), ...(said && { subscribe }) };
  }

  /** Send a frame of the application's own. @param {any} frame @returns {boolean} whether it could be sent */
  send(frame) {
    if (!this.#session.open || !this.#socket) return false;
    try {
      this.#socket.send(JSON.stringify(frame));
    } catch (error) {
      this._problem({ code: "payload_invalid", message: `the frame is not JSON: ${printed(error)}` });
      return false;
    }
    return true;
  }

  /** Connect again after `close()`, or now instead of after the wait. */
  connect() {
    if (this.#halted) this.#listen(true);
    this.#halted = "";
    if (!this.#socket) this.#connect();
    this.#update();
  }

  /** Say goodbye: one's own keys go at once. `connect()` brings them back. */
  close() {
    this.#listen(false);
    this.#halt("told", GOODBYE);
  }

  #connect() {
    clearTimeout(this.#retry);
    let socket;
    try {
      socket = new (this.#options.WebSocket ?? WebSocket)(address(this.#url), this.#options.protocols ?? []);
    } catch (error) {
      this.#halted = "told"; // it would be refused the next time too
      // Not at once: nobody can listen before the constructor has returned.
      queueMicrotask(() => this._problem({ code: "bad_url", message: `cannot connect to ${printed(this.#url)}: ${printed(error)}` }));
      return;
    }
    this.#socket = socket;
    let opened = false;
    this.#knows = false;
    this.#heard = this.#now();
    this.#watch = setTimeout(() => {
      socket.close(); // something has taken the connection, and says nothing
      this.#lost(0, "", false);
    }, SILENCE);
    socket.onopen = () => {
      opened = true;
      this.#unreached = false;
      this.#opened = this.#heard = this.#now();
      clearTimeout(this.#watch);
      this.#watch = undefined;
      if (this.#pings) this.#watchOver();
      this.#session.opened();
      this._sent();
    };
    socket.onmessage = (/** @type {MessageEvent} */ { data }) => this.#received(data);
    socket.onclose = (/** @type {CloseEvent} */ { code, reason }) => this.#lost(code, reason, opened);
    socket.onerror = () => {}; // a close follows, and says as much as there is to say
  }

  /** @param {any} data */
  #received(data) {
    this.#heard = this.#now();
    let frame = data;
    try {
      frame = typeof data === "string" ? JSON.parse(data) : data;
      if (frame?._orama === "ephemeral.hello") {
        this.#knows = true;
        this.#silence = silence(frame.ping_interval_ms);
      }
      if (frame?._orama === "ephemeral.ping") {
        this.#knows = true;
        if (frame.interval_ms) this.#silence = silence(frame.interval_ms);
        this.#pings = true;
        this.#watchOver();
      }
      if (frame && this.#session.received(frame)) return this._sent();
    } catch (error) {
      if (frame !== data)
        return this._problem({ code: "bad_server_frame", message: `a frame of the server cannot be read: ${error}` });
    }
    emit(this, "message", frame);
  }

  /** @param {number} code @param {string} reason @param {boolean} opened */
  #lost(code, reason, opened) {
    this.#drop();
    if (!opened && !this.#unreached) {
      this.#unreached = true;
      const message = `cannot connect to ${this.#url}: the server is not there, or refuses this page; trying on`;
      this._problem({ code: "unreachable", message });
    }
    if (code === REVOKED) {
      this.#halted = "told";
      this.#session.revoked();
      this._problem({ code: "revoked", message: reason || "the server has ended this user's rights" });
    }
    if (this.#opened && this.#now() - this.#opened > STEADY) this.#failures = 0;
    this.#opened = 0;
    if (code === REFUSED) {
      this.#failures += 4;
      this._problem({ code: "refused_too_often", message: "the server refused a hundred frames in a row" });
    }
    if (!this.#halted) this.#wait();
    this.#update();
  }

  /** Connect again later: full jitter, so that all clients of a server that restarts come back spread out. */
  #wait() {
    const { minDelay, maxDelay, random } = this.#options;
    const delay = random() * Math.min(maxDelay, minDelay * 2 ** this.#failures++);
    clearTimeout(this.#retry);
    this.#retry = setTimeout(() => this.#socket || this.#halted || this.#connect(), delay);
  }

  /** @param {number} [code] of the close frame, if there is still somebody to send it to */
  #drop(code) {
    const socket = this.#socket;
    // Some servers hand over every close as one without a code.
    if (code === GOODBYE && this.#knows && this.#session.open) socket?.send('{"_orama":"ephemeral.bye"}');
    this.#socket = null;
    clearTimeout(this.#tick);
    clearTimeout(this.#watch);
    this.#tick = this.#watch = undefined;
    this.#session.closed();
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    if (code) socket.close(code);
  }

  /** @param {"page" | "told"} by @param {number} code */
  #halt(by, code) {
    this.#halted = by;
    clearTimeout(this.#retry);
    this.#drop(code);
    this.#update();
  }

  /** A server that pings and falls silent is gone, whatever the network says. */
  #watchOver() {
    this.#watch ??= setTimeout(() => {
      this.#watch = undefined;
      if (this.#silent()) this.#again();
      else if (this.#socket) this.#watchOver();
    }, this.#silence);
  }

  #silent() {
    return this.#now() - this.#heard >= this.#silence;
  }

  #again() {
    this.#drop(DROPPED);
    this.#connect();
    this.#update();
  }

  /** @param {boolean} on */
  #listen(on) {
    const where = /** @type {any} */ (globalThis);
    const change = on ? "addEventListener" : "removeEventListener";
    if (!where.document || !where[change]) return; // not a page
    for (const type of ["online", "offline", "pagehide", "pageshow"]) where[change](type, this.#page);
    where.document[change]("visibilitychange", this.#page);
    where.navigation?.[change]("navigate", this.#page);
  }

  /** @param {Event & { navigationType?: string }} event */
  #event({ type, navigationType }) {
    if (type === "navigate") this.#reloads = navigationType === "reload";
    if (type === "navigate" || this.#halted === "told") return;
    if (type === "offline") this.#halt("page", DROPPED);
    // A page that is kept for the way back is not there meanwhile; and without a socket it may be kept. One that reloads
    // itself is back at once. (Of the browser's own button nobody tells it.)
    else if (type === "pagehide") this.#halt("page", this.#reloads ? DROPPED : GOODBYE);
    else if (type === "visibilitychange" && (document.hidden || this.#halted)) return;
    else if (this.#socket && this.#watch && this.#silent()) this.#again(); // after sleep
    else this.connect();
  }

  #update() {
    const lines = [...this.#session.lines.values()];
    const waits = lines.some((line) => !settled(line.state) && (line.seen || !this.#seen));
    /** @type {Status} */
    let status = this.#halted ? "offline" : this.#seen ? "stale" : "connecting";
    if (this.#session.open && !waits) status = "live";
    if (status === "live") this.#seen = true;
    const before = this.#status;
    this.#status = status;
    for (const topic of [...this.#topics.values()]) topic._update();
    if (status !== before && status === this.#status) emit(this, "status", status);
  }

  /** @internal Something may have been sent or received: look when there is more to do. */
  _sent() {
    this.#session.flush();
    clearTimeout(this.#tick);
    const due = this.#session.due;
    if (due < Infinity) this.#tick = setTimeout(() => this._sent(), Math.max(0, due - this.#now()));
    this.#update();
  }

  /** @internal @param {Topic} topic */
  _left(topic) {
    // Not by its name, which is not what it is filed under where that cannot be one.
    for (const [name, other] of this.#topics) if (other === topic) this.#topics.delete(name);
    this._sent();
  }

  /** @internal @param {Problem} problem */
  _problem(problem) {
    if (!this.#warned.has(problem.code)) {
      this.#warned.add(problem.code);
      const where = [problem.topic, problem.key].filter(Boolean).map((name) => JSON.stringify(name));
      console.warn(`ephemeral-state: ${problem.code}: ${problem.message}${where.length ? ` (${where.join(", ")})` : ""}`);
    }
    emit(this, "error", problem);
  }
}

/** @param {any} target @param {"error" | "status" | "message"} type @param {any} detail */
function emit(target, type, detail) {
  const event = new CustomEvent(type, { detail });
  const handler = target[`on${type}`];
  if (handler) guarded(() => handler.call(target, event));
  target.dispatchEvent(event);
}

/** Whether a topic or a key can be called so, as far as that can be known here. @param {unknown} name @returns {name is string} */
function isName(name) {
  return typeof name === "string" && name !== "";
}

/** Any value as text for a person; some have none. @param {unknown} value */
function printed(value) {
  try {
    return String(value);
  } catch {
    return typeof value;
  }
}

/** @param {Line["state"]} state */
function settled(state) {
  return state === "live" || state === "denied";
}

/** What a slow reader still has to hear of a key. @param {Map<string, Change>} waiting @param {Change} change */
function merge(waiting, change) {
  const before = waiting.has(change.key) ? waiting.get(change.key)?.before : change.before;
  waiting.delete(change.key);
  if (change.type === "set") waiting.set(change.key, { ...change, before });
  else if (before) waiting.set(change.key, { ...change, before }); // otherwise it came and went unheard
}

/** A fault of the page's own listener is the page's, and shall not keep others from hearing. @param {() => void} call */
function guarded(call) {
  try {
    call();
  } catch (error) {
    if (typeof reportError === "function") reportError(error);
    else console.error(error);
  }
}

/** @param {string | URL} url */
function address(url) {
  const whole = new URL(url, typeof location === "object" ? location.href : undefined);
  whole.protocol = whole.protocol.replace("http", "ws");
  return whole.href;
}

/** @param {any} value @returns {string} base64 */
function encode(value) {
  if (value === undefined) return "";
  let bytes;
  if (value instanceof ArrayBuffer) bytes = new Uint8Array(value);
  else if (ArrayBuffer.isView(value)) bytes = new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
  else {
    const json = JSON.stringify(value);
    if (json === undefined) throw new TypeError(`a ${typeof value} has no JSON`);
    bytes = utf8.encode(json);
  }
  let binary = "";
  for (let at = 0; at < bytes.length; at += 8192) binary += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return btoa(binary);
}

/** @param {string} payload base64 @returns {Uint8Array} */
function decode(payload) {
  try {
    return Uint8Array.from(atob(payload), (character) => character.charCodeAt(0));
  } catch {
    return EMPTY;
  }
}

/** @param {Uint8Array} bytes @returns {any} */
function parse(bytes) {
  try {
    return JSON.parse(text.decode(bytes));
  } catch {
    return undefined;
  }
}

/** @param {any} value @returns {any[]} */
function list(value) {
  if (!Array.isArray(value)) throw new TypeError(`${JSON.stringify(value)} is no array`);
  return value;
}

/** @param {any} value @returns {string} */
function string(value) {
  if (typeof value !== "string") throw new TypeError(`${JSON.stringify(value)} is no text`);
  return value;
}

/** @param {Frame} entry */
function checked(entry) {
  string(entry.key);
  string(entry.client_id);
  if (entry.payload !== undefined) string(entry.payload);
  return entry;
}
