"""The admin in a real browser: what it shows keeps up by itself, and what it clears is gone at its owner's page."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from playwright.async_api import expect
from websockets.exceptions import ConnectionClosed

from .admin import LIST, logged_in, owning
from .process import ROOT, DemoProcess
from .windows import chromium, windows

pytestmark = pytest.mark.browser

VIEWER = """
from django.contrib.auth.models import Permission, User
user = User.objects.create_user("viewer", password="look only", is_staff=True)
user.user_permissions.add(Permission.objects.get(codename="view_entry"))
"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoProcess]:
    with DemoProcess(tmp_path_factory.mktemp("admin")) as process:
        command = [sys.executable, "manage.py", "shell", "-c", VIEWER]
        subprocess.run(command, cwd=ROOT, env=process.environment, check=True, capture_output=True, timeout=60)
        yield process


async def test_entries_appear_count_down_change_and_vanish_without_a_reload(demo: DemoProcess) -> None:
    url = f"{LIST}?q=demo:live"
    async with chromium() as browser, owning(demo, "demo:live") as owner, logged_in(browser, demo, url) as page:
        await expect(page.locator(".paginator")).to_contain_text("0 live entries")
        await owner.set("typing", {"name": "<b>Zoé</b>"}, ttl_ms=12_000)
        await owner.set("here", {"n": 1}, ttl_ms=None)
        typing = page.locator("tr[data-id]", has_text="typing")
        here = page.locator("tr[data-id]", has_text="here")
        await expect(typing.locator(".field-payload")).to_have_text('{"name": "<b>Zoé</b>"}')
        await here.locator(".action-select").check()
        await expect(page.locator(".action-counter")).to_have_text("1 of 2 selected")
        left = float((await typing.locator(".ephemeral-left").inner_text()).removesuffix(" s"))
        assert 0 < left < 12
        bar = float(await typing.locator("progress").evaluate("bar => bar.value"))
        await page.wait_for_function("before => document.querySelector('progress').value < before - 500", arg=bar)
        assert float((await typing.locator(".ephemeral-left").inner_text()).removesuffix(" s")) < left
        await owner.set("here", {"n": 2}, ttl_ms=None)
        await expect(here.locator(".field-payload")).to_have_text('{"n": 2}')
        await expect(typing).to_have_count(0)
        # The selection has survived all of that, and so has the page.
        await expect(here.locator(".action-select")).to_be_checked()
        assert await page.evaluate("window.untouched")
        await expect(page.locator(".paginator")).to_contain_text("1 live entry")


async def test_filtering_opening_one_and_clearing_it_reaches_its_owner(demo: DemoProcess) -> None:
    async with chromium() as browser, owning(demo, "demo:a") as owner, owning(demo, "demo:b") as other:
        await owner.set("mine", {"deep": [1, 2, {"x": "<script>alert(1)</script>"}]}, ttl_ms=None)
        await other.set("theirs", "x", ttl_ms=60_000)
        async with logged_in(browser, demo, LIST) as page:
            await expect(page.locator("tr[data-id]")).to_have_count(2)
            await page.click("text=With a deadline")
            await expect(page.locator("tr[data-id]")).to_have_count(1)
            await page.click(".ephemeral-filters >> text=Until disconnect")
            await expect(page.locator(".field-key")).to_have_text(["mine"])
            await page.click(".field-topic a")
            await expect(page.locator(".ephemeral-filters .selected", has_text="demo:a")).to_be_visible()
            await page.click(".field-key a")
            await expect(page.locator(".ephemeral-payload").first).to_contain_text('"x": "<script>alert(1)</script>"')
            await expect(page.locator(".ephemeral-facts")).to_contain_text("until disconnect")
            await page.click("text=Clear this entry")
            await page.click("text=Yes, I’m sure")
            await owner.hears(_orama="ephemeral.clear", key="mine", reason="explicit")
            await expect(page.locator(".messagelist")).to_contain_text("Cleared 1 live entry.")
            await page.goto(demo.url + "/admin/")
            await expect(page.locator("#recent-actions-module")).to_contain_text("demo:a › mine")


