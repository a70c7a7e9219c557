// The rules of a connection and of what outlives it, without a socket and with a clock that stands still.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Session } from "../../ephemeral_state/static/ephemeral_state/ephemeral-state.js";
import { base64, shown, Wire } from "./fixtures.js";

const ONE = base64(1);
const TWO = base64(2);

function joined(id = "me", entries = {}) {
  const wire = new Wire();
  wire.line = wire.session.follow("t");
  wire.connect(id, entries);
  wire.taken();
  return wire;
}

test("what is set before there is a connection is sent after the snapshot, and once", () => {
  const wire = new Wire();
  wire.session.follow("t");
  wire.session.set("t", "k", ONE, {});
  wire.session.set("t", "k", TWO, {});
  wire.session.opened();
  assert.deepEqual(wire.taken(), [{ verb: "subscribe", topic: "t", batch: true }]);
  wire.welcome("t", []);
  assert.deepEqual(wire.taken(), [{ verb: "set", topic: "t", key: "k", payload: TWO, ttl_ms: null }]);
  wire.hear("ok", { ref: wire.refs[0] });
  wire.session.flush();
  assert.deepEqual(wire.taken(), []);
});

test("an old server is asked again without batches, once, and then left alone", () => {
  const wire = new Wire();
  const line = wire.session.follow("t", { maxRate: 20 });
  wire.session.opened();
  assert.deepEqual(wire.taken(), [{ verb: "subscribe", topic: "t", batch: true, max_rate: 20 }]);
  wire.hear("error", { code: "bad_frame", message: 'no field "batch"', ref: wire.refs[0] });
  assert.deepEqual(wire.taken(), [{ verb: "subscribe", topic: "t" }]);
  assert.deepEqual(wire.problems, []);
  wire.hear("error", { code: "bad_frame", message: "no", ref: wire.refs[0] });
  assert.deepEqual(wire.taken(), []);
  assert.equal(line.state, "denied");
  assert.deepEqual(wire.problems.map(({ code }) => code), ["bad_frame"]);
});

test("after a reconnect it follows again and sets its own keys again, with the time they have left", () => {
  const wire = joined();
  wire.session.set("t", "k", ONE, { grace: 3 });
  wire.session.set("t", "typing", ONE, { ttl: 5 });
  wire.session.set("t", "over", ONE, { ttl: 1 });
  for (const ref of (wire.taken(), wire.refs)) wire.hear("ok", { ref });
  wire.session.closed();
  wire.time += 2000;
  wire.connect("me again");
  assert.deepEqual(wire.taken().slice(1), [
    { verb: "set", topic: "t", key: "k", payload: ONE, ttl_ms: null, grace_ms: 3000 },
    { verb: "set", topic: "t", key: "typing", payload: ONE, ttl_ms: 3000 },
  ]);
});

test("a key that somebody else set meanwhile is theirs; one that lingers from a former connection is not", () => {
  const wire = joined();
  wire.session.set("t", "shared", ONE, {});
  wire.session.set("t", "mine", ONE, {});
  for (const ref of (wire.taken(), wire.refs)) wire.hear("ok", { ref });
  wire.session.closed();
  wire.connect("me again", { t: [["shared", "other", TWO], ["mine", "me", ONE]] });
  assert.deepEqual(wire.taken().slice(1).map(({ key }) => key), ["mine"]);
  wire.session.closed();
  wire.connect("me, a third time");
  assert.deepEqual(wire.taken().slice(1).map(({ key }) => key), ["mine"]);
});

test("a key that was taken over while connected is not set again, unless it was won back", () => {
  const wire = joined();
  wire.session.set("t", "k", ONE, {});
  wire.taken();
  wire.hear("ok", { ref: wire.refs[0] });
  wire.hear("set", { topic: "t", key: "k", client_id: "other", payload: TWO });
  wire.hear("set", { topic: "t", key: "k", client_id: "me", payload: ONE });
  wire.session.closed();
  wire.connect("2");
  assert.deepEqual(wire.taken().slice(1).map(({ key }) => key), ["k"]);
  wire.hear("ok", { ref: wire.refs[1] });
  wire.hear("set", { topic: "t", key: "k", client_id: "other", payload: TWO });
  wire.session.closed();
  wire.connect("3");
  assert.deepEqual(wire.taken().slice(1), []);
});

test("a key that somebody with the right to it cleared is not set again", () => {
  const wire = joined();
  wire.session.set("t", "k", ONE, {});
  wire.taken();
  wire.hear("ok", { ref: wire.refs[0] });
  wire.hear("set", { topic: "t", key: "k", client_id: "me", payload: ONE });
  wire.hear("clear", { topic: "t", key: "k", client_id: "me", reason: "explicit" });
  wire.session.closed();
  wire.connect("2");
  assert.deepEqual(wire.taken().slice(1), []);
});

