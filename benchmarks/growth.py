"""What reading and sweeping cost when a thousand times more is stored.

`list` of a topic of 100 entries, and a sweep of 1 000 expired ones, with 1 000 and with 1 000 000 entries stored
beside them. The aim: at most 1.5 times the time.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from datetime import date

from ephemeral_state.state import Limits, Set, Topic, Write
from ephemeral_state.stores.base import Store
from ephemeral_state.stores.memory import MemoryStore
from ephemeral_state.stores.redis import RedisStore
from tests.redis_server import RedisServer

AIM = 1.5
LISTED, EXPIRED = 100, 1000
LISTED_TOPIC = Topic("", "listed")
ROUNDS = 9
LIMITS = Limits(max_keys_per_client=10**9)


class Clock:
    """Moved by hand, so that a sweep is due when we say."""

    def __init__(self) -> None:
        self.ns = 1

    def __call__(self) -> int:
        return self.ns


async def fill(store: Store, entries: int) -> None:
    """Entries of 100 clients, 50 to a topic, that outlive the benchmark."""

    async def batch(start: int) -> None:
        await store.apply(
            [
                Set(f"client {n // 200}", Topic("", f"topic {n // 50}"), f"key {n}", b"x" * 32, 1_000_000 + n % 500_000)
                for n in range(start, min(start + 500, entries))
            ]
        )

    for start in range(0, entries, 2000):  # four batches at once, so that Redis is not waiting for Python
        await asyncio.gather(*(batch(each) for each in range(start, min(start + 2000, entries), 500)))


async def listing(store: Store, clock: Clock) -> float:
    started = time.perf_counter()
    for _ in range(20):
        snapshot = await store.snapshot(LISTED_TOPIC)
    seconds = time.perf_counter() - started
    assert len(snapshot.entries) == LISTED
    return seconds


async def sweeping(store: Store, clock: Clock) -> float:
    for start in range(0, EXPIRED, 500):
        writes: list[Write] = [
            Set(f"swept {n // 200}", Topic("", f"swept {n // 50}"), f"key {n}", b"x" * 32, 50)
            for n in range(start, start + 500)
        ]
        await store.apply(writes)
    clock.ns += 100_000_000
    started = time.perf_counter()
    sweep = await store.sweep(EXPIRED + 1)
    seconds = time.perf_counter() - started
    assert len(sweep.changes) == EXPIRED
    return seconds


class Memory:
    """Fresh memory stores, and what this process has taken of the machine's memory."""

    def store(self, clock: Clock) -> Store:
        return MemoryStore(LIMITS, clock)

    def used(self) -> int:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Redis:
    """Fresh stores, each in a Redis of its own, and what these have allocated."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._servers: list[RedisServer] = []

    def store(self, clock: Clock) -> Store:
        self._servers.append(self._stack.enter_context(RedisServer()))
        return RedisStore(LIMITS, url=self._servers[-1].url, timeout=60, clock=clock)

    def used(self) -> int:
        return sum(server.command("INFO", "memory")["used_memory"] for server in self._servers)


async def measure(kind: Memory | Redis, small: int, large: int) -> int:
    gc.disable()  # a collection visits everything that is stored, and would be charged to whoever triggers it
    stores: dict[int, tuple[Store, Clock]] = {}
    for entries in (small, large):
        clock = Clock()
        store = kind.store(clock)
        stores[entries] = (store, clock)
        await store.apply([Set("reader", LISTED_TOPIC, f"{n}", b"x" * 32, 10**6) for n in range(LISTED)])
        before, started = kind.used(), time.perf_counter()
        await fill(store, entries)
        each, seconds = (kind.used() - before) / entries, time.perf_counter() - started
        print(f"{type(store).__name__}: {entries:>9,} entries stored in {seconds:.1f} s, {each:,.0f} bytes each")
    missed = 0
    scenarios: dict[str, Callable[[Store, Clock], Awaitable[float]]] = {
        f"list of {LISTED}, 20 times": listing,
        f"sweep of {EXPIRED:,}": sweeping,
    }
    for name, run in scenarios.items():
        times: dict[int, list[float]] = {small: [], large: []}
        for _ in range(ROUNDS):  # interleaved, so that a noisy neighbour meets both
            for entries, (store, clock) in stores.items():
                times[entries].append(await run(store, clock))
        base, grown = statistics.median(times[small]), statistics.median(times[large])
        ratio = grown / base
        missed += ratio > AIM
        print(
            f"{name:24} {small:>9,}: {base * 1e3:7.2f} ms   {large:>9,}: {grown * 1e3:7.2f} ms   "
            f"ratio {ratio:.2f} (aim: at most {AIM})"
        )
    for store, _ in stores.values():
        await store.close()
    print(f"{date.today()}, medians of {ROUNDS} interleaved rounds, Python {sys.version.split()[0]}")
    return 1 if missed else 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks growth", description=__doc__)
    parser.add_argument("--store", choices=("memory", "redis"), default="memory")
    parser.add_argument("--small", type=int, default=1000)
    parser.add_argument("--large", type=int, default=1_000_000)
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        kind = Redis(stack) if options.store == "redis" else Memory()
        return asyncio.run(measure(kind, options.small, options.large))
