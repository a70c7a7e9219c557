export class EphemeralPresence extends HTMLElement {
    connectedCallback(): void;
    disconnectedCallback(): void;
    set room(room: Topic | null);
    #private;
}
export type Entry = import("./ephemeral-state.js").Entry;
export type Topic = import("./ephemeral-state.js").Topic;
