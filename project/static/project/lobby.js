// The list of rooms, with who is in each right now: the package's ready-made consumer, read only.

import { EphemeralState } from "../ephemeral_state/ephemeral-state.js";
import { avatar, element, me, named } from "./people.js";

const SHOWN = 5;
const list = document.getElementById("rooms");

const state = new EphemeralState(list.dataset.socket);
const topic = state.topic(list.dataset.topic);
state.onstatus = ({ detail }) => (list.dataset.state = detail);
topic.subscribe(({ entry, before }) => {
  for (const slug of new Set([entry?.value.slug, before?.value.slug])) if (slug) draw(slug, entry?.value.room);
});

function draw(slug, name) {
  const card = find(slug) ?? add(slug, name);
  if (!card) return;
  const people = [...topic.entries.values()].map(({ value }) => value).filter((value) => value.slug === slug);
  const faces = people.slice(0, SHOWN).map(avatar);
  if (people.length > SHOWN) faces.push(element("span", "avatar more", `+${people.length - SHOWN}`));
  card.querySelector(".faces").replaceChildren(...faces);
  card.querySelector(".present").textContent = people.length ? `${people.length} here` : "";
}

function find(slug) {
  return [...list.children].find((card) => card.dataset.slug === slug);
}

/** A room that was made after this page was. */
function add(slug, name) {
  if (!name) return null;
  const link = element("a", "room-card", named(name, "room-name"), element("span", "meta", "New"));
  link.href = `/room/${encodeURIComponent(slug)}/`;
  link.append(element("span", "faces"), element("span", "present"));
  const card = element("li", "", link);
  card.dataset.slug = slug;
  list.prepend(card);
  document.getElementById("empty")?.remove();
  return card;
}

const name = document.getElementById("name");
name.value = sessionStorage.getItem("named") ?? "";
name.placeholder = me.name;

/** Kept on the way out, by whichever door. */
function keep() {
  const chosen = name.value.trim().replace(/\s+/gu, " ");
  if (!chosen) return;
  me.name = chosen;
  me.save();
  sessionStorage.setItem("named", chosen);
}
document.getElementById("open").addEventListener("submit", keep);
list.addEventListener("click", keep);
