"""A master that fails, or is replaced on purpose: those who live keep what is theirs, and nobody hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from ephemeral_state import node as node_module
from ephemeral_state.conf import Settings
from ephemeral_state.connection import Connection
from ephemeral_state.delivery import Direct
from ephemeral_state.errors import StoreUnavailable
from ephemeral_state.node import Node
from ephemeral_state.state import UNTIL_DISCONNECT, Limits
from ephemeral_state.stores.redis import RedisStore
from tests.lossy import LossyLayer
from tests.redis_server import RedisSentinel
from tests.test_hub import Client
from tests.waiting import until

from .world import ROOM

pytestmark = pytest.mark.redis


@pytest.fixture
def sentinel() -> Iterator[RedisSentinel]:
    with RedisSentinel() as sentinel:
        yield sentinel


class Pair:
    """Two processes' worth: in both somebody owns a key, in one of them somebody watches."""

    def __init__(self, sentinel: RedisSentinel) -> None:
        self.nodes = [Node(Settings(), RedisStore(Limits(), hosts=[sentinel.host], prefix="p")) for _ in range(2)]
        self.watcher = Client()
        self.owner = Connection("owner", self.nodes[0], Direct(None, None))
        self.watching = Connection("watcher", self.nodes[1], self.watcher.delivery)

    async def begin(self) -> None:
        await self.set("before")
        await self.watching.set(ROOM, "watcher's", ttl=UNTIL_DISCONNECT)
        await self.watching.subscribe(ROOM)
        await until(lambda: len(self.watcher.view) == 2)
        await asyncio.sleep(2)  # long enough for each to have judged the other

    async def set(self, key: str) -> None:
        async with asyncio.timeout(10):
            while True:
                try:
                    await self.owner.set(ROOM, key, ttl=UNTIL_DISCONNECT)
                    return
                except StoreUnavailable:
                    await asyncio.sleep(0.05)

    async def end(self) -> list[str]:
        """What the watcher has heard."""
        await asyncio.sleep(3)  # a beacon, and what nodes do who have lost something
        await self.set("after")
        await until(lambda: "after" in self.watcher.view)
        assert {e.key for e in (await self.nodes[1].store.snapshot(ROOM)).entries} == self.watcher.view.keys()
        heard = [f"{frame['_orama']} {frame.get('key')}" for frame in self.watcher.frames[1:]]
        for connection in (self.owner, self.watching):
            await connection.end(abnormal=False)
        return heard


@pytest.fixture
async def pair(sentinel: RedisSentinel, monkeypatch: pytest.MonkeyPatch) -> Pair:
    layer = LossyLayer()
    monkeypatch.setattr(node_module, "find_layer", lambda alias: layer)
    pair = Pair(sentinel)
    await pair.begin()
    return pair


async def test_after_a_failure_of_the_master_everything_goes_on_at_its_successor(
    sentinel: RedisSentinel, pair: Pair
) -> None:
    sentinel.master.kill()
    await until(sentinel.has_moved, 30)
    await pair.set("meanwhile")
    assert set(await pair.end()) == {"ephemeral.set meanwhile", "ephemeral.set after"}


async def test_in_a_failover_on_purpose_whoever_moves_first_is_not_dead_to_the_others(
    sentinel: RedisSentinel, pair: Pair
) -> None:
    await asyncio.to_thread(sentinel.fail_over)
    await until(sentinel.has_moved, 30)
    # Of the node that opens connections now, most are to the new master; the old one serves the other for some time.
    await asyncio.gather(*(pair.nodes[0].store.count() for _ in range(20)))
    await until(lambda: sentinel.master.command("ROLE")[0] == b"slave", 60)
    assert set(await pair.end()) == {"ephemeral.set after"}
