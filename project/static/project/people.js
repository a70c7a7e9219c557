// Who somebody is: this window's own name and colour, and how anyone's is drawn. Text from others is only ever
// put into the page as text.

const ADJECTIVES = ["Bright", "Calm", "Clever", "Curious", "Gentle", "Lucky", "Merry", "Quiet", "Swift", "Witty"];
const ANIMALS = ["Badger", "Dolphin", "Falcon", "Fox", "Heron", "Lynx", "Otter", "Owl", "Panda", "Wren"];
export const COLORS = [262, 312, 350, 25, 60, 145, 190, 230];

const pick = (list) => list[Math.floor(Math.random() * list.length)];

/** This window's identity. Kept per window, so that two windows are two people. */
export const me = {
  name: sessionStorage.getItem("name") || `${pick(ADJECTIVES)} ${pick(ANIMALS)}`,
  color: Number(sessionStorage.getItem("color") ?? pick(COLORS)),
  secret: sessionStorage.getItem("secret") || newSecret(),

  save() {
    for (const field of ["name", "color", "secret"]) sessionStorage.setItem(field, this[field]);
  },
};
me.save();

// Not randomUUID: over plain http it is there on localhost only.
function newSecret() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** `<tag class="…">children</tag>`; strings become text. */
export function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

/** A name among other text: isolated, so that right-to-left names do not turn their surroundings around. */
export function named(name, className = "") {
  return element("bdi", className, name);
}

export function tint(target, color) {
  target.style.setProperty("--hue", color);
}

export function avatar({ name, color }) {
  const made = element("span", "avatar", initials(name));
  made.setAttribute("aria-hidden", "true");
  tint(made, color);
  return made;
}

const graphemes = "Segmenter" in Intl ? new Intl.Segmenter() : null;

function initials(name) {
  const words = name.split(/[\s_-]+/u).filter(Boolean);
  const wanted = words.length > 1 ? [words[0], words.at(-1)] : [name];
  return wanted.map(first).join("").toLocaleUpperCase();
}

function first(word) {
  return graphemes ? graphemes.segment(word)[Symbol.iterator]().next().value.segment : [...word][0];
}
