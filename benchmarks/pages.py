"""Seconds until others hear that a page is gone: followed a link, went back, reloaded, closed, crashed, frozen, hidden.

In a Chromium that no driver steers, since drivers switch the back/forward cache and the throttling off: the pages leave
by themselves, a crash is a `kill -9` of their renderer, and freezing is what the browser does to tabs that are not
used. Each page has a browser of its own. Takes a quarter of an hour.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlencode

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedOK

from benchmarks.rooms.load import FOLDER
from benchmarks.rooms.servers import Contender, Server

__all__ = ["Left", "Pages", "main", "program"]

T = TypeVar("T")

KINDS: Final = ("knows nothing", "answers", "README", "ten lines", "bundled")
WAYS: Final = ("link", "back", "reload", "close", "crash", "freeze", "hidden")
_LIMITS: Final = {"freeze": 120, "hidden": 360}
_LIMIT: Final = 660  # seconds; Chromium keeps a page for 600
_STAYS: Final = 5.0  # seconds until a page leaves; until then it was asked whether it is there
AIM: Final = 20.0  # seconds
_EXCUSED: Final = "knows nothing"
_CHROMIUM: Final = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-popup-blocking",  # a page opens another without a click
)
# The browser's own freezing of tabs that are not among the last used: here each one that is hidden for two seconds, and
# for good. Energy Saver does the same to tabs that need much CPU, after five minutes and on battery.
_FREEZES: Final = (
    "--enable-features=InfiniteTabsFreezing:num_protected_tabs/1/unfreeze_interval/1h,"
    "CPUMeasurementInFreezingPolicy:freezing_visible_protection_time/2s"
)


def program() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Chromium:
    """A browser that shows one page, in a profile of its own. A context manager: all of it is killed at the end."""

    def __init__(self, url: str, *arguments: str) -> None:
        self._profile = tempfile.mkdtemp(prefix="pages-")
        found = program()
        if found is None:
            raise RuntimeError("there is no Chromium on the path")
        self._command = [found, *_CHROMIUM, *arguments, f"--user-data-dir={self._profile}", url]

    def __enter__(self) -> Self:
        # In a group of its own, so that all its processes can be ended together.
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self._profile, ignore_errors=True)

    def crash(self) -> None:
        """Kill what renders its pages, and nothing else of it."""
        killed = 0
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (folder / "cmdline").read_bytes()
                if b"--type=renderer" in command and os.getpgid(int(folder.name)) == self._process.pid:
                    os.kill(int(folder.name), signal.SIGKILL)
                    killed += 1
        if not killed:
            raise RuntimeError("Chromium has no renderer that could be killed")


class Topic:
    """What somebody else sees of a topic: when each key came and went, by the clock of this process."""

    def __init__(self, url: str, name: str) -> None:
        self.name = name
        self.came: dict[str, float] = {}
        self.went: dict[str, float] = {}
        self._url = url
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._socket = await connect(f"{self._url}ws/state/", proxy=None)
        await self._socket.send(json.dumps({"_orama": "ephemeral.subscribe", "topic": self.name}))
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._socket.close()
        with contextlib.suppress(ConnectionClosedOK):  # amid an answer to a ping
            await self._reading

    async def _read(self) -> None:
        async for text in self._socket:
            frame = json.loads(text)
            match frame["_orama"]:
                case "ephemeral.ping":
                    await self._socket.send(json.dumps(frame | {"_orama": "ephemeral.pong"}))
                case "ephemeral.set":
                    self.came.setdefault(frame["key"], time.monotonic())
                case "ephemeral.clear":
                    self.went.setdefault(frame["key"], time.monotonic())
            self._news.set()

    async def until(self, condition: Callable[[], T], seconds: float, what: str) -> T:
        """The first true value of the condition. Raises `TimeoutError`."""
        try:
            async with asyncio.timeout(seconds):
                while not (value := condition()):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise TimeoutError(
                f"not {what} within {seconds:.0f} s; seen: {', '.join(self.came) or 'nothing'}"
            ) from None
        return value

    def pages(self) -> list[str]:
        return [key for key in self.came if key.startswith("here:")]


class Left:
    """How a page was left: seconds until others heard; `None` if they did not within `limit` seconds."""

    def __init__(self, seconds: float | None, limit: float) -> None:
        self.seconds, self.limit = seconds, limit

    def __str__(self) -> str:
        return f"{self.seconds:.1f}" if self.seconds is not None else f"not within {self.limit:.0f} s"


class Pages:
    """The server of the pages; a context manager."""

    def __init__(self) -> None:
        self._server = Server(Contender("uvicorn", "memory", "pages"), "")
        self._count = 0

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.__exit__(kind, error, trace)

    def log(self) -> str:
        return self._server.log()

    async def leave(self, kind: str, way: str, limit: float, stays: float = _STAYS) -> Left:
        """A page of this kind is opened, and left in this way after so many seconds."""
        self._count += 1
        query = {"kind": kind, "way": way, "topic": f"{self._count}", "ms": round(stays * 1000)}
        first = "before" if way in ("back", "close") else "page"
        url = f"http://127.0.0.1:{self._server.port}/{first}?{urlencode(query)}"
        async with Topic(self._server.url, query["topic"]) as topic:
            with Chromium(url, *([_FREEZES] if way == "freeze" else [])) as chromium:
                (page, *_) = await topic.until(topic.pages, 60, "there")
                if way == "crash":
                    await asyncio.sleep(stays)
                    begin = time.monotonic()
                    chromium.crash()
                else:
                    said = {"freeze": "frozen", "hidden": "hidden"}.get(way, "leaves")
                    begin = await topic.until(lambda: topic.came.get(said, 0.0), 120, said)
                with contextlib.suppress(TimeoutError):
                    await topic.until(lambda: page in topic.went, limit, "gone")
                went = topic.went.get(page)
                if way == "reload":  # and not that the browser was gone
                    await topic.until(lambda: len(topic.pages()) > 1, 30, "loaded again")
                return Left(None if went is None else max(0.0, went - begin), limit)


def aims(table: dict[tuple[str, str], Left]) -> list[str]:
    """What was missed: others are to hear within 20 s of every page that can tell, and never of one that is hidden."""
    missed = []
    for (kind, way), left in table.items():
        if way == "hidden":
            if left.seconds is not None:
                missed.append(f"{kind}, hidden: gone after {left} s, and should stay")
        elif kind != _EXCUSED and (left.seconds is None or left.seconds > AIM):
            missed.append(f"{kind}, {way}: {left}, and should be heard within {AIM:.0f} s")
    return missed


async def measure(pages: Pages, kinds: Sequence[str], ways: Sequence[str], options: argparse.Namespace) -> Any:
    turns, table = asyncio.Semaphore(options.browsers), {}

    async def one(kind: str, way: str) -> None:
        async with turns:
            limit = min(options.limit, _LIMITS.get(way, _LIMIT))
            try:
                left = table[kind, way] = await pages.leave(kind, way, limit)
            except TimeoutError as error:
                raise RuntimeError(f"{kind}, {way}: {error}") from None
            print(f"{kind:>14}, {way:8} {left}", file=sys.stderr, flush=True)

    # Those that take long first: they take the same time whatever runs beside them.
    order = sorted(((kind, way) for kind in kinds for way in ways), key=lambda each: -_LIMITS.get(each[1], 0))
    order.sort(key=lambda each: each[0] != _EXCUSED)
    await asyncio.gather(*(one(*each) for each in order))
    return table


def main(arguments: list[str]) -> int:
    made = argparse.ArgumentParser(
        prog="benchmarks pages", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    made.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    made.add_argument("--browsers", type=int, default=5, help="at the same time; default: 5")
    made.add_argument("--limit", type=float, default=_LIMIT, help=f"seconds to wait at most; default: {_LIMIT}")
    made.add_argument("--results", metavar="DIR", help="where to write the results; default: benchmarks/results")
    options = made.parse_args(arguments)
    found = program()
    if found is None:
        print("there is no Chromium on the path", file=sys.stderr)
        return 2
    with Pages() as pages:
        table = asyncio.run(measure(pages, options.kinds, options.ways, options))
        log = pages.log().strip()
    version = subprocess.run([found, "--version"], capture_output=True, text=True).stdout.strip()
    print("\npages: seconds until others hear")
    print(" " * 10 + "".join(f"{kind:>20}" for kind in options.kinds))
    for way in options.ways:
        print(f"{way:10}" + "".join(f"{table[kind, way]!s:>20}" for kind in options.kinds))
    missed = aims(table)
    print("\n" + "\n".join([*(f"MISSED: {each}" for each in missed), *([f"the server said:\n{log}"] if log else [])]))
    print(f"{date.today()}, {version}")
    whole = {
        "scenario": "pages",
        "date": str(date.today()),
        "browser": version,
        "seconds": {kind: {way: table[kind, way].seconds for way in options.ways} for kind in options.kinds},
        "missed": missed,
    }
    folder = Path(options.results) if options.results else FOLDER / "results"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{date.today()}-pages.json").write_text(json.dumps(whole, indent=1) + "\n")
    return 1 if missed or log else 0
