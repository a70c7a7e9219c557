"""Redis loses everything, or all its connections: who is there gets back what is theirs, and nobody hears of it."""

from __future__ import annotations

import asyncio
import random
import signal
import time

import pytest

from ephemeral_state.management import doctor
from ephemeral_state.management.checkup import Checkup
from ephemeral_state.state import Topic
from tests.redis_server import RedisServer
from tests.waiting import until

from .client import BulkClient
from .cluster import Cluster, cluster
from .server import Server

pytestmark = [pytest.mark.redis, pytest.mark.faults]

PROCESSES, CONNECTIONS, TOPICS = 4, 200, 10
BACK_WITHIN = 5.0  # seconds after Redis answers again
EMPTY_FOR = 3.0


def restart(redis: RedisServer) -> float:
    redis.kill()
    time.sleep(EMPTY_FOR)
    redis.start()
    return time.monotonic()


def flush(redis: RedisServer) -> float:
    redis.command("FLUSHALL")
    return time.monotonic()


def hang_up(redis: RedisServer) -> float:
    redis.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    redis.command("CLIENT", "KILL", "TYPE", "pubsub")
    return time.monotonic()


async def stored(here: Cluster) -> dict[str, str]:
    return {
        f"{topic}/{key}": owner for topic in range(TOPICS) for key, owner in (await here.owners(f"{topic}")).items()
    }


@pytest.mark.parametrize("lose", [restart, flush, hang_up])
async def test_what_living_connections_own_is_back_and_no_subscriber_has_heard_a_thing(lose, redis_server):
    async with cluster(redis_server.url) as here:
        servers = [here.start() for _ in range(PROCESSES)]
        watchers = [await here.connect(server, *map(str, range(TOPICS))) for server in servers]
        owned = {}
        for n in range(CONNECTIONS):
            owner = await here.owner(servers[n % PROCESSES], f"{n % TOPICS}", f"{n}", f"{n}'")
            owned |= {f"{n % TOPICS}/{key}": owner.client_id for key in (f"{n}", f"{n}'")}
        await here.settle(5)
        leaver = next(reversed(here.clients))  # owns what was set last

        def frames() -> int:
            return sum(view.heard["frames"] for view in here.views())

        heard = frames()
        losing = asyncio.create_task(asyncio.to_thread(lose, redis_server))
        if lose is restart:
            await asyncio.sleep(EMPTY_FOR / 2)
            await leaver.close()
            del here.clients[leaver]
            owned = {key: owner for key, owner in owned.items() if owner != leaver.client_id}
        answered = await losing
        await back(here, owned, answered)
        left = 2 * len(watchers) if lose is restart else 0  # clears that are to be heard
        await until(lambda: frames() >= heard + left, BACK_WITHIN)
        await asyncio.sleep(5)  # two beacons, and what nodes have to write back in a hurry
        await here.settle(1)
        assert frames() == heard + left
        assert sum(view.heard["clears"] for view in here.views()) == left
        assert await stored(here) == owned
        await here.owner(servers[0], "0", "new")
        await until(lambda: all("new" in watcher.views["0"].entries for watcher in watchers), 2)


async def back(here: Cluster, owned: dict[str, str], answered: float) -> None:
    while True:
        asked = time.monotonic()
        there = await stored(here)
        if there == owned:
            break
        missing, foreign = owned.keys() - there.keys(), there.keys() - owned.keys()
        assert asked - answered < BACK_WITHIN, f"after {BACK_WITHIN} s missing: {missing}, too many: {foreign}"
        await asyncio.sleep(0.02)
    print(f"{len(owned)} entries are back {asked - answered:.2f} s after Redis has answered")


async def test_what_a_successor_has_set_since_is_not_taken_back(redis_server):
    async with cluster(redis_server.url) as here:
        servers = [here.start() for _ in range(2)]
        watchers = [await here.connect(server, "room") for server in servers]
        before = await here.owner(servers[0], "room", "taken", "kept")
        await here.settle(5, dict.fromkeys(("taken", "kept"), before.client_id))
        redis_server.command("FLUSHALL")
        after = await here.owner(servers[1], "room", "taken")
        await here.settle(BACK_WITHIN, {"taken": after.client_id, "kept": before.client_id})
        await asyncio.sleep(1)
        await here.settle(1, {"taken": after.client_id, "kept": before.client_id})
        assert not any(watcher.views["room"].heard["clears"] for watcher in watchers)


async def test_losing_it_again_while_it_is_being_written_back_changes_nothing(redis_server):
    async with cluster(redis_server.url) as here:
        servers = [here.start() for _ in range(2)]
        watchers = [await here.connect(server, "room") for server in servers]
        owned = {}
        for n in range(40):
            owned[f"{n}"] = (await here.owner(servers[n % 2], "room", f"{n}")).client_id
        await here.settle(5, owned)
        for pause in (0.1, 0.3, 0.5, 0.7, 0.2):
            redis_server.command("FLUSHALL")
            await asyncio.sleep(pause)
        hang_up(redis_server)
        await here.settle(BACK_WITHIN, owned)
        assert not any(watcher.views["room"].heard["clears"] for watcher in watchers)


async def test_a_redis_that_comes_back_slightly_older_has_no_ghost_and_lacks_nothing(redis_server):
    async with cluster(redis_server.url) as here:
        servers = [here.start() for _ in range(3)]
        watchers = [await watching(here, server) for server in servers[:2]]
        leavers = [await here.owner(servers[n % 3], "room", f"leaver {n}") for n in range(6)]
        stayers = [await here.owner(servers[n % 2], "room", f"stayer {n}", f"given {n}") for n in range(6)]
        redis_server.command("SAVE")
        for leaver in leavers:
            await leaver.leave(random.Random(leavers.index(leaver)))
            del here.clients[leaver]
        servers[2].send(signal.SIGTERM)
        assert await asyncio.to_thread(servers[2].wait, 10) in (0, -signal.SIGTERM)
        owned = {f"stayer {n}": stayer.client_id for n, stayer in enumerate(stayers)}
        for n, stayer in enumerate(stayers):
            taker, payload = stayers[n - 1], f"{stayers[n - 1].client_id} 2"
            assert await taker.do(["set", "room", f"given {n}", payload, None]) == {}
            owned[f"given {n}"] = taker.client_id
            assert await stayer.do(["set", "room", f"stayer {n}", f"{stayer.client_id} 3", None]) == {}
        for n in range(4):
            owned[f"new {n}"] = (await here.owner(servers[n % 2], "room", f"new {n}")).client_id
        await here.settle(5, owned)
        before = await here.truth()
        for watcher in watchers:
            assert watcher.views["room"].heard["clears"] == len(leavers)
        life = (await here.store.snapshot(Topic("", "room"))).generation
        redis_server.kill()
        redis_server.start()
        took = await here.settle(BACK_WITHIN, owned)
        print(f"as before {took:.2f} s after Redis has answered")
        assert await here.truth() == before
        assert (await here.store.snapshot(Topic("", "room"))).generation == life  # it was not empty
        await asyncio.sleep(max(0, BACK_WITHIN - took))  # whatever else is done about it
        await here.settle(1, owned)
        for watcher in watchers:
            assert not watcher.views["room"].disconnected.keys() & owned.keys()
        assert await doctor._confirmed(Checkup(here.store)) == []


async def watching(here: Cluster, server: Server) -> BulkClient:
    """It may be told values again, and of owners that have left."""
    watcher = await BulkClient.connect(server.url, lost=True)
    here.clients[watcher] = server
    await watcher.subscribe("room")
    return watcher