async def test_what_is_cleared_is_gone_from_the_page_of_its_owner_and_from_those_of_others(demo: DemoProcess) -> None:
    async with windows(demo, "Cleared", "Ada", "Grace") as (ada, grace):
        await ada.sees("Ada", "Grace")
        await grace.sees("Grace", "Ada")
        browser = ada.page.context.browser
        assert browser is not None
        topic = await ada.page.locator("[data-topic]").get_attribute("data-topic")
        async with logged_in(browser, demo, f"{LIST}?namespace=&topic={topic}") as page:
            await expect(page.locator("tr[data-id]")).to_have_count(2)
            await page.click("tr[data-id]:has(.field-payload:has-text('Grace')) .field-key a")
            await page.click("text=Clear this entry")
            await page.click("text=Yes, I’m sure")
            await ada.sees("Ada")
            await grace.sees("Ada")


async def test_disconnecting_an_owner_closes_its_socket_with_the_code(demo: DemoProcess) -> None:
    async with chromium() as browser, owning(demo, "demo:gone") as owner:
        await owner.set("mine", "x", ttl_ms=None)
        async with logged_in(browser, demo, f"{LIST}?q=demo:gone") as page:
            await page.click("tr[data-id] .field-key a")
            await page.fill("[name=code]", "4321")
            await page.click("text=Disconnect the owner")
            await page.click("text=Yes, I’m sure")
            with pytest.raises(ConnectionClosed):
                await owner.hears(never=True)
            assert owner.socket.close_code == 4321
            await expect(page.locator(".messagelist")).to_contain_text("Disconnected")
            await expect(page.locator(".ephemeral-gone")).to_be_visible()


async def test_the_page_of_an_entry_keeps_up_until_the_entry_is_gone_and_says_why(demo: DemoProcess) -> None:
    url = f"{LIST}?q=demo:one"
    async with (
        chromium() as browser,
        owning(demo, "demo:one") as successor,
        owning(demo, "demo:one") as owner,
        logged_in(browser, demo, url) as page,
    ):
        await owner.set("mine", {"n": 1}, ttl_ms=90_000)
        await page.click("tr[data-id] .field-key a")
        facts, left = page.locator(".ephemeral-facts"), page.locator(".ephemeral-left")
        await expect(facts).to_contain_text('"n": 1')
        await page.evaluate("window.untouched = true")
        code = page.locator("[name=code]")
        await code.fill("4321")
        bar = float(await page.locator("progress").evaluate("bar => bar.value"))
        await page.wait_for_function("before => document.querySelector('progress').value < before - 500", arg=bar)
        await owner.set("mine", {"n": 2}, ttl_ms=None)
        await expect(facts).to_contain_text('"n": 2')
        await expect(left).to_have_text("until disconnect")
        await expect(page.locator("progress")).to_have_count(0)
        # Another client takes it over: from now on that one is asked for.
        await successor.set("mine", {"n": 3}, ttl_ms=None)
        await expect(facts).to_contain_text('"n": 3')
        await expect(page.locator(".kind-set", has_text="taken over")).to_have_count(1)
        await owner.set("mine", {"n": 4}, ttl_ms=None)
        await expect(facts).to_contain_text('"n": 4')
        # What was typed stays, and so does the cursor in it.
        await expect(code).to_have_value("4321")
        await expect(code).to_be_focused()
        await owner.socket.close()
        await expect(page.locator(".ephemeral-gone")).to_have_text("This entry is gone: disconnect.")
        await expect(page.locator("#content button")).to_have_count(0)
        await expect(facts).not_to_contain_text("until disconnect")
        await successor.set("mine", {"n": 5}, ttl_ms=1500)
        await expect(facts).to_contain_text('"n": 5')
        await expect(page.locator(".ephemeral-gone")).to_have_text("This entry is gone: expired.")
        assert await page.evaluate("window.untouched")


async def test_clearing_from_a_page_that_has_kept_up_clears_the_owner_that_it_shows(demo: DemoProcess) -> None:
    async with chromium() as browser, owning(demo, "demo:two") as owner, owning(demo, "demo:two") as successor:
        await owner.set("mine", 1, ttl_ms=None)
        async with logged_in(browser, demo, f"{LIST}?q=demo:two") as page:
            await page.click("tr[data-id] .field-key a")
            await successor.set("mine", 2, ttl_ms=None)
            await expect(page.locator(".ephemeral-payload")).to_have_text("2")
            await page.click("text=Clear this entry")
            await page.click("text=Yes, I’m sure")
            await successor.hears(_orama="ephemeral.clear", key="mine", reason="explicit")


