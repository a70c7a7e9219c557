// Keeps the admin's pages up to date without a reload: asks for the part that changes, and changes only what differs, so
// that selection, focus and scrolling stay. Without it the pages are plain pages.

const EVERY = 1500; // ms between two requests
const PATIENCE = 10_000; // ms without an answer after which the page says that it is old
const now = () => performance.now();
const ends = new WeakMap(); // [data-left] → when its entry expires
const began = new WeakMap(); // [data-age] → when its connection began

function text(ms) {
    const seconds = Math.max(0, ms) / 1000;
    if (seconds >= 3600) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
    return seconds >= 60 ? `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s` : `${(Math.floor(seconds * 10) / 10).toFixed(1)} s`;
}

function ago(seconds) {
    for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
    return `${Math.max(0, Math.floor(seconds))} s`;
}

// The times in it are true now, and count on from now.
function note(place) {
    const found = (selector) => [...(place.matches(selector) ? [place] : []), ...place.querySelectorAll(selector)];
    for (const each of found("[data-left]")) ends.set(each, now() + Number(each.dataset.left));
    for (const each of found("[data-age]")) began.set(each, now() - 1000 * Number(each.dataset.age));
}

function tick() {
    for (const row of document.querySelectorAll("[data-left]")) {
        const left = Math.max(0, (ends.get(row) ?? now()) - now());
        const bar = row.querySelector("progress"), label = row.querySelector(".ephemeral-left");
        if (bar) {
            if (left > bar.max) bar.max = left;
            bar.value = left;
        }
        if (label) label.textContent = text(left);
    }
    for (const cell of document.querySelectorAll("[data-age]")) {
        const age = ago((now() - began.get(cell)) / 1000);
        if (cell.textContent !== age) cell.textContent = age;
    }
}

// Make `old` like `fresh`. Elements that stay keep their focus, what was typed into them, and whether they are open.
function morph(old, fresh) {
    if (old.nodeName !== fresh.nodeName || old.id !== fresh.id) {
        old.replaceWith(fresh);
        return;
    }
    if (!(old instanceof Element)) {
        if (old.data !== fresh.data) old.data = fresh.data;
        return;
    }
    for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
    const counts = old.hasAttribute("data-ticks") && fresh.hasAttribute("data-ticks"); // by itself
    for (const { name, value } of fresh.attributes) {
        if (old.getAttribute(name) !== value && !(counts && old instanceof HTMLProgressElement)) old.setAttribute(name, value);
    }
    if (!counts) morphChildren(old, fresh);
}

function morphChildren(old, fresh) {
    const wanted = [...fresh.childNodes]; // some of them move into `old`
    for (const [index, child] of wanted.entries()) {
        if (index < old.childNodes.length) morph(old.childNodes[index], child);
        else old.append(child);
    }
    while (old.childNodes.length > wanted.length) old.lastChild.remove();
}

function update(place, html) {
    const template = document.createElement("template");
    template.innerHTML = html;
    const fresh = template.content.querySelector("#result_list tbody"), body = place.querySelector("#result_list tbody");
    if (fresh && body) orderRows(body, fresh);
    morphChildren(place, template.content);
    note(place);
    tick();
    count();
}

// A row that stays keeps its element, wherever it stands then.
function orderRows(body, fresh) {
    const known = new Map([...body.rows].map((row) => [row.dataset.id, row]));
    const rows = [...fresh.rows].map((row) => known.get(row.dataset.id) ?? row.cloneNode(true));
    const stay = new Set(rows);
    for (const row of [...body.rows]) if (!stay.has(row)) row.remove();
    for (const [index, row] of rows.entries()) if (body.rows[index] !== row) body.insertBefore(row, body.rows[index] ?? null);
    for (const child of [...body.childNodes]) if (child.nodeType === Node.TEXT_NODE) child.remove();
    for (const child of [...fresh.childNodes]) if (child.nodeType === Node.TEXT_NODE) child.remove();
}

// Not by Django's own script: it knows the rows that were there when the page was loaded.
function count() {
    const counter = document.querySelector(".action-counter");
    if (!counter) return;
    const boxes = [...document.querySelectorAll("input.action-select")];
    for (const box of boxes) box.closest("tr").classList.toggle("selected", box.checked);
    const selected = boxes.filter((box) => box.checked).length;
    const words = `${selected} of ${boxes.length} selected`;
    if (counter.textContent !== words) counter.textContent = words;
    const all = document.querySelector("#action-toggle");
    if (all) all.checked = boxes.length > 0 && selected === boxes.length;
}

document.addEventListener("change", (event) => {
    if (event.target.id === "action-toggle") {
        for (const box of document.querySelectorAll("input.action-select")) box.checked = event.target.checked;
    }
    if (event.target.matches("#action-toggle, .action-select")) count();
});

// An empty reason: what is shown is true.
function say(place, reason) {
    place.classList.toggle("ephemeral-stale", reason !== "");
    const status = document.querySelector(".ephemeral-status"), words = reason && `Not up to date: ${reason}.`;
    if (status.textContent !== words) status.textContent = words;
}

async function follow(place) {
    let mark = "";
    for (;;) {
        await new Promise((resolve) => setTimeout(resolve, EVERY));
        if (document.hidden) continue;
        try {
            const headers = mark ? { "If-None-Match": mark } : {};
            const answer = await fetch(place.dataset.live, { headers, cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
            if (answer.redirected || answer.status === 403) return say(place, "you are logged out, or may not look any more");
            if (answer.status === 410) return say(place, "there is no such page any more");
            if (answer.ok) {
                update(place, await answer.text());
                mark = answer.headers.get("ETag") ?? "";
            }
            if (answer.ok || answer.status === 304) say(place, "");
            else say(place, answer.status === 503 ? await answer.text() : `the server answers with an error, ${answer.status}`);
        } catch {
            say(place, "the server does not answer");
        }
    }
}

note(document.documentElement);
count();
const live = document.querySelector("[data-live]");
if (live) follow(live);
setInterval(tick, 200);
