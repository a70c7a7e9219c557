// The React hook in a real React, in a page without a browser.

import assert from "node:assert/strict";
import { after, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { register } from "node:module";

import { JSDOM } from "jsdom";

import { EphemeralState } from "../../ephemeral_state/static/ephemeral_state/ephemeral-state.js";
import { base64 } from "./fixtures.js";

// The hook imports "react" as a bundler finds it: from the project that uses it.
const here = import.meta.resolve("react");
register(`data:text/javascript,${encodeURIComponent(`
  export const resolve = (name, context, next) => name === "react" ? { url: ${JSON.stringify(here)}, shortCircuit: true } : next(name, context);
`)}`);

const { window } = new JSDOM("<main></main>");
globalThis.window = window;
globalThis.document = window.document;
globalThis.navigator ??= window.navigator;
globalThis.IS_REACT_ACT_ENVIRONMENT = true;
after(() => window.close());

const { act, createElement: h, StrictMode, useLayoutEffect } = await import("react");
const { createRoot } = await import("react-dom/client");
const { renderToString } = await import("react-dom/server");
const hook = new URL("../../ephemeral_state/static/ephemeral_state/ephemeral-react.js", import.meta.url);
const { useTopic } = await import(fileURLToPath(hook));

function world() {
  const made = { sent: [], renders: 0 };
  class Socket {
    constructor() {
      made.socket = this;
    }
    send(text) {
      made.sent.push(JSON.parse(text));
    }
    close() {}
  }
  made.state = new EphemeralState("ws://x/", { WebSocket: Socket, random: () => 0, minDelay: 0 });
  made.hear = (kind, fields) =>
    act(async () => made.socket.onmessage({ data: JSON.stringify({ _orama: `ephemeral.${kind}`, topic: "room:1", ...fields }) }));
  made.verbs = () => made.sent.map(({ _orama }) => _orama.replace("ephemeral.", ""));
  made.Names = ({ name = "room:1", options }) => {
    made.renders++;
    const { entries, status, room } = useTopic(made.state, name, options);
    made.room = room;
    return h("p", null, `${status}: ${[...entries.values()].map(({ value }) => value).join(", ")}`);
  };
  made.main = document.createElement("main");
  made.root = createRoot(made.main);
  made.render = (element) => act(async () => made.root.render(element));
  return made;
}

for (const [mode, wrap] of [["", (element) => element], [" in strict mode", (element) => h(StrictMode, null, element)]])
  test(`a component shows the topic, and leaves it when it goes${mode}`, async () => {
    const made = world();
    await made.render(wrap(h(made.Names)));
    assert.equal(made.main.textContent, "connecting: ");
    await act(async () => made.socket.onopen());
    await made.hear("snapshot", { entries: [{ key: "a", client_id: "c", payload: base64("Ann") }] });
    assert.equal(made.main.textContent, "live: Ann");
    await made.hear("batch", { events: [["b", base64("Bob"), "c", 1], ["a", null, "c", "disconnect"]] });
    assert.equal(made.main.textContent, "live: Bob");
    const renders = made.renders;
    await made.hear("set", { key: "b", client_id: "c", payload: base64("Bob") });
    assert.equal(made.renders, renders); // nothing changed
    made.room.set("me", 1);
    await act(async () => made.socket.onclose({ code: 1006 }));
    assert.equal(made.main.textContent, "stale: Bob");
    await act(async () => sleep(20));
    await act(async () => made.socket.onopen());
    await made.hear("snapshot", { entries: [] });
    assert.equal(made.main.textContent, "live: ");
    await made.render(null);
    await sleep(20);
    assert.deepEqual(made.verbs(), ["subscribe", "set", "subscribe", "set", "clear", "unsubscribe"]);
    made.state.close();
  });

test("two components share a topic; another name is another topic", async () => {
  const made = world();
  await made.render([h(made.Names, { key: 1 }), h(made.Names, { key: 2 })]);
  await act(async () => made.socket.onopen());
  await made.render([h(made.Names, { key: 1 })]);
  await act(async () => sleep(20));
  assert.deepEqual(made.verbs(), ["subscribe"]);
  await made.render([h(made.Names, { key: 1, name: "room:2" })]);
  await act(async () => sleep(20));
  assert.deepEqual(made.sent.map(({ _orama, topic }) => [_orama.replace("ephemeral.", ""), topic]), [
    ["subscribe", "room:1"], ["subscribe", "room:2"], ["unsubscribe", "room:1"],
  ]);
  await act(async () => made.root.unmount());
  made.state.close();
});

test("each name has the options that it was first used with", async () => {
  const made = world();
  const options = (maxRate) => ({ key: 1, options: { maxRate } });
  await made.render([h(made.Names, options(20))]);
  await act(async () => made.socket.onopen());
  await made.render([h(made.Names, options(30))]);
  await made.render([h(made.Names, { ...options(40), name: "room:2" })]);
  await act(async () => sleep(20));
  const asked = made.sent.filter(({ _orama }) => _orama === "ephemeral.subscribe");
  assert.deepEqual(asked.map(({ topic, max_rate }) => [topic, max_rate]), [["room:1", 20], ["room:2", 40]]);
  await act(async () => made.root.unmount());
  made.state.close();
});

test("under another name or state nothing of the last one is shown, not even once", async (t) => {
  const [made, other] = [world(), world()];
  t.after(() => [made, other].forEach(({ state }) => state.close()));
  const shown = [];
  const Names = ({ state, name }) => {
    const { entries, status, room } = useTopic(state, name);
    useLayoutEffect(() => void shown.push([room?.name, made.main.textContent])); // as it is committed
    return h("p", null, `${status}: ${[...entries.values()].map(({ value }) => value).join(", ")}`);
  };
  await made.render(h(Names, { state: made.state, name: "room:1" }));
  await act(async () => made.socket.onopen());
  await made.hear("snapshot", { entries: [{ key: "a", client_id: "c", payload: base64("Ann") }] });
  assert.deepEqual(shown.at(-1), ["room:1", "live: Ann"]);
  shown.length = 0;
  await made.render(h(Names, { state: made.state, name: "room:2" }));
  await made.hear("snapshot", { topic: "room:2", entries: [{ key: "b", client_id: "c", payload: base64("Bob") }] });
  await made.render(h(Names, { state: other.state, name: "room:2" }));
  assert.deepEqual(shown, [
    [undefined, "connecting: "], ["room:2", "connecting: "], ["room:2", "live: Bob"],
    [undefined, "connecting: "], ["room:2", "connecting: "],
  ]);
  await act(async () => made.root.unmount());
});

test("on a server it sees nothing and connects to nothing", () => {
  const Names = () => h("p", null, useTopic(null, "room:1").status);
  assert.equal(renderToString(h(Names)), "<p>connecting</p>");
});

test("a topic that is empty or denied says so to a component that comes when the connection is live already", async (t) => {
  const made = world();
  t.after(() => made.state.close());
  await made.render([h(made.Names, { key: 1 })]);
  await act(async () => made.socket.onopen());
  await made.hear("snapshot", { entries: [] });
  await made.hear("hello", { client_id: "me" }); // with which nothing changes
  assert.equal(made.main.textContent, "live: ");
  const answers = {
    "live: ": (name) => made.hear("snapshot", { topic: name, entries: [] }),
    "denied: ": () => made.hear("error", { code: "forbidden", message: "", ref: made.sent.findLast(({ _orama }) => _orama === "ephemeral.subscribe").ref }),
  };
  t.mock.method(console, "warn", () => {});
  for (const [at, [shown, answer]] of Object.entries(answers).entries()) {
    const name = `other:${at}`;
    // A second component, another route, and a remount.
    await made.render([h(made.Names, { key: 1 }), h(made.Names, { key: 2, name })]);
    assert.equal(made.main.textContent, "live: connecting: ");
    await answer(name);
    assert.equal(made.main.textContent, `live: ${shown}`);
    await made.render([h(made.Names, { key: 1 })]);
    await act(async () => sleep(20));
    await made.render([h(made.Names, { key: 1 }), h(made.Names, { key: 3, name })]);
    await answer(name);
    assert.equal(made.main.textContent, `live: ${shown}`);
    await made.render([h(made.Names, { key: 1 })]);
    await act(async () => sleep(20));
  }
  await act(async () => made.root.unmount());
});
