"""Random operations from many sockets through a lossy layer: in the end every view must equal the store.

python -m tests.faults.convergence --seconds 20
python -m tests.faults.convergence --operations 1000000 --seconds 3600
python -m tests.faults.convergence --seconds 60 --freezes 0.3
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from ephemeral_state.state import Limits, Topic
from ephemeral_state.stores.redis import RedisStore
from tests.redis_server import shared_url, unique_prefix

from .client import BulkClient, Violation
from .server import LAYERS, Server, configuration

CHAOS = {"lose": 0.05, "delay": 0.10, "repeat": 0.02, "deaf": 0.02}
CONVERGED_WITHIN = 5.0  # seconds
KEYS = [f"k{n}" for n in range(8)] + [f"t{n}" for n in range(4)]
"""Few, so that clients take them from each other all the time. Those that begin with "t" expire."""
TTLS = (0.05, 0.3, 1.0)  # seconds
SUBSCRIPTIONS = 2  # per socket
FROZEN = 1.0  # seconds, too short to be taken for dead


@dataclass(frozen=True)
class Plan:
    seconds: float = 20.0
    operations: int = sys.maxsize
    """Stop after so many, or after `seconds`, whichever comes first."""
    processes: int = 4
    sockets: int = 40
    seed: int = 0
    layer: str = "lossy pubsub"
    cuts: float = 0.0
    """Seconds between moments when Redis hangs up on everybody; 0: it never does."""
    freezes: float = 0.0
    """Seconds between moments when one process is frozen for up to `FROZEN`; 0: none ever is."""
    pause: float = 0.0
    """Seconds between a socket's frames. `channels_redis.core` carries some hundred messages a second to a process;
    beyond that views follow the store by the beacon alone."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the processes, in the place of what follows from `layer`."""


@dataclass
class Report:
    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    heard: Counter[str] = field(default_factory=Counter)
    """By the views."""
    seconds: float = 0.0
    """How long operations were made."""
    settled: float = 0.0
    """How long after the last change every view equalled the store."""

    @property
    def operations(self) -> int:
        return self.counts.total()

    def __str__(self) -> str:
        done, heard = (
            ", ".join(f"{count:,} {name}" for name, count in counter.most_common())
            for counter in (self.counts, self.heard)
        )
        return (
            f"{self.operations:,} operations in {self.seconds:.1f} s, {self.operations / self.seconds:,.0f}/s: {done}\n"
            f"heard: {heard}\n"
            f"all views equal the store {self.settled:.2f} s after the last change; seed {self.seed}"
        )


async def converge(plan: Plan, url: str, progress: bool = False) -> Report:
    """Raises `Violation` for a frame that must not be, or if views do not become equal in time."""
    prefix = unique_prefix()
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                Server(
                    configuration(
                        plan.layer,
                        store_url=url,
                        layer_url=url,
                        prefix=prefix,
                        chaos=CHAOS | {"seed": plan.seed * 100 + number} if "lossy" in plan.layer else None,
                    )
                    | plan.settings
                )
            )
            for number in range(plan.processes)
        ]
        store = RedisStore(Limits(), url=url, prefix=prefix, timeout=30)
        try:
            return await _Run(plan, servers, store, url).run(progress)
        finally:
            await store.close()


