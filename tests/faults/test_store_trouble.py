"""Redis freezes, dies, pauses, fills up and comes back, under a server that goes on."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from ephemeral_state.state import Limits, Topic
from ephemeral_state.stores.redis import RedisStore
from tests.front import Front
from tests.redis_server import RedisServer, unique_prefix
from tests.waiting import until

from .client import View
from .server import Server, configuration

pytestmark = [pytest.mark.redis, pytest.mark.faults]

ROOM = "room"
ANSWERED_WITHIN = 3.5  # seconds; the store's own time limit is 2
HEALED_WITHIN = 5.0


class Person:
    """A client of the ready-made consumer, subscribed to the room."""

    def __init__(self, name: str, websocket: Any) -> None:
        self.name = name
        self.view = View(ROOM, lost=True)
        self.frames: list[dict[str, Any]] = []
        self._websocket = websocket
        self._sets = 0
        self._ref = 0
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._reading = asyncio.create_task(self._read())

    async def ask(self, verb: str, **fields: Any) -> str:
        """ "ok", "snapshot" or the code of the error."""
        self._ref += 1
        answer = self._answers[self._ref] = asyncio.get_running_loop().create_future()
        frame = {"_orama": f"ephemeral.{verb}", "topic": ROOM, "ref": self._ref, **fields}
        await self._websocket.send(json.dumps(frame))
        reply = await asyncio.wait_for(answer, 30)
        return reply.get("code") or reply["_orama"].removeprefix("ephemeral.")

    async def set(self, key: str) -> str:
        self._sets += 1
        payload = base64.b64encode(f"{self.name} {self._sets}".encode()).decode()
        return await self.ask("set", key=key, payload=payload, ttl_ms=None)

    async def clear(self, key: str) -> str:
        return await self.ask("clear", key=key)

    @property
    def is_connected(self) -> bool:
        return not self._reading.done()

    async def leave(self) -> None:
        await self._websocket.close()
        await self._reading

    async def _read(self) -> None:
        try:
            async for text in self._websocket:
                frame = json.loads(text)
                self.frames.append(dict(frame))
                if "ref" in frame:
                    self._answers[frame.pop("ref")].set_result(frame)
                if frame["_orama"] in ("ephemeral.set", "ephemeral.clear", "ephemeral.snapshot"):
                    self.view.hear(frame)
        except ConnectionClosed:
            pass


class Place:
    """Two server processes and who is there. `store` is a Redis, and `layer` is the same or another."""

    def __init__(self, servers: list[Server], store: RedisServer | Front, prefix: str) -> None:
        self.servers = servers
        self.store = store
        self._prefix = prefix
        self.people: list[Person] = []

    async def enter(self, name: str, server: int = 0) -> Person:
        websocket = await connect(
            self.servers[server].url, open_timeout=60, ping_interval=None, compression=None, proxy=None
        )
        person = Person(name, websocket)
        assert await person.ask("subscribe") == "snapshot"
        self.people.append(person)
        return person

    async def truth(self) -> dict[str, tuple[str, str]]:
        store = RedisStore(Limits(), url=self.store.url, prefix=self._prefix, timeout=30)
        try:
            entries = (await store.snapshot(Topic("", ROOM))).entries
        finally:
            await store.close()
        return {e.key: (e.client_id, base64.b64encode(e.payload).decode()) for e in entries}

    async def keys(self) -> set[str]:
        return set(await self.truth())

    async def settled(self, *keys: str, within: float = HEALED_WITHIN) -> None:
        """Wait until exactly these keys are stored, and everybody sees what is stored."""
        end = time.monotonic() + within
        while True:
            truth = await self.truth()
            views = [person.view.entries for person in self.people if person.is_connected]
            if set(truth) == set(keys) and all(view == truth for view in views):
                return
            assert time.monotonic() < end, f"after {within} s {truth} is stored, and seen are {views}"
            await asyncio.sleep(0.05)

    def log(self) -> list[str]:
        """What the package has to say in the first server."""
        return [line for line in self.servers[0].log().splitlines() if " ephemeral_state: " in line]

    def said(self, what: str) -> int:
        return sum(f" ephemeral_state: {what}" in line for line in self.log())


@asynccontextmanager
async def place(store: RedisServer | Front, layer: RedisServer) -> AsyncIterator[Place]:
    prefix = unique_prefix()
    settings = configuration("pubsub", store_url=store.url, layer_url=layer.url, prefix=prefix)
    with Server(settings) as one, Server(settings) as other:
        place = Place([one, other], store, prefix)
        try:
            yield place
        finally:
            for person in place.people:
                await person.leave()


def freeze(redis: RedisServer) -> Callable[[], None]:
    redis.stop()
    return redis.cont


def kill(redis: RedisServer) -> Callable[[], None]:
    redis.kill()
    return redis.start


def pause(redis: RedisServer) -> Callable[[], None]:
    redis.command("CLIENT", "PAUSE", 600_000, "WRITE")  # scripts count as writes
    return lambda: redis.command("CLIENT", "UNPAUSE")


@pytest.fixture(params=["one Redis", "two"])
def layer_server(request, redis_server):
    """The Redis of the channel layer: the store's, which is the usual way, or one of its own."""
    if request.param == "one Redis":
        yield redis_server
        return
    with RedisServer() as server:
        yield server


