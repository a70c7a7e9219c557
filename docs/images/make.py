"""Makes the pictures of the demo, with the demo: `python docs/images/make.py`. Needs Chromium and playwright."""

from __future__ import annotations

import asyncio
import base64
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from playwright.async_api import Browser, Page, async_playwright, expect

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.browser.process import DemoProcess  # noqa: E402

ARGUMENTS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-color-profile=srgb")
ROOM = "Launch day"
PEOPLE = {"Ada": 262, "Grace": 350, "Hedy": 145, "Tim": 230, "Katherine": 25}
SAID = (
    ("Grace", "Morning! Is everybody set for two o'clock?"),
    ("Hedy", "Radio check done, all channels quiet."),
    ("Ada", "The numbers hold. I went through them twice."),
    ("Ada", "Close a window whenever you like: nobody stays behind as a ghost."),
    ("Katherine", "Just tried it. My cursor was gone before my hand left the trackpad."),
    ("Grace", "Then point at the plan, all of you, and let's begin."),
)
POINTING = {
    "Grace": (0.72, 0.2),
    "Hedy": (0.56, 0.35),
    "Katherine": (0.62, 0.8),
    "Ada": (0.5, 0.58),
}
TYPING = ("Tim", "Hedy")


async def enter(browser: Browser, url: str, name: str, *, dark: bool, size: tuple[int, int]) -> Page:
    context = await browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        device_scale_factor=1.5,
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
        timezone_id="Europe/Paris",
        locale="en-GB",
    )
    await context.add_init_script(f"sessionStorage.setItem('color', {PEOPLE[name]})")
    page = await context.new_page()
    await page.goto(url)
    await page.fill("#name", name)
    await page.fill("[name=room]", ROOM)
    await page.click("text=Enter the room")
    await expect(page.locator("#status-text")).to_have_text("Live")
    return page


async def scene(browser: Browser, url: str, *, dark: bool, size: tuple[int, int]) -> dict[str, Page]:
    """The room with everybody in it, pointing and typing."""
    pages = {name: await enter(browser, url, name, dark=dark, size=size) for name in PEOPLE}
    watch = pages["Tim"]
    for name, text in SAID:
        await pages[name].fill("#text", text)
        await pages[name].press("#text", "Enter")
        await expect(watch.locator(".bubble").last).to_have_text(text)
    for page in pages.values():
        await page.reload()  # so that nobody has just joined
        await expect(page.locator(".bubble")).to_have_count(len(SAID))
    for page in pages.values():
        await expect(page.locator(".chip")).to_have_count(len(PEOPLE))
        await page.evaluate("for (const line of document.querySelectorAll('.line')) line.remove()")
    for name, (x, y) in POINTING.items():
        box = await pages[name].locator("#stage").bounding_box()
        await pages[name].mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * y)
    for name in TYPING:
        await pages[name].locator("#text").press_sequentially("And so")
    for name in PEOPLE:
        await expect(pages[name].locator(".cursor")).to_have_count(len(POINTING) - (name in POINTING))
    return pages


async def side_by_side(browser: Browser, pages: Sequence[Page], path: Path, *, dark: bool) -> None:
    """Windows in one picture, on a plain ground: gradients make large files."""
    shots = [base64.b64encode(await page.screenshot()).decode() for page in pages]
    ground, frame, dots = ("#14131f", "#2a2840", "#4b4868") if dark else ("#e6e3f4", "#fbfafe", "#d3cfe6")
    windows = "".join(
        f'<div><p><i></i><i></i><i></i></p><img src="data:image/png;base64,{shot}"></div>' for shot in shots
    )
    page = await browser.new_page(viewport={"width": 1360, "height": 850}, device_scale_factor=1.5)
    await page.set_content(
        f"""<!doctype html><style>
        body {{ margin: 0; padding: 36px 32px; display: flex; gap: 32px; background: {ground} }}
        div {{ flex: 1; border-radius: 14px; overflow: hidden; box-shadow: 0 0 0 1px #0002 }}
        p {{ margin: 0; padding: 11px 14px; display: flex; gap: 7px; background: {frame} }}
        i {{ width: 11px; height: 11px; border-radius: 50%; background: {dots} }}
        img {{ display: block; width: 100% }}
        </style>{windows}"""
    )
    box = await page.locator("div").first.bounding_box()
    await page.screenshot(path=path, clip={"x": 0, "y": 0, "width": 1360, "height": box["height"] + 72})
    await page.close()


PICTURES = (("demo", False, (632, 740)), ("demo-dark", True, (632, 740)), ("demo-phone", False, (390, 760)))


async def main() -> None:
    async with async_playwright() as playwright:
        program = shutil.which("chromium") or "/usr/bin/chromium"
        for name, dark, size in PICTURES:
            browser = await playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
            with tempfile.TemporaryDirectory() as folder, DemoProcess(Path(folder)) as demo:
                pages = await scene(browser, demo.url, dark=dark, size=size)
                path = HERE / f"{name}.png"
                if size[0] < 400:
                    await pages["Ada"].screenshot(path=path)
                else:
                    await side_by_side(browser, [pages["Ada"], pages["Grace"]], path, dark=dark)
                print(f"{path.name}: {path.stat().st_size // 1024} KiB")
            await browser.close()


if __name__ == "__main__":
    asyncio.run(main())
