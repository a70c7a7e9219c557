"""The ways a window goes, stays and comes back; what others see of it."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from urllib.parse import unquote

import pytest
from playwright.async_api import expect

from ..test_demo import follow, read, websocket
from .bare import BareChromium
from .process import DemoProcess
from .windows import Window, chromium, program, windows

pytestmark = pytest.mark.browser

LIVE = "document.getElementById('status-text')?.textContent === 'Live'"
FACES = "[...document.getElementById('people').shadowRoot.querySelectorAll('.name')].map((one) => one.textContent)"

HIDDEN = float(os.environ.get("EPHEMERAL_HIDDEN_SECONDS", "15"))
"""How long a tab is hidden. The server asks after 8 s of silence, and ends who is silent for 10 more."""


GONE = """() => {
    window.gone = [];
    topic.subscribe(({ type, key, reason }) => {
        if (type === "clear") gone.push(`${key.split(":")[0]} ${reason}`);
        gone.sort();
    });
}"""
"""`gone` is then what has left the topic since, and why."""


async def test_a_window_that_is_offline_is_gone_and_comes_back_by_itself(demo: DemoProcess) -> None:
    async with windows(demo, "Offline", "Ada", "Grace") as (ada, grace):
        await grace.point(0.5, 0.5)
        await ada.sees_cursor("Grace", 0.5, 0.5)
        await ada.page.evaluate(GONE)
        await grace.page.locator("#text").press_sequentially("I am")
        typing = ada.page.locator("#typing-text")
        await expect(typing).to_have_text("Grace is typing")
        await grace.page.context.set_offline(True)
        await expect(grace.page.locator("#status-text")).to_have_text("Offline")
        await ada.sees("Ada")
        await expect(ada.page.locator(".cursor")).to_have_count(0)
        await expect(typing).to_be_empty()
        # With the connection, and not because nothing was typed for a while.
        await ada.page.wait_for_function("() => gone.join() === 'cursor disconnect,here disconnect,typing disconnect'")
        await grace.sees("Grace", "Ada")  # as it was, and shown as such
        await expect(grace.page.locator("ephemeral-presence[stale]")).to_have_count(1)
        await grace.page.fill("#text", "")
        await grace.page.locator("#text").press_sequentially("I was")
        await grace.page.context.set_offline(False)
        await expect(typing).to_have_text("Grace is typing")  # what was typed meanwhile is told as well
        await grace.is_live()
        await expect(grace.page.locator("ephemeral-presence[stale]")).to_have_count(0)
        await ada.sees("Ada", "Grace")
        await ada.sees_cursor("Grace", 0.5, 0.5)  # set again by the client


async def test_the_button_kills_the_connection_and_it_comes_back(demo: DemoProcess) -> None:
    async with windows(demo, "Killed", "Ada", "Grace") as (ada, grace):
        await grace.page.get_by_role("button", name="Kill my connection").click()
        await ada.sees("Ada")
        await expect(grace.page.locator("#killed")).to_be_visible()
        await expect(grace.page.locator("#status-text")).to_have_text("Offline")
        await ada.sees("Ada", "Grace")
        await grace.is_live()
        await expect(grace.page.locator("#killed")).to_be_hidden()
        await expect(grace.page.locator("#kill")).to_be_enabled()


SHOWN = """
    window.shown = new Promise((is) => {
        const look = () => {
            const people = document.getElementById("people")?.shadowRoot?.querySelectorAll(".face .name") ?? [];
            const stage = document.getElementById("stage")?.getBoundingClientRect();
            const cursor = document.querySelector(".cursor")?.getBoundingClientRect();
            const there = [...people].map((name) => name.textContent).join() === "Ada,Grace"
                && cursor && document.readyState === "complete"
                && Math.abs(cursor.left - stage.left - 0.3 * stage.width) < 6
                && Math.abs(cursor.top - stage.top - 0.6 * stage.height) < 6;
            if (!there) return requestAnimationFrame(look);
            const [{ domContentLoadedEventEnd: loaded }] = performance.getEntriesByType("navigation");
            is(performance.now() - loaded);
        };
        look();
    });