async def outage(here: Place, redis: RedisServer, break_it: Callable[[RedisServer], Callable[[], None]]) -> None:
    """Ann and Dave set something; Redis breaks; Ann clears hers, Dave leaves, all try to set; Redis heals."""
    ann, bob, dave = await here.enter("ann"), await here.enter("bob", 1), await here.enter("dave")
    *others, late = [await here.enter(f"other {n}") for n in range(20)]
    assert [await ann.set("hers"), await dave.set("his"), await bob.set("bobs")] == ["ok"] * 3
    await here.settled("hers", "his", "bobs")

    heal = break_it(redis)
    try:
        started = time.monotonic()
        asked = [asyncio.create_task(person.set("x")) for person in [ann, *others]]
        asked.append(asyncio.create_task(dave.set("ghost")))  # may be carried out when he has left
        await asyncio.sleep(0.05)
        asked.append(asyncio.create_task(late.set("x")))  # queues behind a batch that gets no answer
        assert await asyncio.gather(*asked) == ["unavailable"] * len(asked)
        assert time.monotonic() - started < ANSWERED_WITHIN
        assert await ann.clear("hers") == "ok"
        await dave.leave()
        for _ in range(2):
            assert await bob.set("x") == "unavailable"
        assert all(person.is_connected for person in [ann, bob, *others, late])
    finally:
        heal()
    await until(lambda: here.said("the store works again"))
    # What was refused may have been carried out after all, when Redis only slept. Whoever owns it now, clears it.
    assert {await person.clear("x") for person in [ann, bob, *others, late]} == {"ok"}


@pytest.mark.parametrize("break_it", [freeze, kill, pause])
async def test_a_store_that_does_not_answer_harms_nobody_for_good(break_it, redis_server, layer_server):
    async with place(redis_server, layer_server) as here:
        await outage(here, redis_server, break_it)
        assert await here.people[1].set("bobs") == "ok"  # a Redis that was restarted has forgotten it
        await here.settled("bobs")
        assert await here.people[0].set("hers") == "ok"
        await here.settled("bobs", "hers", within=1.5)  # by the stream, without a beacon
        assert here.said("the store fails") == here.said("the store works again") == 1, here.log()
        assert len(here.log()) <= 8, here.log()


async def test_a_store_that_fails_again_and_again_says_so_once_each_time(redis_server):
    async with place(redis_server, redis_server) as here:
        ann = await here.enter("ann")
        for outages in range(1, 4):
            redis_server.kill()
            for _ in range(30):
                assert await ann.set("k") == "unavailable"
            redis_server.start()
            assert ann.is_connected
            assert await ann.set("k") == "ok"
            await here.settled("k")
            assert here.said("the store fails") == here.said("the store works again") == outages, here.log()
        assert len(here.log()) <= 3 * 8, here.log()


