"""An entry that lives as long as a block of code, and no longer than its process: for tasks, agents and commands."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from types import TracebackType
from uuid import uuid4

from .background import wait
from .connection import Connection
from .delivery import Dispatched
from .errors import ConnectionGone, StoreUnavailable
from .node import current
from .protocol import encode_payload
from .state import UNTIL_DISCONNECT, Topic

__all__ = ["Held"]


class Held:
    """What `api.hold` gives: a context manager for `with` and for `async with`. Its owner, `client_id`, is another
    one for each block."""

    def __init__(self, topic: Topic, key: str, payload: object) -> None:
        self.topic = topic.require()
        self.key = key
        self.client_id = ""
        self._payload = encode_payload(payload)
        self._connection: Connection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0

    def set(self, payload: object) -> None:
        """Another value, for example of progress. Raises `ConnectionGone` outside of the block."""
        self._require()
        wait(lambda: self.aset(payload), self._loop)

    async def aset(self, payload: object) -> None:
        """`set` for async code."""
        await self._require().set(self.topic, self.key, payload, UNTIL_DISCONNECT)

    def _require(self) -> Connection:
        if self._connection is None or self._pid != os.getpid():
            raise ConnectionGone(
                f"{self.key!r} is not held here: the block of api.hold has ended, or another process began it"
            )
        return self._connection

    def __enter__(self) -> Held:
        before = self._connection
        try:
            wait(self.__aenter__)
        except BaseException:
            if self._connection is not before:  # a signal has come when it was held already, or about to be
                self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A child that was forked inside of the block leaves it too, and holds nothing. A loop that has ended has
        # cleared what was held there.
        if self._pid == os.getpid() and self._loop is not None and self._loop.is_running():
            with suppress(StoreUnavailable):  # it is cleared as soon as that can be done, or when the lease is over
                wait(self.__aexit__, self._loop)

    async def __aenter__(self) -> Held:
        if self._connection is not None and self._pid == os.getpid():
            raise RuntimeError(f"{self.key!r} is being held already: call api.hold once for each block")
        self._pid = os.getpid()
        self._loop = asyncio.get_running_loop()
        self.client_id = f"hold:{uuid4().hex}"
        self._connection = Connection(self.client_id, current(), Dispatched(_nothing))
        try:
            await self._connection.set(self.topic, self.key, self._payload, UNTIL_DISCONNECT)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and self._pid == os.getpid():
            await asyncio.shield(connection.end(abnormal=False))


def _nothing() -> None:
    """It follows no topic, so it never hears of anything."""
