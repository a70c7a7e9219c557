"""A topic as an async iterator: for server-sent events, workers and agents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any
from uuid import uuid4

from .connection import Connection
from .delivery import Dispatched
from .node import current
from .protocol import encode_snapshot
from .state import Notice, Topic

__all__ = ["watch"]


async def watch(topic: Topic) -> AsyncGenerator[Notice, None]:
    """See `api.watch`."""
    inbox = _Inbox()
    connection = Connection(f"watch:{uuid4().hex}", current(), inbox)
    try:
        await connection.subscribe(topic)
        while await inbox.filled():
            yield _notice(topic, inbox.pop())
    finally:
        await asyncio.shield(connection.end(abnormal=False))


class _Inbox(Dispatched):
    """What the iterator has not asked for yet: the newest value per key, so it is bounded by what is live."""

    def __init__(self) -> None:
        super().__init__(self._wake)
        self._filled = asyncio.Event()

    async def filled(self) -> bool:
        """Wait until there is something. False: there never will be, for the process is about to end."""
        while not self and not self._closed:
            self._filled.clear()
            await self._filled.wait()
        return not self._closed

    def close(self) -> None:
        super().close()
        self._wake()

    def _wake(self) -> None:
        self._filled.set()


def _notice(topic: Topic, event: dict[str, Any]) -> Notice:
    if event["type"] == "ephemeral.snapshot":
        entries = event["entries"]
        text = encode_snapshot(topic.name, entries)
        return Notice("snapshot", topic, entries, "", "", b"", None, text)
    fields = (event[name] for name in ("key", "client_id", "payload", "reason", "text"))
    return Notice(event["event"], topic, (), *fields)
