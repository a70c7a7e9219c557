"""Pages that the user leaves for another, and tabs that the browser freezes: in a Chromium that no driver steers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.pages import Pages, main

from .windows import program

pytestmark = pytest.mark.browser

MISSED = 25  # seconds


@pytest.fixture(scope="module")
def pages() -> Iterator[Pages]:
    program()
    with Pages() as pages:
        yield pages
        assert pages.log() == "", "the application got a pong, or something else went wrong"


@pytest.mark.parametrize("kind", ["answers", "README", "ten lines", "bundled"])
async def test_a_page_that_the_browser_keeps_is_gone_for_others(pages: Pages, kind: str) -> None:
    left = await pages.leave(kind, "link", MISSED)
    assert left.seconds is not None, left


@pytest.mark.parametrize("kind", ["answers", "bundled"])
async def test_a_page_that_the_browser_freezes_is_gone_for_others(pages: Pages, kind: str) -> None:
    left = await pages.leave(kind, "freeze", MISSED)
    assert left.seconds is not None, left


async def test_a_page_that_knows_nothing_of_pings_is_left_alone(pages: Pages) -> None:
    left = await pages.leave("knows nothing", "link", MISSED)
    assert left.seconds is None, left


def test_the_command_prints_and_writes_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program()
    assert main(["--kinds", "bundled", "--ways", "close", "reload", "--results", str(tmp_path)]) == 0
    assert re.search(r"^close +\d\.\d\nreload +\d\.\d$", capsys.readouterr().out, re.MULTILINE)
    (path,) = tmp_path.glob("*-pages.json")
    seconds = json.loads(path.read_text())["seconds"]["bundled"]
    assert set(seconds) == {"close", "reload"}
    assert max(seconds.values()) < 20
