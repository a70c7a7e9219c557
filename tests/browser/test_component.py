"""`<ephemeral-presence>` in a page that has nothing else of ours."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Page, expect

from .process import DemoProcess
from .windows import Window, chromium

pytestmark = pytest.mark.browser

PAGE = """async (topic) => {
    const { EphemeralState } = await import("/static/ephemeral_state/ephemeral-state.js");
    await import("/static/ephemeral_state/ephemeral-presence.js");
    window.EphemeralState = EphemeralState;
    window.connected = (name, key = `here:${name}`) => {
        const state = new EphemeralState("/ws/state/");
        const room = state.topic(topic);
        room.set(key, { name });
        return { state, room };
    };
    window.show = (fields) => {
        const made = document.createElement("ephemeral-presence");
        for (const [name, value] of Object.entries(fields)) made.setAttribute(name, value);
        document.body.prepend(made);
        return made;
    };
    window.faces = () => [...document.querySelector("ephemeral-presence").shadowRoot.querySelectorAll("li")];
}"""


@pytest.fixture
def topic() -> str:
    return f"demo:{uuid.uuid4()}"


@pytest.fixture
async def page(demo: DemoProcess, topic: str) -> AsyncIterator[Page]:
    async with chromium() as browser:
        window = Window(await browser.new_page(), "")
        await window.page.goto(demo.url)
        await window.page.evaluate(PAGE, topic)
        yield window.page
        assert window.errors == []


async def test_whoever_stays_is_not_touched_by_those_who_come_and_go(page: Page, topic: str) -> None:
    names = page.locator(".face .name")
    await page.evaluate("(topic) => show({ url: '/ws/state/', topic, name: 'Me' })", topic)
    await page.evaluate("window.bob = connected('Bob')")
    await expect(names).to_have_text(["Me", "Bob"])
    await page.evaluate("for (const one of faces()) one.known = true")
    await page.evaluate("window.ann = connected('Ann')")
    await expect(names).to_have_text(["Me", "Ann", "Bob"])
    assert await page.evaluate("faces().map(({ known }) => Boolean(known))") == [True, False, True]
    await page.evaluate("bob.room.set('typing:Bob', true)")
    await expect(page.locator(".face.busy .name")).to_have_text(["Bob"])
    await page.evaluate("ann.room.set('here:Ann', { name: 'Zoé', color: 60 })")
    await expect(names).to_have_text(["Me", "Bob", "Zoé"])
    assert await page.evaluate("faces().map(({ known }) => Boolean(known))") == [True, True, False]
    assert await page.evaluate("faces()[2].style.getPropertyValue('--hue')") == "60"
    await page.evaluate("bob.room.set('here:Bob', { name: 'Bob', color: { toString: 1 } })")  # what is no colour
    await expect(page.locator(".face.busy .name")).to_have_text(["Bob"])
    await page.evaluate("bob.room.clear('typing:Bob')")
    await expect(page.locator(".face.busy")).to_have_count(0)
    await page.evaluate("bob.room.set('here:Bob', 'no name')")
    await expect(names).to_have_text(["Me", "Zoé"])
    await page.evaluate("ann.state.close()")
    await expect(names).to_have_text(["Me"])
    assert await page.evaluate("faces().map(({ known }) => Boolean(known))") == [True]


async def test_only_so_many_faces_are_shown_and_the_rest_is_a_number(page: Page, topic: str) -> None:
    more = "getComputedStyle(faces()[0].parentElement, '::after').content"
    await page.evaluate("(topic) => show({ url: '/ws/state/', topic, max: 2 })", topic)
    await page.evaluate("window.people = ['C', 'A', 'D', 'B'].map((name) => connected(name))")
    await expect(page.locator(".face")).to_have_count(4)
    await expect(page.locator(".face:visible .name")).to_have_text(["A", "B"])
    assert await page.evaluate(more) == '"+2"'
    await page.evaluate("people[1].state.close()")
    await expect(page.locator(".face:visible .name")).to_have_text(["B", "C"])
    assert await page.evaluate(more) == '"+1"'
    await page.evaluate("people[0].state.close()")
    await expect(page.locator(".face:visible .name")).to_have_text(["B", "D"])
    assert await page.evaluate(more) == "none"


async def test_it_is_put_elsewhere_taken_away_and_given_another_room(page: Page, topic: str) -> None:
    names = page.locator(".face .name")
    await page.evaluate("window.ann = connected('Ann')")
    await page.evaluate("window.shown = show({}); shown.room = ann.room; undefined")
    await expect(names).to_have_text(["Ann"])
    await expect(page.locator(".face .you")).to_have_count(1)
    await page.evaluate("document.querySelector('main').append(shown)")
    await expect(names).to_have_text(["Ann"])
    await page.evaluate("shown.remove()")
    await page.evaluate("window.bob = connected('Bob')")
    await page.evaluate("document.body.append(shown)")
    await expect(names).to_have_text(["Ann", "Bob"])
    await page.evaluate("shown.room = null")
    await expect(names).to_have_count(0)
    await page.evaluate("shown.room = bob.room; undefined")
    await expect(names).to_have_text(["Bob", "Ann"])
    # Announced by its attributes, one is there as long as the element is.
    await page.evaluate("(topic) => { window.own = show({ url: '/ws/state/', topic, name: 'Own' }); }", topic)
    await expect(page.locator("main ~ ephemeral-presence .name")).to_have_text(["Bob", "Ann", "Own"])
    await page.evaluate("own.remove()")
    await expect(names).to_have_text(["Bob", "Ann"])


async def people(page: Page, expected: list[list[str | None]]) -> None:
    """Wait until these are the names in the two topics."""
    for _ in range(1000):
        if (there := await page.evaluate("people()")) == expected:
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"{there} are in the topics, not {expected}")


async def test_a_changed_attribute_moves_the_person_and_the_element(page: Page, topic: str) -> None:
    other = f"demo:{uuid.uuid4()}"
    names = page.locator(".face .name")
    await page.evaluate(
        """(topics) => {
            window.heard = [];
            const state = new EphemeralState("/ws/state/");
            for (const [at, name] of topics.entries()) {
                const room = state.topic(name);
                room.subscribe(({ type, entry, before }) => heard.push([at, type, (entry ?? before).value.name]));
            }
            const names = ({ entries }) => [...entries.values()].map(({ value }) => value.name ?? null).sort();
            window.people = () => topics.map((name) => names(state.topic(name)));
            return new Promise((live) => (state.onstatus = ({ detail }) => detail === "live" && live()));
        }""",
        [topic, other],
    )
    await page.evaluate("(topic) => { window.shown = show({ url: '/ws/state/', topic, name: 'Zoé' }); }", topic)
    await expect(names).to_have_text(["Zoé"])
    await people(page, [["Zoé"], []])

    await page.evaluate("shown.setAttribute('name', 'Zoé B')")
    await people(page, [["Zoé B"], []])
    await expect(names).to_have_text(["Zoé B"])
    # The same key with another value: others hear of no departure.
    assert await page.evaluate("heard") == [[0, "set", "Zoé"], [0, "set", "Zoé B"]]

    # Several attributes at once, as a framework sets them; then the announcement ends, and begins again.
    await page.evaluate("(other) => { shown.setAttribute('topic', other); shown.setAttribute('name', 'Zoé'); }", other)
    await people(page, [[], ["Zoé"]])
    await expect(names).to_have_text(["Zoé"])
    assert (await page.evaluate("heard"))[2:] in (
        [[0, "clear", "Zoé B"], [1, "set", "Zoé"]],
        [[1, "set", "Zoé"], [0, "clear", "Zoé B"]],
    )
    await page.evaluate("shown.removeAttribute('name')")
    await people(page, [[], []])
    await page.evaluate("shown.setAttribute('name', 'Zoé'); shown.setAttribute('key', 'here:zoe')")
    await people(page, [[], ["Zoé"]])
    await page.evaluate("shown.setAttribute('key', 'here:other')")
    await expect(names).to_have_text(["Zoé"])
    await people(page, [[], ["Zoé"]])

    # What is shown, and how much of it.
    await page.evaluate("window.bob = connected('Bob'); window.bobs = bob.state.topic(shown.getAttribute('topic'))")
    await page.evaluate(
        "bobs.set('here:Bob', { name: 'Bob' }); bobs.set('guest:Bob', { name: 'Guest' }); bobs.set('draws:Bob', true)"
    )
    await expect(names).to_have_text(["Zoé", "Bob"])
    await page.evaluate("shown.setAttribute('max', '1')")
    await expect(page.locator(".face:visible .name")).to_have_text(["Zoé"])
    await page.evaluate("shown.removeAttribute('max'); shown.setAttribute('busy', 'draws:')")
    await expect(page.locator(".face.busy .name")).to_have_text(["Bob"])
    await page.evaluate("shown.setAttribute('prefix', 'guest:')")
    await expect(names).to_have_text(["Guest"])

    # A room of the page's own takes the place of the attributes as long as it is set.
    await page.evaluate("shown.removeAttribute('prefix'); shown.room = bob.room; undefined")
    await expect(names).to_have_text(["Bob"])
    await people(page, [["Bob"], ["Bob", "Guest", None]])
    await page.evaluate("shown.room = undefined")
    await expect(names).to_have_text(["Zoé", "Bob"])
    await page.evaluate("shown.removeAttribute('topic')")
    await expect(names).to_have_count(0)


STAYS = """(topic) => {
    window.state = new EphemeralState("/ws/state/");
    state.topic(topic).set("here:b", { name: "Bob" }, { grace: 30 });
}"""


async def test_only_a_page_that_reloads_itself_leaves_its_keys_to_their_grace(page: Page, topic: str) -> None:
    await page.evaluate(
        """(topic) => {
            window.heard = [];
            new EphemeralState("/ws/state/").topic(topic).subscribe(({ type, reason }) => heard.push(reason ?? type));
        }""",
        topic,
    )

    async def heard(*expected: str) -> None:
        for _ in range(1000):
            if await page.evaluate("heard") == list(expected):
                return
            await asyncio.sleep(0.01)
        pytest.fail(f"heard {await page.evaluate('heard')}, not {expected}")

    browser = page.context.browser
    assert browser is not None
    other = await browser.new_page()
    await other.goto(page.url)
    await other.evaluate(PAGE, topic)
    await other.evaluate(STAYS, topic)
    await heard("set")
    async with other.expect_event("load"):
        await other.evaluate("setTimeout(() => location.reload())")
    await other.evaluate(PAGE, topic)
    await other.evaluate(STAYS, topic)
    await heard("set", "set")  # the new connection has taken the key over
    await other.reload()  # as by the browser's button
    await heard("set", "set", "disconnect")
    await other.evaluate(PAGE, topic)
    await other.evaluate(STAYS, topic)
    await heard("set", "set", "disconnect", "set")
    await other.evaluate("state.close()")
    await heard("set", "set", "disconnect", "set", "disconnect")
    await other.evaluate("state.connect()")
    await heard("set", "set", "disconnect", "set", "disconnect", "set")
    await other.close(run_before_unload=True)
    await heard("set", "set", "disconnect", "set", "disconnect", "set", "disconnect")
