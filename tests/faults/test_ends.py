"""Every way in which a server process, or a client's host, can end."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.waiting import until

from .client import BulkClient, Violation
from .cluster import Cluster, cluster
from .person import Person
from .server import Server

pytestmark = [pytest.mark.redis, pytest.mark.faults]

CLEARED_AFTER_KILL = 2.0  # seconds
CONVERGED_WITHIN = 5.0
LEASE = 3.0


# kill -9


class Load:
    """Clients of four processes set, clear, take keys from each other, and come and go."""

    TOPICS = ("room", "lobby", "attic")
    KEYS = tuple(f"k{n}" for n in range(60))
    """Taken from each other. Beside them each client has a key of its own, which nobody else may touch."""
    CLIENTS = 6  # per process

    def __init__(self, here: Cluster, seed: int) -> None:
        self.here = here
        self.rng = random.Random(seed)
        self.servers: list[Server] = []
        self.own: dict[str, str] = {}
        """The topic in which each living client has its own key."""
        self._may_go_on = asyncio.Event()
        self._busy = 0

    async def run(self, server: Server) -> None:
        """Until the server is dead."""
        await asyncio.gather(*(self._live(server) for _ in range(self.CLIENTS)))

    async def rest(self) -> None:
        """Let everybody finish what they are doing, and stay."""
        self._may_go_on.clear()
        await until(lambda: not self._busy)

    def go_on(self) -> None:
        self._may_go_on.set()

    async def _live(self, server: Server) -> None:
        try:
            while True:
                await self._may_go_on.wait()
                self._busy += 1
                try:
                    client = await self.here.connect(server, *self.rng.sample(self.TOPICS, 2))
                    topic, payload = self.rng.choice(self.TOPICS), f"{client.client_id} 1"
                    assert await client.do(["set", topic, f"own {client.client_id}", payload, None]) == {}
                    self.own[client.client_id] = topic
                finally:
                    self._busy -= 1
                for _ in range(self.rng.randrange(5, 40)):
                    await self._may_go_on.wait()
                    await self._act(client)
                    await asyncio.sleep(self.rng.random() * 0.03)
                del self.own[client.client_id]
                await client.begin(*self._commands(client))  # still on its way when the client has left
                await client.leave(self.rng)
                del self.here.clients[client]
        except (ConnectionClosed, InvalidHandshake, OSError, asyncio.CancelledError):
            if server.running:
                raise

    async def _act(self, client: BulkClient) -> None:
        self._busy += 1
        try:
            if errors := await client.do(*self._commands(client)):
                raise Violation(f"errors where none can be: {errors}")
        finally:
            self._busy -= 1

    def _commands(self, client: BulkClient) -> list[list[object]]:
        commands: list[list[object]] = []
        for _ in range(self.rng.randrange(1, 10)):
            topic, key = self.rng.choice(self.TOPICS), self.rng.choice(self.KEYS)
            payload = f"{client.client_id} {time.monotonic_ns()}"
            commands.append(["set", topic, key, payload, None] if self.rng.random() < 0.8 else ["clear", topic, key])
        return commands


async def test_a_killed_process_under_load_leaves_no_ghost_and_takes_no_key_of_the_living(redis_url, pytestconfig):
    async with cluster(redis_url) as here:
        load = Load(here, seed := random.SystemRandom().randrange(10**6))
        print(f"seed {seed}")
        running: dict[Server, asyncio.Task[None]] = {}
        load.go_on()
        try:
            for number in range(pytestconfig.getoption("faults_kills")):
                while len(running) < 4:
                    server = here.start()
                    running[server] = asyncio.create_task(load.run(server))
                    await until(lambda server=server: list(here.clients.values()).count(server) == Load.CLIENTS, 30)
                await asyncio.sleep(load.rng.random())
                victim = load.rng.choice(list(running))
                cleared, equal = await kill(victim, load)
                await running.pop(victim)
                print(f"kill {number}: no ghost after {cleared:.2f} s, all views equal {equal:.2f} s after")
        finally:
            for task in running.values():
                task.cancel()
            await asyncio.wait(running.values())


async def kill(victim: Server, load: Load) -> tuple[float, float]:
    here = load.here
    killed = victim.kill()
    victim.wait(10)
    dead = {client.client_id for client, server in here.clients.items() if server is victim}
    while True:
        asked = time.monotonic()
        ghosts = dead & {owner for topic in load.TOPICS for owner in (await here.owners(topic)).values()}
        ghosts |= dead & {owner for view in here.views() for owner, _ in view.entries.values()}
        if not ghosts:
            break
        assert asked - killed < CLEARED_AFTER_KILL, f"ghosts of a killed process: {ghosts}"
        await asyncio.sleep(0.01)
    cleared = asked - killed
    for client in [client for client, server in here.clients.items() if server is victim]:
        del here.clients[client]
    await load.rest()
    for client_id in dead:
        load.own.pop(client_id, None)
    # Whoever had just left, a living process or the killed one, may have had sets and its end on the way: both come.
    deadline = max(killed + CLEARED_AFTER_KILL, time.monotonic() + CONVERGED_WITHIN)
    while True:
        # What the dead process had stored and not yet told is a lost last message.
        equal = await here.settle(CONVERGED_WITHIN)
        owners = {topic: await here.owners(topic) for topic in load.TOPICS}
        strangers = {owner for its in owners.values() for owner in its.values()} - set(load.own)
        if not strangers:
            break
        assert time.monotonic() < deadline, f"owners that are not there: {strangers}"
    views = list(here.views())
    for client_id, topic in load.own.items():
        assert f"own {client_id}" in owners[topic]
    assert not any(view.disconnected[f"own {client_id}"] for view in views for client_id in load.own)
    load.go_on()
    return cleared, equal


# SIGSTOP


async def test_a_process_that_was_frozen_takes_nothing_from_a_successor_and_gets_back_the_rest(redis_url):
    async with cluster(redis_url, LEASE=LEASE) as here:
        frozen, other = here.start(), here.start()
        watchers = [await here.connect(server, "room") for server in (frozen, other)]
        for watcher in watchers:
            watcher.views["room"].may_return = True
        owners = {}
        for n in range(10):
            keys = [f"k{n}/{m}" for m in range(4)]
            grace = 0.5 if n % 2 else None  # ends before the process is thawed
            owners |= dict.fromkeys(keys, (await here.owner(frozen, "room", *keys, grace=grace)).client_id)
        successor = await here.owner(other, "room", "its own")
        await here.settle(5, owners | {"its own": successor.client_id})
        stopped = frozen.send(signal.SIGSTOP)

        async def take(*keys: str) -> None:
            payload = f"{successor.client_id} 2"
            assert await successor.do(*(["set", "room", key, payload, None] for key in keys)) == {}

        keys = list(owners)
        await take(*keys[::4])
        await until(lambda: len(watchers[1].views["room"].entries) == 11, LEASE + 3)
        assert time.monotonic() - stopped > LEASE - 0.6  # the last beat may have been half a second before
        await take(*keys[1::4])
        taken = dict.fromkeys([*keys[::4], *keys[1::4], "its own"], successor.client_id)
        await until(lambda: len(watchers[1].views["room"].entries) == 21)
        transfers = watchers[1].views["room"].heard["transfers"]
        frozen.send(signal.SIGCONT)
        await here.settle(5, owners | taken)
        await asyncio.sleep(1.5)  # whatever else the woken process may do
        await here.settle(1, owners | taken)
        assert watchers[1].views["room"].heard["transfers"] == transfers


# SIGTERM


TERM, INT = signal.SIGTERM, signal.SIGINT


@pytest.mark.parametrize(
    ("server", "application", "number", "young"),
    [
        ("daphne", "application", TERM, False),
        ("daphne", "application", TERM, True),
        ("daphne", "application", INT, False),
        ("uvicorn", "application", TERM, False),
        ("uvicorn", "application", INT, False),
        ("uvicorn", "lifespan", TERM, True),
        ("granian", "application", TERM, True),
        ("granian", "application", INT, False),
        ("granian", "lifespan", TERM, False),
        ("hypercorn", "application", TERM, True),
        ("hypercorn", "application", INT, False),
        ("gunicorn", "application", TERM, False),
        ("gunicorn", "application", INT, True),
        ("gunicorn-uvicorn", "application", TERM, True),
        ("gunicorn-uvicorn", "application", INT, False),
    ],
)
async def test_a_server_that_is_told_to_stop_clears_and_ends_in_order(server, application, number, young, redis_url):
    async with cluster(redis_url) as here:
        watcher = await here.connect(here.start(), "room")
        stopping = here.start(server, application)
        owners = [await here.owner(stopping, "room", f"{n}", f"{n}'") for n in range(20)]
        await until(lambda: len(watcher.views["room"].entries) == 40)
        if young:  # daphne does not cancel anybody while it has a connection that is less than a second old
            owners.append(await here.connect(stopping))
        else:
            await asyncio.sleep(1.2)
        stopped = stopping.send(number)
        await until(lambda: not watcher.views["room"].entries, 2)
        print(f"cleared after {time.monotonic() - stopped:.3f} s")
        await until(lambda: not any(owner.alive for owner in owners[:20]), 5)
        print(f"closed after {time.monotonic() - stopped:.3f} s")
        if (server, number) != ("gunicorn-uvicorn", INT):  # which it ends with SIGKILL after 30 s
            code = await asyncio.to_thread(stopping.wait, 10)
            print(f"ended after {time.monotonic() - stopped:.3f} s with {code}")
            assert code in (0, -number), stopping.log()
        assert await here.truth() == {}


async def test_a_server_that_stops_its_loop_at_once_waits_until_a_slow_store_has_cleared(redis_server):
    async with cluster(redis_server.url, SHUTDOWN_TIMEOUT=8) as here:
        stopping = here.start("granian", "application")
        for n in range(10):
            await here.owner(stopping, "room", f"{n}")
        redis_server.stop()
        try:
            stopping.send(signal.SIGTERM)
            await asyncio.sleep(1)
            assert stopping.running
        finally:
            redis_server.cont()
        assert await asyncio.to_thread(stopping.wait, 10) == 0, stopping.log()
        assert await here.truth() == {}  # there is no other process that could have cleared


@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
async def test_what_is_owned_behind_a_handler_that_never_returns_is_cleared_when_the_server_stops(server, redis_url):
    async with cluster(redis_url) as here:
        watcher = await here.connect(here.start(), "room")
        stopping = here.start(server)
        for n in range(5):
            await (await here.owner(stopping, "room", f"{n}")).begin(["hang"])
        await until(lambda: len(watcher.views["room"].entries) == 5)
        await asyncio.sleep(1.2)
        stopping.send(signal.SIGTERM)
        await until(lambda: not watcher.views["room"].entries, 2)
        if server == "daphne":
            assert await asyncio.to_thread(stopping.wait, 5) == 0, stopping.log()
        else:  # uvicorn waits for its handlers, for ever unless it was given a --timeout-graceful-shutdown
            stopping.kill()


@pytest.mark.parametrize(("server", "application"), [("daphne", "application"), ("uvicorn", "lifespan")])
async def test_a_server_ends_in_time_though_its_store_is_frozen(server, application, redis_server):
    async with cluster(redis_server.url, SHUTDOWN_TIMEOUT=4) as here:
        stopping = here.start(server, application)
        for n in range(10):
            await here.owner(stopping, "room", f"{n}")
        redis_server.stop()
        try:
            stopped = stopping.send(signal.SIGTERM)
            code = await asyncio.to_thread(stopping.wait, 20)
            took = time.monotonic() - stopped
        finally:
            redis_server.cont()
        print(f"ended after {took:.3f} s with {code}")
        assert took < 4 + 3
        assert code in (0, -signal.SIGTERM), stopping.log()


# Grace


@pytest.mark.parametrize("comes_back", [True, False], ids=["and is back", "and stays away"])
@pytest.mark.parametrize("end", ["the process is killed", "the client resets", "the last client of its process resets"])
async def test_what_has_a_grace_outlives_its_owner_for_that_long_when(end, comes_back, redis_url):
    async with cluster(redis_url) as here:
        its, other = here.start(), here.start()
        watcher = await here.connect(other, "room")
        view = watcher.views["room"]
        owner = await here.connect(its)
        keys = (("graceful", 3), ("plain", None))
        assert await owner.do(*(["set", "room", key, f"{key} 1", None, grace] for key, grace in keys)) == {}
        await until(lambda: len(view.entries) == 2)
        if end == "the process is killed":
            ended = its.kill()
            its.wait(10)
        else:
            if "last" not in end:
                await here.connect(its)
            ended = time.monotonic()
            owner.abort()
        await until(lambda: list(view.entries) == ["graceful"], CLEARED_AFTER_KILL)
        heard = view.heard["frames"]
        if comes_back:
            await asyncio.sleep(0.5)
            again = await here.owner(other, "room", "graceful")
            await until(lambda: view.entries["graceful"][0] == again.client_id)
            await asyncio.sleep(ended + CLEARED_AFTER_KILL + 3 - time.monotonic())
            assert view.heard["frames"] == heard + 1
            assert view.heard["clears"] == 1
            await here.settle(1, {"graceful": again.client_id})
        else:
            await until(lambda: not view.entries, 5)
            late = time.monotonic() - ended - 3
            print(f"cleared {late:.2f} s after its grace")
            assert 0 <= late < 0.25 + (CLEARED_AFTER_KILL if "killed" in end else 0)
            assert view.disconnected == {"plain": 1, "graceful": 1}
            assert not view.heard["expiries"]


# Clocks


@pytest.mark.parametrize("wrong_by", [60, -60])
async def test_a_clock_that_is_a_minute_wrong_changes_nothing(wrong_by, redis_url):
    async with cluster(redis_url) as here:
        right, wrong = here.start(), here.start(CLOCK=str(wrong_by))
        watchers = [await here.connect(server, "room") for server in (right, wrong)]
        views = [watcher.views["room"] for watcher in watchers]
        owned = {}
        for server, key in ((right, "right"), (wrong, "wrong")):
            owned[key] = (await here.owner(server, "room", key)).client_id
        await here.settle(5, owned)
        for watcher, key in zip(watchers, ("t1", "t2"), strict=True):
            assert await watcher.do(["set", "room", key, f"{key} 1", 1.0]) == {}
        set_at = time.monotonic()
        await until(lambda: all(len(view.entries) == 4 for view in views), 0.8)
        await until(lambda: all(len(view.entries) == 2 for view in views), 2)
        assert 0.9 < time.monotonic() - set_at < 1.5
        await asyncio.sleep(2)
        await here.settle(1, owned)
        assert all(view.heard["clears"] == view.heard["expiries"] == 2 for view in views)
        wrong.kill()
        wrong.wait(10)
        await until(lambda: list(views[0].entries) == ["right"], CLEARED_AFTER_KILL)


# Half-open connections

PING = 4.0
ENDED_AFTER = PING + 10 + 1  # seconds
FROZEN_CLIENT_ENDED_AFTER = 20.0


class Wire:
    """Forwards to a server. Cut, it swallows what both sides say, and neither hears of it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.is_cut = False
        self.writers: list[asyncio.StreamWriter] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self.writers += [writer, server_writer]
        await asyncio.gather(self._forward(reader, server_writer), self._forward(server_reader, writer))

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if not self.is_cut:
                    writer.write(data)