test("a clear that nobody could hear is undone: the key is set again", () => {
  const wire = joined();
  wire.session.set("t", "k", ONE, {});
  wire.taken();
  wire.hear("ok", { ref: wire.refs[0] });
  wire.hear("set", { topic: "t", key: "k", client_id: "me", payload: ONE });
  wire.session.closed();
  wire.connect("2"); // it was cleared meanwhile, or went with the connection: it is not there
  assert.deepEqual(wire.taken().slice(1).map(({ verb, key }) => [verb, key]), [["set", "k"]]);
});

test("what is set after a topic was revoked is set again, and what was set before is not", () => {
  const wire = joined();
  for (const key of ["before", "both"]) wire.session.set("t", key, ONE, {});
  for (const ref of (wire.taken(), wire.refs)) wire.hear("ok", { ref });
  wire.hear("revoked", { topic: "t" });
  assert.deepEqual(wire.taken(), []);
  wire.session.set("t", "both", TWO, {});
  assert.deepEqual(wire.taken().map(({ key, payload }) => [key, payload]), [["both", TWO]]);
  wire.hear("ok", { ref: wire.refs[0] });
  wire.session.closed();
  wire.session.opened();
  wire.taken();
  wire.hear("error", { code: "forbidden", message: "not allowed", ref: wire.refs[0] });
  assert.deepEqual(wire.taken().map(({ key, payload }) => [key, payload]), [["both", TWO]]);
});

test("what is set while there is no connection wins over what came meanwhile", () => {
  const wire = joined();
  wire.session.closed();
  wire.session.set("t", "k", ONE, {});
  wire.connect("2", { t: [["k", "other", TWO]] });
  assert.deepEqual(wire.taken().slice(1).map(({ key }) => key), ["k"]);
});

test("a key cleared while there is no connection is gone, and taken over to be cleared where a grace keeps it", () => {
  const wire = joined();
  for (const key of ["gone", "lingers"]) wire.session.set("t", key, ONE, { grace: 10 });
  for (const ref of (wire.taken(), wire.refs)) wire.hear("ok", { ref });
  wire.session.closed();
  for (const key of ["gone", "lingers", "never set"]) wire.session.clear("t", key);
  wire.connect("2", { t: [["lingers", "me", ONE]] });
  assert.deepEqual(wire.taken().slice(1), [
    { verb: "set", topic: "t", key: "lingers", payload: ONE, ttl_ms: null },
    { verb: "clear", topic: "t", key: "lingers" },
  ]);
  wire.session.closed();
  wire.connect("3");
  assert.deepEqual(wire.taken().slice(1), []);
});

test("a throttled key is sent at once, then the last value when it is due; a clear does not wait", () => {
  const wire = joined();
  for (let n = 0; n < 5; n++) wire.session.set("t", "cursor", base64(n), { throttle: 50 });
  assert.deepEqual(wire.taken().map(({ payload }) => payload), [base64(0)]);
  assert.equal(wire.session.due, wire.time + 50);
  wire.time += 50;
  wire.session.flush();
  assert.deepEqual(wire.taken().map(({ payload }) => payload), [base64(4)]);
  wire.session.set("t", "cursor", ONE, { throttle: 50 });
  wire.session.clear("t", "cursor");
  wire.time += 1000;
  wire.session.flush();
  assert.deepEqual(wire.taken().map(({ verb }) => verb), ["clear"]);
  assert.equal(wire.session.due, Infinity);
});

test("too many frames: the newest of each key is sent after the time that the server names", () => {
  const wire = joined();
  wire.session.set("t", "k", ONE, {});
  wire.taken();
  wire.hear("error", { code: "rate_limited", message: "slow down", retry_after_ms: 700, ref: wire.refs[0] });
  assert.deepEqual(wire.problems, [{ code: "rate_limited", message: "slow down", topic: "t", key: "k", retryAfter: 700 }]);
  wire.session.set("t", "k", TWO, {});
  wire.session.set("t", "other", ONE, {});
  wire.session.clear("t", "never");
  assert.deepEqual(wire.taken(), []);
  assert.equal(wire.session.due, wire.time + 700);
  wire.time += 700;
  wire.session.flush();
  assert.deepEqual(wire.taken().map(({ key, payload }) => [key, payload]), [["k", TWO], ["other", ONE], ["never", undefined]]);
});

test("a set that was too much or could not be stored is sent again by itself", () => {
  for (const more of [{ code: "rate_limited", retry_after_ms: 700 }, { code: "unavailable" }]) {
    const wire = joined();
    wire.session.set("t", "k", ONE, {});
    wire.taken();
    wire.hear("error", { ...more, message: "later", ref: wire.refs[0] });
    assert.equal(wire.session.due, wire.time + (more.retry_after_ms ?? 2000));
    wire.time = wire.session.due;
    wire.session.flush();
    assert.deepEqual(wire.taken().map(({ key, payload }) => [key, payload]), [["k", ONE]]);
  }
});

