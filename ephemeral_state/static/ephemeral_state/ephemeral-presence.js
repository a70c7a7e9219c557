/**
 * Who is here: `<ephemeral-presence url="/ws/state/" topic="room:1" name="Zoé"></ephemeral-presence>`.
 * Shows the entries whose keys begin with `prefix` and whose values have a `name`, and perhaps a `color` (a hue). Owners of
 * keys that begin with `busy` are marked. `name` announces oneself, as `key`. `max`: faces shown.
 * A page that has a topic of its own sets the property `room` instead of `url` and `topic`.
 * @module
 */

import { face, style } from "./ephemeral-face.js";
import { EphemeralState } from "./ephemeral-state.js";

/** @typedef {import("./ephemeral-state.js").Entry} Entry @typedef {import("./ephemeral-state.js").Topic} Topic */

/** @type {Map<string, EphemeralState>} one connection per address */
const states = new Map();

export class EphemeralPresence extends HTMLElement {
  #list = this.attachShadow({ mode: "open" }).appendChild(document.createElement("ul"));
  /** @type {Map<string, HTMLElement>} by key */ #faces = new Map();
  /** @type {Topic | null} */ #room = null;
  #stop = () => {};
  #arranging = false;
  #shown = () => /** @type {HTMLElement[]} */ ([...this.#list.children]);
  #option = (/** @type {string} */ name, otherwise = "") => this.getAttribute(name) ?? otherwise;

  connectedCallback() {
    const given = Object.getOwnPropertyDescriptor(this, "room")?.value; // set before this module was there
    if (given && delete (/** @type {any} */ (this).room)) this.room = given;
    /** @type {ShadowRoot} */ (this.shadowRoot).adoptedStyleSheets = [style];
    this.#list.role = "list"; // Safari forgets it where there are no bullets
    const [url, topic, name] = [this.#option("url"), this.#option("topic"), this.#option("name")];
    if (this.#room || !url || !topic) return this.#follow(this.#room);
    const state = states.get(url) ?? new EphemeralState(url);
    states.set(url, state);
    const room = state.topic(topic);
    const letGo = room.use();
    const key = this.#option("key") || this.#option("prefix", "here:") + crypto.getRandomValues(new Uint32Array(4)).join("-");
    if (name) room.set(key, { name });
    this.#follow(room, () => (name && room.clear(key), letGo()));
  }

  disconnectedCallback() { this.#follow(null); }

  set room(/** @type {Topic | null} */ room) {
    this.#room = room;
    if (this.isConnected) this.#follow(room);
  }

  /** @param {Topic | null} room @param {() => void} [left] */
  #follow(room, left) {
    this.#stop();
    this.#stop = () => {};
    this.#arranging = false;
    this.#faces.clear();
    this.#list.replaceChildren();
    if (!room) return;
    const looks = () => this.toggleAttribute("stale", room.stale);
    const unsubscribe = room.subscribe(({ key }) => (looks(), this.#changed(room, key)));
    room.state.addEventListener("status", looks);
    this.#stop = () => (unsubscribe(), room.state.removeEventListener("status", looks), left?.());
    looks();
    for (const key of room.entries.keys()) this.#changed(room, key);
  }

  /** @param {Topic} room @param {string} changed */
  #changed(room, changed) {
    if (changed.startsWith(this.#option("prefix", "here:"))) this.#place(changed, room.entries.get(changed));
    else if (!changed.startsWith(this.#option("busy", "typing:"))) return;
    if (!this.#arranging) queueMicrotask(() => this.#arrange(room)); // once for all changes of a frame
    this.#arranging = true;
  }

  #arrange(/** @type {Topic} */ room) {
    this.#arranging = false;
    const typing = [...room.entries.values()].filter(({ key, mine }) => key.startsWith(this.#option("busy", "typing:")) && !mine);
    const busy = new Set(typing.map(({ owner }) => owner));
    for (const [key, face] of this.#faces) face.classList.toggle("busy", busy.has(room.entries.get(key)?.owner ?? ""));
    const most = Number(this.#option("max")) || Infinity;
    this.#shown().forEach((face, at) => (face.hidden = at >= most));
    this.#list.dataset.more = this.#faces.size > most ? `+${this.#faces.size - most}` : "";
  }

  /** Whoever looks as before is not touched. @param {string} key @param {Entry} [entry] */
  #place(key, entry) {
    const person = typeof entry?.value?.name === "string" ? entry.value : null;
    const looks = person ? JSON.stringify([entry?.mine ? 0 : 1, person.name, person.color]) : ""; // and where: oneself first
    const old = this.#faces.get(key);
    if ((old?.dataset.looks ?? "") === looks) return;
    old?.remove();
    this.#faces.delete(key);
    if (!person) return;
    const made = face(person, Boolean(entry?.mine));
    made.dataset.looks = looks;
    this.#faces.set(key, made);
    this.#list.insertBefore(made, this.#shown().find(({ dataset }) => looks.localeCompare(dataset.looks ?? "") < 0) ?? null);
  }
}

if (!customElements.get("ephemeral-presence")) customElements.define("ephemeral-presence", EphemeralPresence);
