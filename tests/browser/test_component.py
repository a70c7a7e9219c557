"""`<ephemeral-presence>` in a page that has nothing else of ours."""

from __future__ import annotations

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
