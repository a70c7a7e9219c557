/**
 * What a person looks like in `<ephemeral-presence>`: initials in a colour, and the name.
 * @module
 */

export const style = new CSSStyleSheet(); // made by script, since a strict Content-Security-Policy forbids other inline ones
style.replaceSync(`
  :host { display: block; container-type: inline-size; font-size: 0.875rem }
  ul { display: flex; gap: 0.45em; align-items: center; margin: 0; padding: 4px; list-style: none; transition: 0.4s }
  :host([stale]) ul { filter: grayscale(1); opacity: 0.45 }
  .face, [data-more]:not([data-more=""])::after { border-radius: 9em; background: var(--presence-chip, #8882) }
  ul:not([data-more=""])::after { content: attr(data-more); padding: 0.2em 0.9em }
  .face { position: relative; display: flex; gap: 0.55em; align-items: center; max-width: 14em; padding: 0.2em 0.9em 0.2em 0.2em; animation: pop 0.35s backwards }
  .face[hidden] { display: none }
  .avatar { display: grid; flex: none; place-items: center; width: 2.75em; height: 2.75em; border-radius: 50%; color: #fff;
    font: 700 0.83em/1 system-ui; background: linear-gradient(145deg, oklch(0.55 0.17 var(--hue)), oklch(0.46 0.18 var(--hue))) }
  .name { overflow: hidden; font-weight: 550; text-overflow: ellipsis; white-space: nowrap }
  .you { padding: 0.1em 0.6em; border-radius: 9em; background: var(--presence-you, #8883); font-size: 0.8em }
  .busy .avatar { animation: ring 1.2s infinite }
  @container (max-width: 30rem) {
    .face { flex: none; padding: 0.2em }
    .face:has(.you) { padding-right: 0.6em }
    .name { position: absolute; width: 1px; height: 1px; clip-path: inset(50%) }
  }
  @keyframes pop { from { opacity: 0; transform: scale(0.6) } }
  @keyframes ring { from { box-shadow: 0 0 0 0 oklch(0.6 0.17 var(--hue)) } to { box-shadow: 0 0 0 7px transparent } }
  @media (prefers-reduced-motion: reduce) { * { animation: none !important; transition: none !important } }`);

/**
 * The item of a list. Its text is nothing but text.
 * @param {{ name: string, color?: unknown }} person `color`: a hue; without one, their name has one
 * @param {boolean} mine
 */
export function face({ name, color }, mine) {
  const avatar = make("span", "avatar", initials(name));
  avatar.ariaHidden = "true";
  const made = make("li", "face", avatar, make("bdi", "name", name), mine ? make("span", "you", "you") : "");
  made.title = name;
  const hue = [...name].reduce((sum, letter) => (sum * 31 + letter.charCodeAt(0)) % 360, 7);
  made.style.setProperty("--hue", String(Number.isFinite(color) ? color : hue));
  return made;
}

/** @param {string} tag @param {string} className @param {(Node | string)[]} children strings become text */
function make(tag, className, ...children) {
  const made = Object.assign(document.createElement(tag), { className });
  made.append(...children);
  return made;
}

/** Of the first word and the last. @param {string} name */
function initials(name) {
  const words = name.split(/[\s_-]+/u).filter(Boolean);
  const letters = words.map((word) => [...new Intl.Segmenter().segment(word)][0].segment.toUpperCase());
  return letters.filter((_, at) => at === 0 || at === letters.length - 1).join("");
}
