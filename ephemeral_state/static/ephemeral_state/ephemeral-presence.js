/**
 * Who is here: `<ephemeral-presence url="/ws/state/" topic="room:1" name="Zoé"></ephemeral-presence>`.
 * Shows the entries whose keys begin with `prefix` and whose values have a `name`, and perhaps a `color` (a hue). Owners of
 * keys that begin with `busy` are marked. `name` announces oneself, as `key`. `max`: faces shown.
 * A page that has a topic of its own sets the property `room` instead of `url` and `topic`. All may change at any time.
 * @module
 */

import { face, style } from "./ephemeral-face.js";
import { EphemeralState } from "./ephemeral-state.js";

/** @typedef {import("./ephemeral-state.js").Entry} Entry @typedef {import("./ephemeral-state.js").Topic} Topic */

/** @type {Map<string, EphemeralState>} one connection per address */
const states = new Map();

export class EphemeralPresence extends HTMLElement {
  static observedAttributes = ["url", "topic", "name", "key", "prefix", "busy", "max"];
  #list = this.attachShadow({ mode: "open" }).appendChild(document.createElement("ul"));
  /** @type {Map<string, HTMLElement>} by key */ #faces = new Map();
  /** @type {Topic | null} */ #room = null;
  /** @type {Topic | null} */ #followed = null;
  #stop = () => {};
  #place = ""; // the url and the topic that are followed, where the attributes say so
  #said = ""; // the key and the name that are announced there
  #id = crypto.getRandomValues(new Uint32Array(4)).join("-");
  #changing = false;
  #arranging = false;
  #shown = () => /** @type {HTMLElement[]} */ ([...this.#list.children]);
  #option = (/** @type {string} */ name, otherwise = "") => this.getAttribute(name) ?? otherwise;

  connectedCallback() {
    const given = Object.getOwnPropertyDescriptor(this, "room")?.value; // set before this module was there
    if (given && delete (/** @type {any} */ (this).room)) this.room = given;
    /** @type {ShadowRoot} */ (this.shadowRoot).adoptedStyleSheets = [style];
    this.#list.role = "list"; // Safari forgets it where there are no bullets
    this.#update();
  }

  disconnectedCallback() { this.#follow(null); }

  attributeChangedCallback() {
    // Once for all that change together, as a framework sets one attribute after another.
    if (!this.#changing) queueMicrotask(() => this.#update());
    this.#changing = true;
  }

  set room(/** @type {Topic | null} */ room) {
    this.#room = room ?? null;
    this.#update();
  }

  /** Do what the attributes say now. */
  #update() {
    this.#changing = false;
    if (!this.isConnected) return;
    const [url, topic] = [this.#option("url"), this.#option("topic")];
    const place = !this.#room && url && topic ? JSON.stringify([url, topic]) : "";
    if (!place && this.#followed !== this.#room) return this.#follow(this.#room);
    if (place !== this.#place) {
      const state = states.get(url) ?? new EphemeralState(url);
      states.set(url, state);
      const room = state.topic(topic);
      const letGo = room.use();
      this.#follow(room, () => (this.#announce(true), letGo()));
      this.#place = place;
    }
    if (place) this.#announce();
    this.#redraw();
  }

  /** Say who one is, under the key that it is now. @param {boolean} [leaves] */
  #announce(leaves = false) {
    const [name, key] = [this.#option("name"), this.#option("key") || this.#option("prefix", "here:") + this.#id];
    const said = name && !leaves ? JSON.stringify([key, name]) : "";
    if (said === this.#said) return;
    const [before] = this.#said ? JSON.parse(this.#said) : [];
    this.#said = said;
    if (before && (!said || before !== key)) this.#followed?.clear(before);
    if (said) this.#followed?.set(key, { name });
  }

  /** @param {Topic | null} room @param {() => void} [left] */
  #follow(room, left) {
    this.#stop();
    this.#stop = () => {};
    this.#place = "";
    this.#followed = room;
    this.#arranging = false;
    this.#faces.clear();
    this.#list.replaceChildren();
    if (!room) return;
    const looks = () => this.toggleAttribute("stale", room.stale);
    const unsubscribe = room.subscribe(({ key }) => (looks(), this.#changed(room, key)));
    room.addEventListener("status", looks);
    this.#stop = () => (unsubscribe(), room.removeEventListener("status", looks), left?.());
    looks();
    for (const key of room.entries.keys()) this.#changed(room, key);
  }

  /** Another `prefix`, `busy` or `max` may show other faces. */
  #redraw() {
    const room = this.#followed;
    for (const key of this.#faces.keys()) if (!key.startsWith(this.#option("prefix", "here:"))) this.#show(key);
    for (const key of room?.entries.keys() ?? []) if (room) this.#changed(room, key);
    if (room) this.#arrange(room);
  }

  /** @param {Topic} room @param {string} changed */
  #changed(room, changed) {
    if (changed.startsWith(this.#option("prefix", "here:"))) this.#show(changed, room.entries.get(changed));
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
  #show(key, entry) {
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
