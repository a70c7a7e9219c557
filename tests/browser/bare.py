"""A Chromium that no test tool looks after: its tabs can be hidden, its timers throttled, its process killed."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect

from .windows import ARGUMENTS

LIMIT = 30  # seconds until it gives up on what it waits for


class BareChromium:
    """`async with BareChromium(program, folder) as chromium` starts it; the folder takes its profile."""

    def __init__(self, program: str, folder: Path, *arguments: str) -> None:
        self._command = [
            program,
            *ARGUMENTS,
            "--remote-debugging-port=0",
            f"--user-data-dir={folder / 'profile'}",
            *arguments,
            "about:blank",
        ]
        self._log = folder / "chromium.log"
        self._ids = itertools.count(1)
        self._events: list[dict[str, Any]] = []

    async def __aenter__(self) -> Self:
        self._start()
        try:
            self._wire: ClientConnection = await connect(await self._address(), max_size=None, proxy=None)
        except BaseException:
            self.kill()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        await self._wire.close()

    def _start(self) -> None:
        with self._log.open("wb") as log:
            # In a group of its own, so that all its processes can be ended together.
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)

    def kill(self) -> None:
        """SIGKILL to all of it."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(LIMIT)

    async def open(self, url: str) -> str:
        """A new tab in front of the others, which are hidden then."""
        target = (await self._call("Target.createTarget", url="about:blank"))["targetId"]
        session = (await self._call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        await self._call("Target.activateTarget", targetId=target)
        await self.go(session, url)
        return str(session)

    async def go(self, session: str, url: str) -> None:
        """From the page that a tab shows to another."""
        await self._call("Page.navigate", session, url=url)

    async def back(self, session: str) -> None:
        """As the browser's button does it: to the page itself where that was kept, or else to a new one like it."""
        await self._call("Page.enable", session)
        self._events.clear()
        await self.run(session, "history.back()")
        async with asyncio.timeout(LIMIT):
            while ("Page.frameNavigated", session) not in [(e["method"], e.get("sessionId")) for e in self._events]:
                await self._read()

    async def point(self, session: str, x: float, y: float) -> None:
        """Move the mouse to this part of a room's stage."""
        box = await self.run(session, "document.getElementById('stage').getBoundingClientRect().toJSON()")
        at = {"x": box["x"] + box["width"] * x, "y": box["y"] + box["height"] * y}
        await self._call("Input.dispatchMouseEvent", session, type="mouseMoved", **at)

    async def type(self, session: str, text: str) -> None:
        """Into whatever has the focus."""
        await self._call("Input.insertText", session, text=text)

    async def run(self, session: str, script: str) -> Any:
        """The value of a script, or of the promise that it is."""
        more = {"expression": script, "awaitPromise": True, "returnByValue": True}
        answer = await self._call("Runtime.evaluate", session, **more)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, session: str, script: str) -> None:
        """Wait until the script is true."""
        waiting = f"new Promise((is) => {{ const look = () => (({script}) ? is() : setTimeout(look, 20)); look(); }})"
        await self.run(session, waiting)

    async def _call(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        number = next(self._ids)
        command = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        await self._wire.send(json.dumps(command))
        async with asyncio.timeout(LIMIT):
            while True:
                answer = await self._read()
                if answer.get("id") == number:
                    assert "error" not in answer, (command, answer)
                    return answer["result"]

    async def _read(self) -> Any:
        answer = json.loads(await self._wire.recv())
        if "method" in answer:
            self._events.append(answer)
        return answer

    async def _address(self) -> str:
        async with asyncio.timeout(LIMIT):
            while True:
                found = re.search(r"^DevTools listening on (ws://\S+)$", self._log.read_text(), re.MULTILINE)
                if found:
                    return found[1]
                assert self._process.poll() is None, self._log.read_text()
                await asyncio.sleep(0.05)
