"""The demo in real browser windows: what one person does, another one sees."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from playwright.async_api import Locator, Page, expect

from ..test_demo import chatter, follow, read_until, say, value, websocket
from .process import DemoProcess
from .windows import Window, windows

pytestmark = pytest.mark.browser


async def test_two_windows_see_each_other_and_one_that_closes_is_gone(demo: DemoProcess) -> None:
    async with windows(demo, "Presence", "Ada", "Grace") as (ada, grace):
        await ada.sees("Ada", "Grace")
        await grace.sees("Grace", "Ada")
        await expect(ada.page.locator("#count")).to_have_text("2 people here")
        await grace.point(0.5, 0.5)
        await ada.sees_cursor("Grace", 0.5, 0.5)
        await grace.page.locator("#text").press_sequentially("I am")
        await expect(ada.page.locator("#typing-text")).to_have_text("Grace is typing")
        await grace.page.close()
        await ada.sees("Ada")
        await expect(ada.page.locator(".cursor")).to_have_count(0)
        await expect(ada.page.locator("#typing-text")).to_be_empty()
        await expect(ada.page.locator("#count")).to_have_text("Only you are here")
        await expect(ada.page.locator(".line")).to_have_text(["Grace joined", "Grace left"])


async def test_messages_reach_the_other_and_are_there_after_a_reload(demo: DemoProcess) -> None:
    async with windows(demo, "Messages", "Ada", "Grace") as (ada, grace):
        await expect(grace.page.locator("#empty")).to_be_visible()
        await ada.say("Hello Grace")
        await expect(grace.page.locator(".message:not(.mine) .bubble")).to_have_text(["Hello Grace"])
        await expect(grace.page.locator("#empty")).to_be_hidden()
        await grace.say("Hello\nAda")
        await expect(ada.page.locator(".bubble")).to_have_text(["Hello Grace", "Hello\nAda"])
        await expect(ada.page.locator(".message.mine .bubble")).to_have_text(["Hello Grace"])
        await ada.page.reload()
        await ada.is_live()
        await expect(ada.page.locator(".bubble")).to_have_text(["Hello Grace", "Hello\nAda"])
        await expect(ada.page.locator(".message.mine .bubble")).to_have_text(["Hello Grace"])
        await grace.sees("Grace", "Ada")


async def test_typing_is_seen_by_others_and_ends(demo: DemoProcess) -> None:
    async with windows(demo, "Typing", "Ada", "Grace", "Hedy") as (ada, grace, hedy):
        seen = ada.page.locator("#typing-text")
        await grace.page.locator("#text").press_sequentially("W")
        await expect(seen).to_have_text("Grace is typing")
        await expect(ada.page.locator(".face.busy .name")).to_have_text(["Grace"])
        await expect(grace.page.locator("#typing-text")).to_be_empty()
        await hedy.page.locator("#text").press_sequentially("Y")
        await expect(seen).to_have_text(re.compile("^(Grace and Hedy|Hedy and Grace) are typing$"))
        await grace.page.press("#text", "Backspace")
        await expect(seen).to_have_text("Hedy is typing")
        await hedy.page.press("#text", "Enter")
        await expect(seen).to_be_empty()
        await grace.page.locator("#text").press_sequentially("Who stops in mid-sentence is forgotten after 5 s")
        await expect(seen).to_have_text("Grace is typing")
        await expect(seen).to_be_empty()


async def test_cursors_point_at_the_same_part_of_windows_of_any_size(demo: DemoProcess) -> None:
    async with windows(demo, "Cursors", "Ada", "Grace") as (ada, grace):
        await ada.point(0.25, 0.75)
        await grace.sees_cursor("Ada", 0.25, 0.75)
        for step in range(30):
            await ada.point(0.25 + step / 100, 0.5)
        await ada.point(0.9, 0.1)
        await grace.sees_cursor("Ada", 0.9, 0.1)
        await expect(ada.page.locator(".cursor")).to_have_count(0)
        await grace.point(0.4, 0.4)
        await ada.sees_cursor("Grace", 0.4, 0.4)
        await ada.page.mouse.move(5, 5)
        await expect(grace.page.locator(".cursor")).to_have_count(0)


async def test_after_a_restart_of_the_server_both_come_back_by_themselves(tmp_path: Path) -> None:
    with DemoProcess(tmp_path) as own:
        async with windows(own, "Restart", "Ada", "Grace") as (ada, grace):
            await ada.say("before")
            await expect(grace.page.locator(".bubble")).to_have_text(["before"])
            await ada.point(0.25, 0.75)
            await grace.sees_cursor("Ada", 0.25, 0.75)
            await grace.point(0.5, 0.5)
            await ada.sees_cursor("Grace", 0.5, 0.5)
            own.stop()
            for window in (ada, grace):
                await expect(window.page.locator("#status-text")).to_have_text("Reconnecting")
                await expect(window.page.locator("#send")).to_be_disabled()
                await window.page.fill("#text", "a draft is kept")
                await window.page.press("#text", "Enter")
            own.start()
            for window in (ada, grace):
                await window.is_live()
                await expect(window.page.locator("#text")).to_have_value("a draft is kept")
            await ada.sees("Ada", "Grace")
            await grace.sees("Grace", "Ada")
            await grace.sees_cursor("Ada", 0.25, 0.75)
            await ada.sees_cursor("Grace", 0.5, 0.5)
            await ada.page.fill("#text", "")
            await grace.say("after")
            for window in (ada, grace):
                await expect(window.page.locator(".bubble")).to_have_text(["before", "after"])
                # While there was no server, the browser said that it could not connect; nothing else went wrong.
                window.errors = [error for error in window.errors if "ERR_CONNECTION" not in error]
            await hold_what_is_stored(own, ["cursor", "cursor", "here", "here"], ada, grace)


async def hold_what_is_stored(demo: DemoProcess, kinds: list[str], *people: Window) -> None:
    """The clients in the windows end up with what the server has: these kinds of keys, with their owners and values."""
    path = "/ws/chat/" + unquote(people[0].page.url).split("/room/")[1]
    stored, held = [], []
    async with websocket(demo, path) as newcomer:
        topic = await follow(newcomer, path)
        with suppress(TimeoutError):
            async with asyncio.timeout(20):
                while [key.split(":")[0] for key, _, _ in stored] != kinds or held != [stored] * len(people):
                    await say(newcomer, _orama="ephemeral.list", topic=topic)
                    entries = (await read_until(newcomer, _orama="ephemeral.snapshot"))["entries"]
                    stored = sorted([one["key"], one["client_id"], parsed(one)] for one in entries)
                    held = [await one.holds() for one in people]
    assert held == [stored] * len(people)
    assert [key.split(":")[0] for key, _, _ in stored] == kinds


def parsed(entry: dict[str, Any]) -> Any:
    return value(entry) if "payload" in entry else None


MARKUP = "<script>document.title = 'broken'</script><img src=x onerror=alert(1)>"


async def test_markup_is_shown_as_text(demo: DemoProcess) -> None:
    name = "<script>x</script><b>Eve</b>"
    room = "<script>alert(1)</script> & \"'>"
    async with windows(demo, room, "Ada", name) as (ada, eve):
        await eve.say(MARKUP)
        await eve.point(0.3, 0.3)
        await expect(ada.page.locator("h1")).to_have_text(room)
        await expect(ada.page).to_have_title(room)
        await ada.sees("Ada", name)
        await expect(ada.page.locator(".bubble")).to_have_text([MARKUP])
        await expect(ada.page.locator(".author")).to_have_text([name])
        await expect(ada.page.locator(".cursor .label")).to_have_text([name])
        await expect(ada.page.locator(".line")).to_have_text([f"{name} joined"])
        await eve.page.locator("#text").press_sequentially("…")
        await expect(ada.page.locator("#typing-text")).to_have_text(f"{name} is typing")
        for window in (ada, eve):
            assert await window.page.locator("body script, main b, img").count() == 0
        await eve.page.goto(demo.url)
        await expect(eve.page.locator(".room-name", has_text=room)).to_have_text([room])
        assert await eve.page.locator("body script, main b").count() == 0


async def test_the_list_of_rooms_shows_who_is_where_at_once(demo: DemoProcess) -> None:
    async with windows(demo, "Lobby", "Ada") as (ada,):
        watching = await ada.page.context.browser.new_page()  # type: ignore[union-attr]
        await watching.goto(demo.url)
        card = watching.locator("li", has=watching.get_by_text("Lobby", exact=True))
        await expect(card.locator(".present")).to_have_text("1 here")
        grace = Window(await ada.page.context.browser.new_page(), "Grace")  # type: ignore[union-attr]
        await grace.enter(demo.url, "Lobby")
        await expect(card.locator(".present")).to_have_text("2 here")
        await grace.page.close()
        await expect(card.locator(".avatar")).to_have_text(["A"])
        other = Window(await ada.page.context.browser.new_page(), "Hedy")  # type: ignore[union-attr]
        await other.enter(demo.url, "Made just now")
        new = watching.locator("li", has=watching.get_by_text("Made just now", exact=True))
        await expect(new.locator(".present")).to_have_text("1 here")
        await new.locator("a").click()
        await expect(watching.locator("h1")).to_have_text("Made just now")


async def test_a_new_name_and_colour_are_seen_by_all(demo: DemoProcess) -> None:
    async with windows(demo, "Names", "Ada", "Grace") as (ada, grace):
        await ada.page.click("#edit")
        await ada.page.fill("dialog input >> nth=0", "عائشة 🌙")
        await ada.page.keyboard.press("Tab")
        await ada.page.keyboard.press("ArrowRight")
        await ada.page.get_by_role("button", name="Save").click()
        await grace.sees("Grace", "عائشة 🌙")
        await expect(ada.page.locator(".face:has(.you) .name")).to_have_text("عائشة 🌙")
        await ada.say("It is still me")
        await expect(grace.page.locator(".author")).to_have_text(["عائشة 🌙"])


PASSED = """() => {
    window.passed = []; // every x at which the cursor was drawn, in parts of the stage
    const stage = document.getElementById("stage");
    const to = () => [...topic.entries.values()].find(({ key }) => key.startsWith("cursor:")).value;
    window.rests = () => Math.abs(passed.at(-1) - to().x) < 0.0001;
    const look = ([{ target }]) => passed.push(new DOMMatrix(target.style.transform).e / stage.clientWidth);
    new MutationObserver(look).observe(document.querySelector(".cursor"), { attributeFilter: ["style"] });
}"""


async def test_a_cursor_glides_from_place_to_place(demo: DemoProcess) -> None:
    async with windows(demo, "Glide", "Ada", "Grace") as (ada, grace):
        await ada.point(0.1, 0.5)
        await grace.sees_cursor("Ada", 0.1, 0.5)  # at once: it comes from nowhere
        await grace.page.evaluate(PASSED)
        between: list[float] = []
        for x in 5 * (0.9, 0.1):  # where the window is not drawn for a while there is nothing to be seen of a way
            await grace.page.evaluate("passed.length = 0")
            await ada.point(x, 0.5)
            await grace.sees_cursor("Ada", x, 0.5)
            await grace.page.wait_for_function("() => rests()")
            passed = await grace.page.evaluate("passed")
            assert passed == sorted(passed, reverse=x < 0.5)  # nor back and forth
            if between := [part for part in passed if 0.15 < part < 0.85]:
                break
        assert between
        # Who wants no motion gets none.
        await grace.page.emulate_media(reduced_motion="reduce")
        for x in (0.5, 0.9, 0.1):
            await grace.page.evaluate("passed.length = 0")
            await ada.point(x, 0.5)
            await grace.sees_cursor("Ada", x, 0.5)
            await grace.page.wait_for_function("() => rests()")
            assert {round(part, 1) for part in await grace.page.evaluate("passed")} == {x}


@pytest.mark.parametrize("width", [320, 390])
async def test_everything_fits_on_a_phone(demo: DemoProcess, width: int) -> None:
    name = "Bartholomäus Maximilian von Hohenstaufen"
    room = f"What this room is called has no room on a phone of {width}"
    async with windows(demo, room, name, sizes=((width, 568),)) as (ada,), AsyncExitStack() as others:
        page = ada.page
        await page.emulate_media(reduced_motion="reduce")  # on its way in, a thing may be smaller than it is
        path = "/ws/chat/" + unquote(page.url).split("/room/")[1]
        people = [await others.enter_async_context(chatter(demo, path, f"{n} {name[:30]}")) for n in range(7)]
        await expect(page.locator(".face")).to_have_count(8)
        await say(people[0].connection, type="message", text=f"{'long' * 30} https://example.com/{'x' * 200}")
        await expect(page.locator(".bubble")).to_have_count(1)
        typing = f"typing:{people[0].author}"
        await say(people[0].connection, _orama="ephemeral.set", topic=people[0].topic, key=typing, ttl_ms=None)
        await expect(page.locator("#typing-text")).to_contain_text("is typing")
        controls = [page.get_by_role("button", name=name) for name in ("Kill my connection", "Edit name", "Send")]
        await fits(page, *controls, page.get_by_role("textbox", name="Message"), page.get_by_role("heading", name=room))
        await controls[1].click()
        await fits(page, *[page.get_by_role("button", name=name) for name in ("Cancel", "Save")])
        await page.keyboard.press("Escape")
        await controls[0].click()
        await expect(page.locator("#killed")).to_be_visible()
        await fits(page, *controls, page.locator("#killed"))
        await page.goto(demo.url)
        await expect(page.locator("li", has_text=room).locator(".present")).to_have_text("7 here")
        await fits(page, page.get_by_role("button", name="Enter the room"))


async def fits(page: Page, *whole: Locator) -> None:
    """Nothing is to be scrolled sideways, and these are in view, all of each."""
    for one in whole:
        await expect(one).to_be_in_viewport(ratio=1)
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")


async def test_a_screen_reader_is_told_what_happens(demo: DemoProcess) -> None:
    async with windows(demo, "Heard", "Ada", "Grace") as (ada, grace):
        log = ada.page.get_by_role("log", name="Messages")
        # What has this role is read out when it changes: the connection, and who is typing.
        said = ada.page.get_by_role("status")
        await expect(said).to_have_text(["Live", ""])
        await grace.page.locator("#text").press_sequentially("H")
        await expect(said).to_have_text(["Live", "Grace is typing"])
        await grace.say("Hello")
        await expect(log.locator("> *")).to_have_text([re.compile("^Grace joined$"), re.compile("Grace.*Hello$")])
        await expect(log).to_have_attribute("aria-busy", "false")
        await expect(said).to_have_text(["Live", ""])
        await expect(ada.page.get_by_role("list").get_by_role("listitem")).to_have_text(
            [re.compile("Ada"), re.compile("Grace$")]
        )
        await ada.page.get_by_role("button", name="Kill my connection").click()
        await expect(said).to_have_text([re.compile("^Offline$"), re.compile("^Your connection is gone"), ""])
        await ada.is_live()
        await expect(said).to_have_text(["Live", ""])


async def test_that_somebody_is_typing_is_read_out_once(demo: DemoProcess) -> None:
    async with windows(demo, "Once", "Ada", "Grace") as (ada, grace):
        path = "/ws/chat/" + unquote(ada.page.url).split("/room/")[1]
        await ada.page.evaluate(
            """() => {
                window.read = [];
                const line = document.getElementById("typing-text");
                const look = () => read.push(line.textContent);
                new MutationObserver(look).observe(line, { childList: true, characterData: true, subtree: true });
            }"""
        )
        async with chatter(demo, path, "Hedy"):
            await ada.sees("Ada", "Grace", "Hedy")
            await grace.page.locator("#text").press_sequentially("W")
            await expect(ada.page.locator("#typing-text")).to_have_text("Grace is typing")
        await ada.sees("Ada", "Grace")  # that somebody else has left changes nothing of it
        await grace.page.fill("#text", "")
        await expect(ada.page.locator("#typing-text")).to_be_empty()
        assert await ada.page.evaluate("read") == ["Grace is typing", ""]


async def test_the_connection_is_killed_by_keyboard(demo: DemoProcess) -> None:
    async with windows(demo, "Key", "Ada", "Grace") as (ada, grace):
        kill = ada.page.get_by_role("button", name="Kill my connection")
        await tab_to(ada.page, kill)
        await ada.page.keyboard.press("Enter")
        await grace.sees("Grace")
        await expect(ada.page.locator("#status-text")).to_have_text("Offline")
        await expect(kill).to_be_disabled()
        await expect(kill).to_be_focused()  # whoever uses the keyboard is not sent back to the beginning
        await ada.is_live()
        await grace.sees("Grace", "Ada")
        await expect(kill).to_be_enabled()
        await expect(kill).to_be_focused()


async def test_a_name_and_a_colour_are_chosen_by_keyboard(demo: DemoProcess) -> None:
    async with windows(demo, "Keys", "Ada", "Grace") as (ada, grace):
        keyboard = ada.page.keyboard
        edit = ada.page.get_by_role("button", name="Edit name")
        dialog = ada.page.get_by_role("dialog", name="How others see you")
        hue = "(face) => face.style.getPropertyValue('--hue')"
        before = await grace.page.locator(".face").last.evaluate(hue)
        await tab_to(ada.page, edit)
        await keyboard.press("Enter")
        await expect(dialog).to_be_visible()
        await expect(dialog.get_by_role("textbox", name="Name")).to_be_focused()
        await keyboard.type("Nobody")
        await keyboard.press("Escape")
        await expect(dialog).to_be_hidden()
        await expect(edit).to_be_focused()
        await keyboard.press("Enter")
        await expect(dialog.get_by_role("textbox", name="Name")).to_have_value("Ada")
        await keyboard.type("Countess")  # in place of what is selected
        await keyboard.press("Tab")
        await expect(dialog.get_by_role("radio", checked=True)).to_be_focused()
        await keyboard.press("ArrowRight")
        await tab_to(ada.page, dialog.get_by_role("button", name="Save"))
        await keyboard.press("Enter")
        await expect(dialog).to_be_hidden()
        await expect(edit).to_be_focused()
        await grace.sees("Grace", "Countess")
        assert await grace.page.locator(".face").last.evaluate(hue) != before


async def tab_to(page: Page, control: Locator) -> None:
    """With the Tab key, as often as it takes; all that can be reached is fewer than twenty."""
    for _ in range(20):
        await page.keyboard.press("Tab")
        if await control.evaluate("(control) => control === document.activeElement"):
            return
    raise AssertionError("the Tab key does not lead there")


async def test_it_works_by_keyboard_alone(demo: DemoProcess) -> None:
    async with windows(demo, "Keyboard", "Ada", "Grace") as (ada, grace):
        await expect(ada.page.locator("#text")).to_be_focused()
        await ada.page.keyboard.type("one line")
        await ada.page.keyboard.press("Shift+Enter")
        await ada.page.keyboard.type("and another")
        await ada.page.keyboard.press("Enter")
        await expect(grace.page.locator(".bubble")).to_have_text(["one line\nand another"])
        await expect(ada.page.locator("#text")).to_be_focused()
        await expect(ada.page.locator("#text")).to_have_value("")
