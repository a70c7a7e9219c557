"""One server process of the cluster: its event loop, its store, and what else is global in a real one."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import channels.consumer
import channels.db
import channels.generic.websocket

from ephemeral_state import node, policy, stores
from ephemeral_state.conf import get_settings
from ephemeral_state.consumers import EphemeralStateConsumer
from ephemeral_state.policy import Policy

from .layer import Channels
from .loop import ProcessLoop

if TYPE_CHECKING:
    from .layer import Broker
    from .world import World

__all__ = ["EVERYTHING", "Everybody", "Process", "take_over"]

EVERYTHING: dict[str, Any] = {
    "BACKEND": "ephemeral_state.stores.redis.RedisStore",
    "OPTIONS": {"url": "redis://redis:6379/0"},
    "POLICY": "tests.simulation.process.Everybody",
}
_WALL = 1_700_000_000.0  # seconds since 1970 when the simulated time is 0


class Everybody(Policy):
    """May do everything."""

    async def can_subscribe(self, scope: Any, namespace: str, topic: str) -> bool:
        return True

    async def can_set(self, scope: Any, namespace: str, topic: str, key: str) -> bool:
        return True


class Process:
    """From its start to its death. Whoever comes after it in the same place is another one."""

    def __init__(self, world: World, host: str, life: int) -> None:
        self.world = world
        self.host = host
        self.name = f"{host}.{life}"
        self.broker: Broker = world.broker
        self.channels = Channels()
        self.alive = True
        self.frozen = False
        self.ends = False
        """It was asked to, and takes no new clients."""
        self.loop = ProcessLoop(self)
        self.duties: list[asyncio.Future[None]] = []
        self._stores: list[Any] = []
        world.processes.append(self)

    @property
    def can_run(self) -> bool:
        return not self.frozen

    @property
    def wall_offset(self) -> float:
        offsets: dict[str, float] = self.world.__dict__.setdefault("wall_offsets", {})
        return offsets.get(self.host, 0.0)

    def step(self) -> None:
        """One turn of its loop, with its own globals in place."""
        self.world.running = self
        stores._stores[:] = self._stores
        try:
            self.loop.step()
        finally:
            self._stores[:] = stores._stores
            self.world.running = None

    def serve(self, receive: Any, send: Any) -> asyncio.Task[None]:
        """A client has connected. To be called from its loop."""
        scope = {
            "type": "websocket",
            "path": "/",
            "headers": [],
            "query_string": b"",
            "subprotocols": [],
            "client": None,
        }
        return self.loop.create_task(_consumer(scope, receive, send))

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False

    def die(self, *, sockets_end: bool = True) -> None:
        """At once. `sockets_end`: the kernel closes what it had open; where the host is lost, nobody does."""
        if not self.alive:
            return
        for connection in self.world.network.of(self.host):
            if connection.process is self:
                if sockets_end:
                    connection.close()
                connection.client_open = False
        self.alive = False
        _graves.append((self, asyncio.all_tasks(self.loop)))
        self.world.processes.remove(self)
        self.world.broker.forget(self)

    async def drain(self) -> None:
        """What a server's end does for its connections."""
        await node.drain()


_graves: list[Any] = []
"""What the dead were about to do, kept for ever: a coroutine that is collected as garbage runs its `finally`."""

_consumer: Any = EphemeralStateConsumer.as_asgi()


def take_over(world: World) -> None:
    """Put the simulated time and the seed in the place of the real ones, for all that runs from now on."""

    def wall() -> float:
        return _WALL + world.now + (world.running.wall_offset if world.running is not None else 0.0)

    clock = SimpleNamespace(
        monotonic=lambda: world.now,
        monotonic_ns=lambda: round(world.now * 1e9),
        perf_counter=lambda: world.now,
        time=wall,
        time_ns=lambda: round(wall() * 1e9),
        sleep=_no_thread,
        strftime=time.strftime,
        gmtime=time.gmtime,
    )
    for name, module in list(sys.modules.items()):
        if name.startswith("ephemeral_state") and getattr(module, "time", None) in (time, _last_clock[0]):
            module.time = clock  # type: ignore[attr-defined]
    _last_clock[0] = clock
    rng = world.random_for("everything else")
    random.seed(f"global {world.seed}")
    os.urandom = rng.randbytes
    random._urandom = rng.randbytes  # type: ignore[attr-defined]
    node.os = SimpleNamespace(getpid=lambda: 1)  # type: ignore[assignment]
    node.socket = SimpleNamespace(gethostname=lambda: world.running.host if world.running else "-")  # type: ignore[assignment]
    for place in (channels.consumer, channels.db, channels.generic.websocket, policy):
        if hasattr(place, "aclose_old_connections"):
            place.aclose_old_connections = _nothing_to_close  # type: ignore[attr-defined]
    node._nodes.clear()
    stores._stores.clear()
    get_settings.cache_clear()


_last_clock: list[Any] = [time]


def _no_thread(seconds: float) -> None:
    raise RuntimeError("nothing may sleep but in its event loop")


async def _nothing_to_close() -> None:
    """There is no database, and the hop to a thread would be no part of the simulation."""
