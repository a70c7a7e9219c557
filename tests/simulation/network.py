"""Connections like those of TCP, between the processes of the cluster and Redis.

Bytes of one connection arrive in their order; those of two connections overtake each other. While a link is cut,
bytes wait in the sender's kernel, which tries again after 0.2, 0.6, 1.4, 3.0 … s: also when the connection was closed,
so they may arrive long after newer ones on other connections.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .process import Process
    from .server import Redis
    from .world import World

__all__ = ["Connection", "Network"]

_LEAST, _MOST = 0.0001, 0.0008  # seconds that bytes travel
_FIRST_RETRY = 0.2  # seconds until bytes without an acknowledgement are sent again, and then twice as long each time
_SYN_RETRIES = (0.0, 1.0, 3.0, 7.0, 15.0)  # seconds after the first attempt to connect


def _next_try(sent_at: float, not_before: float) -> float:
    """When a kernel that sent at one time, in vain, sends again, at or after another time."""
    wait, when = _FIRST_RETRY, sent_at
    while when < not_before:
        when += wait
        wait *= 2
    return when


class Network:
    """All connections to Redis. A link is one process' way there, each direction by itself."""

    def __init__(self, world: World, redis: Redis) -> None:
        self.world = world
        self.redis = redis
        self.connections: list[Connection] = []
        self._cut_until: dict[tuple[str, str], float] = {}  # by host and direction
        self._refused_until: dict[str, float] = {}
        self._hold_next: dict[str, float] = {}
        self._number = 0

    def cut(self, host: str, direction: str, seconds: float) -> None:
        """Nothing gets through for so long; what is sent meanwhile comes later."""
        place = (host, direction)
        self._cut_until[place] = max(self._cut_until.get(place, 0.0), self.world.now + seconds)

    def cut_until(self, host: str, direction: str) -> float:
        return self._cut_until.get((host, direction), 0.0)

    def is_cut(self, host: str, direction: str) -> bool:
        return self.cut_until(host, direction) > self.world.now

    def refuse(self, host: str, seconds: float) -> None:
        """Connections of this host are refused for so long."""
        self._refused_until[host] = self.world.now + seconds

    def hold_next(self, host: str, seconds: float) -> None:
        """The next request of this host, and what follows on its connection, travels for so long. Other connections
        are as fast as ever."""
        self._hold_next[host] = seconds

    def reset(self, host: str) -> None:
        """Every connection of this host ends; what was on its way is lost."""
        for connection in self.of(host):
            connection.reset()

    def of(self, host: str) -> list[Connection]:
        return [
            connection for connection in self.connections if connection.process.host == host and not connection.dead
        ]

    async def connect(self, process: Process, protocol: Any) -> _Transport:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._number += 1
        connection = Connection(self, process, protocol, self._number)
        connection.done = done
        connection.try_to_connect(0)
        try:
            await done
        except BaseException:
            connection.give_up()
            raise
        protocol.connection_made(connection.transport)
        return connection.transport

    def take_hold(self, host: str) -> float:
        return self._hold_next.pop(host, 0.0)

    def is_refused(self, host: str) -> bool:
        return self._refused_until.get(host, 0.0) > self.world.now or not self.redis.listens


