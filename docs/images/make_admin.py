"""Makes the pictures of the admin, with two demos on one Redis. Needs Chromium and playwright.

`make_admin.py [MINUTES]`: so long people come and go before, for the charts; by default 12.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page, async_playwright
from websockets.asyncio.client import connect

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.browser.process import DemoProcess  # noqa: E402
from tests.redis_server import RedisServer  # noqa: E402

ARGUMENTS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-color-profile=srgb")
PEOPLE = ("Ada", "Grace", "Hedy", "Tim", "Katherine", "Mary", "Dorothy")
LIST = "/admin/ephemeral_state/entry/"


async def person(url: str, cookie: str, name: str, topic: str) -> Any:
    headers = {"Cookie": cookie} if cookie else {}
    socket = await connect(f"{url.replace('http', 'ws')}/ws/state/", origin=url, additional_headers=headers)
    me = base64.b64encode(json.dumps({"name": name, "color": 40 * len(name)}).encode()).decode()
    for key, ttl in ((f"here:{name}", None), (f"typing:{name}", 9000 + 4000 * len(name)), (f"cursor:{name}", None)):
        command = {"_orama": "ephemeral.set", "topic": topic, "key": key, "payload": me, "ttl_ms": ttl}
        await socket.send(json.dumps(command))
    await socket.send(json.dumps({"_orama": "ephemeral.clear", "topic": topic, "key": f"cursor:{name}"}))
    return socket


async def log_in(browser: Browser, demo: DemoProcess, *, dark: bool) -> Page:
    context = await browser.new_context(
        viewport={"width": 1280, "height": 800}, color_scheme="dark" if dark else "light", reduced_motion="reduce"
    )
    page = await context.new_page()
    await page.goto(f"{demo.url}/admin/login/?next={LIST}")
    await page.fill("#id_username", demo.printed("Username"))
    await page.fill("#id_password", demo.printed("Password"))
    await page.click("[type=submit]")
    return page


async def main() -> None:
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two, RedisServer() as redis:
        demos = [DemoProcess(Path(folder), REDIS_URL=redis.url) for folder in (one, two)]
        with demos[0], demos[1]:
            async with async_playwright() as playwright:
                browser = await playwright.chromium.launch(
                    executable_path=shutil.which("chromium"), args=list(ARGUMENTS)
                )
                await bustle(demos, 60 * float(sys.argv[1] if len(sys.argv) > 1 else 12))
                await shoot(browser, *demos)
                await browser.close()


async def bustle(demos: list[DemoProcess], seconds: float) -> None:
    """People come, type, stop or not, and leave: more and more of them, and then fewer."""
    loop = asyncio.get_running_loop()
    began, here, rng = loop.time(), [], random.Random(1)
    while (passed := (loop.time() - began) / seconds) < 1:
        crowd = 1 + round(8 * (1 - abs(2 * passed - 1)))
        if len(here) < crowd:
            here.append(await person(rng.choice(demos).url, "", f"Guest {rng.randrange(100)}", "demo:plan"))
        elif here:
            await here.pop(rng.randrange(len(here))).close()
        await asyncio.sleep(rng.random() * 3)
    await asyncio.gather(*(socket.close() for socket in here))


async def shoot(browser: Browser, demo: DemoProcess, other: DemoProcess) -> None:
    for dark in (False, True):
        page = await log_in(browser, demo, dark=dark)
        session = next(each for each in await page.context.cookies() if each["name"] == "sessionid")
        cookie = f"sessionid={session['value']}"
        people = [
            await person(
                (demo, other)[n % 2].url, "" if n % 2 else cookie, name, f"demo:{('plan', 'radio')[n % 3 == 2]}"
            )
            for n, name in enumerate(PEOPLE)
        ]
        await asyncio.sleep(3)  # the processes report once a second, and the pages ask every 1.5 s
        suffix = "-dark" if dark else ""
        await page.reload()  # which processes one may choose from is known by now
        await page.wait_for_selector("[data-id]")
        await page.screenshot(path=HERE / f"admin-list{suffix}.png")
        await page.click("text=here:Ada")
        await page.wait_for_selector(".ephemeral-facts")
        await page.screenshot(path=HERE / f"admin-entry{suffix}.png", full_page=True)
        await page.click("text=Disconnect the owner…")
        await page.wait_for_selector(".ephemeral-selection")
        await page.screenshot(path=HERE / f"admin-confirm{suffix}.png")
        await page.goto(f"{demo.url}{LIST}overview/")
        await page.screenshot(path=HERE / f"admin-overview{suffix}.png", full_page=True)
        for socket in people:
            await socket.close()


if __name__ == "__main__":
    asyncio.run(main())
