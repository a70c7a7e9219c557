"""Many clients at once: nobody's leaving is lost, and nobody waits for one who does not read."""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import pytest

from .server import Client, Lean, Server, View, until

Connect: TypeAlias = "Callable[..., Awaitable[Lean]]"

BEAT = 0.02  # seconds: 50 a second


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """`Lean.connect`, and everybody is sent home in the end."""
    everybody: list[Lean] = []

    async def connect(server: Server, kind: str, **query: Any) -> Lean:
        everybody.append(await Lean.connect(server, kind, **query))
        return everybody[-1]

    yield connect
    for lean in everybody:
        lean.reset()
    await until(lambda: all(lean.gone for lean in everybody), "gone")


@asynccontextmanager
async def speaking(connect: Connect, server: Server, group: str, topic: str) -> AsyncIterator[None]:
    """Meanwhile somebody says something in the app's group and sets a key, 50 times a second."""
    speaker = await connect(server, "async", parse=False)

    async def speak() -> None:
        number = 0
        while True:
            number += 1
            speaker.do("shout", group=group, what=f"message {number}")
            speaker.do("set", topic=topic, key=f"loud {number % 10}", payload=str(number))
            await asyncio.sleep(BEAT)

    talk = asyncio.create_task(speak())
    try:
        yield
    finally:
        talk.cancel()
        speaker.close()


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_everybody_who_leaves_a_busy_room_is_cleared_and_the_app_is_told(
    server: Server, connect: Connect, tag: str, kind: str
) -> None:
    size = 200
    script = [
        {"do": "accept"},
        {"do": "join", "group": tag},
        {"do": "set", "topic": tag, "key": "here", "payload": "x", "ttl": "until disconnect"},
        {"do": "subscribe", "topic": tag},
    ]

    def joining(number: int) -> list[dict[str, str]]:
        return [command | {"key": f"here {number}"} if command["do"] == "set" else command for command in script]

    watcher = await connect(server, "async", connect=[{"do": "accept"}, {"do": "subscribe", "topic": tag}])
    crowd = [await connect(server, kind, parse=False, tag=tag, connect=joining(number)) for number in range(size)]

    def still_here() -> int:
        return sum(key.startswith("here ") for key in watcher.view.state)

    await until(lambda: still_here() == size, "full")
    async with speaking(connect, server, tag, tag):
        await until(lambda: "loud 1" in watcher.view.state, "loud")
        random.Random(1).shuffle(crowd)
        for number, member in enumerate(crowd):
            await asyncio.sleep(BEAT / 2)
            if number % 2:
                member.reset()
            else:
                member.close()
        await until(lambda: still_here() == 0, "empty")
    await until(lambda: disconnected(server, tag, size), "told")
    assert (await server.debug(tag=tag))["disconnects"] == {tag: size}
    await until(lambda: not watcher.view.state, "quiet")
    watcher.close()
    await server.nothing_left()


async def disconnected(server: Server, tag: str, number: int) -> bool:
    return (await server.debug(tag=tag))["disconnects"].get(tag, 0) >= number


async def test_nobody_waits_for_one_who_does_not_read(server: Server, connect: Connect, tag: str) -> None:
    total, size = 400, 16_000  # more than the kernel keeps for one who does not read
    joining = [{"do": "accept"}, {"do": "subscribe", "topic": tag}]
    async with Client(server, "async") as speaker:
        readers = [await connect(server, "async", connect=joining) for _ in range(20)]
        await until(lambda: all(reader.view.welcomed for reader in readers), "welcomed")
        sleeper = await Client(server, "async").with_small_buffer().__aenter__()
        await sleeper.subscribe(tag)
        sleeper.stop_reading()
        for number in range(total):
            # One after another, so that none of the readers has a reason to be given less than every frame.
            await speaker.set(tag, f"k{number % 7}", f"{number} ".ljust(size, "."))
            wanted = number + 1
            await until(lambda wanted=wanted: all(r.view.changes == wanted for r in readers), "heard by all")
        if server.name == "uvicorn":  # daphne takes everything
            assert "Direct._drain" in (await server.debug())["task_names"]
        sleeper.read_again()
        await until(lambda: caught_up(sleeper, readers[0].view), "caught up")
        if server.name == "uvicorn":
            assert sleeper.view.changes < total
        await sleeper.close()
        for reader in readers:
            reader.close()
        newest = base64.b64decode(readers[0].view.state[f"k{(total - 1) % 7}"][1])
        assert newest.startswith(str(total - 1).encode())
    async with Client(server, "sync") as healthy:
        assert (await healthy.subscribe(tag))["entries"] == []


async def caught_up(client: Client, view: View) -> bool:
    await client.frame()
    return client.view.state == view.state


async def test_a_thousand_come_and_go_and_nothing_is_left(server: Server, connect: Connect, tag: str) -> None:
    size, rooms = 1000, 20
    topics = [f"{tag} {room}" for room in range(rooms)]
    watchers = {
        topic: await connect(server, "async", connect=[{"do": "accept"}, {"do": "subscribe", "topic": topic}])
        for topic in topics
    }
    members: list[tuple[str, Lean]] = []

    async def join(number: int) -> None:
        topic = topics[number % rooms]
        script = [
            {"do": "accept"},
            {"do": "set", "topic": topic, "key": f"member {number}", "ttl": "until disconnect"},
            {"do": "subscribe", "topic": topic},
        ]
        members.append((topic, await connect(server, "async", connect=script)))

    async with speaking(connect, server, tag, topics[0]):
        for start in range(0, size, 50):
            await asyncio.gather(*(join(number) for number in range(start, start + 50)))
        await until(lambda: sum(len(w.view.state) for w in watchers.values()) >= size, "full")
        random.Random(2).shuffle(members)
        staying = members[:100]
        for number, (topic, member) in enumerate(members[100:]):
            if number % 3 == 0:
                member.do("set", topic=topic, key=f"busy {number}", ttl="until disconnect")
            if number % 2:
                member.reset()
            else:
                member.close()
            if number % 10 == 0:
                await asyncio.sleep(BEAT)
    # All who are still here see what is stored: the ones who are here.
    for topic, watcher in watchers.items():
        here = sum(room == topic for room, _ in staying)
        await until(lambda view=watcher.view, here=here: members_in(view) == here, f"all {here} who stay in {topic}")
        views = [watcher.view, *(member.view for room, member in staying if room == topic)]
        await until(lambda topic=topic, views=views: all_see(server, topic, views), f"equal in {topic}")
    for _, member in staying:
        member.close()
    await until(lambda: not any(watcher.view.state for watcher in watchers.values()), "empty")
    for watcher in watchers.values():
        watcher.close()
    await server.nothing_left()


def members_in(view: View) -> int:
    return sum(key.startswith("member ") for key in view.state)


async def all_see(server: Server, topic: str, views: list[View]) -> bool:
    entries = (await server.debug(topic=topic))["entries"]
    stored = {entry["key"]: (entry["client_id"], entry["payload"]) for entry in entries}
    return all(view.state == stored for view in views)