"""
"""ms from when the page is there until it shows the state: measured by the page, so that a slow test is not."""


async def test_a_reload_shows_the_state_at_once(demo: DemoProcess) -> None:
    async with windows(demo, "Reload", "Ada", "Grace") as (ada, grace):
        await grace.point(0.3, 0.6)
        await ada.sees_cursor("Grace", 0.3, 0.6)
        await ada.page.add_init_script(SHOWN)
        await ada.page.reload()
        await ada.sees("Ada", "Grace")
        await ada.sees_cursor("Grace", 0.3, 0.6)
        assert await ada.page.evaluate("shown") < 2000
        await expect(ada.page.locator(".line")).to_have_count(0)  # nobody has just joined
        await grace.sees("Grace", "Ada")


async def test_a_killed_browser_is_gone(demo: DemoProcess, tmp_path: Path) -> None:
    async with windows(demo, "Murder", "Ada") as (ada,):
        room = ada.page.url
        async with BareChromium(program(), tmp_path) as other:
            tab = await other.open(room)
            await expect(ada.page.locator(".face")).to_have_count(2)
            await other.until(tab, LIVE)
            _, name = await ada.page.locator(".face .name").all_inner_texts()
            await ada.page.evaluate(GONE)
            await other.point(tab, 0.5, 0.5)
            await ada.sees_cursor(name, 0.5, 0.5)
            await other.type(tab, "I am")
            await expect(ada.page.locator("#typing-text")).to_have_text(f"{name} is typing")
            other.kill()
            begin = time.monotonic()
            await ada.sees("Ada")
            await expect(ada.page.locator(".cursor")).to_have_count(0)
            await expect(ada.page.locator("#typing-text")).to_be_empty()
            assert time.monotonic() - begin < 10
            # With the connection, and not because nothing was typed for a while.
            await ada.page.wait_for_function(
                "() => gone.join() === 'cursor disconnect,here disconnect,typing disconnect'"
            )


async def test_a_page_that_one_comes_back_to_is_as_it_was(demo: DemoProcess, tmp_path: Path) -> None:
    """The browser keeps the page while another is shown in its place, and takes it up again."""
    async with windows(demo, "Back", "Ada") as (ada,), BareChromium(program(), tmp_path) as other:
        tab = await other.open(ada.page.url)
        await expect(ada.page.locator(".face")).to_have_count(2)
        await other.until(tab, LIVE)
        await other.until(tab, f"{FACES}.length === 2")
        faces = await other.run(tab, FACES)
        await other.point(tab, 0.5, 0.5)
        await ada.sees_cursor(faces[0], 0.5, 0.5)
        await ada.page.evaluate(GONE)
        await other.run(tab, "addEventListener('pageshow', (event) => (window.persisted = event.persisted)); undefined")
        await other.go(tab, demo.url)
        await ada.sees("Ada")
        await expect(ada.page.locator(".cursor")).to_have_count(0)
        await ada.page.wait_for_function("() => gone.join() === 'cursor disconnect,here disconnect'")
        await other.back(tab)
        assert await other.run(tab, "window.persisted") is True
        await other.until(tab, LIVE)
        await other.until(tab, f"{FACES}.length === 2")
        assert await other.run(tab, FACES) == faces
        await ada.sees("Ada", faces[0])
        await ada.sees_cursor(faces[0], 0.5, 0.5)  # set again by the client
        await ada.say("You are back")
        await other.until(tab, "document.querySelector('.bubble')?.textContent === 'You are back'")


async def test_a_hidden_tab_neither_flickers_nor_goes(demo: DemoProcess, tmp_path: Path) -> None:
    async with windows(demo, "Hidden", "Ada") as (ada,):
        path = "/ws/chat/" + unquote(ada.page.url).split("/room/")[1]
        # So that the browser does after seconds what it otherwise does after five minutes: one timer a minute.
        soon = "--enable-features=IntensiveWakeUpThrottling:grace_period_seconds/2"
        async with BareChromium(program(), tmp_path, soon) as other, websocket(demo, path) as watcher:
            await follow(watcher, path)
            tab = await other.open(ada.page.url)
            await expect(ada.page.locator(".face")).to_have_count(2)
            await other.run(tab, "ticks = 0; setInterval(() => ticks++, 100); statuses = [];")
            live = "document.getElementById('status-text').textContent"
            watch = f"new MutationObserver(() => statuses.push({live})).observe(room, {{attributes: true}})"
            await other.run(tab, f"const room = document.getElementById('room'); {watch}; undefined")
            await other.open("about:blank")
            await other.until(tab, "document.hidden")
            while (await read(watcher)).get("_orama") != "ephemeral.ping":
                pass  # what came of entering is heard by now: the server asks only after some silence
            await watcher.send('{"_orama":"ephemeral.pong"}')
            heard, end = [], time.monotonic() + HIDDEN
            while (left := end - time.monotonic()) > 0:
                try:
                    frame = await asyncio.wait_for(read(watcher), left)
                except TimeoutError:
                    break
                if frame["_orama"] == "ephemeral.ping":
                    await watcher.send('{"_orama":"ephemeral.pong"}')
                else:
                    heard.append(frame)
            assert heard == []
            assert await other.run(tab, "statuses") == []
            assert await other.run(tab, "ticks") < HIDDEN * 5  # it was throttled: this is about a hidden tab
            await expect(ada.page.locator(".face")).to_have_count(2)
            await ada.say("Are you there?")
            await other.until(tab, "document.querySelector('.bubble')?.textContent === 'Are you there?'")


MARKUP = "<script>document.title='broken'</script><img src=x onerror=alert(1)>"
COMPONENT = """async (fields) => {
    await import("/static/ephemeral_state/ephemeral-presence.js");
    const made = document.createElement("ephemeral-presence");
    for (const [name, value] of Object.entries(fields)) made.setAttribute(name, value);
    document.body.append(made);
}"""


async def test_the_component_needs_no_more_than_a_strict_policy_allows_and_shows_text(demo: DemoProcess) -> None:
    """`<script>` in every field: topic, key, value. The owner is the server's word, and no client can choose it."""
    fields = {"url": "/ws/state/", "topic": f"demo:{MARKUP}", "key": f"here:{MARKUP}", "name": MARKUP}
    async with chromium() as browser:
        seen = []
        for _ in range(2):
            window = Window(await (await browser.new_context()).new_page(), MARKUP)
            answer = await window.page.goto(demo.url)
            assert answer is not None
            # Nothing inline, nothing from elsewhere; what is violated is an error of the console.
            assert (
                "default-src 'none'; script-src 'self'; style-src 'self'" in answer.headers["content-security-policy"]
            )
            await window.page.evaluate(COMPONENT, fields)
            await expect(window.page.locator(".face .name")).to_have_text([MARKUP])
            seen.append(window)
        first, second = seen
        # Both set one key: the later one owns it, and the first sees it as another's.
        await expect(second.page.locator(".you")).to_have_count(1)
        await expect(first.page.locator(".you")).to_have_count(0)
        await expect(first.page).to_have_title("Ephemeral chat")
        inside = "document.querySelector('ephemeral-presence').shadowRoot.querySelectorAll('img, script').length"
        assert await first.page.evaluate(inside) == 0
        style = (
            "getComputedStyle(document.querySelector('ephemeral-presence').shadowRoot.querySelector('.avatar')).display"
        )
        assert await first.page.evaluate(style) == "grid"  # the component's own style is applied
        await admin_shows_markup_as_text(demo, window)
        await second.page.evaluate("document.querySelector('ephemeral-presence').remove()")
        await expect(first.page.locator(".face")).to_have_count(0)
        assert [window.errors for window in seen] == [[], []]


