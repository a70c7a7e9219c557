"""How the admin's pages are laid out, measured in a real browser: the same with every version of Django."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.async_api import Locator, Page, expect

from .admin import LIST, logged_in, owning
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
