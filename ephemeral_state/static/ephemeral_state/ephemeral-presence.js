/**
 * Who is here: `<ephemeral-presence url="/ws/state/" topic="room:1" name="Zoé"></ephemeral-presence>`.
 * Shows the entries whose keys begin with `prefix` ("here:") and whose values have a `name` and perhaps a `color` (a hue).
 * `name` announces oneself, as `key`. Owners of keys that begin with `busy` ("typing:") are marked. `max`: faces shown.
 * A page that has a topic of its own sets the property `room` instead of `url` and `topic`.
 * @module
 */

/** @typedef {import("./ephemeral-state.js").Entry} Entry @typedef {import("./ephemeral-state.js").Topic} Topic */

const style = new CSSStyleSheet(); // made by script, since a strict Content-Security-Policy forbids other inline ones
style.replaceSync(`
  :host { display: block; container-type: inline-size; font-size: 0.875rem }
  ul { display: flex; gap: 0.45em; align-items: center; margin: 0; padding: 4px; list-style: none; transition: 0.4s }
  :host([stale]) ul { filter: grayscale(1); opacity: 0.45 }
  li { border-radius: 9em; background: var(--presence-chip, #8882) }
  .chip { display: flex; gap: 0.55em; align-items: center; max-width: 14em; padding: 0.2em 0.9em 0.2em 0.2em; animation: pop 0.35s backwards }
  .avatar { display: grid; flex: none; place-items: center; width: 2.75em; height: 2.75em; border-radius: 50%; color: #fff;
    font: 700 0.83em/1 system-ui; background: linear-gradient(145deg, oklch(0.55 0.17 var(--hue)), oklch(0.46 0.18 var(--hue))) }
  .name { overflow: hidden; font-weight: 550; text-overflow: ellipsis; white-space: nowrap }
  .you, .more { padding: 0.1em 0.6em; border-radius: 9em; background: var(--presence-you, #8883); font-size: 0.8em }
  .busy .avatar { animation: ring 1.2s infinite }
  @container (max-width: 30rem) { .chip { flex: none; padding: 0.2em } .chip:has(.you) { padding-right: 0.6em }
    .name { position: absolute; width: 1px; height: 1px; clip-path: inset(50%) } }
  @keyframes pop { from { opacity: 0; transform: scale(0.6) } }
  @keyframes ring { from { box-shadow: 0 0 0 0 oklch(0.6 0.17 var(--hue)) } to { box-shadow: 0 0 0 7px transparent } }
  @media (prefers-reduced-motion: reduce) { * { animation: none !important; transition: none !important } }`);

/** @type {Map<string, Promise<import("./ephemeral-state.js").EphemeralState>>} one connection per address */
const states = new Map();
const connect = async (/** @type {string} */ url) => new (await import("./ephemeral-state.js")).EphemeralState(url);

export class EphemeralPresence extends HTMLElement {
  #list = this.attachShadow({ mode: "open" }).appendChild(make("ul"));
  /** @type {Topic | null} */ #room = null;
  #stop = () => {};
  #option = (/** @type {string} */ name, otherwise = "") => this.getAttribute(name) ?? otherwise;

  async connectedCallback() {
    this.#list.setAttribute("role", "list"); // Safari forgets it where there are no bullets
    /** @type {ShadowRoot} */ (this.shadowRoot).adoptedStyleSheets = [style];
    const [url, topic, name] = [this.#option("url"), this.#option("topic"), this.#option("name")];
    if (this.#room || !url || !topic) return (this.room = this.#room);
    const state = states.get(url) ?? connect(url);
    const room = (await (states.set(url, state), state)).topic(topic);
    if (!this.isConnected || this.#room) return;
    const key = this.#option("key") || this.#option("prefix", "here:") + crypto.getRandomValues(new Uint32Array(4)).join("-");
    if (name) room.set(key, { name });
    this.room = room;
    const stop = this.#stop;
    this.#stop = () => (stop(), (this.#room = null), room.clear(key));
  }

  disconnectedCallback() { this.#stop(); }

  set room(/** @type {Topic | null} */ room) {
    this.#stop();
    this.#room = room;
    if (!room || !this.isConnected) return;
    let frame = 0;
    const draw = () => (frame ||= requestAnimationFrame(() => ((frame = 0), this.#draw(room))));
    const stop = room.subscribe(draw);
    room.state.addEventListener("status", draw);
    this.#stop = () => (stop(), room.state.removeEventListener("status", draw), cancelAnimationFrame(frame));
    this.#draw(room);
  }

  /** @param {Topic} room */
  #draw(room) {
    const all = [...room.entries.values()];
    const [prefix, busy] = [this.#option("prefix", "here:"), this.#option("busy", "typing:")];
    const typing = all.filter(({ key }) => key.startsWith(busy)).map(({ owner }) => owner);
    const here = all.filter(({ key, value }) => key.startsWith(prefix) && typeof value?.name === "string");
    here.sort((a, b) => Number(b.mine) - Number(a.mine) || a.value.name.localeCompare(b.value.name));
    const more = here.splice(Number(this.#option("max")) || Infinity).length;
    const chips = here.map((entry) => this.#chip(entry, !entry.mine && typing.includes(entry.owner)));
    if (more) chips.push(make("li", "more", `+${more}`));
    for (const chip of [...this.#list.children]) if (!chips.includes(chip)) chip.remove();
    // Whoever stays is not touched: a chip that is put in again pops up again.
    chips.forEach((chip, at) => chip === this.#list.children[at] || this.#list.insertBefore(chip, this.#list.children[at] ?? null));
    this.toggleAttribute("stale", room.stale);
  }

  /** @param {Entry} entry @param {boolean} busy @returns {Element} */
  #chip({ key, value: { name, color }, mine }, busy) {
    const looks = JSON.stringify([key, name, color, mine]); // who looks as before keeps the element
    let chip = /** @type {HTMLElement[]} */ ([...this.#list.children]).find(({ dataset }) => dataset.looks === looks);
    if (!chip) {
      const hue = Number.isFinite(color) ? color : [...name].reduce((sum, letter) => (sum * 31 + letter.charCodeAt(0)) % 360, 7);
      chip = make("li", "", make("span", "avatar", letters(name)), make("bdi", "name", name), mine ? make("span", "you", "you") : "");
      chip.firstElementChild?.setAttribute("aria-hidden", "true");
      chip.dataset.looks = looks;
      chip.style.setProperty("--hue", String(hue));
    }
    return Object.assign(chip, { title: name, className: busy ? "chip busy" : "chip" });
  }
}

/** @param {string} tag @param {string} [className] @param {(Node | string)[]} children strings become text */
function make(tag, className = "", ...children) {
  const made = Object.assign(document.createElement(tag), { className });
  return made.append(...children), made;
}

/** @param {string} name */
function letters(name) {
  const words = name.split(/[\s_-]+/u).filter(Boolean);
  const letter = (/** @type {string} */ word) => [...new Intl.Segmenter().segment(word)][0].segment;
  return words.filter((_, at) => at === 0 || at === words.length - 1).map(letter).join("").toUpperCase();
}

if (!customElements.get("ephemeral-presence")) customElements.define("ephemeral-presence", EphemeralPresence);