test("a new connection owes nothing to the last one: neither its throttle nor what its server did not know", () => {
  const wire = joined();
  for (const value of [ONE, TWO]) wire.session.set("t", "cursor", value, { throttle: 60_000 });
  wire.session.closed();
  wire.session.opened();
  wire.taken();
  wire.hear("error", { code: "bad_frame", message: "no batch", ref: wire.refs.at(-1) });
  wire.session.closed();
  wire.connect("2");
  assert.deepEqual(wire.taken().map(({ verb, batch, payload }) => [verb, batch, payload]), [
    ["subscribe", undefined, undefined],
    ["subscribe", true, undefined],
    ["set", undefined, TWO],
  ]);
  wire.session.closed();
  wire.session.set("t", "cursor", ONE, { throttle: 60_000 });
  wire.connect("3");
  assert.deepEqual(wire.taken().slice(1).map(({ payload }) => payload), [ONE]);
});

test("of a page's former connections the last sixteen are remembered", () => {
  const wire = joined("0");
  for (let id = 1; id <= 40; id++) wire.hear("hello", { client_id: `${id}` });
  assert.deepEqual([...wire.session.ids], Array.from({ length: 16 }, (_, at) => `${at + 25}`));
});

test("a subscription that the server cannot serve now is asked for again; sets wait for it", () => {
  const wire = new Wire();
  wire.session.follow("t");
  wire.session.set("t", "k", ONE, {});
  wire.session.opened();
  wire.taken();
  wire.hear("error", { code: "unavailable", message: "try again later", ref: wire.refs[0] });
  assert.deepEqual(wire.taken(), []);
  wire.time = wire.session.due;
  wire.session.flush();
  assert.deepEqual(wire.taken().map(({ verb }) => verb), ["subscribe"]);
  wire.welcome("t", []);
  assert.deepEqual(wire.taken().map(({ verb }) => verb), ["set"]);
});

test("what is refused for good is not wanted any more, not even after a reconnect", () => {
  for (const code of ["forbidden", "payload_too_large", "too_many_keys", "name_invalid"]) {
    const wire = joined();
    wire.session.set("t", "k", ONE, {});
    wire.taken();
    wire.hear("error", { code, message: "no", ref: wire.refs[0] });
    assert.deepEqual(wire.problems, [{ code, message: "no", topic: "t", key: "k" }]);
    wire.session.closed();
    wire.connect("2");
    assert.deepEqual(wire.taken().slice(1), []);
  }
});

test("who may not read may still write", () => {
  const wire = new Wire();
  const line = wire.session.follow("t");
  wire.session.set("t", "k", ONE, {});
  for (const id of ["1", "2"]) {
    wire.session.opened();
    wire.hear("hello", { client_id: id });
    wire.taken();
    wire.hear("error", { code: "forbidden", message: "not allowed", ref: wire.refs[0] });
    assert.equal(line.state, "denied");
    assert.deepEqual(wire.taken().map(({ verb, key }) => [verb, key]), [["set", "k"]]);
    wire.hear("ok", { ref: wire.refs[0] });
    wire.session.closed();
  }
});

test("a revoked topic is forgotten, and what is still on its way is not heard", () => {
  const wire = joined("me", { t: [["a", "c1", ONE]] });
  wire.session.set("t", "k", ONE, {});
  wire.hear("revoked", { topic: "t" });
  assert.deepEqual(wire.changes, [["t", "set", "a"], ["t", "clear", "a", "revoked"]]);
  assert.deepEqual(wire.problems.map(({ code, topic }) => [code, topic]), [["revoked", "t"]]);
  wire.hear("set", { topic: "t", key: "a", client_id: "c1", payload: TWO });
  assert.equal(wire.line.view.entries.size, 0);
  wire.taken();
  wire.session.closed();
  wire.connect("2");
  assert.deepEqual(wire.taken().map(({ verb }) => verb), ["subscribe"]);
});

test("while there is no connection others are stale and stay; then only the difference is told", () => {
  const wire = joined("me", { t: [["here", "c1", ONE], ["gone", "c1", ONE], ["own", "me", ONE]] });
  const here = wire.line.view.entries.get("here");
  assert.equal(here.stale, false);
  wire.session.closed();
  assert.deepEqual([...wire.line.view.entries.values()].map(({ key, stale }) => [key, stale]), [["here", true], ["gone", true], ["own", false]]);
  wire.changes.length = 0;
  wire.connect("2", { t: [["here", "c1", ONE], ["new", "c2", TWO]] });
  assert.deepEqual(wire.changes, [["t", "clear", "gone", "missed"], ["t", "clear", "own", "missed"], ["t", "set", "new"]]);
  assert.equal(wire.line.view.entries.get("here"), here);
  assert.equal(here.stale, false);
});

