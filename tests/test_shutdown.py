"""The signals that end the process, with real signals to this one."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ephemeral_state import api, node
from ephemeral_state.shutdown import Signals

from .live.app import KINDS, disconnects
from .live.peer import Peer
from .live.server import until

NUMBERS = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]


class Server:
    """Handles the signals as servers do."""

    def __init__(self) -> None:
        self.heard: list[int] = []

    def handle(self, number: int, frame: Any) -> None:
        self.heard.append(number)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    before = {number: signal.signal(number, server.handle) for number in NUMBERS}
    yield server
    for number, handler in before.items():
        signal.signal(number, handler)


class Ended:
    def __init__(self) -> None:
        self.count = 0

    async def __call__(self) -> None:
        self.count += 1


@pytest.fixture
async def ended() -> Ended:
    return Ended()


@pytest.mark.parametrize("number", NUMBERS)
async def test_a_signal_is_heard_and_handed_on(server: Server, ended: Ended, number: int) -> None:
    signals = Signals(ended)
    signals.watch()
    os.kill(os.getpid(), number)
    await until(lambda: ended.count == 1)
    assert server.heard == [number]
    signals.unwatch()
    assert signal.getsignal(number) == server.handle
    os.kill(os.getpid(), number)
    await until(lambda: server.heard == [number, number])
    await asyncio.sleep(0)
    assert ended.count == 1


async def test_the_handlers_of_an_event_loop_go_on_working(server: Server, ended: Ended) -> None:
    loop, heard = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, heard.set)
    signals = Signals(ended)
    signals.watch()
    for _ in range(2):
        heard.clear()
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(10):
            await heard.wait()
    assert ended.count >= 1
    signals.unwatch()
    heard.clear()
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(10):
        await heard.wait()
    loop.remove_signal_handler(signal.SIGTERM)


async def test_a_handler_that_came_later_stays(server: Server, ended: Ended) -> None:
    signals, later = Signals(ended), Server()
    signals.watch()
    signal.signal(signal.SIGTERM, later.handle)
    signals.unwatch()
    assert signal.getsignal(signal.SIGTERM) == later.handle
    assert signal.getsignal(signal.SIGINT) == server.handle
    os.kill(os.getpid(), signal.SIGTERM)
    await until(lambda: later.heard)
    assert not server.heard


async def test_handlers_that_call_each_other_do_not_go_in_circles(server: Server, ended: Ended) -> None:
    signals, heard = Signals(ended), []
    for _ in range(3):
        signals.watch()
        before = signal.getsignal(signal.SIGTERM)
        assert callable(before)

        def later(number: int, frame: Any, before: Any = before) -> None:
            heard.append(number)
            before(number, frame)

        signal.signal(signal.SIGTERM, later)
        signals.unwatch()
    signals.watch()
    os.kill(os.getpid(), signal.SIGTERM)
    await until(lambda: ended.count)
    assert heard == [signal.SIGTERM] * 3
    assert server.heard == [signal.SIGTERM]
    signals.unwatch()


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN])
async def test_a_signal_that_nobody_handles_stays_as_it_is(server: Server, ended: Ended, handler: Any) -> None:
    signal.signal(signal.SIGTERM, handler)
    signals = Signals(ended)
    signals.watch()
    assert signal.getsignal(signal.SIGTERM) == handler
    assert signal.getsignal(signal.SIGINT) != server.handle
    signals.unwatch()
    assert signal.getsignal(signal.SIGTERM) == handler
    assert signal.getsignal(signal.SIGINT) == server.handle


def test_a_loop_in_another_thread_changes_nothing(server: Server) -> None:
    async def watch() -> None:
        signals = Signals(Ended())
        signals.watch()
        signals.unwatch()

    thread = threading.Thread(target=lambda: asyncio.run(watch()))
    thread.start()
    thread.join()
    assert all(signal.getsignal(number) == server.handle for number in NUMBERS)


def test_a_signal_after_the_loop_has_ended_is_handed_on(server: Server) -> None:
    ended = Ended()

    async def watch() -> None:
        Signals(ended).watch()

    asyncio.run(watch())
    signal.raise_signal(signal.SIGTERM)
    assert server.heard == [signal.SIGTERM]
    assert not ended.count


async def test_a_fork_of_the_process_hands_signals_on_only(server: Server, ended: Ended) -> None:
    signals = Signals(ended)
    signals.watch()
    pid = os.fork()
    if pid == 0:
        signal.raise_signal(signal.SIGTERM)
        os._exit(42 if server.heard == [signal.SIGTERM] else 1)
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    assert os.waitstatus_to_exitcode(status) == 42
    await asyncio.sleep(0.1)
    assert not ended.count
    signals.unwatch()


# What becomes of connections


@asynccontextmanager
async def owner(kind: str, topic: str) -> AsyncIterator[Peer]:
    """Owns "k" in the topic."""
    script = [{"do": "accept"}, {"do": "set", "topic": topic, "key": "k", "ttl": "until disconnect"}]
    async with Peer(KINDS[kind].as_asgi(), connect=script, tag=topic) as client:
        await until(lambda: owned(topic))
        yield client


async def owned(topic: str) -> list[str]:
    return [entry.key for entry in await api.alist(topic)]


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_connection_whose_server_tells_it_nothing_is_cleared_and_closed(
    server: Server, tag: str, kind: str
) -> None:
    async with owner(kind, tag) as client:
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: {"type": "websocket.close", "code": 1012} in client.sent)
        await client.ended()
    assert not await owned(tag)
    assert server.heard == [signal.SIGTERM]
    assert disconnects[tag] == 1
    await until(lambda: signal.getsignal(signal.SIGTERM) == server.handle)


async def test_a_connection_whose_server_tells_it_is_not_closed_again(server: Server, tag: str) -> None:
    async with owner("async", tag) as client:
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: server.heard)
        client.arrive("websocket.disconnect", code=1012)
        await client.ended()
    assert not await owned(tag)
    await asyncio.sleep(0.5)
    assert "websocket.close" not in [message["type"] for message in client.sent]


async def test_connections_that_come_after_the_signal_are_served(server: Server, tag: str) -> None:
    async with owner("async", tag) as client:
        os.kill(os.getpid(), signal.SIGTERM)
        await client.ended()
    async with owner("async", tag):
        assert await owned(tag) == ["k"]
    assert not await owned(tag)


async def test_what_is_held_by_a_block_of_code_stays_until_the_block_ends(server: Server, tag: str) -> None:
    async with owner("async", tag) as client, api.hold(tag, "task"):
        os.kill(os.getpid(), signal.SIGTERM)
        await client.ended()
        assert await owned(tag) == ["task"]
    assert not await owned(tag)


@pytest.fixture
def tag(request: pytest.FixtureRequest) -> str:
    return f"shutdown {request.node.name}"


async def test_signals_are_left_alone_while_nobody_is_connected(server: Server, tag: str) -> None:
    async with api.hold(tag, "task"):
        assert signal.getsignal(signal.SIGTERM) == server.handle
        async with owner("async", tag):
            assert signal.getsignal(signal.SIGTERM) != server.handle
        await until(lambda: not node.current().sockets)
        assert signal.getsignal(signal.SIGTERM) == server.handle