@asynccontextmanager
async def vanishing_client(server: Server, key: str) -> AsyncIterator[Wire]:
    """Of the ready-made consumer. It answers pings, over a wire that can be cut."""
    wire = Wire(server.port)
    async with await asyncio.start_server(wire, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        websocket = await connect(f"ws://127.0.0.1:{port}/", open_timeout=60, ping_interval=None, proxy=None)
        frame = {"_orama": "ephemeral.set", "topic": "room", "key": key, "payload": "IDE=", "ttl_ms": None}
        await websocket.send(json.dumps(frame))

        async def answer_pings() -> None:
            async for text in websocket:
                if json.loads(text)["_orama"] == "ephemeral.ping":
                    await websocket.send(text.replace("ping", "pong"))

        answering = asyncio.create_task(answer_pings())
        try:
            yield wire
        finally:
            answering.cancel()
            websocket.transport.abort()
            for writer in wire.writers:
                writer.transport.abort()
            await asyncio.wait([answering])


async def test_a_client_that_vanishes_without_a_word_is_cleared(redis_url):
    async with cluster(redis_url) as here:
        servers = {name: here.start(name, PING=str(PING)) for name in ("uvicorn", "daphne")}
        watcher = await here.connect(here.start(), "room")
        view = watcher.views["room"]

        async def vanish(server: Server, key: str, after: float) -> float:
            async with vanishing_client(server, key) as wire:
                await until(lambda: key in view.entries)
                await asyncio.sleep(after)
                assert key in view.entries
                wire.is_cut = True
                cut = time.monotonic()
                await until(lambda: key not in view.entries, 60)
                return time.monotonic() - cut

        # At several points between one ping and the next.
        vanishing = (vanish(s, f"{name} {n}", PING + n * PING / 4) for name, s in servers.items() for n in range(6))
        took = await asyncio.gather(*vanishing)
        print(f"cleared after {', '.join(f'{each:.1f}' for each in took)} s")
        assert max(took) < ENDED_AFTER


async def test_a_client_whose_process_is_frozen_is_cleared_by_every_server(redis_url):
    """Its kernel goes on to acknowledge what is sent, so nothing but a missing answer shows it."""
    keys = ("daphne", "uvicorn", "granian")
    async with cluster(redis_url) as here:
        watcher = await here.connect(here.start(), "room")
        view = watcher.views["room"]
        people = [here.stack.enter_context(Person(here.start(server, "lifespan"), server)) for server in keys]
        await until(lambda: set(view.entries) == set(keys), 60)
        heard = view.heard["frames"]
        stopped = [person.send(signal.SIGSTOP) for person in people]

        async def gone(key: str) -> float:
            await until(lambda: key not in view.entries, 60)
            return time.monotonic()

        took = dict(zip(keys, (at - stopped[0] for at in await asyncio.gather(*map(gone, keys))), strict=True))
        print(f"cleared after {', '.join(f'{each:.1f} s on {server}' for server, each in took.items())}")
        assert max(took.values()) < FROZEN_CLIENT_ENDED_AFTER
        assert view.heard["frames"] == heard + len(keys)
        assert all(view.disconnected[key] == 1 for key in keys)
        await here.settle(5, {})