@pytest.mark.parametrize("url", ["?q=demo:old", "overview/", "entry"])
async def test_a_page_that_is_old_says_so_and_why(demo: DemoProcess, url: str) -> None:
    async with chromium() as browser, owning(demo, "demo:old") as owner:
        await owner.set("mine", 1, ttl_ms=None)
        async with logged_in(browser, demo, f"{LIST}{'?q=demo:old' if url == 'entry' else url}") as page:
            if url == "entry":
                await page.click("tr[data-id] .field-key a")
            status = page.locator(".ephemeral-status")
            await expect(page.locator("[data-live]")).to_be_visible()
            await expect(status).to_be_empty()
            await page.context.set_offline(True)
            await expect(status).to_have_text("Not up to date: the server does not answer.")
            await expect(page.locator(".ephemeral-stale")).to_be_visible()
            await page.context.set_offline(False)
            await expect(status).to_be_empty()
            await expect(page.locator(".ephemeral-stale")).to_have_count(0)
            await page.context.clear_cookies()
            await expect(status).to_have_text("Not up to date: you are logged out, or may not look any more.")


async def test_the_focus_stays_where_it_is_while_the_overview_keeps_up(demo: DemoProcess) -> None:
    async with chromium() as browser, owning(demo, "demo:focus") as owner:
        await owner.set("mine", 1, ttl_ms=None)
        async with logged_in(browser, demo, f"{LIST}overview/") as page:
            link = page.locator("section", has_text="Busiest topics").locator("a", has_text="demo:focus")
            await link.focus()
            for n in range(3):
                await owner.set(f"another {n}", n)
                await expect(page.locator(".ephemeral-table").last).to_contain_text(f"another {n}")
            await expect(link).to_be_focused()


async def test_who_may_only_look_has_no_buttons_and_is_refused(demo: DemoProcess) -> None:
    async with chromium() as browser, owning(demo, "demo:look") as owner:
        await owner.set("mine", "x", ttl_ms=None)
        async with logged_in(browser, demo, f"{LIST}?q=demo:look", viewer=True) as page:
            await expect(page.locator("tr[data-id]")).to_have_count(1)
            await expect(page.locator("#content button")).to_have_count(0)
            await page.click("tr[data-id] .field-key a")
            await expect(page.locator(".ephemeral-facts")).to_be_visible()
            await expect(page.locator("#content button")).to_have_count(0)
            for action in ("clear_selected", "clear_topic", "disconnect"):
                statuses = await page.evaluate(
                    """async (action) => {
                        const token = document.cookie.match(/csrftoken=(\\w+)/)?.[1]
                            ?? document.querySelector("[name=csrfmiddlewaretoken]").value;
                        const body = new URLSearchParams({action, post: "yes", csrfmiddlewaretoken: token});
                        const answer = await fetch("../?namespace=&topic=demo:look", {method: "POST", body});
                        return answer.status;
                    }""",
                    action,
                )
                assert statuses == 403
        await owner.set("still", "here")
        await owner.hears(_orama="ephemeral.set", key="still")
        assert not [frame for frame in owner.frames if frame["_orama"] == "ephemeral.clear"]


async def test_the_overview_keeps_up_and_without_javascript_there_is_a_list(demo: DemoProcess) -> None:
    async with chromium() as browser, logged_in(browser, demo, f"{LIST}overview/") as page:
        entries = page.locator(".ephemeral-tiles li", has_text="Entries").locator(".number")
        before = int(await entries.inner_text())
        await page.click("text=The numbers")
        async with owning(demo, "demo:busy") as owner:
            for n in range(30):
                await owner.set(f"k{n}", n)
            await expect(entries).to_have_text(str(before + 30))
            await expect(page.locator("section", has_text="Busiest topics")).to_contain_text("demo:busy")
            await expect(page.locator("svg rect.kind-set").last).to_be_visible()
            state = await page.context.storage_state()
            plain = await (await browser.new_context(java_script_enabled=False, storage_state=state)).new_page()
            await plain.goto(f"{demo.url}{LIST}?q=demo:busy&o=-key")
            await expect(plain.locator("tr[data-id]")).to_have_count(30)
            await expect(plain.locator(".field-key").first).to_have_text("k9")
            await plain.context.close()
        await expect(entries).to_have_text(str(before))
        await expect(page.locator("svg rect.kind-disconnect").last).to_be_visible()
        await expect(page.locator("#ephemeral-numbers")).to_have_attribute("open", "")
        assert await page.evaluate("window.untouched")
        assert re.search(r"cleared: disconnect", await page.locator(".ephemeral-table").last.inner_text())