test("an entry is mine if this connection or a former one of this page owns it", () => {
  const wire = joined("me");
  wire.session.closed();
  wire.connect("2", { t: [["a", "me", ONE], ["b", "2", ONE], ["c", "other", ONE]] });
  assert.deepEqual([...wire.line.view.entries.values()].map(({ mine }) => mine), [true, true, false]);
  assert.equal(wire.session.clientId, "2");
});

test("a server that does not say who one is: nothing is mine, and one's own keys are set again", () => {
  const wire = joined(null);
  wire.session.set("t", "k", ONE, {});
  wire.taken();
  wire.hear("ok", { ref: wire.refs[0] });
  wire.hear("set", { topic: "t", key: "k", client_id: "somebody", payload: ONE });
  assert.equal(wire.line.view.entries.get("k").mine, false);
  wire.session.closed();
  wire.connect(null, { t: [["k", "somebody", ONE]] });
  assert.deepEqual(wire.taken().slice(1).map(({ key }) => key), ["k"]);
});

test("leaving clears what is one's own and unsubscribes; late frames change nothing", () => {
  const wire = joined();
  wire.session.set("t", "k", ONE, {});
  wire.taken();
  wire.session.leave("t");
  assert.deepEqual(wire.taken(), [{ verb: "clear", topic: "t", key: "k" }, { verb: "unsubscribe", topic: "t" }]);
  wire.hear("set", { topic: "t", key: "k", client_id: "me", payload: ONE });
  assert.deepEqual(wire.changes, []);
});

test("a batch with an unknown number makes it ask for a snapshot, once", () => {
  const wire = joined();
  wire.hear("batch", { topic: "t", events: [[1, ONE]] });
  wire.hear("batch", { topic: "t", events: [[2, ONE]] });
  assert.deepEqual(wire.taken().map(({ verb }) => verb), ["subscribe"]);
  wire.welcome("t", [["x", "c1", ONE], ["y", "c1", ONE]]);
  assert.deepEqual(shown(wire.line.view.entries), { x: ["c1", ONE], y: ["c1", ONE] });
});

test("a ping is answered from the handler", () => {
  const wire = joined();
  wire.session.received({ _orama: "ephemeral.ping", n: 7 });
  wire.session.received({ _orama: "ephemeral.ping" }); // of an older server
  assert.deepEqual(wire.sent, [{ _orama: "ephemeral.pong", n: 7 }, { _orama: "ephemeral.pong" }]);
});

test("a frame of a newer server is said to be unknown; frames of the application are not ours", () => {
  const wire = joined();
  assert.equal(wire.session.received({ _orama: "ephemeral.weather" }), true);
  assert.deepEqual(wire.problems.map(({ code }) => code), ["unknown_frame"]);
  for (const frame of [{ _orama: "other" }, { type: "message" }, { _orama: 7 }, {}]) assert.equal(wire.session.received(frame), false);
});

const BROKEN = [
  ["snapshot", { topic: "t" }],
  ["snapshot", { topic: "t", entries: [{ key: "new", client_id: "c" }, { key: 7, client_id: "c" }] }],
  ["snapshot", { topic: "t", entries: [null] }],
  ["set", { topic: "t", key: "k" }],
  ["set", { topic: "t", key: "k", client_id: "c", payload: 5 }],
  ["set", { topic: {}, key: "k", client_id: "c" }],
  ["clear", { topic: "t" }],
  ["batch", { topic: "t", events: {} }],
  ["batch", { topic: "t", events: [["new", ONE, "c"], [7, ONE, "c"]] }],
  ["batch", { topic: "t", events: [["new", ONE, "c"], null] }],
  ["batch", { topic: "t", events: [["new", ONE, "c", 1], ["a", ONE]] }],
  ["hello", {}],
];
for (const [kind, fields] of BROKEN)
  test(`a broken frame changes nothing: ${kind} ${JSON.stringify(fields)}`, () => {
    const wire = joined("me", { t: [["a", "c1", ONE]] });
    assert.throws(() => wire.hear(kind, fields), TypeError);
    assert.deepEqual(shown(wire.line.view.entries), { a: ["c1", ONE] });
    wire.hear("set", { topic: "t", key: "b", client_id: "c1" });
    assert.equal(wire.line.view.entries.size, 2);
  });

