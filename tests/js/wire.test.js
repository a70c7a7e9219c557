// The client and the ten lines of the docs against `tests/wire`, which the server's tests read too.

import assert from "node:assert/strict";
import { test } from "node:test";
import vm from "node:vm";

import { EphemeralState, View } from "../../ephemeral_state/static/ephemeral_state/ephemeral-state.js";
import { page, shown, told, wire, Wire } from "./fixtures.js";

for (const name of ["streams", "batches"])
  for (const row of wire(name))
    test(`${name}: ${row.name}`, () => {
      for (const frames of [row.frames, row.plain ?? row.frames]) {
        const there = new Wire();
        there.session.follow(row.topic);
        there.session.opened();
        for (const frame of frames) there.session.received(frame);
        assert.deepEqual(shown(there.session.lines.get(row.topic).view.entries), row.view);
        assert.deepEqual(there.changes.map(([, ...change]) => change), row.changes);
      }
    });

for (const { name, payload } of wire("plain_json").filter(({ plain }) => plain))
  test(`JSON in a batch is the payload that it was: ${name}`, () => {
    const view = new View("t");
    view.apply(JSON.parse(`{"_orama":"ephemeral.batch","topic":"t","events":[["k",${payload},"c1"]]}`));
    assert.equal(Buffer.from(view.entries.get("k").payload, "base64").toString(), payload);
  });

for (const row of wire("streams"))
  test(`the ten lines of the docs: ${row.name}`, () => {
    const [lines] = /```js\n(const live[^]*?)```/.exec(page("protocol.md")).slice(1);
    assert.ok(lines.trim().split("\n").length <= 13);
    const [sent, events, done] = [[], {}, []];
    const context = vm.createContext({
      WebSocket: class { send = (text) => sent.push(JSON.parse(text)); close = (code) => done.push(code); },
      addEventListener: (type, heard) => (events[type] = heard),
      location: { reload: () => done.push("reload") },
      JSON,
      Map,
    });
    const { live, socket } = vm.runInContext(`${lines}; ({ live, socket })`, context);
    socket.onopen();
    assert.deepEqual(sent, [{ _orama: "ephemeral.subscribe", topic: "room:1" }]);
    // It follows one topic, so it hears of no other.
    for (const frame of row.frames) if (frame.topic === "room:1") socket.onmessage({ data: JSON.stringify(frame) });
    assert.deepEqual(Object.fromEntries([...live].map(([key, value]) => [key, [...value]])), row.view);
    socket.onmessage({ data: '{"_orama":"ephemeral.ping","n":7}' });
    assert.deepEqual(sent[1], { _orama: "ephemeral.pong", n: 7 });
    events.pageshow({ persisted: false }); // the page was loaded
    assert.deepEqual(done, []);
    events.pagehide();
    events.pageshow({ persisted: true });
    assert.deepEqual(done, [1000, "reload"]);
  });

for (const { name, text } of wire("frames"))
  test(`every frame of the server is understood: ${name}`, () => {
    const there = new Wire();
    there.session.follow("room:1");
    there.session.opened();
    assert.equal(there.session.received(JSON.parse(text)), true);
    const { _orama, code } = JSON.parse(text);
    const said = { "ephemeral.error": [code], "ephemeral.revoked": ["revoked"] }[_orama] ?? [];
    assert.deepEqual(there.problems.map(({ code }) => code), said);
    const answers = _orama === "ephemeral.ping" ? wire("commands").filter(({ name }) => name === "the answer to a ping").map(({ text }) => JSON.parse(text)) : [];
    assert.deepEqual(there.sent.slice(1), answers);
  });

for (const row of wire("frames").filter(({ silence_ms }) => silence_ms))
  test(`how long a server may be silent: ${row.name}`, (t) => {
    t.mock.timers.enable({ apis: ["setTimeout", "Date"], now: 1_000_000 });
    const made = [];
    class Socket {
      constructor() { made.push(this); }
      send() {}
      close() {}
    }
    const state = new EphemeralState("ws://x/", { WebSocket: Socket });
    made[0].onopen();
    made[0].onmessage({ data: row.text });
    // One that was never heard to ping may be silent for ever; the ping of another consumer says nothing of its own.
    if (!row.text.includes("ephemeral.ping")) made[0].onmessage({ data: '{"_orama":"ephemeral.ping","n":1}' });
    t.mock.timers.tick(row.silence_ms - 1000);
    assert.equal(made.length, 1);
    t.mock.timers.tick(2000);
    assert.equal(made.length, 2);
    state.close();
  });

