"""A client of the ready-made consumer in a process of its own, which can be frozen: it sets a key and answers pings.

`python -m tests.faults.person URL KEY`, until its stdin ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from typing import Self

from websockets.asyncio.client import connect

from .server import Server, _Process

__all__ = ["Person"]


class Person(_Process):
    def __init__(self, server: Server, key: str) -> None:
        super().__init__({})
        self._command = ("-m", "tests.faults.person", server.url, key)

    def __enter__(self) -> Self:
        self._start(*self._command)
        return self


async def _be(url: str, key: str) -> None:
    async with connect(url, open_timeout=60, ping_interval=None, proxy=None) as websocket:
        frame = {"_orama": "ephemeral.set", "topic": "room", "key": key, "payload": "IDE=", "ttl_ms": None}
        await websocket.send(json.dumps(frame))
        async for text in websocket:
            if json.loads(text)["_orama"] == "ephemeral.ping":
                await websocket.send(text.replace("ping", "pong"))


def _end_with_the_parent() -> None:
    os.read(0, 1)
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    asyncio.run(_be(*sys.argv[1:]))