test("a long snapshot is not acted upon before all of it is there", () => {
  const wire = joined("me");
  for (const key of ["a", "z"]) wire.session.set("t", key, ONE, {});
  for (const ref of (wire.taken(), wire.refs)) wire.hear("ok", { ref });
  for (const key of ["a", "z"]) wire.hear("set", { topic: "t", key, client_id: "me", payload: ONE });
  wire.session.closed();
  wire.session.opened();
  wire.hear("hello", { client_id: "me again" });
  wire.taken();
  wire.changes.length = 0;
  wire.hear("snapshot", { topic: "t", entries: [], more: 2 });
  wire.hear("set", { topic: "t", key: "a", client_id: "me", payload: ONE });
  assert.deepEqual([wire.taken(), wire.changes, wire.line.view.live], [[], [], false]);
  wire.hear("set", { topic: "t", key: "z", client_id: "another", payload: TWO });
  // What is still one's own is set again; what has a successor is not taken back.
  assert.deepEqual(wire.taken(), [{ verb: "set", topic: "t", key: "a", payload: ONE, ttl_ms: null }]);
  assert.deepEqual(wire.changes, [["t", "set", "z"]]);
  assert.equal(wire.line.view.live, true);
});

test("a connection that is lost in the middle of a long snapshot begins anew", () => {
  const wire = joined("me");
  wire.session.closed();
  wire.session.opened();
  wire.hear("snapshot", { topic: "t", entries: [], more: 2 });
  wire.session.closed();
  wire.connect("me again", { t: [["a", "c", ONE]] });
  wire.hear("set", { topic: "t", key: "b", client_id: "c", payload: TWO });
  assert.deepEqual(shown(wire.line.view.entries), { a: ["c", ONE], b: ["c", TWO] });
});

test("no more is asked at once than may be refused in a row, and the rest when there are answers", () => {
  const wire = joined("me");
  for (let n = 0; n < 256; n++) wire.session.set("t", `k${n}`, n < 10 ? base64("x".repeat(30_000)) : ONE, {});
  const all = [];
  let open = [];
  while (all.length < 256) {
    const sent = wire.sent.map((frame) => ({ key: frame.key, ref: frame.ref, cost: 1 + Math.floor(JSON.stringify(frame).length / 16384) }));
    wire.sent.length = 0;
    assert.ok(sent.length > 0);
    all.push(...sent.map(({ key }) => key));
    open.push(...sent);
    assert.ok(open.reduce((sum, { cost }) => sum + cost, 0) < 100);
    if (all.length < 256) assert.equal(wire.session.due, Infinity); // an answer is what it waits for
    for (const { ref } of open.splice(0, 30)) wire.session.received({ _orama: "ephemeral.ok", ref });
    wire.session.flush();
  }
  assert.deepEqual(all, Array.from({ length: 256 }, (_, n) => `k${n}`));
});

test("what a server that stops refuses is asked for again", () => {
  const wire = joined("me", { t: [["a", "c", ONE]] });
  wire.session.set("t", "k", ONE, {});
  wire.taken();
  wire.hear("error", { code: "gone", message: "the connection has ended", ref: wire.refs[0] });
  assert.deepEqual(wire.taken(), []);
  wire.session.closed();
  wire.connect("me again", { t: [["a", "c", ONE]] });
  assert.deepEqual(wire.taken().slice(1), [{ verb: "set", topic: "t", key: "k", payload: ONE, ttl_ms: null }]);
  wire.session.follow("u");
  wire.taken();
  wire.hear("error", { code: "gone", message: "the connection has ended", ref: wire.refs[0] });
  assert.equal(wire.session.lines.get("u").state, "again");
});

test("leaving a topic is said again when it was too much, unless it is followed again", () => {
  const wire = joined("me");
  wire.session.set("t", "k", ONE, {});
  for (const ref of (wire.taken(), wire.refs)) wire.hear("ok", { ref });
  wire.session.leave("t");
  assert.deepEqual(wire.taken(), [{ verb: "clear", topic: "t", key: "k" }, { verb: "unsubscribe", topic: "t" }]);
  const refuse = () => {
    for (const ref of wire.refs) wire.hear("error", { code: "rate_limited", message: "", ref, retry_after_ms: 250 });
  };
  refuse();
  assert.deepEqual(wire.taken(), []);
  assert.equal(wire.session.due, wire.time + 250);
  wire.time += 250;
  wire.session.flush();
  assert.deepEqual(wire.taken(), [{ verb: "clear", topic: "t", key: "k" }, { verb: "unsubscribe", topic: "t" }]);
  refuse();
  wire.session.follow("t");
  wire.taken();
  wire.time += 250;
  wire.session.flush();
  assert.deepEqual(wire.taken(), [{ verb: "clear", topic: "t", key: "k" }]);
});