for (const row of wire("commands").filter(({ call }) => call))
  test(`a call becomes the command of the fixture: ${row.name}`, (t) => {
    t.mock.timers.enable({ apis: ["Date"], now: 1_000_000 }); // or a moment of the time to live may pass
    const sent = [];
    class Socket {
      send = (text) => sent.push(JSON.parse(text));
      close() {}
    }
    let socket;
    const state = new EphemeralState("ws://x/", { WebSocket: function () { return (socket = new Socket()); } });
    const room = state.topic("room:1");
    socket.onopen();
    socket.onmessage({ data: '{"_orama":"ephemeral.snapshot","topic":"room:1","entries":[]}' });
    sent.length = 0;
    const [method, ...rest] = row.call;
    // What JSON cannot write, the fixture leaves out: `set(key)` is a set of nothing.
    room[method](...rest);
    state.close();
    const { ref, ...expected } = JSON.parse(row.text);
    const { ref: ours, ...frame } = sent[0];
    assert.equal(Number.isInteger(ours), true);
    assert.deepEqual(frame, expected);
  });

const asks = (text) => {
  const { _orama, ...fields } = JSON.parse(text);
  return [{ verb: _orama.replace("ephemeral.", ""), ...fields }];
};
const neither = wire("subscribe").find(({ name }) => name === "neither");

for (const row of wire("subscribe").filter(({ call }) => call))
  test(`a topic is asked for as the fixture has it, and of an old server without: ${row.name}`, () => {
    const there = new Wire();
    there.session.follow("room:1", row.call);
    there.session.opened();
    assert.deepEqual(there.taken(), asks(row.text));
    there.hear("error", { code: "bad_frame", message: "", ref: there.refs[0] });
    assert.deepEqual(there.taken(), asks(neither.text));
  });

for (const row of wire("subscribe").filter(({ error, text }) => error && JSON.parse(text).max_rate !== undefined))
  test(`a rate that the server refuses is never asked for: ${row.name}`, (t) => {
    t.mock.method(console, "warn", () => {});
    const sent = [];
    class Socket {
      constructor() { queueMicrotask(() => this.onopen()); }
      send = (text) => sent.push(JSON.parse(text).max_rate);
      close() {}
    }
    const state = new EphemeralState("ws://x/", { WebSocket: Socket });
    state.topic("room:1", { maxRate: JSON.parse(row.text).max_rate });
    return Promise.resolve().then(() => {
      state.close();
      assert.deepEqual(sent, [JSON.parse(row.text).max_rate > 1000 ? 1000 : undefined]);
    });
  });

test("a payload is read as JSON, as bytes, or not at all", () => {
  const view = new View("t");
  const read = (payload) => {
    view.apply({ _orama: "ephemeral.set", key: "k", client_id: "c", payload });
    const { value, bytes } = view.entries.get("k");
    return [value, [...bytes]];
  };
  assert.deepEqual(read("eyJhIjoiw6kifQ=="), [{ a: "é" }, [...Buffer.from('{"a":"é"}')]]);
  assert.deepEqual(read("bnVsbA=="), [null, [...Buffer.from("null")]]);
  assert.deepEqual(read("AP/+"), [undefined, [0, 255, 254]]);
  assert.deepEqual(read(undefined), [undefined, []]);
  assert.deepEqual(read("no base64!"), [undefined, []]);
  assert.deepEqual(told(view.apply({ _orama: "ephemeral.clear", key: "k", reason: "expired" })[0]), ["clear", "k", "expired"]);
});

test("a time to live that was said holds until the key is set again, in whatever frame", () => {
  const view = new View("t", new Set(), () => 1_000_000);
  const typing = { key: "typing", client_id: "c", payload: "MQ==" };
  const snapshot = { _orama: "ephemeral.snapshot", entries: [{ ...typing, expires_in_ms: 5000, n: 1 }] };
  const frames = [
    { _orama: "ephemeral.set", ...typing },
    { _orama: "ephemeral.batch", events: [[1, "MQ=="]] },
    { _orama: "ephemeral.batch", events: [["typing", "MQ==", "c", 1]] },
  ];
  view.apply(snapshot);
  const entry = view.entries.get("typing");
  for (const frame of frames) {
    view.apply(snapshot);
    assert.equal(entry.expires, 1_005_000);
    assert.deepEqual(view.apply(frame), []); // nobody sees a difference
    assert.equal(entry.expires, undefined);
  }
  view.apply({ ...snapshot, entries: [{ ...typing, expires_in_ms: null }] });
  assert.equal(entry.expires, null);
  assert.equal(view.entries.get("typing"), entry);
});
