"""People in browser windows: what each does, what each sees, and what went wrong in any of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from .process import DemoProcess

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
expect.set_options(timeout=20_000)


def program() -> str:
    """The path of Chromium; skips where there is none, which in CI is a failure."""
    if CHROMIUM is None:
        if os.environ.get("CI") == "true":
            pytest.fail("there is no Chromium")
        pytest.skip("there is no Chromium")
    return CHROMIUM


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    path = program()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            await browser.close()


class Window:
    """One person's window in a room, and what went wrong in it."""

    def __init__(self, page: Page, name: str) -> None:
        self.page = page
        self.name = name
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        # Errors of the console too: a violation of the content security policy is one of those.
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)

    async def enter(self, url: str, room: str) -> None:
        await self.page.goto(url)
        await self.page.fill("#name", self.name)
        await self.page.fill("[name=room]", room)
        await self.page.click("text=Enter the room")
        await self.is_live()

    async def is_live(self) -> None:
        await expect(self.page.locator("#status-text")).to_have_text("Live")
        await expect(self.page.locator(".face:has(.you) .name")).to_have_text(self.name)

    async def sees(self, *names: str) -> None:
        """Exactly these people, oneself first."""
        await expect(self.page.locator(".face .name")).to_have_text(list(names))

    async def holds(self) -> list[list[Any]]:
        """What this window's client has of the room's topic: key, owner and value of each entry."""
        held = await self.page.evaluate(
            "[...topic.entries.values()].map(({ key, owner, value }) => [key, owner, value])"
        )
        return sorted(held)

    async def say(self, text: str) -> None:
        await self.page.fill("#text", text)
        await self.page.press("#text", "Enter")

    async def point(self, x: float, y: float) -> None:
        box = await self.page.locator("#stage").bounding_box()
        assert box is not None
        await self.page.mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * y)

    async def sees_cursor(self, name: str, x: float, y: float) -> None:
        """The other's cursor ends up at this part of one's own stage."""
        cursor = self.page.locator(".cursor", has_text=name)
        await expect(cursor).to_have_count(1)
        await self.page.wait_for_function(
            """([name, x, y]) => {
                const stage = document.getElementById("stage").getBoundingClientRect();
                const cursor = [...document.querySelectorAll(".cursor")].find((one) => one.textContent === name);
                const at = cursor.getBoundingClientRect();
                return Math.abs(at.left - stage.left - x * stage.width) < 6
                    && Math.abs(at.top - stage.top - y * stage.height) < 6;
            }""",
            arg=[name, x, y],
            timeout=20_000,
        )


@asynccontextmanager
async def windows(
    demo: DemoProcess, room: str, *names: str, sizes: tuple[tuple[int, int], ...] = ((900, 700), (400, 800))
) -> AsyncIterator[list[Window]]:
    """People in a room, each with a browser window of its own; nothing may go wrong in any of them."""
    async with chromium() as browser:
        entered = []
        for index, name in enumerate(names):
            width, height = sizes[index % len(sizes)]
            page = await browser.new_page(viewport={"width": width, "height": height})
            entered.append(Window(page, name))
            await entered[-1].enter(demo.url, room)
        yield entered
        assert {window.name: window.errors for window in entered} == {name: [] for name in names}