/** What a server has of this page by the frames it was sent: those that `refused` names were answered so, the others ok. */
function serverOf(wire) {
  const keys = new Map();
  const carriedOut = new Set();
  return {
    keys,
    /** Answer what was sent since. A refused frame changes nothing. */
    answer(refused = () => null) {
      for (const frame of wire.sent.filter(({ ref }) => ref && !carriedOut.has(ref))) {
        carriedOut.add(frame.ref);
        const code = refused(frame);
        if (code) wire.hear("error", { code, message: "", ref: frame.ref, retry_after_ms: 250 });
        else if (frame._orama === "ephemeral.subscribe") wire.welcome(frame.topic, [...keys].map(([key, [owner, payload]]) => [key, owner, payload]));
        else {
          if (frame._orama === "ephemeral.set") keys.set(frame.key, [wire.session.clientId, frame.payload ?? ""]);
          if (frame._orama === "ephemeral.clear" && keys.get(frame.key)?.[0] === wire.session.clientId) keys.delete(frame.key);
          wire.hear("ok", { ref: frame.ref });
        }
      }
    },
    /** All that is due, and its answers. */
    settle(ms = 5000) {
      for (const end = wire.time + ms; wire.time < end; wire.time += 50) {
        wire.session.flush();
        this.answer();
      }
    },
  };
}

const WAITS = {
  "a throttled set": (wire, server) => {
    wire.session.set("t", "k", ONE, { throttle: 50 });
    server.answer();
    wire.time += 10;
    wire.session.set("t", "k", TWO, { throttle: 50 });
  },
  "a set that was too much": (wire, server) => {
    wire.session.set("t", "k", ONE, {});
    server.answer();
    wire.session.set("t", "k", TWO, {});
    server.answer(() => "rate_limited");
  },
  "a set that the store may have": (wire, server) => {
    wire.session.set("t", "k", ONE, {});
    server.keys.set("k", ["me", ONE]);
    server.answer(() => "unavailable");
  },
  "a set without an answer yet": (wire) => wire.session.set("t", "k", ONE, {}),
  "a set behind those that fill the window": (wire, server) => {
    wire.session.set("t", "k", ONE, {});
    server.answer();
    for (let n = 0; n < 70; n++) wire.session.set("t", `k${n}`, ONE, {});
    wire.session.set("t", "k", TWO, {});
  },
  "a clear that was too much": (wire, server) => {
    wire.session.set("t", "k", ONE, {});
    server.answer();
    wire.session.clear("t", "k");
    server.answer(() => "rate_limited");
  },
  "a clear after another frame was too much": (wire, server) => {
    wire.session.set("t", "k", ONE, {});
    server.answer();
    wire.session.set("t", "other", ONE, {});
    server.answer(() => "rate_limited");
    wire.session.clear("t", "k");
  },
  "a set that was refused for good after another": (wire, server) => {
    wire.session.set("t", "k", ONE, {});
    server.answer();
    wire.session.set("t", "k", TWO, {});
    server.answer(() => "payload_too_large");
  },
  "everything, since the topic was followed again": (wire, server) => {
    wire.session.set("t", "k", ONE, {});
    server.answer();
    wire.session.set("t", "other", ONE, {});
    server.answer(() => "rate_limited");
    wire.session.leave("t");
    wire.session.follow("t");
  },
  "everything, after the topic was revoked": (wire, server) => {
    wire.session.set("t", "k", ONE, {});
    server.answer();
    wire.hear("revoked", { topic: "t" });
  },
};
for (const [what, happens] of Object.entries(WAITS))
  for (const end of ["leaving", "clearing"])
    test(`nothing of ours stays after ${end} while there waits ${what}`, () => {
      const wire = joined();
      const server = serverOf(wire);
      happens(wire, server);
      if (end === "leaving") wire.session.leave("t");
      else wire.session.clear("t", "k");
      server.settle();
      assert.deepEqual([...server.keys.keys()].filter((key) => key === "k" || end === "leaving"), []);
      assert.equal(wire.session.left.size, 0);
      assert.equal(wire.session.due, Infinity);
    });

test("what was never sent is forgotten, and the server hears nothing of it", () => {
  const wire = new Wire();
  wire.session.follow("t");
  wire.session.set("t", "k", ONE, {});
  wire.session.clear("t", "k");
  wire.session.set("t", "l", ONE, {});
  wire.session.leave("t");
  wire.connect("me");
  assert.deepEqual(wire.taken(), []);
  assert.equal(wire.session.left.size, 0);
});

test("a key with a grace that is set and then cleared while there is no connection does not linger", () => {
  for (const end of [(session) => session.clear("t", "k"), (session) => session.leave("t")]) {
    const wire = joined();
    const server = serverOf(wire);
    wire.session.set("t", "k", ONE, { grace: 30 });
    server.answer();
    wire.session.closed();
    wire.session.set("t", "k", TWO, { grace: 30 });
    end(wire.session);
    wire.session.opened();
    wire.hear("hello", { client_id: "me again" });
    server.settle();
    assert.deepEqual([...server.keys], []);
    assert.equal(wire.session.left.size, 0);
  }
});

