"""Writing from one process: batches against one script call and one group message per set.

50 writers at once, and one alone, on a real Redis; as connections do it here (`Node.begin`), and the obvious way: the
same script with one set, then one `group_send`. The aims: at least 8 times the sets per second with 50 writers, and for
one writer alone at most 1.2 times the latency.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import date
from typing import NamedTuple

from channels.layers import BaseChannelLayer
from django.conf import settings as django_settings

from ephemeral_state.broadcast import publish
from ephemeral_state.conf import Settings
from ephemeral_state.node import Node
from ephemeral_state.state import Limits, Set, Topic
from ephemeral_state.stores.redis import RedisStore
from tests.redis_server import shared_url, unique_prefix

THROUGHPUT_AIM, LATENCY_AIM = 8.0, 1.2
WRITERS = 50
TOPIC = Topic("", "room:1")
PAYLOAD = b'{"x":123,"y":456}'
LAYERS = {
    "pubsub": "channels_redis.pubsub.RedisPubSubChannelLayer",
    "core": "channels_redis.core.RedisChannelLayer",
}

Write = Callable[[Set], Awaitable[object]]


class _Somebody:
    """A connection that only is there."""

    def end(self, *, abnormal: bool) -> asyncio.Task[None]:
        raise NotImplementedError


class Run(NamedTuple):
    sets_per_second: float
    cpu_us_per_set: float


async def run(write: Write, writers: int, sets: int) -> Run:
    """Each writer sets one key of its own again and again, the next when the last is acknowledged."""

    async def writer(number: int) -> None:
        for _ in range(sets // writers):
            await write(Set(f"client-{number}", TOPIC, f"cursor:{number}", PAYLOAD, 60_000))

    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(writer(number) for number in range(writers)))
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return Run(sets / seconds, cpu / sets * 1e6)


def ours(node: Node) -> Write:
    async def write(one: Set) -> None:
        outcome = await node.outcome(node.begin(one, in_company=True))
        if outcome.error is not None:
            raise outcome.error

    return write


def obvious(store: RedisStore, layer: BaseChannelLayer) -> Write:
    async def write(one: Set) -> None:
        (outcome,) = await store.apply([one])
        if failures := await publish(layer, outcome.changes):
            raise failures[0]

    return write


async def measure(url: str, rounds: int, seconds: float) -> int:
    missed = 0
    for alias in LAYERS:
        store = RedisStore(Limits(), url=url, prefix=unique_prefix(), timeout=30)
        node = Node(Settings(channel_layer=alias), store)
        somebody = _Somebody()
        node.join(somebody)  # as in a server: with a lease and a sweep
        ways: dict[str, Write] = {"ours": ours(node), "obvious": obvious(store, node.layer)}
        for writers in (WRITERS, 1):
            missed += not await compare(alias, ways, writers, rounds, seconds)
        await node.leave(somebody)
        await store.close()
        await flush(node.layer)
    print(f"{date.today()}, medians of {rounds} interleaved rounds, Python {sys.version.split()[0]}")
    return 1 if missed else 0


async def compare(alias: str, ways: dict[str, Write], writers: int, rounds: int, seconds: float) -> bool:
    sets = {}
    for name, write in ways.items():
        probe = await run(write, writers, writers * 40)  # also opens connections and loads scripts
        sets[name] = max(writers, int(probe.sets_per_second * seconds) // writers * writers)
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    for turn in range(rounds):  # interleaved, and each first as often, so that a noisy neighbour meets both
        for name in list(ways)[:: -1 if turn % 2 else 1]:
            runs[name].append(await run(ways[name], writers, sets[name]))
    rate = {name: statistics.median(each.sets_per_second for each in its) for name, its in runs.items()}
    cpu = {name: statistics.median(each.cpu_us_per_set for each in its) for name, its in runs.items()}
    print(f"{alias}, {writers} writer{'s' * (writers > 1)}")
    for name in ways:
        latency = writers / rate[name] * 1e6
        print(f"  {name:8} {rate[name]:>9,.0f} sets/s {latency:>8,.0f} µs each {cpu[name]:>6,.0f} µs of CPU per set")
    # Round by round, not median by median: the two of a round ran beside the same neighbours.
    pairs = zip(runs["ours"], runs["obvious"], strict=True)
    ratio = statistics.median(ours.sets_per_second / other.sets_per_second for ours, other in pairs)
    if writers > 1:
        reached = ratio >= THROUGHPUT_AIM
        text = f"{ratio:.1f} times the sets per second (aim: at least {THROUGHPUT_AIM:g})"
    else:
        reached = 1 / ratio <= LATENCY_AIM
        text = f"{1 / ratio:.2f} times the latency (aim: at most {LATENCY_AIM:g})"
    print(f"  {text}, {cpu['ours'] / cpu['obvious']:.2f} times the CPU: {'pass' if reached else 'MISSED'}")
    return reached


async def flush(layer: BaseChannelLayer) -> None:
    close = getattr(layer, "close_pools", None) or layer.flush
    await close()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks write", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.7, help="how long one run takes, about")
    options = parser.parse_args(arguments)
    with shared_url() as url:
        layers = {alias: {"BACKEND": path, "CONFIG": {"hosts": [url]}} for alias, path in LAYERS.items()}
        django_settings.configure(CHANNEL_LAYERS=layers)
        return asyncio.run(measure(url, options.rounds, options.seconds))
