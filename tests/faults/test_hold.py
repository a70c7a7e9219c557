"""What a Celery task holds lives as long as the process that runs it: no longer, and no shorter."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator

import pytest
from celery import Celery
from websockets.asyncio.client import connect

from ephemeral_state.state import Topic
from tests.redis_server import RedisServer
from tests.waiting import until

from .cluster import Cluster, cluster
from .server import CeleryWorker

pytestmark = [pytest.mark.redis, pytest.mark.faults]

GONE_WITHIN = 2.0  # seconds after kill -9
CALM = 2.0  # seconds for which nobody counts as dead after Redis was silent
BACK_WITHIN = 5.0  # seconds after Redis answers again


class Room:
    """A subscriber of "room", in a server process that outlives every worker."""

    def __init__(self, here: Cluster) -> None:
        self.here = here
        self.entries: dict[str, str] = {}
        self.frames: list[dict[str, str]] = []

    async def follow(self, url: str) -> None:
        async with connect(url, proxy=None) as socket:
            await socket.send(json.dumps({"_orama": "ephemeral.subscribe", "topic": "room"}))
            async for text in socket:
                frame = json.loads(text)
                if frame["_orama"] == "ephemeral.ping":  # comes when it comes, and is none of the room's
                    await socket.send(text.replace("ping", "pong"))
                    continue
                self.frames.append(frame)
                if frame["_orama"] == "ephemeral.set":
                    self.entries[frame["key"]] = frame["client_id"]
                elif frame["_orama"] == "ephemeral.clear":
                    del self.entries[frame["key"]]

    async def stored(self) -> dict[str, str]:
        return {e.key: e.payload.decode() for e in (await self.here.store.snapshot(Topic("", "room"))).entries}


@pytest.fixture
async def room(redis_server: RedisServer) -> AsyncIterator[Room]:
    async with cluster(redis_server.url) as here:
        room = Room(here)
        following = asyncio.create_task(room.follow(here.start().url))
        await until(lambda: room.frames, 20)
        yield room
        following.cancel()


class Tasks:
    """A real worker, and the way to give it work."""

    def __init__(self, room: Room, broker: str, **environment: str) -> None:
        environment = {"BROKER": broker, **environment}
        self.worker = room.here.stack.enter_context(CeleryWorker(room.here.settings, **environment))
        self._app = Celery("tests", broker=broker)

    def begin(self, key: str) -> None:
        self._app.send_task("tests.faults.tasks.work", [key, f"end {key}"])


@pytest.fixture
def broker() -> object:
    """A Redis of its own, which nothing happens to."""
    with RedisServer() as server:
        yield server.url


async def test_what_tasks_hold_ends_with_them_and_with_kill_9_and_survives_redis(room, broker, redis_server):
    tasks = Tasks(room, broker, PARENT_HOLDS="1")
    tasks.begin("first")
    tasks.begin("second")
    await until(lambda: {"parent", "first", "second"} <= room.entries.keys(), 60)
    pids = {key: int(pid) for key, pid in (await room.stored()).items()}
    assert len(set(pids.values())) == 3, "each process of the pool, and their parent, holds what is its own"
    assert len(set(room.entries.values())) == 3

    # One process of the pool is killed: what it held is gone, what its parent and its sibling hold is not.
    os.kill(pids["first"], signal.SIGKILL)
    killed = time.monotonic()
    await until(lambda: "first" not in room.entries, GONE_WITHIN)
    print(f"gone after {time.monotonic() - killed:.2f} s")
    assert room.entries.keys() == {"parent", "second"}
    assert room.frames[-1]["reason"] == "disconnect"

    # A task that ends clears what it held, after its last value.
    client = await room.here.connect(room.here.start())
    assert await client.do(["set", "end second", "now", "x 1", 60]) == {}
    await until(lambda: "second" not in room.entries, 10)
    last = [frame for frame in room.frames if frame.get("key") == "second"][-2:]
    assert [frame.get("payload", frame.get("reason")) for frame in last] == ["ZG9uZQ==", "disconnect"]
    assert await room.stored() == {"parent": str(pids["parent"])}
    tasks.begin("third")  # for the process that has taken the place of the one that was killed
    await until(lambda: "third" in room.entries, 20)

    # Redis loses everything: its owners bring it back, and nobody hears of it.
    heard = len(room.frames)
    await asyncio.to_thread(redis_server.kill)
    await asyncio.sleep(1)
    await asyncio.to_thread(redis_server.start)
    answered = time.monotonic()
    while (there := (await room.stored()).keys()) != room.entries.keys():
        assert time.monotonic() - answered < BACK_WITHIN, f"only {there} are back"
        await asyncio.sleep(0.02)
    print(f"back after {time.monotonic() - answered:.2f} s")
    assert room.frames[heard:] == []

    # The whole worker is killed. Redis was away just now, so the others may still be giving it time to come back.
    tasks.worker.kill()
    await until(lambda: not room.entries, GONE_WITHIN + CALM)