async def test_a_failover_behind_one_name_refuses_no_set_and_loses_nothing(redis_server):
    with RedisServer() as successor, RedisServer() as layer:
        async with Front(redis_server) as front, place(front, layer) as here:
            ann, bob = await here.enter("ann"), await here.enter("bob", 1)
            assert [await ann.set("hers"), await bob.set("bobs")] == ["ok"] * 2
            await here.settled("hers", "bobs")
            # What a planned failover does, and the open connections stay with the one before.
            successor.command("REPLICAOF", "127.0.0.1", redis_server.port)
            await until(lambda: successor.command("INFO", "replication").get("master_link_status") == "up")
            front.move(successor)
            successor.command("REPLICAOF", "NO", "ONE")
            redis_server.command("REPLICAOF", "127.0.0.1", successor.port)
            assert [await ann.set("new"), await bob.set("bobs")] == ["ok"] * 2
            await here.settled("hers", "new", "bobs")
            bob_left = asyncio.create_task(bob.leave())
            await here.settled("hers", "new")
            await bob_left
            assert here.said("the store fails") == 0, here.log()


async def test_a_full_redis_refuses_sets_and_carries_out_clears(redis_server):
    with RedisServer() as layer:
        async with place(redis_server, layer) as here:
            ann, bob, dave = await here.enter("ann"), await here.enter("bob", 1), await here.enter("dave")
            assert [await ann.set("hers"), await dave.set("his"), await bob.set("bobs")] == ["ok"] * 3
            await here.settled("hers", "his", "bobs")
            redis_server.command("CONFIG", "SET", "maxmemory", 1)
            for _ in range(20):
                assert await ann.set("hers") == "unavailable"
            assert await ann.clear("hers") == "ok"
            await dave.leave()
            await here.settled("bobs", within=1.5)
            redis_server.command("CONFIG", "SET", "maxmemory", 0)
            assert await ann.set("hers") == "ok"
            await here.settled("bobs", "hers", within=1.5)
            assert len(here.log()) <= 8, here.log()


async def test_a_layer_that_hangs_holds_up_a_set_for_two_seconds_and_not_for_two_per_topic(redis_server):
    with RedisServer() as layer:
        async with place(redis_server, layer) as here:
            ann, dave = await here.enter("ann"), await here.enter("dave")
            for n in range(10):
                assert await dave.ask("set", topic=f"topic {n}", key="k") == "ok"
            layer.stop()
            try:
                await dave.leave()  # ten topics to tell
                started = time.monotonic()
                assert await ann.set("hers") == "ok"
                assert time.monotonic() - started < 2 * ANSWERED_WITHIN
            finally:
                layer.cont()
            await here.settled("hers")


@pytest.mark.parametrize("break_it", [freeze, kill])
async def test_a_layer_that_fails_while_the_store_works_loses_no_change_for_good(break_it, redis_server):
    with RedisServer() as layer:
        async with place(redis_server, layer) as here:
            ann, bob, dave = await here.enter("ann"), await here.enter("bob", 1), await here.enter("dave")
            assert [await ann.set("hers"), await dave.set("his"), await bob.set("bobs")] == ["ok"] * 3
            await here.settled("hers", "his", "bobs")
            heal = break_it(layer)
            try:
                assert await ann.set("new") == "ok"
                assert await ann.clear("hers") == "ok"
                assert await bob.set("bobs") == "ok"
                await here.settled("new", "his", "bobs")  # by asking the store, while the layer is away
                assert await ann.clear("new") == "ok"
            finally:
                heal()
            await here.settled("his", "bobs")
            await dave.leave()
            await here.settled("bobs")

            async def is_heard_at_once() -> bool:
                assert await ann.set("again") == "ok"
                try:
                    await here.settled("again", "bobs", within=0.5)
                except AssertionError:
                    return False
                return True

            # The layer looks for its Redis once a second.
            end = time.monotonic() + 10
            while not await is_heard_at_once():
                assert time.monotonic() < end, "the stream has not come back"
            assert len(here.log()) <= 8, here.log()
