export class EphemeralPresence extends HTMLElement {
    static observedAttributes: string[];
    connectedCallback(): void;
    set room(room: Topic | null);
    disconnectedCallback(): void;
    attributeChangedCallback(): void;
    #private;
}
export type Entry = import("./ephemeral-state.js").Entry;
export type Topic = import("./ephemeral-state.js").Topic;
