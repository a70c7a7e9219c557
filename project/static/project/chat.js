// A room: messages, and around them who is here, who is typing, and where everybody points.

import "../ephemeral_state/ephemeral-presence.js";
import { EphemeralState } from "../ephemeral_state/ephemeral-state.js";
import { Cursors } from "./cursors.js";
import { COLORS, avatar, element, me, named, tint } from "./people.js";

const $ = (id) => document.getElementById(id);
const room = $("room");
const own = { author: null };

// One socket for both: the chat's own frames, and the topic with what is ephemeral

const state = new EphemeralState(room.dataset.socket);
const topic = state.topic(room.dataset.topic, { maxRate: 30 });
$("people").room = topic;
Object.assign(window, { state, topic }); // to be looked at, and played with, in the browser's console

state.onstatus = ({ detail: status }) => {
  room.dataset.state = status;
  $("status-text").textContent = { connecting: "Connecting", live: "Live", stale: "Reconnecting", offline: "Offline" }[status];
  $("send").disabled = status !== "live";
  drawTyping();
};

state.onerror = ({ detail: { code, message } }) => code !== "unreachable" && notice(message);

state.onmessage = ({ detail: frame }) => {
  if (frame?.type === "history") {
    hello(); // before anything of one's own is set: the server says under which keys that may be
    log.setAttribute("aria-busy", "true");
    for (const message of frame.messages) drawMessage(message);
    log.setAttribute("aria-busy", "false");
    drawEmpty();
  } else if (frame?.type === "message") {
    drawMessage(frame.message);
    drawEmpty();
  } else if (frame?.type === "you") {
    own.author = frame.author;
    for (const line of log.querySelectorAll("[data-author]")) line.classList.toggle("mine", isMine(line.dataset));
  } else if (frame?.type === "error") {
    notice(frame.message);
  }
};

function hello() {
  state.send({ type: "hello", name: me.name, color: me.color, secret: me.secret });
}

topic.subscribe(({ key, entry, before }) => {
  const [kind] = key.split(":");
  const { owner } = entry ?? before;
  if (kind === "here") {
    drawCount();
    for (const other of topic.entries.values()) if (other.owner === owner) drawCursor(other); // it may have come before the name
    if (entry && !before) arrived(entry);
    if (!entry) left(before);
  }
  if (kind === "cursor") drawCursor(entry ?? before);
  if (kind === "here" || kind === "typing") drawTyping();
});

/** What is set of one kind. */
function all(kind) {
  return [...topic.entries.values()].filter(({ key }) => key.startsWith(`${kind}:`));
}

/** Who an owner is; the server has checked it. */
function person(owner) {
  return topic.entries.get(`here:${owner}`)?.value;
}

// Who is here

function drawCount() {
  const here = all("here");
  const [first] = here;
  $("count").textContent =
    here.length === 1 ? (first.mine ? "Only you are here" : "1 person here") : `${here.length} people here`;
  $("alone").hidden = here.length !== 1;
}

// Joining and leaving is said once, and not at all for somebody who is back in a moment, as all are after a restart.

const GRACE = 2500;
const known = new Set();

function isHere(author) {
  return all("here").some(({ value }) => value.author === author);
}

function arrived({ mine, value: { author, name } }) {
  const news = !known.has(author);
  known.add(author);
  // A snapshot comes before the status says that it is live: who is there on entering has not just joined.
  if (news && !mine && state.status === "live") drawLine(name, "joined");
}

function left(entry) {
  const { author, name } = entry.value;
  setTimeout(() => {
    if (state.status !== "live") return left(entry);
    if (!isHere(author) && known.delete(author)) drawLine(name, "left");
  }, GRACE);
}

function drawLine(name, what) {
  append(element("p", "line", named(name), ` ${what}`));
}

// Messages

const log = $("log");
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const calendar = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
const TOGETHER = 3 * 60_000;
let following = true; // the end of the log is in view, and stays there

function isMine({ author }) {
  return author === own.author;
}

function drawMessage({ id, author, name, color, text, sent_at: sentAt }) {
  if (document.getElementById(`message-${id}`)) return;
  const sent = new Date(sentAt);
  const line = element("article", "message");
  line.id = `message-${id}`;
  Object.assign(line.dataset, { author, id, sent: sent.getTime() });
  line.classList.toggle("mine", isMine(line.dataset));
  tint(line, color);
  const time = element("time", "", (sent.toDateString() === new Date().toDateString() ? clock : calendar).format(sent));
  time.dateTime = sentAt;
  const bubble = element("p", "bubble", text);
  bubble.dir = "auto";
  line.append(avatar({ name, color }), element("header", "byline", named(name, "author"), time), bubble);
  // What another process sent may come a little out of order; ids tell.
  const after = [...log.querySelectorAll(".message")].find((other) => Number(other.dataset.id) > id);
  append(line, after);
  for (const one of [line, after]) if (one) group(one);
}

function group(line) {
  const previous = line.previousElementSibling;
  const same = previous?.dataset.author === line.dataset.author && line.dataset.sent - previous.dataset.sent < TOGETHER;
  line.classList.toggle("again", same);
}

