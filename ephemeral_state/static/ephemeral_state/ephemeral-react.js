/**
 * A topic in React: `const { entries, status, room } = useTopic(state, "room:1")`.
 *
 * @module
 */

import { useMemo, useSyncExternalStore } from "react";

/** @typedef {import("./ephemeral-state.js").EphemeralState} EphemeralState */
/** @typedef {import("./ephemeral-state.js").Entry} Entry */
/** @typedef {import("./ephemeral-state.js").Status} Status */
/** @typedef {import("./ephemeral-state.js").Topic} Topic */
/** @typedef {import("./ephemeral-state.js").TopicOptions} TopicOptions */

/**
 * What a component sees: `entries` is a new Map when something changed, and the same one when nothing did. `room` is
 * there to `set` and `clear`; null on a server.
 * @typedef {{ entries: ReadonlyMap<string, Entry>, status: Status | "denied", room: Topic | null }} Seen
 */

/** @type {Seen} */
const NOTHING = { entries: new Map(), status: "connecting", room: null };

/**
 * Follow a topic while the component is there. When the last one that uses it goes, the topic is left, which clears
 * what is one's own in it.
 * @param {EphemeralState | null} state null, on a server, sees nothing
 * @param {string} name
 * @param {TopicOptions} [options] as they are when the topic is used first
 * @returns {Seen}
 */
export function useTopic(state, name, options) {
  // What was seen belongs to this state and this name: under another name there is nothing until it is looked at.
  const { subscribe, look } = useMemo(() => {
    let seen = NOTHING;
    const subscribe = (/** @type {() => void} */ changed) => {
      if (!state) return () => {};
      const room = state.topic(name, options);
      const letGo = room.use();
      let waiting = false;
      let stopped = false;
      const told = () => {
        // Once for all changes of a frame, and of several frames that come together.
        if (waiting) return;
        waiting = true;
        queueMicrotask(() => {
          waiting = false;
          if (stopped) return;
          seen = { entries: new Map(room.entries), status: room.status, room };
          changed();
        });
      };
      const stop = room.subscribe(told);
      room.addEventListener("status", told);
      told();
      return () => {
        stopped = true;
        stop();
        room.removeEventListener("status", told);
        letGo();
        seen = NOTHING;
      };
    };
    return { subscribe, look: () => seen };
  }, [state, name]);
  return useSyncExternalStore(subscribe, look, () => NOTHING);
}
