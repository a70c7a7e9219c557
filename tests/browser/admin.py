"""The admin of a demo in a browser window, and clients that own the entries it shows."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from playwright.async_api import Browser, Page, expect
from websockets.asyncio.client import ClientConnection, connect

from .process import DemoProcess

LIST = "/admin/ephemeral_state/entry/"


class Owner:
    """A client of the ready-made consumer that owns something and hears of its topic."""

    def __init__(self, socket: ClientConnection, topic: str) -> None:
        self.socket = socket
        self.topic = topic
        self.frames: list[dict[str, Any]] = []

    async def set(self, key: str, payload: object, **more: Any) -> None:
        packed = base64.b64encode(json.dumps(payload, ensure_ascii=False).encode()).decode()
        frame = {"_orama": "ephemeral.set", "topic": self.topic, "key": key, "payload": packed, **more}
        await self.socket.send(json.dumps(frame))

    async def hears(self, **values: Any) -> None:
        async with asyncio.timeout(20):
            while True:
                self.frames.append(frame := json.loads(await self.socket.recv()))
                if all(frame.get(name) == value for name, value in values.items()):
                    return


@asynccontextmanager
async def owning(demo: DemoProcess, topic: str) -> AsyncIterator[Owner]:
    async with connect(f"ws://127.0.0.1:{demo.port}/ws/state/", origin=demo.url, proxy=None) as socket:
        owner = Owner(socket, topic)
        await socket.send(json.dumps({"_orama": "ephemeral.subscribe", "topic": topic}))
        await owner.hears(_orama="ephemeral.snapshot")
        yield owner


@asynccontextmanager
async def logged_in(browser: Browser, demo: DemoProcess, url: str, *, viewer: bool = False) -> AsyncIterator[Page]:
    """Nothing may go wrong in the page: no exception, and no violation of the content security policy."""
    context = await browser.new_context()
    page = await context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    await page.goto(f"{demo.url}/admin/login/?next={url.replace('?', '%3F').replace('&', '%26')}")
    await page.fill("#id_username", "viewer" if viewer else demo.printed("Username"))
    await page.fill("#id_password", "look only" if viewer else demo.printed("Password"))
    await page.click("[type=submit]")
    await expect(page.locator("#content")).to_be_visible()
    await page.wait_for_load_state("load")
    # From here on a reload would lose this.
    await page.evaluate("window.untouched = true")
    yield page
    # The browser tells of every refusal and of the icon that the demo's admin does not have.
    assert [text for text in errors if not text.startswith("Failed to load resource")] == []
    await context.close()
