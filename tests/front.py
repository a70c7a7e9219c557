"""A name in front of Redis servers, as managed Redis has one: connections that are open stay where they lead."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self

from tests.redis_server import RedisServer

__all__ = ["Front"]


class Front:
    """An async context manager; `url` leads to the server given, until it is moved."""

    def __init__(self, server: RedisServer) -> None:
        self._backend = server
        self._answer = b""
        self._answering: set[asyncio.StreamWriter] = set()
        self._open: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}/0"

    async def __aenter__(self) -> Self:
        self._listening = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._port = self._listening.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listening.close()
        tasks = [task for task in self._open.values() if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def move(self, server: RedisServer, *, answer: bytes = b"") -> None:
        """New connections lead to this server. With `answer`, requests on the open ones are answered with that."""
        self._backend = server
        self._answer = answer
        self._answering = set(self._open) if answer else set()

    @property
    def connections(self) -> int:
        return len(self._open)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open[writer] = asyncio.current_task()
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                answers, requests = await asyncio.open_connection("127.0.0.1", self._backend.port)
                back = asyncio.create_task(_pipe(answers, writer))
                try:
                    while data := await reader.read(65536):
                        if writer in self._answering:
                            writer.write(self._answer)
                        else:
                            requests.write(data)
                finally:
                    back.cancel()
                    requests.close()
        finally:
            del self._open[writer]
            writer.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
    writer.close()
