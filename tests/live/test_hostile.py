"""Somebody who means harm: the others are served as ever, and nothing of it stays."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from . import hostile
from .server import DEADLINE, SERVERS, Client, Server, is_a
from .test_ready_made import ask

SECONDS = float(os.environ.get("EPHEMERAL_HOSTILE_SECONDS", "10"))
GROWTH = 64e6
"""Bytes that the server's memory may grow by. An attack that is kept, or a client that is sent what it does not read,
would be hundreds of millions within seconds."""
ROOM = "room"
ATTACKED = [name for name in SERVERS if name != "granian"]  # one attack takes a minute in CI


class People:
    """Ann sets, Bob hears of it, and newcomers see it, over and over."""

    def __init__(self, server: Server, namespace: str) -> None:
        self.server = server
        self.namespace = namespace
        self.exchanges = self.newcomers = 0
        self._said: dict[str, str] = {}

    async def run(self, until: asyncio.Task[Any]) -> None:
        async with self._client() as ann, self._client() as bob:
            await ask(bob, "subscribe", topic=ROOM)
            while not until.done():
                await self._exchange(ann, bob)
                if self.exchanges % 50 == 0:
                    await self._newcomer()
                await asyncio.sleep(0.01)

    async def _exchange(self, ann: Client, bob: Client) -> None:
        self.exchanges += 1
        key, payload = f"key {self.exchanges % 10}", base64.b64encode(str(self.exchanges).encode()).decode()
        assert is_a("ephemeral.ok", await ask(ann, "set", topic=ROOM, key=key, payload=payload, ttl_ms=None))
        self._said[key] = payload
        while not is_a("ephemeral.set", frame := await bob.frame()):
            assert is_a("ephemeral.ping", frame)
            await bob.send(json.dumps(frame | {"_orama": "ephemeral.pong"}))
        assert (frame["key"], frame["client_id"], frame["payload"]) == (key, ann.hello["client_id"], payload)

    async def _newcomer(self) -> None:
        self.newcomers += 1
        async with self._client() as newcomer:
            snapshot = await ask(newcomer, "subscribe", topic=ROOM)
            assert {entry["key"]: entry["payload"] for entry in snapshot["entries"]} == self._said

    def _client(self) -> Client:
        return Client(self.server, "ready", namespace=self.namespace)


async def attack(server: Server, namespace: str) -> dict[str, int]:
    """What the hostile client has done."""
    command = (
        *(sys.executable, "-m", "tests.live.hostile", str(SECONDS), "--room", ROOM),
        *("--url", server.url("ready", namespace=namespace), "--denied", server.url("ready", namespace="denied")),
    )
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(SECONDS + 3 * DEADLINE):
            output, _ = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0
    first, last = output.decode().splitlines()
    print(first, last)
    assert first.startswith(hostile.BEGINS)
    return json.loads(last)


def require_only_what_may_be(entries: list[list[Any]], namespace: str) -> None:
    owned = Counter(owner for _, _, _, owner, _ in entries)
    assert not owned or max(owned.values()) <= 256
    for where, topic, key, _, size in entries:
        assert where == namespace
        assert 0 < len(topic.encode()) <= 1024
        assert 0 < len(key.encode()) <= 1024
        assert size <= 16_384
        assert topic != ROOM or key.startswith("key ")


@pytest.mark.parametrize("name", ATTACKED)
async def test_a_hostile_client_harms_nobody_and_leaves_nothing(name: str, tag: str) -> None:
    with Server(name) as server:
        people = People(server, tag)
        before = peak = server.memory()
        attacking = asyncio.create_task(attack(server, tag))
        living = asyncio.create_task(people.run(attacking))
        most = 0
        while not living.done():
            entries = (await server.debug(all="1"))["all"]
            require_only_what_may_be(entries, tag)
            most = max(most, len(entries))
            peak = max(peak, server.memory())
            await asyncio.wait([living], timeout=0.5)
        await living
        done = await attacking
        await server.nothing_left()
        print(f"{people.exchanges} exchanges, {people.newcomers} newcomers, at most {most} entries")
        print(f"the server grew by {(peak - before) / 1e6:.1f} MB at most")
        for what in (
            "commands",
            "names",
            "large frames",
            "random frames",
            "forbidden",
            "half-written",
            "slow readers",
            "large answers",
        ):
            assert done[what] > 0
        assert done["sent away"] > 0
        assert people.exchanges > 10
        assert people.newcomers > 0
        assert peak - before < GROWTH
        log = server.log()
        # uvicorn tells by a traceback of text that is none; of everything else there is to be none.
        assert log.count("Traceback") == log.count("Invalid UTF-8 sequence received from client"), log[-20_000:]
        assert "never retrieved" not in log


@pytest.mark.parametrize("name", ATTACKED)
async def test_whoever_waits_after_a_flood_is_let_in_before_the_server_gives_up(name: str, tag: str) -> None:
    """daphne, for one, allows 5 s for a handshake, and counts in whole seconds."""
    with Server(name) as server:
        for _ in range(3):  # each time it waits longer
            async with Client(server, "ready", namespace=tag) as flooding:
                frame = json.dumps({"_orama": "ephemeral.unsubscribe", "topic": ROOM})
                with suppress(ConnectionClosed):
                    while True:
                        await flooding.send(frame)
                        await asyncio.sleep(0)  # in which it reads
                # What is still on its way when the server closes is answered by a reset, which may overtake the code.
                assert flooding.ws.close_code in (4008, 1006)

        async def come() -> None:
            async with Client(server, "ready", namespace=tag) as person:
                assert is_a("ephemeral.snapshot", await ask(person, "subscribe", topic=ROOM))

        await asyncio.sleep((0.9 - time.time()) % 1)  # near the end of a second, which counts as a whole one
        began = time.monotonic()
        async with asyncio.TaskGroup() as coming:
            for _ in range(30):
                coming.create_task(come())
        assert time.monotonic() - began > 3  # they had to wait
