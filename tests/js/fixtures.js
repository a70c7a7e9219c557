// What the tests share: the fixtures of `tests/wire`, the docs, and a session on a wire of its own.

import { readFileSync } from "node:fs";

import { Session } from "../../ephemeral_state/static/ephemeral_state/ephemeral-state.js";

export const wire = (name) => JSON.parse(readFileSync(new URL(`../wire/${name}.json`, import.meta.url), "utf8"));

export const page = (name) => readFileSync(new URL(`../../docs/${name}`, import.meta.url), "utf8");

/** A view as the fixtures write it. */
export const shown = (entries) => Object.fromEntries([...entries].map(([key, { owner, payload }]) => [key, [owner, payload]]));

/** A change as the fixtures write it. */
export const told = ({ type, key, reason }) => (type === "set" ? [type, key] : [type, key, reason]);

export const base64 = (value) => Buffer.from(JSON.stringify(value)).toString("base64");

/** A session whose frames, changes and problems are kept, and whose clock stands still. */
export class Wire {
  sent = [];
  changes = [];
  problems = [];
  time = 1_000_000;

  constructor() {
    this.session = new Session({
      send: (text) => this.sent.push(JSON.parse(text)),
      now: () => this.time,
      change: (name, change) => this.changes.push([name, ...told(change)]),
      problem: (problem) => this.problems.push(problem),
    });
  }

  /** What was sent since it was last asked for, without refs. */
  taken() {
    const frames = this.sent.splice(0);
    this.refs = frames.map(({ ref }) => ref);
    return frames.map(({ ref, _orama, ...fields }) => ({ verb: _orama.replace("ephemeral.", ""), ...fields }));
  }

  hear(kind, fields) {
    this.session.received({ _orama: `ephemeral.${kind}`, ...fields });
    this.session.flush();
  }

  /** Connect as the client of this id; every topic is answered with its entries, `[key, owner, payload]`. */
  connect(id, entries = {}) {
    this.session.opened();
    if (id) this.hear("hello", { client_id: id });
    for (const [topic, line] of this.session.lines)
      if (line.state === "asked") this.welcome(topic, entries[topic] ?? []);
  }

  welcome(topic, entries) {
    const list = entries.map(([key, client_id, payload]) => ({ key, client_id, payload, expires_in_ms: null }));
    this.hear("snapshot", { topic, entries: list });
  }
}