async def admin_shows_markup_as_text(demo: DemoProcess, window: Window) -> None:
    page = await window.page.context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: errors.append(dialog.message))
    await page.goto(f"{demo.url}/admin/login/?next=/admin/ephemeral_state/entry/")
    await page.fill("#id_username", demo.printed("Username"))
    await page.fill("#id_password", demo.printed("Password"))
    await page.press("#id_password", "Enter")
    row = page.locator("#result_list tbody tr", has_text=f"demo:{MARKUP}")
    await expect(row).to_have_count(1)
    await expect(row).to_contain_text(f"here:{MARKUP}")
    assert await page.locator("#result_list script, #result_list img[src=x]").count() == 0
    assert errors == []
    await page.close()


async def test_a_refused_handshake_is_said_once_and_tried_on(demo: DemoProcess) -> None:
    """What the page says when the server answers 403: once, and it stays usable."""
    async with chromium() as browser:
        page = await browser.new_page()
        warnings: list[str] = []
        page.on("console", lambda message: warnings.append(message.text) if message.type == "warning" else None)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        await page.goto(demo.url)
        tries = await page.evaluate(
            """async () => {
                let tries = 0;
                class Counting extends WebSocket { constructor(...rest) { super(...rest); tries++; } }
                const { EphemeralState } = await import("/static/ephemeral_state/ephemeral-state.js");
                const options = { WebSocket: Counting, minDelay: 1, maxDelay: 50 };
                const state = new EphemeralState("/ws/chat/nowhere/", options);
                state.topic("room:1").set("k", 1);
                while (tries < 5) await new Promise((resolve) => setTimeout(resolve, 10));
                state.close();
                return tries;
            }"""
        )
        assert tries == 5
        assert [text.split(":")[1].strip() for text in warnings if text.startswith("ephemeral-state")] == [
            "unreachable"
        ]
        assert errors == []
