// 3 000 histories of a topic, each told in its own way: one by one, in batches, in another order, twice, with snapshots
// anywhere, long ones among them, and with gaps that a slow reader gets. The view must end as the topic did, and its changes must add up to it.

import assert from "node:assert/strict";
import { test } from "node:test";

import { View } from "../../ephemeral_state/static/ephemeral_state/ephemeral-state.js";
import { base64 } from "./fixtures.js";

const STREAMS = 3000;
const KEYS = ["a", "b", "here:1", "__proto__", "\u0000", "é🌙"];
const VALUES = [{ a: 1 }, [1, null, "é🌙"], { __proto__: null, constructor: { x: [] } }]; // what a batch may have as it is
const PAYLOADS = ["", "MQ==", "Mg==", ...VALUES.map(base64)];

function random(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** What happened: `[key, payload, owner]` or `[key, null, owner, reason]`, only of what is there. */
function history(next, pick) {
  const topic = new Map();
  const events = [];
  for (let length = Math.floor(next() * 60); length > 0; length--) {
    const key = pick(KEYS);
    const owner = topic.get(key)?.[1];
    const event = owner && next() < 0.4 ? [key, null, owner, pick(["explicit", "disconnect", "expired"])]
      : [key, pick(PAYLOADS), owner && next() < 0.7 ? owner : pick(["c1", "c2", "c3"])];
    happen(topic, event);
    events.push(event);
  }
  return events;
}

function happen(topic, [key, payload, owner]) {
  if (payload === null) topic.delete(key);
  else topic.set(key, [payload, owner]);
}

/** Another order: of one key it stays, since a connection keeps it; different keys overtake each other. */
function shuffled(events, next) {
  const lanes = Map.groupBy ? Map.groupBy(events, ([key]) => key) : group(events);
  const queues = [...lanes.values()].map((lane) => [...lane]);
  const order = [];
  while (queues.length) {
    const at = Math.floor(next() * queues.length);
    order.push(queues[at].shift());
    if (!queues[at].length) queues.splice(at, 1);
  }
  return order;
}

function group(events) {
  const lanes = new Map();
  for (const event of events) lanes.set(event[0], [...(lanes.get(event[0]) ?? []), event]);
  return lanes;
}

/** The frames of one telling of it, and how the topic ends. */
function told(events, next, pick) {
  const topic = new Map();
  const known = new Map(); // owners as the client knows them
  const numbers = new Numbers(); // of the keys that have one
  const frames = [snapshot(topic, numbers)];
  const count = { long: 0, asItIs: 0 };
  let batch = null;
  const flush = () => {
    if (batch) frames.push({ _orama: "ephemeral.batch", topic: "t", events: batch });
    batch = null;
  };
  for (let at = 0; at < events.length; at++) {
    let event = events[at];
    happen(topic, event);
    // A slow reader hears of the newest of several changes of a key.
    while (next() < 0.2 && events[at + 1]?.[0] === event[0]) happen(topic, (event = events[++at]));
    if (event[1] === null && !known.has(event[0])) continue; // came and went unheard
    const times = next() < 0.15 ? 2 : 1;
    for (let time = 0; time < times; time++)
      if (next() < 0.5) (batch ??= []).push(asItIs(compressed(event, known, numbers), next, count));
      else {
        flush();
        frames.push(plain(event));
        note(event, known, numbers);
      }
    if (next() < 0.3) flush();
    if (next() < 0.1) {
      flush();
      if (next() < 0.5) numbers.anew(); // from another process
      const whole = snapshot(topic, numbers);
      frames.push(...(next() < 0.5 ? long(whole, numbers, next, count) : [whole]));
      known.clear();
      for (const [key, [, owner]] of topic) known.set(key, owner);
    }
    if (next() < 0.1) {
      flush();
      frames.push(plain([pick(["nobody's", "x"]), null, "c9", "expired"]));
    }
    if (next() < 0.05) frames.push({ _orama: "ephemeral.of_the_future", topic: "t", entries: 7 });
  }
  flush();
  return { frames, topic, count };
}

/** What stands for keys, as a process of the server counts them. */
class Numbers extends Map {
  #latest = 0;

  of(key) {
    if (!this.has(key)) this.set(key, ++this.#latest);
    return this.get(key);
  }

  anew() {
    this.clear();
    this.#latest = 0;
  }
}

function note([key, payload, owner], known, numbers) {
  if (payload === null) known.delete(key), numbers.delete(key);
  else known.set(key, owner);
}

function compressed(event, known, numbers) {
  const [key, payload, owner] = event;
  const same = payload !== null && known.get(key) === owner && numbers.has(key);
  note(event, known, numbers);
  if (payload === null) return event;
  return same ? [numbers.get(key), payload] : [...event, numbers.of(key)];
}

function plain([key, payload, client_id, reason]) {
  if (payload === null) return { _orama: "ephemeral.clear", topic: "t", key, client_id, reason };
  return { _orama: "ephemeral.set", topic: "t", key, client_id, ...(payload && { payload }) };
}

function snapshot(topic, numbers) {
  const keys = [...topic.keys()].sort();
  for (const key of [...numbers.keys()]) if (!topic.has(key)) numbers.delete(key);
  const entries = keys.map((key) => {
    const [payload, client_id] = topic.get(key);
    return { key, client_id, ...(payload && { payload }), expires_in_ms: null, n: numbers.of(key) };
  });
  return { _orama: "ephemeral.snapshot", topic: "t", entries };
}

/** A payload that is an object or an array may stand in a batch as itself. */
function asItIs(event, next, count) {
  const value = VALUES[PAYLOADS.indexOf(event[1]) - (PAYLOADS.length - VALUES.length)];
  if (!value || next() < 0.5) return event;
  count.asItIs++;
  return [event[0], value, ...event.slice(2)];
}

/** The same snapshot in several frames: what does not fit into the first one comes as sets, or in batches. */
function long({ entries, ...frame }, numbers, next, count) {
  const fitting = Math.floor(next() * entries.length);
  const rest = entries.slice(fitting);
  if (!rest.length) return [{ ...frame, entries }];
  count.long++;
  const frames = [{ ...frame, entries: entries.slice(0, fitting), more: rest.length }];
  const inBatches = next() < 0.7;
  let batch;
  for (const { key, client_id, payload = "", n } of rest)
    if (inBatches) {
      if (!batch || next() < 0.5) frames.push({ _orama: "ephemeral.batch", topic: "t", events: (batch = []) });
      batch.push(asItIs([key, payload, client_id, n], next, count));
    } else {
      frames.push(plain([key, payload, client_id]));
      numbers.delete(key); // a set has none
    }
  return frames;
}

test(`${STREAMS} tellings end in the same view`, () => {
  let frames = 0;
  let changes = 0;
  const count = { long: 0, asItIs: 0 };
  for (let seed = 1; seed <= STREAMS; seed++) {
    const next = random(seed);
    const pick = (list) => list[Math.floor(next() * list.length)];
    const telling = told(shuffled(history(next, pick), next), next, pick);
    const view = new View("t");
    const added = new Map(); // what somebody has who only hears of changes
    let more = 0; // sets that still belong to the snapshot
    for (const frame of telling.frames) {
      const heard = view.apply(frame);
      if (frame._orama === "ephemeral.snapshot") more = frame.more ?? 0;
      else if (more) more -= frame.events?.length ?? 1;
      if (more) assert.deepEqual(heard, [], `seed ${seed}: who is gone is known with the last of them`);
      for (const change of heard) {
        changes++;
        assert.equal(change.before, added.get(change.key), `seed ${seed}: a change begins where the last one ended`);
        if (change.type === "set") added.set(change.key, change.entry);
        else assert.equal(added.delete(change.key), true, `seed ${seed}: nothing goes that was not there`);
      }
    }
    frames += telling.frames.length;
    for (const what of Object.keys(count)) count[what] += telling.count[what];
    const seen = new Map([...view.entries].map(([key, { payload, owner }]) => [key, [payload, owner]]));
    assert.deepEqual(seen, telling.topic, `seed ${seed}`);
    assert.deepEqual(added, view.entries, `seed ${seed}`);
    assert.deepEqual([view.lost, view.partial], [false, null], `seed ${seed}`);
  }
  assert.ok(frames > 20 * STREAMS && changes > 10 * STREAMS, `${frames} frames, ${changes} changes`);
  assert.ok(count.long > STREAMS / 2 && count.asItIs > STREAMS, `${count.long} long snapshots, ${count.asItIs} values as they are`);
});

test("a batch with a number the view does not know asks for a snapshot", () => {
  const view = new View("t");
  assert.deepEqual(view.apply({ _orama: "ephemeral.batch", events: [[1, "MQ=="], ["b", "", "c1", 2]] }).map(({ key }) => key), ["b"]);
  assert.equal(view.lost, true);
  view.apply(snapshot(new Map([["a", ["MQ==", "c2"]]]), new Numbers()));
  assert.equal(view.lost, false);
});
