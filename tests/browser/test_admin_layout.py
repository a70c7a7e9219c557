"""How the admin's pages are laid out, measured in a real browser: the same with every version of Django."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from playwright.async_api import Browser, Locator, Page, expect

from .admin import LIST, Owner, logged_in, owning
from .process import DemoProcess
from .windows import chromium

pytestmark = pytest.mark.browser


async def box(place: Locator) -> dict[str, float]:
    """Where it is on the page, with its right and its bottom."""
    at = await place.bounding_box()
    assert at is not None, f"{place} is not visible"
    return {**at, "right": at["x"] + at["width"], "bottom": at["y"] + at["height"]}


async def breadcrumbs(page: Page) -> dict[str, Any]:
    """How the breadcrumbs look, and where the first one begins."""
    trail = page.locator(".breadcrumbs")
    style: dict[str, Any] = await trail.evaluate(
        """(trail) => {
            const { backgroundColor, color } = getComputedStyle(trail);
            return { backgroundColor, color, link: getComputedStyle(trail.querySelector("a")).color };
        }"""
    )
    at = await box(trail)
    first = await box(trail.locator("a").first)
    return style | {"left": at["x"], "width": at["width"], "top": at["y"], "text": round(first["x"])}


async def test_the_search_and_the_filters_are_as_wide_as_the_table(demo: DemoProcess) -> None:
    async with chromium() as browser, owning(demo, "demo:wide") as owner:
        await owner.set("mine", {"name": "Ann"}, ttl_ms=None)
        async with logged_in(browser, demo, LIST) as page:
            await expect(page.locator("tr[data-id]")).to_have_count(1)
            table = await box(page.locator("#ephemeral-live"))
            above = 0.0
            for place in (".ephemeral-bar", ".ephemeral-filters", ".ephemeral-actions"):
                at = await box(page.locator(place))
                assert at["x"] == pytest.approx(table["x"], abs=1)
                assert at["width"] == pytest.approx(table["width"], abs=1)
                assert above <= at["y"]
                above = at["bottom"]
            assert above <= table["y"]
            assert table["width"] > 800


async def test_the_way_to_the_overview_stands_at_the_end_of_the_search(demo: DemoProcess) -> None:
    async with chromium() as browser, logged_in(browser, demo, LIST) as page:
        bar, link = await box(page.locator(".ephemeral-bar")), await box(page.locator("text=Overview"))
        assert bar["y"] < link["y"]
        assert link["bottom"] < bar["bottom"]
        assert 0 < bar["right"] - link["right"] < 20


@pytest.mark.parametrize("url", [LIST, f"{LIST}overview/"])
async def test_breadcrumbs_look_as_on_the_pages_of_django(demo: DemoProcess, url: str) -> None:
    async with chromium() as browser, logged_in(browser, demo, url) as page:
        ours = await breadcrumbs(page)
        await expect(page.locator(".breadcrumbs [aria-current=page]")).to_have_count(1)
        await page.goto(f"{demo.url}/admin/auth/user/")
        assert ours == await breadcrumbs(page)
        assert ours["backgroundColor"] != "rgba(0, 0, 0, 0)"


# Phones, and what needs room


PAGES = ("list", "entry", "confirm", "overview")
BROKEN = """() => {
    // Words of up to 20 characters that stand on more than one line.
    const broken = [];
    const texts = document.createTreeWalker(document.querySelector("#content-main"), NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        for (const word of texts.currentNode.data.matchAll(/\\S+/g)) {
            if (word[0].length > 20) continue;
            const range = document.createRange();
            range.setStart(texts.currentNode, word.index);
            range.setEnd(texts.currentNode, word.index + word[0].length);
            if (new Set([...range.getClientRects()].map((each) => Math.round(each.top))).size > 1) broken.push(word[0]);
        }
    }
    return broken;
}"""
SIDEWAYS = """() => [document.documentElement, ...document.querySelectorAll("#content-main *")]
    .filter((each) => each.scrollWidth > each.clientWidth + 1)
    .filter((each) => each === document.documentElement || /auto|scroll/.test(getComputedStyle(each).overflowX))
    .map((each) => `${each.tagName} ${each.className}: ${each.scrollWidth} > ${each.clientWidth}`)"""


@asynccontextmanager
async def shown(browser: Browser, demo: DemoProcess, owner: Owner, which: str, width: int) -> AsyncIterator[Page]:
    await owner.set("typing:katherine", {"name": "Katherine", "colour": 120}, ttl_ms=600_000)
    await owner.set("here:katherine", "x" * 200, ttl_ms=None)
    async with logged_in(browser, demo, f"{LIST}?q={owner.topic}") as page:
        await page.set_viewport_size({"width": width, "height": 800})
        await expect(page.locator("tr[data-id]")).to_have_count(2)
        await expect(page.locator(".field-process bdi").first).not_to_be_empty()
        if which == "overview":
            await page.goto(f"{demo.url}{LIST}overview/")
            await expect(page.locator(".ephemeral-table").last).to_contain_text("katherine")
        elif which != "list":
            await page.click("tr[data-id]:has-text('typing') .field-key a")
            await expect(page.locator(".ephemeral-payload")).to_contain_text("Katherine")
        if which == "confirm":
            await page.click("text=Disconnect the owner")
            await expect(page.locator(".ephemeral-selection")).to_contain_text("katherine")
        await page.wait_for_load_state("load")  # with its styles: after a click there is text before there are those
        yield page


@pytest.mark.parametrize("width", [360, 390, 430, 800, 1280])
async def test_no_page_is_scrolled_sideways_and_no_word_is_broken(demo: DemoProcess, width: int) -> None:
    async with chromium() as browser, owning(demo, f"demo:wide{width}") as owner:
        for which in PAGES:
            async with shown(browser, demo, owner, which, width) as page:
                assert (which, await page.evaluate(SIDEWAYS)) == (which, [])
                assert (which, await page.evaluate(BROKEN)) == (which, [])


async def test_an_owner_is_shown_short_and_had_whole_by_pointing_at_it_and_by_copying(demo: DemoProcess) -> None:
    async with chromium() as browser, owning(demo, "demo:short") as owner:
        name = owner.frames[0]["client_id"]
        assert len(name) > 20
        async with shown(browser, demo, owner, "list", 1280) as page:
            place = page.locator(".field-owner bdi").first
            assert (await box(place))["width"] < 130
            assert await place.get_attribute("title") == name
            copied = await place.evaluate(
                "(place) => { getSelection().selectAllChildren(place); return getSelection().toString(); }"
            )
            assert copied == name
            tail = await box(place.locator("span").last)
            assert tail["right"] <= (await box(page.locator(".field-owner").first))["right"]


async def test_the_column_of_namespaces_is_hidden_where_there_are_none(demo: DemoProcess) -> None:
    async with (
        chromium() as browser,
        owning(demo, "demo:plain") as owner,
        shown(browser, demo, owner, "list", 1280) as page,
    ):
        await expect(page.locator(".field-topic").first).to_be_visible()
        for place in (".column-namespace", ".field-namespace"):
            await expect(page.locator(place).first).to_be_hidden()