function append(line, before = null) {
  if (line.classList.contains("mine")) following = true;
  log.insertBefore(line, before);
  if (following) log.scrollTop = log.scrollHeight;
  else $("newer").hidden = false;
}

function drawEmpty() {
  $("empty").hidden = Boolean(log.querySelector(".message"));
}

log.addEventListener("scroll", () => {
  following = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  if (following) $("newer").hidden = true;
});
// A keyboard that slides in, or a line more to write in, must not hide the end of what is followed.
new ResizeObserver(() => following && (log.scrollTop = log.scrollHeight)).observe(log);
$("newer").addEventListener("click", () => log.scrollTo({ top: log.scrollHeight, behavior: "smooth" }));

// Typing. It is forgotten after 5 s, so it is said again every 2 s of typing, and never by a timer.

const AGAIN = 2000;
let saidTyping = -Infinity; // as performance.now() counts: the wall clock may be set back
const text = $("text");

text.addEventListener("input", () => {
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight}px`;
  if (!text.value.trim()) return stopTyping();
  if (!own.author || performance.now() - saidTyping < AGAIN) return;
  saidTyping = performance.now();
  topic.set(`typing:${own.author}`, undefined, { ttl: 5 });
});
text.addEventListener("blur", stopTyping);
text.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer").requestSubmit();
});

function stopTyping() {
  if (saidTyping > -Infinity) topic.clear(`typing:${own.author}`);
  saidTyping = -Infinity;
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!text.value.trim() || state.status !== "live" || !state.send({ type: "message", text: text.value })) return;
  stopTyping();
  text.value = "";
  text.style.height = "auto";
  text.focus();
});

function drawTyping() {
  const typists = all("typing").filter(({ mine }) => !mine);
  const names = typists.map(({ owner }) => person(owner)?.name).filter(Boolean);
  const said = new DocumentFragment();
  if (names.length === 1) said.append(named(names[0]), " is typing");
  if (names.length === 2) said.append(named(names[0]), " and ", named(names[1]), " are typing");
  if (names.length > 2) said.append(`${names.length} people are typing`);
  // Put there anew, it would be read out anew.
  if ($("typing-text").textContent !== said.textContent) $("typing-text").replaceChildren(said);
  $("typing").classList.toggle("on", names.length > 0);
}

// Cursors

const stage = $("stage");
const cursors = new Cursors(stage, $("cursors"), $("cursor-shape"));

function drawCursor({ key, owner }) {
  if (!key.startsWith("cursor:")) return;
  const entry = topic.entries.get(key);
  cursors.show(key, entry?.mine ? null : entry?.value, person(entry?.owner ?? owner));
}

stage.addEventListener("pointermove", (event) => {
  if (!own.author) return;
  const box = stage.getBoundingClientRect();
  const part = (value) => Math.round(Math.min(1, Math.max(0, value)) * 10_000) / 10_000;
  const at = { x: part((event.clientX - box.left) / box.width), y: part((event.clientY - box.top) / box.height) };
  topic.set(`cursor:${own.author}`, at, { throttle: 50 });
});
for (const gone of ["pointerleave", "pointercancel"])
  stage.addEventListener(gone, () => own.author && topic.clear(`cursor:${own.author}`));

// A connection that ends, for all to see

const AWAY = 4; // seconds

const kill = $("kill");

kill.addEventListener("click", () => {
  if (kill.ariaDisabled === "true") return;
  kill.ariaDisabled = "true"; // and not `disabled`, which would take the focus away
  state.close();
  count(AWAY);
});

function count(seconds) {
  $("killed").hidden = seconds === 0;
  $("countdown").textContent = `${seconds} s.`;
  if (seconds > 0) return setTimeout(count, 1000, seconds - 1);
  kill.ariaDisabled = "false";
  state.connect();
}

// One's own name and colour

const profile = $("profile");

for (const color of COLORS) {
  const choice = element("input");
  Object.assign(choice, { type: "radio", name: "color", value: color });
  choice.setAttribute("aria-label", `Colour ${COLORS.indexOf(color) + 1}`);
  tint(choice, color);
  $("colors").append(choice);
}

$("edit").addEventListener("click", () => {
  $("name").value = me.name;
  for (const choice of $("colors").children) choice.checked = Number(choice.value) === me.color;
  profile.showModal();
  $("name").select();
});
$("cancel").addEventListener("click", () => profile.close());

$("profile-form").addEventListener("submit", () => {
  me.name = $("name").value.trim().replace(/\s+/gu, " ") || me.name;
  me.color = Number(new FormData($("profile-form")).get("color") ?? me.color);
  me.save();
  hello();
});

// The link to the room, and what went wrong

const copy = $("copy");
copy.hidden = !navigator.clipboard; // over plain http it is there on localhost only
copy.addEventListener("click", async () => {
  await navigator.clipboard.writeText(location.href);
  copy.textContent = "Link copied";
});

function notice(message) {
  $("notice").textContent = message;
  clearTimeout(notice.timer);
  notice.timer = setTimeout(() => ($("notice").textContent = ""), 5000);
}

text.focus();
