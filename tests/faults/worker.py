"""What runs inside a worker: subscribers without sockets, and commands that come as JSON lines on stdin."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.faults.settings")

import django

from ephemeral_state.connection import Connection
from ephemeral_state.delivery import Direct
from ephemeral_state.node import current

from .client import View

__all__ = ["Subscriber", "serve"]


class Subscriber:
    """A connection whose frames make a strict view of one topic."""

    def __init__(self, client_id: str, topic: str = "") -> None:
        self.view = View(topic)
        self.wrong: BaseException | None = None
        self.connection = Connection(client_id, current(), Direct(self._hear, self._gone))

    async def _hear(self, message: dict[str, Any]) -> None:
        self.view.hear(json.loads(message["text"]))

    def _gone(self, error: BaseException) -> None:
        self.wrong = error


def serve(make: Callable[[], Callable[..., Awaitable[Any]]]) -> None:
    """Call what `make` returns with the fields of each line, and print its result, until stdin ends."""
    django.setup()
    asyncio.run(_serve(make))


async def _serve(make: Callable[[], Callable[..., Awaitable[Any]]]) -> None:
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    obey = make()
    while line := await lines.readline():
        print(json.dumps(await obey(**json.loads(line))), flush=True)
    os._exit(0)  # the parent is done with us, and nobody is there to see an orderly end
