// Keeps the admin's pages up to date without a reload: asks for the part that changes, and changes only what differs, so
// that selection, focus and scrolling stay. Without it the pages are plain lists.

const EVERY = 1500; // ms
const now = () => performance.now();
const ends = new WeakMap(); // row → when its entry expires
const began = new WeakMap(); // cell → when its connection began

function text(ms) {
    const seconds = Math.max(0, ms) / 1000;
    if (seconds >= 3600) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
    return seconds >= 60 ? `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s` : `${(Math.floor(seconds * 10) / 10).toFixed(1)} s`;
}

function ago(seconds) {
    for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
    return `${Math.max(0, Math.floor(seconds))} s`;
}

function note(row) {
    const age = row.querySelector("[data-age]");
    if (age) began.set(age, now() - 1000 * Number(age.dataset.age));
    if (row.dataset.left === undefined) ends.delete(row);
    else ends.set(row, now() + Number(row.dataset.left));
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

// Rows that stay keep their elements; cells that are the same keep theirs.
function updateRow(row, fresh) {
    for (const [index, cell] of [...fresh.cells].entries()) {
        const old = row.cells[index];
        if (!old) continue;
        if (cell.classList.contains("action-checkbox")) {
            old.firstElementChild.value = cell.firstElementChild.value; // of a new owner it has another token
        } else if (cell.classList.contains("field-time_left") && row.dataset.left !== undefined && fresh.dataset.left !== undefined) {
            // counts down by itself
        } else if (cell.dataset.age !== undefined) {
            old.dataset.age = cell.dataset.age;
        } else if (old.innerHTML !== cell.innerHTML) {
            old.innerHTML = cell.innerHTML;
            old.className = cell.className;
        }
        if (old.title !== cell.title) old.title = cell.title;
    }
    if (fresh.dataset.left === undefined) delete row.dataset.left;
    else row.dataset.left = fresh.dataset.left;
    note(row);
}

function updateRows(place, html) {
    const template = document.createElement("template");
    template.innerHTML = html;
    const fresh = template.content.querySelector("tbody"), body = place.querySelector("tbody");
    const headed = place.querySelectorAll("thead th").length === template.content.querySelectorAll("thead th").length;
    if (!fresh || !body || !headed) {
        place.replaceChildren(template.content);
        place.querySelectorAll("tr[data-id]").forEach(note);
        count();
        return;
    }
    const known = new Map([...body.rows].map((row) => [row.dataset.id, row]));
    let at = body.firstElementChild;
    for (const row of [...fresh.rows]) {
        const old = known.get(row.dataset.id);
        known.delete(row.dataset.id);
        if (old) updateRow(old, row);
        const element = old ?? row;
        if (!old) note(row);
        if (element === at) at = at.nextElementSibling;
        else body.insertBefore(element, at);
    }
    for (const gone of known.values()) gone.remove();
    const pages = place.querySelector(".paginator"), other = template.content.querySelector(".paginator");
    if (pages.innerHTML !== other.innerHTML) pages.replaceWith(other);
    count();
}

// Not by Django's own script: it knows the rows that were there when the page was loaded.
function count() {
    const counter = document.querySelector(".action-counter");
    if (!counter) return;
    const boxes = [...document.querySelectorAll("input.action-select")];
    for (const box of boxes) box.closest("tr").classList.toggle("selected", box.checked);
    const selected = boxes.filter((box) => box.checked).length;
    counter.textContent = `${selected} of ${boxes.length} selected`;
    const all = document.querySelector("#action-toggle");
    if (all) all.checked = boxes.length > 0 && selected === boxes.length;
}

document.addEventListener("change", (event) => {
    if (event.target.id === "action-toggle") {
        for (const box of document.querySelectorAll("input.action-select")) box.checked = event.target.checked;
    }
    if (event.target.matches("#action-toggle, .action-select")) count();
});

function updateOverview(place, html) {
    const open = [...place.querySelectorAll("details[open]")].map((each) => each.id);
    const template = document.createElement("template");
    template.innerHTML = html;
    for (const id of open) template.content.getElementById(id)?.setAttribute("open", "");
    for (const [index, part] of [...template.content.children].entries()) {
        const old = place.children[index];
        if (!old) place.append(part.cloneNode(true));
        else if (!old.isEqualNode(part)) old.replaceWith(part.cloneNode(true));
    }
    while (place.children.length > template.content.children.length) place.lastElementChild.remove();
}

async function follow(place, update) {
    let mark = "";
    for (;;) {
        await new Promise((resolve) => setTimeout(resolve, EVERY));
        if (document.hidden) continue;
        try {
            const answer = await fetch(place.dataset.url, { headers: mark ? { "If-None-Match": mark } : {}, cache: "no-store" });
            if (answer.redirected || answer.status === 403 || answer.status === 410) break; // logged out, or no such page
            if (answer.ok) {
                mark = answer.headers.get("ETag") ?? "";
                update(place, await answer.text());
            }
            place.classList.toggle("ephemeral-stale", !answer.ok && answer.status !== 304);
        } catch {
            place.classList.add("ephemeral-stale"); // the server does not answer: what is shown is old
        }
    }
    place.classList.add("ephemeral-stale");
}

document.querySelectorAll("tr[data-id]").forEach(note);
count();
const list = document.querySelector("#ephemeral-live[data-url]"), overview = document.querySelector("#ephemeral-overview");
if (list) follow(list, updateRows);
if (overview) follow(overview, updateOverview);
setInterval(tick, 200);
