"""What Redis has to do while nothing happens: as much as there are processes, whatever is connected or stored."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ephemeral_state.errors import StoreUnavailable
from ephemeral_state.node import current
from ephemeral_state.state import UNTIL_DISCONNECT, Topic
from ephemeral_state.stores import redis as redis_store
from tests.redis_server import RedisServer, unique_prefix
from tests.waiting import until

from .server import Worker, configuration
from .worker import Subscriber, serve

pytestmark = [pytest.mark.redis, pytest.mark.faults]

PROCESSES = 8
SECONDS = 6.0  # three beacons
MOST = 10.0  # operations a second and process
TOPICS = 20


def lua_commands() -> set[str]:
    """`INFO commandstats` counts what scripts call like what clients send. So these are left out, and the scripts
    themselves count: none of ours sends any of these from outside a script."""
    lua = Path(redis_store.__file__).parent / "lua"
    calls = re.compile(r"redis\.p?call\('(\w+)'")
    found = {name.lower() for path in lua.glob("*.lua") for name in calls.findall(path.read_text())}
    return found | {"zcard", "hlen"}  # called by names that are in variables


def operations(redis: RedisServer) -> dict[str, int]:
    """How often clients have sent each command so far."""
    inner = lua_commands()
    stats = redis.command("INFO", "commandstats")
    calls = {name.removeprefix("cmdstat_"): fields["calls"] for name, fields in stats.items()}
    return {name: count for name, count in calls.items() if name not in inner and name != "info"}


def wait_until_quiet(redis: RedisServer) -> None:
    """Until what has to be read again has been, now that everybody has been told of everything."""
    deadline = time.monotonic() + 60
    before, quiet = operations(redis), 0
    while quiet < 3 and time.monotonic() < deadline:  # longer than a layer that is busy may keep a process waiting
        time.sleep(1)
        after = operations(redis)
        quiet = quiet + 1 if sum(after.values()) - sum(before.values()) <= 0.7 * MOST * PROCESSES else 0
        before = after


FEW, CROWDED = (PROCESSES, PROCESSES), (1_000, 10_000)
"""Connections and entries."""


# What the store does is the same on both layers, and only what comes with a layer has to be seen on each.
@pytest.mark.parametrize(("layer", "cases"), [("pubsub", (FEW, CROWDED)), ("core", (CROWDED,))])
def test_an_idle_process_costs_redis_ten_operations_a_second_whatever_it_holds(layer, cases, redis_server):
    url = redis_server.url
    # What one may own is no part of the question.
    settings = configuration(layer, store_url=url, layer_url=url, prefix=unique_prefix(), MAX_KEYS_PER_CLIENT=10_000)
    rates = {}
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker("tests.faults.test_cost", settings)) for _ in range(PROCESSES)]
        for connections, entries in cases:
            for number, worker in enumerate(workers):
                worker.tell(
                    name=f"{connections}/{entries}/{number}",
                    connections=connections // PROCESSES,
                    entries=entries // connections,
                )
            assert sum(worker.answer() for worker in workers) == entries
            wait_until_quiet(redis_server)
            before, since = operations(redis_server), time.monotonic()
            time.sleep(SECONDS)
            after, seconds = operations(redis_server), time.monotonic() - since
            made = {name: count - before.get(name, 0) for name, count in after.items() if count > before.get(name, 0)}
            rates[connections, entries] = sum(made.values()) / seconds / PROCESSES
            print(f"{connections} connections, {entries} entries: {rates[connections, entries]:.1f}/s, {made}")
    assert max(rates.values()) <= MOST
    assert max(rates.values()) - min(rates.values()) < 1


class Idler:
    """What a worker does: it has connections that own something and follow a few topics, and then nothing happens."""

    def __init__(self) -> None:
        self._here: list[Subscriber] = []

    async def __call__(self, name: str, connections: int, entries: int) -> Any:
        for subscriber in self._here:
            if subscriber.wrong is not None:
                raise subscriber.wrong
        for subscriber in self._here[1:]:
            await subscriber.connection.end(abnormal=False)
        new = [Subscriber(f"{name}/{number}") for number in range(connections)]
        for subscriber in self._here[:1]:
            await subscriber.connection.end(abnormal=False)
        self._here = new
        for number, subscriber in enumerate(new):
            await subscriber.connection.subscribe(Topic("", f"topic {number % TOPICS}"))
        await asyncio.gather(
            *(
                self._set(subscriber, Topic("", f"topic {entry % TOPICS}"), f"{name}/{number}/{entry}", f"{name} 1")
                for number, subscriber in enumerate(new)
                for entry in range(entries)
            )
        )
        await current()._writer.published()
        await self._hear_of(Counter(entry % TOPICS for _ in new for entry in range(entries)))
        return connections * entries

    async def _set(self, subscriber: Subscriber, topic: Topic, key: str, payload: str) -> None:
        while True:
            try:
                return await subscriber.connection.set(topic, key, payload, ttl=UNTIL_DISCONNECT)
            except StoreUnavailable:  # ten thousand at once, on a machine with other things to do
                await asyncio.sleep(0.5)

    async def _hear_of(self, mine: Counter[int]) -> None:
        """Wait until all have been told of what is owned here and, as much each, in the other processes."""
        await until(
            lambda: all(
                len(subscriber.view.entries) == PROCESSES * mine[number % TOPICS]
                for number, subscriber in enumerate(self._here)
            ),
            60,
        )


if __name__ == "__main__":
    serve(Idler)
