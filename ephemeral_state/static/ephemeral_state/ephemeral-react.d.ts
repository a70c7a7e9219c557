/**
 * Follow a topic while the component is there. When the last one that uses it goes, the topic is left, which clears
 * what is one's own in it.
 * @param {EphemeralState | null} state null, on a server, sees nothing
 * @param {string} name
 * @param {TopicOptions} [options] as they are when the topic is used first
 * @returns {Seen}
 */
export function useTopic(state: EphemeralState | null, name: string, options?: TopicOptions): Seen;
export type EphemeralState = import("./ephemeral-state.js").EphemeralState;
export type Entry = import("./ephemeral-state.js").Entry;
export type Status = import("./ephemeral-state.js").Status;
export type Topic = import("./ephemeral-state.js").Topic;
export type TopicOptions = import("./ephemeral-state.js").TopicOptions;
/**
 * What a component sees: `entries` is a new Map when something changed, and the same one when nothing did. `room` is
 * there to `set` and `clear`; null on a server.
 */
export type Seen = {
    entries: ReadonlyMap<string, Entry>;
    status: Status | "denied";
    room: Topic | null;
};