test("a connection lost in the middle of leaving: what lingers is cleared by the next one, and no successor is", () => {
  const wire = joined();
  const server = serverOf(wire);
  for (const key of ["k", "taken"]) wire.session.set("t", key, ONE, { grace: 30 });
  server.answer();
  wire.session.leave("t"); // and no frame of it arrives
  wire.session.closed();
  server.keys.set("taken", ["other", TWO]);
  wire.sent.length = 0;
  wire.changes.length = 0;
  wire.session.opened();
  wire.hear("hello", { client_id: "me again" });
  server.settle();
  assert.deepEqual([...server.keys], [["taken", ["other", TWO]]]);
  assert.deepEqual(wire.taken().map(({ verb, key }) => [verb, key]), [["subscribe", undefined], ["set", "k"], ["clear", "k"], ["unsubscribe", undefined]]);
  assert.deepEqual([wire.changes, wire.problems, wire.session.left.size], [[], [], 0]);
});

test("a topic left while there is no connection is not asked for when nothing of it can be there any more", () => {
  for (const [grace, minutes, asked] of [[30, 1, ["subscribe"]], [30, 2, []], [0, 2, []]]) {
    const wire = joined();
    const server = serverOf(wire);
    wire.session.set("t", "k", ONE, { grace });
    server.answer();
    wire.session.closed();
    wire.session.leave("t");
    wire.time += minutes * 60_000;
    wire.taken();
    wire.session.opened();
    assert.deepEqual(wire.taken().map(({ verb }) => verb), asked);
    if (asked.length) wire.hear("error", { code: "forbidden", message: "", ref: wire.refs[0] });
    wire.session.flush();
    assert.deepEqual([wire.problems, wire.session.due], [[], Infinity]); // the page did not ask for it
  }
});

test("of a key that is taken over to be cleared, a refused set does not make the clear count", () => {
  const wire = joined();
  const server = serverOf(wire);
  wire.session.set("t", "k", ONE, { grace: 30 });
  server.answer();
  wire.session.closed();
  wire.session.clear("t", "k");
  wire.session.opened();
  wire.hear("hello", { client_id: "me again" });
  server.answer(({ _orama }) => (_orama === "ephemeral.set" ? "unavailable" : null));
  server.answer(({ _orama }) => (_orama === "ephemeral.set" ? "unavailable" : null));
  assert.deepEqual([...server.keys.keys()], ["k"]);
  server.settle();
  assert.deepEqual([...server.keys], []);
});

/** Steps of all iterations over what the session keeps of the line. */
function counting(line) {
  const counted = { steps: 0 };
  for (const kept of [line.wants, line.held, line.unsent])
    for (const name of ["entries", "keys", "values", "forEach", Symbol.iterator]) {
      const own = kept[name];
      kept[name] = function* (...args) {
        for (const each of own.apply(this, args)) counted.steps++, yield each;
      };
    }
  return counted;
}

for (const denied of [false, true])
  test(`5 000 short-lived sets are not kept, and none costs more for the others: a topic that is ${denied ? "denied" : "write-only"}`, () => {
    const wire = new Wire();
    const line = wire.session.follow("t");
    const counted = counting(line);
    wire.session.opened();
    wire.hear("hello", { client_id: "me" });
    wire.hear("error", { code: "forbidden", message: "", ref: wire.sent[0].ref });
    for (let n = 0; n < 5000; n++, wire.time += 10) {
      wire.session.set("t", `k${n}`, ONE, { ttl: 1 });
      const ref = wire.sent.at(-1).ref;
      if (denied) wire.hear("error", { code: "forbidden", message: "", ref });
      else wire.hear("ok", { ref });
    }
    assert.equal(wire.sent.length, 5001);
    assert.ok(line.wants.size + line.held.size <= 600, `${line.wants.size} wants, ${line.held.size} held`);
    assert.ok(counted.steps <= 5 * 5000, `${counted.steps} steps`);
  });

test("5 000 sets that wait for something cost no more each for the others", () => {
  const waits = { "a connection": () => {}, "a snapshot": (wire) => wire.session.opened(), "room in the window": (wire) => wire.connect("me"),
    "the time that the server named": (wire) => {
      wire.connect("me");
      wire.session.set("t", "first", ONE, {});
      wire.hear("error", { code: "rate_limited", message: "", ref: wire.sent.at(-1).ref, retry_after_ms: 60_000 });
    } };
  for (const [what, begin] of Object.entries(waits)) {
    const wire = new Wire();
    const line = wire.session.follow("t");
    begin(wire);
    const counted = counting(line);
    for (let n = 0; n < 5000; n++) wire.session.set("t", `k${n}`, ONE, { throttle: 50 }), wire.session.flush(), wire.session.due;
    assert.equal(line.unsent.size + wire.sent.filter(({ _orama }) => _orama === "ephemeral.set").length >= 5000, true);
    assert.ok(counted.steps <= 10 * 5000, `${what}: ${counted.steps} steps`);
  }
});

