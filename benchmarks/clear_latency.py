"""How soon subscribers hear the clears, for each way in which an owner can end.

Real servers, real sockets, a real Redis and the pub/sub layer. The owner has a few keys and is connected to one
process, the subscribers to another; measured is the time from the cause to the last clear at the last of them. The
server's own share is the time until it tells the application: uvicorn looks for signals ten times a second. The
aims: without that share p99 under 50 ms; SIGKILL under 2 s; SIGSTOP, which takes the lease of 12 s, under 15 s.

Who cancels? A server that stops, and daphne when a consumer does not end in time; but then the client has left before,
and its keys with it. So here a task of the handler's own cancels the consumer.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import platform
import random
import signal
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from datetime import date
from itertools import count
from typing import Any, NamedTuple

import redis

from tests.faults.client import BulkClient
from tests.faults.server import Server, configuration
from tests.redis_server import shared_url, unique_prefix

SERVERS = ("uvicorn", "daphne", "granian")
SUBSCRIBERS, KEYS = 8, 4
TOPIC = "room"
PROMPT_AIM, KILL_AIM, FREEZE_AIM = 0.050, 2.0, 15.0  # seconds


class End(NamedTuple):
    cause: Callable[[BulkClient, Server], Awaitable[float]]
    """Returns when."""
    aim: float
    ends_the_server: bool = False


class Sample(NamedTuple):
    total: float
    server: float
    """How much of it passed until the application was told."""


async def close(owner: BulkClient, server: Server) -> float:
    then = time.monotonic()
    await owner.close()
    return then


async def reset(owner: BulkClient, server: Server) -> float:
    then = time.monotonic()
    owner.abort()
    return then


def in_the_handler(verb: str) -> Callable[[BulkClient, Server], Awaitable[float]]:
    async def cause(owner: BulkClient, server: Server) -> float:
        then = time.monotonic()
        await owner.begin([verb])
        return then

    return cause


def by(number: int) -> Callable[[BulkClient, Server], Awaitable[float]]:
    async def cause(owner: BulkClient, server: Server) -> float:
        return server.send(number)

    return cause


ENDS = {
    "close": End(close, PROMPT_AIM),
    "reset": End(reset, PROMPT_AIM),
    "exception": End(in_the_handler("fail"), PROMPT_AIM),
    "cancellation": End(in_the_handler("cancel"), PROMPT_AIM),
    "term": End(by(signal.SIGTERM), PROMPT_AIM, ends_the_server=True),
    "kill": End(by(signal.SIGKILL), KILL_AIM, ends_the_server=True),
    "stop": End(by(signal.SIGSTOP), FREEZE_AIM),
}


class Bench:
    """The subscribers, connected to a server of their own, and a server for the owners."""

    def __init__(self, kind: str, url: str) -> None:
        self._kind = kind
        self._settings = configuration("pubsub", store_url=url, layer_url=url, prefix=unique_prefix())
        self._stack = ExitStack()
        self._server: Server | None = None
        self._served = ExitStack()
        self._numbers = count(1)
        self._heard = 0
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Bench:
        server = self._stack.enter_context(Server(self._settings, self._kind))
        self._subscribers = [await BulkClient.connect(server.url) for _ in range(SUBSCRIBERS)]
        for subscriber in self._subscribers:
            await subscriber.subscribe(TOPIC)
            subscriber.views[TOPIC].may_return = True
        return self

    async def __aexit__(self, *_: object) -> None:
        for subscriber in self._subscribers:
            await subscriber.close()
        self._served.close()
        self._stack.close()

    async def round(self, end: End) -> Sample:
        if self._server is None:
            self._server = self._served.enter_context(Server(self._settings, self._kind, "noting"))
        server = self._server
        owner = await BulkClient.connect(server.url)
        number = next(self._numbers)
        keys = [f"{number}/{key}" for key in range(KEYS)]
        assert await owner.do(*(["set", TOPIC, key, f"owner {number}", None] for key in keys)) == {}
        await self._until(lambda view: len(view.entries) == KEYS, 10)
        # daphne looks at a new connection once a second, and nothing shall hang on the phase of a heartbeat.
        await asyncio.sleep(1.2 + random.random() if end.aim > PROMPT_AIM or end.ends_the_server else 0.05)
        notes = len(self._notes())
        caused = await end.cause(owner, server)
        await self._until(lambda view: not view.entries, 60)
        total = time.monotonic() - caused
        told = self._notes()[notes:]
        if end.ends_the_server:
            server.wait(30)
            self._served.close()
            self._server = None
        elif end is ENDS["stop"]:
            server.send(signal.SIGCONT)
            await self._until(lambda view: len(view.entries) == KEYS, 10)
        await owner.close()
        await self._until(lambda view: not view.entries, 10)
        return Sample(total, min(told) - caused if told else 0.0)

    def _notes(self) -> list[float]:
        assert self._server is not None
        return [float(line.split()[1]) for line in self._server.log().splitlines() if line.startswith("told ")]

    async def _until(self, condition: Callable[[Any], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        for subscriber in self._subscribers:
            while not condition(subscriber.views[TOPIC]):
                if time.monotonic() > end:
                    raise TimeoutError(f"after {seconds} s a subscriber sees {subscriber.views[TOPIC].entries}")
                await asyncio.sleep(0.0005)


async def measure(url: str, rounds: int, servers: list[str], names: list[str]) -> bool:
    print(f"ms until the last of {SUBSCRIBERS} subscribers has heard the last of {KEYS} clears")
    print(f"{'':22}{'p50':>9}{'p99':>9}{'max':>9}   server p50, p99")
    reached = True
    for kind in servers:
        async with Bench(kind, url) as bench:
            await bench.round(ENDS["close"])  # opens connections, loads scripts
            for name in names:
                end = ENDS[name]
                samples = [await bench.round(end) for _ in range(rounds)]
                reached &= report(kind, name, end, samples)
    return reached


def report(kind: str, name: str, end: End, samples: list[Sample]) -> bool:
    totals, shares = [sample.total for sample in samples], [sample.server for sample in samples]
    if end.aim == PROMPT_AIM:
        what, value = "p99 without server", p99([sample.total - sample.server for sample in samples])
    else:
        what, value = "max", max(totals)
    columns = "".join(f"{1000 * each:>9.1f}" for each in (statistics.median(totals), p99(totals), max(totals)))
    share = f"{1000 * statistics.median(shares):>8.1f}{1000 * p99(shares):>8.1f}"
    passed = value < end.aim
    verdict = f"{what} {1000 * value:,.1f} < {1000 * end.aim:,.0f}: {'pass' if passed else 'MISSED'}"
    print(f"{kind:8} {name:13}{columns}  {share}   {verdict} ({len(samples)} rounds)", flush=True)
    return passed


def p99(values: list[float]) -> float:
    """The nearest rank: of fewer than a hundred values, the greatest."""
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks clear-latency", description=__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="per end and server; each stop takes a lease")
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--only", nargs="+", choices=ENDS, default=list(ENDS))
    options = parser.parse_args(arguments)
    with shared_url() as url:
        reached = asyncio.run(measure(url, options.rounds, options.servers, options.only))
        with redis.Redis.from_url(url) as client:
            version = client.info("server")["redis_version"]
    machine = f"{os.cpu_count()} CPUs, {platform.machine()}"
    print(f"{date.today()}, {machine}, Python {sys.version.split()[0]}, Redis {version}")
    return 0 if reached else 1
