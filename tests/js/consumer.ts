// What a project in TypeScript writes. It is compiled and not run: that the declarations say what the docs do.

import type { EphemeralPresence } from "../../ephemeral_state/static/ephemeral_state/ephemeral-presence.js";
import { useTopic } from "../../ephemeral_state/static/ephemeral_state/ephemeral-react.js";
import { EphemeralState } from "../../ephemeral_state/static/ephemeral_state/ephemeral-state.js";
import type { Change, Entry, Problem, Status, Topic } from "../../ephemeral_state/static/ephemeral_state/ephemeral-state.js";

const state = new EphemeralState(new URL("wss://example.com/ws/state/"), { WebSocket, minDelay: 100 });
const room: Topic = state.topic("room:1", { maxRate: 20 });

state.onstatus = ({ detail }) => show(detail);
state.onerror = ({ detail: { code, message, topic, key, retryAfter } }: CustomEvent<Problem>) =>
  console.log(code.length, message.length, topic?.length, key?.length, retryAfter?.toFixed());

room.onstatus = ({ detail }: CustomEvent<Status | "denied">) => show(detail);
room.addEventListener("status", () => show(room.status));

room.set("cursor:7", { x: 0.4 }, { throttle: 50, ttl: null });
room.set("drawing:7", new Uint8Array([1, 2, 3]));
room.clear("cursor:7");

const stop: () => void = room.subscribe((change: Change) => {
  if (change.type === "clear") console.log(change.before.value?.name, change.reason.toUpperCase());
  else console.log(change.entry.value, change.before?.mine);
});

export async function read(): Promise<void> {
  for await (const { key, entry } of room) console.log(key.length, entry && left(entry));
}

function left({ bytes, expires }: Entry): string {
  const copy: Uint8Array = bytes;
  if (expires === undefined || expires === null) return `${copy.length}`;
  return expires.toFixed();
}

function show(status: Status | "denied"): void {
  console.log(status === "live" ? room.entries.size : status);
}

export function Who(): string {
  const { entries, status, room: mine } = useTopic(state, "room:1", { subscribe: false });
  mine?.set("wave", true, { ttl: 2 });
  show(status);
  return [...entries.values()].map(({ owner }) => owner).join();
}

export function follow(element: EphemeralPresence): void {
  element.room = room;
  stop();
}

// @ts-expect-error: entries are what the server said, and not to be set here
room.entries.set("k", null);
// @ts-expect-error: a topic has a name
state.topic(5);
// @ts-expect-error: seconds are a number
room.set("k", 1, { ttl: "5" });
// @ts-expect-error: expires may be null or undefined
room.entries.get("k")?.expires.toFixed();