/** The clocks of a machine: `wall` is set by hand, `mono` stands still while it sleeps. */
function clocks(t) {
  const machine = { wall: 1_800_000_000_000, mono: 5000 };
  t.mock.method(Date, "now", () => machine.wall);
  t.mock.method(performance, "now", () => machine.mono);
  return { pass: (ms, asleep = 0) => ((machine.wall += ms + asleep), (machine.mono += ms)), set: (ms) => (machine.wall += ms) };
}

/** A session on the machine's own clocks. */
function onClocks() {
  const wire = new Wire();
  const { sent, changes, problems } = wire;
  wire.session = new Session({ send: (text) => sent.push(JSON.parse(text)), change: (...change) => changes.push(change), problem: (problem) => problems.push(problem) });
  wire.session.follow("t");
  wire.connect("me");
  wire.taken();
  return wire;
}

for (const jump of [-600_000, -500, 500, 0])
  test(`waits do not follow the wall clock: it is set by ${jump} ms`, (t) => {
    const machine = clocks(t);
    const wire = onClocks();
    const [set, due] = [(key, value, options) => wire.session.set("t", key, value, options), () => (wire.session.flush(), wire.taken().map(({ key }) => key))];
    set("cursor", ONE, { throttle: 50 });
    set("cursor", TWO, { throttle: 50 });
    assert.deepEqual(due(), ["cursor"]);
    machine.set(jump);
    machine.pass(49);
    assert.deepEqual(due(), []);
    machine.pass(1);
    assert.deepEqual(due(), ["cursor"]);
    set("other", ONE, {});
    assert.deepEqual(due(), ["other"]);
    wire.hear("error", { code: "rate_limited", message: "", ref: wire.refs[0], retry_after_ms: 250 });
    machine.set(jump);
    machine.pass(249);
    assert.deepEqual(due(), []);
    machine.pass(1);
    assert.deepEqual(due(), ["other"]);
    set("brief", ONE, { ttl: 5 });
    wire.taken();
    machine.set(jump);
    machine.pass(2000);
    wire.session.closed();
    wire.connect("me again");
    assert.deepEqual(wire.taken().filter(({ key }) => key === "brief").map(({ ttl_ms }) => ttl_ms), [3000]);
  });

test("what a machine has slept through counts: a short life is over after it", (t) => {
  const machine = clocks(t);
  const wire = onClocks();
  wire.session.set("t", "brief", ONE, { ttl: 5 });
  wire.taken();
  machine.pass(10, 3_600_000);
  wire.session.closed();
  wire.connect("me again");
  assert.deepEqual(wire.taken().map(({ verb }) => verb), ["subscribe"]);
});

/** The same numbers for the same seed (mulberry32). */
function seeded(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

test("whatever happened, what is wanted is there in the end, and nothing of ours when every topic is left", () => {
  for (let seed = 1; seed <= 400; seed++) {
    const random = seeded(seed);
    const chance = (share) => random() < share;
    const wire = new Wire();
    const server = serverOf(wire);
    let ids = 0;
    const wanted = new Map();
    const refused = () => (chance(0.15) ? ["rate_limited", "unavailable", "gone"][Math.floor(random() * 3)] : null);
    const open = () => (wire.session.opened(), wire.hear("hello", { client_id: `me ${++ids}` }));
    const close = () => {
      server.answer(refused);
      wire.session.closed();
      wire.sent.length = 0; // what had no answer did not arrive
      // Each key has a grace or has none.
      for (const key of server.keys.keys()) if (!key.startsWith("g")) server.keys.delete(key);
    };
    wire.session.follow("t");
    for (let step = 0; step < 60; step++, wire.time += Math.floor(random() * 200)) {
      const key = ["g1", "g2", "k1", "k2"][Math.floor(random() * 4)];
      const followed = wire.session.lines.has("t");
      if (chance(0.08)) wire.session.open ? close() : open();
      else if (chance(0.06)) followed ? (wire.session.leave("t"), wanted.clear()) : wire.session.follow("t");
      else if (followed && chance(0.25)) wire.session.clear("t", key), wanted.delete(key);
      else if (followed) {
        wire.session.set("t", key, base64(step), { grace: key.startsWith("g") ? 30 : 0, throttle: chance(0.5) ? 300 : 0 });
        wanted.set(key, base64(step));
      }
      if (chance(0.5)) wire.session.flush();
      if (chance(0.6)) server.answer(refused);
    }
    if (!wire.session.open) open();
    server.settle();
    assert.deepEqual([...server.keys].map(([key, [, payload]]) => [key, payload]).sort(), [...wanted].sort(), `seed ${seed}`);
    wire.session.leave("t");
    server.settle();
    assert.deepEqual([[...server.keys], wire.session.left.size, wire.session.due], [[], 0, Infinity], `seed ${seed}, left`);
  }
});
