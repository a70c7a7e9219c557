"""Makes the pictures of the demo, with the demo: `python docs/images/make.py [NAME…]`.

Needs Chromium and playwright, and Pillow for the animation. Without names it makes all.
"""

from __future__ import annotations

import asyncio
import base64
import io
import math
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


async def enter(
    browser: Browser,
    url: str,
    name: str,
    *,
    dark: bool = False,
    size: tuple[int, int],
    scale: float = 1.5,
    moving: bool = False,
) -> Page:
    context = await browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        device_scale_factor=scale,
        color_scheme="dark" if dark else "light",
        reduced_motion="no-preference" if moving else "reduce",
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
        await expect(page.locator(".face")).to_have_count(len(PEOPLE))
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


FRAME = 120  # ms
SMALL = (440, 420)
CROWD = ("Ada", "Grace")


async def animation(browser: Browser, url: str, path: Path) -> None:
    """Two windows side by side: somebody points, types, says something, and loses the connection and comes back."""
    from PIL import Image  # only here: the pictures need no more than a browser

    pages = [await enter(browser, url, name, size=SMALL, scale=1, moving=True) for name in CROWD]
    ada, grace = pages
    for page in pages:
        await page.reload()  # so that nobody has just joined
        await expect(page.locator(".face")).to_have_count(len(CROWD))
        await page.evaluate("for (const line of document.querySelectorAll('.line')) line.remove()")
    frames: list[Image.Image] = []

    async def shoot(times: int = 1) -> None:
        for _ in range(times):
            both = Image.new("RGB", (SMALL[0] * 2 + 36, SMALL[1] + 24), "#e6e3f4")
            for index, page in enumerate(pages):
                shot = Image.open(io.BytesIO(await page.screenshot()))
                both.paste(shot, (12 + index * (SMALL[0] + 12), 12))
            frames.append(both)

    box = await grace.locator("#stage").bounding_box()
    await shoot(2)
    for step in range(16):
        turn = step / 15
        x, y = 0.2 + 0.55 * turn, 0.55 - 0.3 * math.sin(turn * math.pi)
        await grace.mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * y)
        await shoot()
    for part in ("Look: ", "my cur", "sor is ", "here."):
        await grace.locator("#text").press_sequentially(part)
        await shoot(2)
    await grace.press("#text", "Enter")
    await expect(ada.locator(".bubble")).to_have_count(1)
    await shoot(4)
    for part in ("And n", "ow it", " is"):
        await ada.locator("#text").press_sequentially(part)
        await shoot(2)
    await grace.locator("#kill").click()
    await expect(ada.locator(".face")).to_have_count(1)
    await shoot(4)
    await ada.locator("#text").press_sequentially(" gone.")
    await ada.press("#text", "Enter")
    await shoot(6)
    await expect(ada.locator(".face")).to_have_count(2)
    await shoot(10)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=FRAME, loop=0, quality=80, method=6)


async def main(names: Sequence[str]) -> None:
    async with async_playwright() as playwright:
        program = shutil.which("chromium") or "/usr/bin/chromium"
        if not names or "demo-moving" in names:
            browser = await playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
            with tempfile.TemporaryDirectory() as folder, DemoProcess(Path(folder)) as demo:
                path = HERE / "demo-moving.webp"
                await animation(browser, demo.url, path)
                print(f"{path.name}: {path.stat().st_size // 1024} KiB")
            await browser.close()
        for name, dark, size in PICTURES:
            if names and name not in names:
                continue
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
    asyncio.run(main(sys.argv[1:]))
