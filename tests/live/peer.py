"""The other end of an ASGI application without a server: what arrives, and how sending goes, is up to the test.

Where `channels.testing.WebsocketCommunicator` hides a failing send, a pause and the consumer's end, this shows them.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import Any, Self
from urllib.parse import urlencode

from .server import DEADLINE, View

__all__ = ["Peer"]


class Peer:
    """`async with Peer(consumer.as_asgi())` connects and waits until the consumer has accepted or ended."""

    def __init__(self, app: Any, **query: Any) -> None:
        encoded = {name: value if isinstance(value, str) else json.dumps(value) for name, value in query.items()}
        self.scope = {"type": "websocket", "path": "/", "query_string": urlencode(encoded).encode(), "headers": []}
        self.app = app
        self.sent: list[dict[str, Any]] = []
        self.view = View()
        self.fails_with: BaseException | None = None
        """What every send raises from now on."""
        self._raised = False
        self._unread: deque[Any] = deque()
        self._news = asyncio.Event()
        self._reads = asyncio.Event()
        self._reads.set()
        self._arriving: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.app(self.scope, self._arriving.get, self._send))
        self.arrive("websocket.connect")
        async with asyncio.timeout(DEADLINE):
            while not self.sent and not self._task.done():
                news = asyncio.create_task(self._any_news())
                await asyncio.wait([self._task, news], return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
        return self

    async def __aexit__(self, kind: object, *exc: object) -> None:
        if self.task.done():
            if kind is None and not self._raised:
                self.task.result()
            return
        self.read_again()
        self.arrive("websocket.disconnect", code=1000)
        await self.ended()

    @property
    def task(self) -> asyncio.Task[None]:
        assert self._task is not None
        return self._task

    def arrive(self, kind: str, **more: Any) -> None:
        self._arriving.put_nowait({"type": kind, **more})

    def do(self, what: str, /, **command: Any) -> None:
        """Give a consumer of `app.py` a command."""
        self.arrive("websocket.receive", text=json.dumps({"do": what, **command}))

    def leave(self) -> None:
        self.arrive("websocket.disconnect", code=1001)

    async def ended(self) -> None:
        """Wait until the application has returned; raises what it raised."""
        async with asyncio.timeout(DEADLINE):
            await asyncio.wait([self.task])
        self._raised = True
        self.task.result()

    def stop_reading(self) -> None:
        """The server's sends suspend, as for a client whose buffers are full."""
        self._reads.clear()

    def read_again(self) -> None:
        self._reads.set()

    async def frame(self) -> Any:
        """The next frame that the client has not looked at yet."""
        async with asyncio.timeout(DEADLINE):
            while not self._unread:
                await self._any_news()
        return self._unread.popleft()

    async def settled(self) -> list[Any]:
        """All frames sent before the consumer has handled what arrived so far."""
        self.do("echo", what="settled")
        frames = []
        while (frame := await self.frame()) != "settled":
            frames.append(frame)
        return frames

    async def _any_news(self) -> None:
        self._news.clear()
        await self._news.wait()

    async def _send(self, message: dict[str, Any]) -> None:
        if self.fails_with is not None:
            raise self.fails_with
        if not self._reads.is_set():
            await self._reads.wait()
        self.sent.append(message)
        if message["type"] == "websocket.send":
            frame = json.loads(message["text"])
            if isinstance(frame, dict):
                self.view.hear(frame)
            self._unread.append(frame)
        self._news.set()