class _Run:
    def __init__(self, plan: Plan, servers: list[Server], store: RedisStore, url: str) -> None:
        self.plan = plan
        self.url = url
        self.servers = servers
        self.store = store
        self.report = Report(plan.seed)
        # Each topic is followed by as many sockets as there are processes, on the average.
        self.topics = [f"room {n}" for n in range(max(1, plan.sockets * SUBSCRIPTIONS // plan.processes))]
        self.clients: dict[int, BulkClient] = {}
        self.ends_at = 0.0

    async def run(self, progress: bool) -> Report:
        await asyncio.gather(*(self._connect(n, random.Random(n)) for n in range(self.plan.sockets)))
        started = time.monotonic()
        self.ends_at = started + self.plan.seconds
        beside = [asyncio.create_task(self._progress(started))] if progress else []
        if self.plan.cuts:
            beside.append(asyncio.create_task(self._cut()))
        if self.plan.freezes:
            beside.append(asyncio.create_task(self._freeze()))
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(self.plan.sockets):
                    group.create_task(self._drive(number))
        except* Violation as violations:
            raise violations.exceptions[0] from None
        finally:
            for task in beside:
                task.cancel()
        self.report.seconds = time.monotonic() - started
        await asyncio.sleep(max(TTLS))  # until the last entry has expired, things still change
        ended = time.monotonic()
        await self._settle(ended)
        self.report.settled = time.monotonic() - ended
        for client in self.clients.values():
            await self._leave(client, random.Random(0))
        return self.report

    async def _connect(self, number: int, rng: random.Random) -> BulkClient:
        # One in turn, so that every topic has its followers, in all processes; the others at random.
        first = self.topics[number * SUBSCRIPTIONS % len(self.topics)]
        others = rng.sample([topic for topic in self.topics if topic != first], SUBSCRIPTIONS - 1)
        url = self.servers[number % len(self.servers)].url
        while True:
            try:
                client = await BulkClient.connect(url, lost=bool(self.plan.cuts))
                await client.subscribe(first, *others)
            except (ConnectionClosed, InvalidHandshake, Violation):
                if not self.plan.cuts:
                    raise
                self.report.heard["failed connects"] += 1
                continue
            self.clients[number] = client
            return client

    async def _drive(self, number: int) -> None:
        rng = random.Random(self.plan.seed * 1000 + number)
        client = self.clients[number]
        commands = self._commands(rng, client)
        while time.monotonic() < self.ends_at and self.report.operations < self.plan.operations:
            # Most are long, to get through many operations; some are single, to try the ways of a lone writer.
            size = rng.choice((1, 1, 5, 20, 60))
            answers = [await client.begin(*(next(commands) for _ in range(size))) for _ in range(rng.choice((1, 2)))]
            if rng.random() < 0.06:  # with the answers still on their way
                await self._leave(client, rng)
                self.report.counts["disconnects"] += 1
                client = await self._connect(number, rng)
                commands = self._commands(rng, client)
                continue
            for answer in answers:
                errors = await asyncio.wait_for(answer, 60)
                if errors and (not self.plan.cuts or set(errors) != {"unavailable"}):
                    raise Violation(f"errors where none can be: {errors}")
                self.report.heard["refusals"] += sum(errors.values())
            if not client.alive:
                await client.ended()
                raise Violation("the server has closed a connection")
            await asyncio.sleep(self.plan.pause)

    async def _leave(self, client: BulkClient, rng: random.Random) -> None:
        await client.leave(rng)
        for view in client.views.values():
            self.report.heard += view.heard

    def _commands(self, rng: random.Random, client: BulkClient) -> Iterator[list[Any]]:
        topics = list(client.views)
        number = 0
        while True:
            topic = rng.choice(topics) if rng.random() < 0.8 else rng.choice(self.topics)
            key = rng.choice(KEYS)
            chance = rng.random()
            if chance < 0.65:
                number += 1
                payload = f"{client.client_id} {number}"
                yield ["set", topic, key, payload, rng.choice(TTLS) if key.startswith("t") else None]
                self.report.counts["sets"] += 1
            elif chance < 0.985:
                yield ["clear", topic, key]
                self.report.counts["clears"] += 1
            elif chance < 0.995:
                yield ["list", topic]
                self.report.counts["lists"] += 1
            else:
                yield ["subscribe", rng.choice(topics)]
                self.report.counts["subscriptions"] += 1

    async def _settle(self, since: float) -> None:
        while True:
            asked = time.monotonic()
            if not (wrong := await self._differences()):
                return
            for client in self.clients.values():
                if not client.alive:
                    await client.ended()
            if asked > since + CONVERGED_WITHIN:
                raise Violation(
                    f"after {CONVERGED_WITHIN} s views differ from the store, seed {self.plan.seed}: {wrong}"
                )
            await asyncio.sleep(0.05)

    async def _differences(self) -> list[str]:
        living = {client.client_id for client in self.clients.values()}
        truth: dict[str, dict[str, tuple[str, str]]] = {}
        wrong = []
        for topic in self.topics:
            entries = (await self.store.snapshot(Topic("", topic))).entries
            truth[topic] = {e.key: (e.client_id, base64.b64encode(e.payload).decode()) for e in entries}
            wrong += [
                f"{topic}: {e.key} is owned by a ghost, {e.client_id}" for e in entries if e.client_id not in living
            ]
        for view in self._views():
            if view.entries != truth[view.topic]:
                wrong.append(f"{view.topic}: {view.entries} instead of {truth[view.topic]}")
        return wrong

    def _views(self) -> Iterator[Any]:
        for client in self.clients.values():
            yield from client.views.values()

    async def _cut(self) -> None:
        async with Redis.from_url(self.url) as redis:
            while True:
                await asyncio.sleep(self.plan.cuts)
                for kind in ("normal", "pubsub"):
                    await redis.client_kill_filter(_type=kind, skipme=True)

    async def _freeze(self) -> None:
        rng = random.Random(self.plan.seed)
        while True:
            await asyncio.sleep(self.plan.freezes)
            server = rng.choice(self.servers)
            server.send(signal.SIGSTOP)
            try:
                await asyncio.sleep(rng.uniform(0, FROZEN))
            finally:
                server.send(signal.SIGCONT)

    async def _progress(self, started: float) -> None:
        while True:
            await asyncio.sleep(5)
            done, seconds = self.report.operations, time.monotonic() - started
            print(f"{seconds:6.0f} s {done:>12,} operations, {done / seconds:,.0f}/s", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = Plan()
    parser.add_argument("--seconds", type=float, default=defaults.seconds)
    parser.add_argument("--operations", type=int, default=defaults.operations)
    parser.add_argument("--processes", type=int, default=defaults.processes)
    parser.add_argument("--sockets", type=int, default=defaults.sockets)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--layer", choices=LAYERS, default=defaults.layer)
    parser.add_argument("--cuts", type=float, default=defaults.cuts)
    parser.add_argument("--freezes", type=float, default=defaults.freezes)
    parser.add_argument("--pause", type=float, default=defaults.pause)
    plan = Plan(**vars(parser.parse_args()))
    with shared_url() as url:
        try:
            print(asyncio.run(converge(plan, url, progress=True)))
        except Violation as violation:
            print(f"seed {plan.seed}: {violation}", *getattr(violation, "__notes__", ()), sep="\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