class _Way:
    """One direction of a connection."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[float, Callable[..., None], tuple[Any, ...]]] = deque()


class Connection:
    """From one process to Redis, both ends of it."""

    def __init__(self, network: Network, process: Process, protocol: Any, number: int) -> None:
        self.network = network
        self.world = network.world
        self.process = process
        self.protocol = protocol
        self.number = number
        self.transport = _Transport(self)
        self.done: asyncio.Future[None] | None = None
        self.session: Any = None  # at the server; None before it has accepted, and after it has closed
        self.client_open = True
        self.dead = False  # nothing of it is left anywhere
        self._rng = self.world.random_for("connection", number)
        self._ways = {"up": _Way(), "down": _Way()}
        self._held = 0.0

    # Connecting

    def try_to_connect(self, attempt: int) -> None:
        if self.done is None or self.done.done() or not self.process.alive:
            return
        host = self.process.host
        if self.network.is_cut(host, "up") or self.network.is_cut(host, "down"):
            if attempt + 1 < len(_SYN_RETRIES):
                self.world.after(_SYN_RETRIES[attempt + 1] - _SYN_RETRIES[attempt], self.try_to_connect, attempt + 1)
            return
        self.world.after(self._rng.uniform(_LEAST, _MOST), self._reach)

    def _reach(self) -> None:
        if not self.process.alive or self.done is None:
            return
        if self.network.is_refused(self.process.host):
            self._arrive(self._refused)
            return
        self.session = self.network.redis.accept(self)
        self.network.connections.append(self)
        self._arrive(self._connected)

    def _connected(self) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_result(None)

    def _refused(self) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_exception(ConnectionRefusedError(111, "Connect call failed"))

    def give_up(self) -> None:
        """Whoever connected does not wait any more."""
        self.done = None
        self.client_open = False
        self._send_up(self._end_at_server)

    # From the client

    def write(self, data: bytes) -> None:
        if self.dead or not self.client_open:
            return
        hold = self.network.take_hold(self.process.host)
        if hold:
            self._held = self.world.now + hold
            self.world.say(f"{self.process.name} holds back connection {self.number} for {hold} s")
        self._send_up(self._reach_server, data)

    def close(self) -> None:
        """The client is done with it. What it has sent goes on its way, and then the end of it."""
        if self.client_open:
            self.client_open = False
            self._send_up(self._end_at_server)

    def child_closes(self) -> None:
        """Its process has died, and the last that had the connection open too ends."""
        if not self.dead:
            self._send_up(self._end_at_server)

    def _send_up(self, callback: Callable[..., None], *args: Any) -> None:
        self._send("up", callback, *args)

    def _send(self, direction: str, callback: Callable[..., None], *args: Any) -> None:
        way = self._ways[direction]
        way.waiting.append((self.world.now, callback, args))
        if len(way.waiting) == 1:
            self._expect(direction, self._rng.uniform(_LEAST, _MOST))

    def _expect(self, direction: str, travels: float) -> None:
        """The next that is to arrive. What was sent while the way is cut is sent again."""
        when = self.world.now + travels
        if direction == "up":
            when = max(when, self._held)
        self.world.at(when, self._get_through, direction)

    def _get_through(self, direction: str) -> None:
        way = self._ways[direction]
        sent_at, callback, args = way.waiting[0]
        until = self.network.cut_until(self.process.host, direction)
        if until > self.world.now:
            self.world.at(_next_try(sent_at, until), self._get_through, direction)
            return
        way.waiting.popleft()
        if way.waiting:
            self._expect(direction, _LEAST)
        callback(*args)

    def _reach_server(self, data: bytes) -> None:
        if self.session is not None:
            self.session.receive(data)
        elif not self.dead:
            self._tell_client(self._lost, ConnectionResetError(104, "Connection reset by peer"))

    def _end_at_server(self) -> None:
        session, self.session = self.session, None
        if session is not None:
            session.ended()
        self._bury()

    def _bury(self) -> None:
        self.dead = True
        if self in self.network.connections:
            self.network.connections.remove(self)

    # From the server

    def reply(self, data: bytes) -> None:
        if not self.dead:
            self._tell_client(self._reach_client, data)

    def server_closes(self, error: Exception | None) -> None:
        """Its session is over: the client hears of it when that has travelled."""
        self.session = None
        self._tell_client(self._lost, error)

    def reset(self) -> None:
        """Something between the two ends has forgotten the connection, and tells both."""
        session, self.session = self.session, None
        if session is not None:
            session.ended()
        self._arrive(self._lost, ConnectionResetError(104, "Connection reset by peer"))
        self._bury()

    def _tell_client(self, callback: Callable[..., None], *args: Any) -> None:
        self._send("down", self._arrive, callback, *args)

    def _arrive(self, callback: Callable[..., None], *args: Any) -> None:
        if self.process.alive:
            self.process.loop.arrived(callback, *args)

    def _reach_client(self, data: bytes) -> None:
        if self.client_open:
            self.protocol.data_received(data)

    def _lost(self, error: Exception | None) -> None:
        if not self.client_open:
            return
        if self.done is not None and not self.done.done():
            self.done.set_exception(error or ConnectionResetError(104, "Connection reset by peer"))
            return
        self.client_open = False
        if error is None:
            self.protocol.eof_received()
        self.protocol.connection_lost(error)
        if self.session is None:
            self._bury()


class _Transport(asyncio.Transport):
    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection
        self._closing = False

    def write(self, data: Any) -> None:
        if not self._closing:
            self._connection.write(bytes(data))

    def writelines(self, chunks: Any) -> None:
        self.write(b"".join(chunks))

    def is_closing(self) -> bool:
        return self._closing or not self._connection.client_open

    def close(self) -> None:
        if self.is_closing():
            return
        self._closing = True
        self._connection.close()
        self._connection.process.loop.call_soon(self._connection.protocol.connection_lost, None)

    abort = close

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: Any = None, low: Any = None) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def can_write_eof(self) -> bool:
        return False
