// A room: messages, and around them who is here, who is typing, and where everybody points.

import { LiveSocket, LiveTopic, throttled } from "./live.js";
import { COLORS, avatar, element, me, named, tint } from "./people.js";

const $ = (id) => document.getElementById(id);
const room = $("room");
const own = { clientId: null, author: null };

// The socket

const topic = new LiveTopic((key, now, before) => {
  const kind = key.slice(0, key.indexOf(":"));
  const clientId = (now ?? before).clientId;
  if (kind === "here") {
    drawPeople();
    drawCursor(clientId); // it may have come before its owner's name
    if (now) arrived(now.value);
    else left(before.value);
  }
  if (kind === "cursor") drawCursor(clientId);
  if (kind === "here" || kind === "typing") drawTyping();
});

const socket = new LiveSocket(room.dataset.socket, {
  opened: hello,
  received(frame) {
    if (frame._orama) {
      topic.receive(frame);
      if (frame._orama === "ephemeral.snapshot") settled = true;
    } else if (frame.type === "history") {
      log.setAttribute("aria-busy", "true");
      for (const message of frame.messages) drawMessage(message);
      log.setAttribute("aria-busy", "false");
      drawEmpty();
    } else if (frame.type === "message") {
      drawMessage(frame.message);
      drawEmpty();
    } else if (frame.type === "you") {
      own.clientId = frame.client_id;
      own.author = frame.author;
      for (const line of log.querySelectorAll("[data-author]")) line.classList.toggle("mine", isMine(line.dataset));
      drawPeople();
      drawTyping();
      drawCursor(own.clientId);
    } else if (frame.type === "error") {
      notice(frame.message);
    }
  },
  state(name) {
    room.dataset.state = name;
    $("status-text").textContent = { connecting: "Connecting", live: "Live", offline: "Reconnecting" }[name];
    $("send").disabled = name !== "live";
  },
});

function hello() {
  socket.send({ type: "hello", name: me.name, color: me.color, secret: me.secret });
  typing.last = 0;
}

// Who is here

function drawPeople() {
  const present = topic
    .startingWith("here:")
    .map(([, { value, clientId }]) => ({ ...value, clientId, mine: clientId === own.clientId }))
    .sort((a, b) => b.mine - a.mine || a.name.localeCompare(b.name));
  const list = $("people");
  const before = new Map([...list.children].map((chip) => [chip.dataset.client, chip]));
  const typists = new Set(topic.startingWith("typing:").map(([, { clientId }]) => clientId));
  list.replaceChildren(
    ...present.map((person) => {
      const looks = JSON.stringify(person);
      let chip = before.get(person.clientId);
      if (chip?.looks !== looks) {
        const again = Boolean(chip);
        chip = element("li", again ? "chip" : "chip fresh", avatar(person), named(person.name, "name"));
        chip.dataset.client = person.clientId;
        chip.title = person.name;
        chip.looks = looks;
        if (person.mine) chip.append(element("span", "you", "you"));
      }
      chip.classList.toggle("busy", typists.has(person.clientId));
      return chip;
    }),
  );
  const count = present.length;
  $("count").textContent = count === 1 ? (present[0].mine ? "Only you are here" : "1 person here") : `${count} people here`;
  $("alone").hidden = count !== 1;
}

// Joining and leaving is said once, and not at all for somebody who is back in a moment, as all are after a restart.

const GRACE = 2500;
const known = new Set();
let settled = false; // who is there on entering has not just joined

function isHere(author) {
  return topic.startingWith("here:").some(([, { value }]) => value.author === author);
}

function arrived({ author, name }) {
  const news = !known.has(author);
  known.add(author);
  if (news && settled && author !== own.author) drawLine(name, "joined");
}

function left({ author, name }) {
  setTimeout(() => {
    if (room.dataset.state !== "live") return left({ author, name });
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

// Typing. The server forgets it after 5 s, so it is said again every 2 s of typing, and never by a timer.

const typing = { last: 0 };
const text = $("text");

text.addEventListener("input", () => {
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight}px`;
  if (!text.value.trim()) return stopTyping();
  if (Date.now() - typing.last > 2000 && socket.send({ type: "typing", on: true })) typing.last = Date.now();
});
text.addEventListener("blur", stopTyping);
text.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer").requestSubmit();
});

function stopTyping() {
  if (typing.last) socket.send({ type: "typing", on: false });
  typing.last = 0;
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!text.value.trim() || !socket.send({ type: "message", text: text.value })) return;
  typing.last = 0; // the server ends it with the message
  text.value = "";
  text.style.height = "auto";
  text.focus();
});

function drawTyping() {
  const typists = new Set(
    topic.startingWith("typing:").map(([, { clientId }]) => clientId).filter((clientId) => clientId !== own.clientId),
  );
  for (const chip of $("people").children) chip.classList.toggle("busy", typists.has(chip.dataset.client));
  const names = [...typists].map((clientId) => topic.get(`here:${clientId}`)?.value.name).filter(Boolean);
  const line = $("typing-text");
  line.replaceChildren();
  if (names.length === 1) line.append(named(names[0]), " is typing");
  if (names.length === 2) line.append(named(names[0]), " and ", named(names[1]), " are typing");
  if (names.length > 2) line.append(`${names.length} people are typing`);
  $("typing").classList.toggle("on", names.length > 0);
}

// Cursors, in parts of the stage's width and height, so that windows of any size agree

const stage = $("stage");
const cursors = new Map();
const point = throttled(50, (at) => socket.send({ type: "cursor", ...at }));

stage.addEventListener("pointermove", (event) => {
  const box = stage.getBoundingClientRect();
  const part = (value) => Math.min(1, Math.max(0, value));
  point.push({ x: part((event.clientX - box.left) / box.width), y: part((event.clientY - box.top) / box.height) });
});
for (const gone of ["pointerleave", "pointercancel"])
  stage.addEventListener(gone, () => {
    point.cancel();
    socket.send({ type: "away" });
  });

function drawCursor(clientId) {
  const at = topic.get(`cursor:${clientId}`)?.value;
  const person = topic.get(`here:${clientId}`)?.value;
  let cursor = cursors.get(clientId);
  if (!at || !person || clientId === own.clientId) {
    cursor?.remove();
    cursors.delete(clientId);
    return;
  }
  if (!cursor) {
    cursor = $("cursor-shape").content.firstElementChild.cloneNode(true);
    cursor.append(named("", "label"));
    cursors.set(clientId, cursor);
  }
  cursor.style.setProperty("--x", at.x);
  cursor.style.setProperty("--y", at.y);
  cursor.lastChild.textContent = person.name;
  tint(cursor, person.color);
  if (!cursor.isConnected) $("cursors").append(cursor);
  cursor.classList.toggle("flipped", (1 - at.x) * stage.clientWidth < cursor.lastChild.offsetWidth + 24);
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
