"""A request to Redis that its process has given up arrives late: after newer ones, over other connections.

TCP does so for minutes, also for a connection that is closed. A proxy on kernel TCP keeps the bytes back here.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

import pytest

from tests.redis_server import RedisServer, unique_prefix
from tests.waiting import until

from .client import BulkClient
from .server import Server, configuration

pytestmark = [pytest.mark.redis, pytest.mark.faults]


class Stall:
    """A proxy to Redis. When told to, it keeps back the request that has certain bytes in it, and whatever comes after
    that by the same connection, until it is to arrive: also where the connection is closed by then."""

    def __init__(self, redis: RedisServer) -> None:
        self._redis = redis
        self._wanted = b""
        self._kept: list[tuple[asyncio.StreamWriter, bytes]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"

    @property
    def has_kept(self) -> bool:
        return bool(self._kept)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()
        for writer in self._writers:
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def keep(self, wanted: bytes) -> None:
        self._wanted = wanted

    async def let_arrive(self) -> None:
        self._wanted = b""
        for writer, data in self._kept:
            with contextlib.suppress(OSError):
                writer.write(data)
                await writer.drain()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            answers, requests = await asyncio.open_connection("127.0.0.1", self._redis.port)
            self._writers |= {writer, requests}
            back = asyncio.create_task(self._answer(answers, writer))
            self._tasks.add(back)
            is_stalled = False
            while data := await reader.read(1 << 20):
                is_stalled = is_stalled or bool(self._wanted and self._wanted in data and not self._kept)
                if is_stalled:
                    self._kept.append((requests, data))
                else:
                    requests.write(data)
            if not is_stalled:
                requests.close()

    async def _answer(self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while data := await answers.read(1 << 20):
                writer.write(data)
        writer.close()


class Scene:
    """Two processes: the store of one is behind the proxy. A watcher in the other one follows the room."""

    def __init__(self, stall: Stall, server: Server, watcher: BulkClient) -> None:
        self.stall = stall
        self.server = server
        self.watcher = watcher

    def seen(self) -> dict[str, str]:
        entries = self.watcher.views["room"].entries
        return {key: base64.b64decode(payload).decode() for key, (_, payload) in entries.items()}


@asynccontextmanager
async def scene(redis: RedisServer) -> AsyncIterator[Scene]:
    prefix = unique_prefix()
    async with Stall(redis) as stall:
        behind = configuration("pubsub", store_url=stall.url, layer_url=redis.url, prefix=prefix)
        direct = configuration("pubsub", store_url=redis.url, layer_url=redis.url, prefix=prefix)
        with Server(behind) as server, Server(direct) as other:
            watcher = await BulkClient.connect(other.url, lost=True)
            await watcher.subscribe("room")
            yield Scene(stall, server, watcher)
            await watcher.close()


async def test_a_set_that_arrives_after_its_owner_has_left_makes_no_ghost(redis_server):
    async with scene(redis_server) as here:
        owner = await BulkClient.connect(here.server.url)
        assert await owner.do(["set", "room", "first", "x 1", None]) == {}
        here.stall.keep(b"late")
        assert await owner.do(["set", "room", "late", "x 2", None]) == {"unavailable": 1}
        owner.abort()
        await owner.ended()
        await until(lambda: here.seen() == {}, 20)
        await here.stall.let_arrive()
        stays = await BulkClient.connect(here.server.url)
        assert await stays.do(["set", "room", "after", "y 1", None]) == {}
        await until(lambda: "after" in here.seen(), 20)  # so whatever the late one has done was told before
        assert here.seen() == {"after": "y 1"}
        await stays.close()


async def test_a_value_that_arrives_late_does_not_replace_the_newer_one(redis_server):
    async with scene(redis_server) as here:
        owner = await BulkClient.connect(here.server.url)
        here.stall.keep(b"late")
        assert await owner.do(["set", "room", "late", "x 1", 1.5]) == {"unavailable": 1}
        assert await owner.do(["set", "room", "late", "x 2", None]) == {}
        await here.stall.let_arrive()
        assert await owner.do(["set", "room", "after", "x 3", None]) == {}
        await until(lambda: "after" in here.seen(), 20)
        assert here.seen() == {"late": "x 2", "after": "x 3"}
        await owner.close()


async def test_a_clear_that_arrives_late_does_not_remove_what_was_set_since(redis_server):
    async with scene(redis_server) as here:
        owner = await BulkClient.connect(here.server.url)
        assert await owner.do(["set", "room", "late", "x 1", None]) == {}
        here.stall.keep(b"late")
        assert await owner.do(["clear", "room", "late"]) == {}  # it will be done, or the key is set anew
        assert await owner.do(["set", "room", "late", "x 2", None]) == {}
        await here.stall.let_arrive()
        assert await owner.do(["set", "room", "after", "x 3", None]) == {}
        await until(lambda: "after" in here.seen(), 20)
        assert here.seen() == {"late": "x 2", "after": "x 3"}
        await owner.close()


async def test_what_a_process_sent_before_it_was_killed_makes_no_ghost_after_it_was_reaped(redis_server):
    async with scene(redis_server) as here:
        owner = await BulkClient.connect(here.server.url)
        assert await owner.do(["set", "room", "first", "x 1", None]) == {}
        await until(lambda: "first" in here.seen(), 20)
        here.stall.keep(b"late")
        answer = await owner.begin(["set", "room", "late", "x 2", None])
        await until(lambda: here.stall.has_kept, 20)
        here.server.kill()
        await until(lambda: here.seen() == {}, 30)
        answer.cancel()
        await here.stall.let_arrive()
        assert await here.watcher.do(["set", "room", "after", "y 1", None]) == {}
        await until(lambda: "after" in here.seen(), 20)
        assert here.seen() == {"after": "y 1"}
