from __future__ import annotations

import asyncio
import base64
import logging
import sys
import threading
import traceback
import types
import uuid
from typing import Any

import pytest
from autobahn.exception import Disconnected

from ephemeral_state import api, lifecycle
from ephemeral_state.errors import ConnectionGone
from ephemeral_state.lifecycle import READ_AHEAD

from .live.app import KINDS, Boom, gates, notes
from .live.peer import Peer
from .live.server import until

ALL = ["async", "async-json", "async-raw", "sync", "sync-json", "sync-raw"]
ACCEPTS = {"do": "accept"}
GONE = [
    OSError("gone"),
    ConnectionResetError("reset"),
    Disconnected("closed already"),
    RuntimeError("Unexpected ASGI message 'websocket.send', after sending 'websocket.close'."),
]


@pytest.fixture
def topic() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait long for the disconnect event after a send that failed."""
    monkeypatch.setattr(lifecycle, "_GOODBYE_WAIT", 0.05)


def peer(kind: str, topic: str, *more: dict[str, Any], **query: Any) -> Peer:
    """A client that owns "k" in the topic."""
    script = [ACCEPTS, {"do": "set", "topic": topic, "key": "k", "ttl": "until disconnect"}, *more]
    return Peer(KINDS[kind].as_asgi(), **{"connect": script, "tag": topic, **query})


async def owned(topic: str) -> list[str]:
    return [entry.key for entry in await api.alist(topic)]


async def until_cleared(topic: str) -> None:
    async def cleared() -> bool:
        return not await owned(topic)

    await until(cleared, "cleared")


async def until_hanging(topic: str) -> None:
    await until(lambda: "hangs" in notes[topic], "hanging")


# What ends it


@pytest.mark.parametrize("kind", ALL)
async def test_a_disconnect_clears(topic: str, kind: str) -> None:
    async with peer(kind, topic):
        await until(lambda: owned(topic))
    assert await owned(topic) == []


@pytest.mark.parametrize("kind", ALL)
async def test_a_disconnect_is_seen_while_a_handler_never_returns(topic: str, kind: str) -> None:
    async with peer(kind, topic) as client:
        client.do("hang")
        await until_hanging(topic)
        client.leave()
        await until_cleared(topic)
        assert not client.task.done()
        gates[topic].open()
        await client.ended()


@pytest.mark.parametrize("kind", ALL)
async def test_an_exception_of_the_app_comes_out_unchanged_and_clears(topic: str, kind: str) -> None:
    async with peer(kind, topic) as client:
        await until(lambda: owned(topic))
        client.do("raise")
        with pytest.raises(Boom, match=r"^the app's own fault$") as raised:
            await client.ended()
        assert await owned(topic) == []
    assert raised.type is Boom
    assert "raises" in [frame.name for frame in traceback.extract_tb(raised.tb)]
    assert raised.value.__cause__ is None


@pytest.mark.parametrize("kind", ALL)
async def test_a_refused_set_ends_as_the_apps_own_exception_while_the_client_is_there(topic: str, kind: str) -> None:
    async with peer(kind, topic) as client:
        client.do("set", topic=topic, key="")
        with pytest.raises(ValueError, match="key is empty"):
            await client.ended()
    assert await owned(topic) == []


@pytest.mark.parametrize("kind", ALL)
async def test_a_cancelled_task_clears_and_stays_cancelled(topic: str, kind: str) -> None:
    async with peer(kind, topic) as client:
        client.do("hang")
        await until_hanging(topic)
        client.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await client.ended()
        assert await owned(topic) == []
        gates[topic].open()


async def test_a_server_that_cancels_again_and_again_does_not_stop_the_clearing(
    topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ephemeral_state.stores.memory import MemoryStore

    apply = MemoryStore.apply
    reached, may = asyncio.Event(), asyncio.Event()

    async def slow(self: MemoryStore, writes: Any, batches: Any) -> Any:
        reached.set()
        await may.wait()
        return await apply(self, writes, batches)

    async with peer("async", topic) as client:
        await until(lambda: owned(topic))
        monkeypatch.setattr(MemoryStore, "apply", slow)
        client.task.cancel()
        await reached.wait()
        for _ in range(5):
            client.task.cancel()
            await asyncio.sleep(0)
        assert not client.task.done()
        may.set()
        with pytest.raises(asyncio.CancelledError):
            await client.ended()
    assert await owned(topic) == []


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("error", GONE, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("kind", ALL)
async def test_a_send_that_fails_ends_it_and_the_app_is_told_in_order(topic: str, kind: str, error: Exception) -> None:
    async with peer(kind, topic) as client:
        await until(lambda: owned(topic))
        client.fails_with = error
        client.do("echo", what="lost")
        client.do("note", what="still alive")
        await until(lambda: notes[topic] == ["still alive"], "alive")
        await until_cleared(topic)
        client.do("set or note", topic=topic, key="late")
        await until(lambda: notes[topic] == ["still alive", "gone"], "refused")
        client.leave()
        await client.ended()
    assert await owned(topic) == []


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("error", GONE, ids=lambda error: type(error).__name__)
async def test_an_event_that_cannot_be_sent_ends_it(topic: str, error: Exception) -> None:
    async with peer("async", topic, {"do": "subscribe", "topic": topic}) as client:
        await client.frame()
        client.fails_with = error
        await api.aset(topic, "other")
        await until(lambda: not_there(topic, "k"))
        client.leave()
        await client.ended()
    await api.aclear(topic, "other")


async def not_there(topic: str, key: str) -> bool:
    return key not in await owned(topic)


@pytest.mark.parametrize("kind", ALL)
async def test_before_it_is_accepted_a_wrong_send_is_the_apps_own_mistake(topic: str, kind: str) -> None:
    client = peer(kind, topic, connect=[{"do": "set", "topic": topic, "key": "k"}, {"do": "echo", "what": "early"}])
    client.fails_with = RuntimeError("accept first")
    with pytest.raises(RuntimeError, match="accept first"):
        async with client:
            await client.ended()
    assert await owned(topic) == []


@pytest.mark.parametrize("kind", ALL)
async def test_a_server_side_close_clears_at_once_and_goes_out(topic: str, kind: str) -> None:
    async with peer(kind, topic) as client:
        client.do("close", code=4002)
        await until_cleared(topic)
        await until(lambda: client.sent[-1] == {"type": "websocket.close", "code": 4002})
        client.do("note", what="read after the close")  # what comes after the close is still read
        await until(lambda: notes[topic], "read")
        client.leave()
        await client.ended()


async def test_nothing_waits_for_a_message_while_a_close_is_sent(topic: str) -> None:
    # A server whose close waits for its pending receive would never close (granian).
    receiving = 0
    during_close: list[int] = []
    client = peer("async", topic)
    get, put = client._arriving.get, client._send

    async def receive() -> dict[str, Any]:
        nonlocal receiving
        receiving += 1
        try:
            return await get()
        finally:
            receiving -= 1

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "websocket.close":
            during_close.append(receiving)
        await put(message)

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        await KINDS["async"].as_asgi()(scope, receive, send)

    client.app = app
    async with client:
        client.do("close", code=4002)
        await until(lambda: client.sent[-1]["type"] == "websocket.close")
    assert during_close == [0]


async def test_a_close_that_granian_holds_up_is_sent_with_its_code_though_the_consumer_has_ended(
    topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "granian", types.ModuleType("granian"))
    monkeypatch.setattr(lifecycle, "_PING_TIMEOUT", 0.3)
    monkeypatch.setattr(KINDS["async"], "ephemeral_ping_interval", 0.05)
    client = peer("async", topic)
    put = client._send

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "websocket.close":
            await asyncio.sleep(0.05)  # its `receive` holds a lock for a moment, and the consumer ends meanwhile
        await put(message)

    async def app(scope: Any, receive: Any, _send: Any) -> None:
        await KINDS["async"].as_asgi()(scope, receive, send)

    client.app = app
    async with client:
        await client.ended()
    assert [message["code"] for message in client.sent if message["type"] == "websocket.close"] == [4000]
    assert await owned(topic) == []


async def test_what_the_servers_receive_raises_comes_out_and_clears(topic: str) -> None:
    client = peer("async", topic)
    get = client._arriving.get

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        async def receive() -> dict[str, Any]:
            message = await get()
            if message["type"] == "broken":
                raise OSError("the transport broke")
            return message

        await KINDS["async"].as_asgi()(scope, receive, send)

    client.app = app
    async with client:
        await until(lambda: owned(topic))
        client.arrive("broken")
        with pytest.raises(OSError, match="the transport broke"):
            await client.ended()
    assert await owned(topic) == []


# What is read, and when


@pytest.mark.parametrize("kind", ALL)
async def test_a_handler_that_hangs_keeps_no_change_from_its_client(topic: str, kind: str) -> None:
    async with peer(kind, topic) as client:
        client.do("subscribe", topic=topic)
        await client.frame()
        client.do("hang")
        await until_hanging(topic)
        for number in range(3):
            await api.aset(topic, "k", f"{number}")
            assert (await client.frame())["payload"] == base64.b64encode(b"%d" % number).decode()
        gates[topic].open()
    await api.aclear(topic, "k")


@pytest.mark.parametrize("kind", ALL)
async def test_messages_arrive_in_order_and_no_more_are_read_than_a_busy_handler_may_owe(topic: str, kind: str) -> None:
    async with peer(kind, topic) as client:
        client.do("hang")
        await until_hanging(topic)
        for number in range(3 * READ_AHEAD):
            client.do("note", what=f"{number}")
        await until(lambda: client._arriving.qsize() <= 2 * READ_AHEAD, "read ahead")
        assert client._arriving.qsize() == 2 * READ_AHEAD
        gates[topic].open()
        await client.settled()
    assert notes[topic] == ["hangs", *(f"{number}" for number in range(3 * READ_AHEAD))]


@pytest.mark.parametrize("kind", ALL)
async def test_a_set_and_a_subscription_of_a_client_gone_are_no_error_of_the_app(
    topic: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        async with peer(kind, topic) as client:
            client.do("hang")
            client.do("set", topic=topic, key="late")
            client.do("subscribe", topic=topic)
            client.do("clear", topic=topic, key="k")
            client.do("note", what="the end")
            await until_hanging(topic)
            client.leave()
            await until_cleared(topic)
            gates[topic].open()
            await client.ended()
    assert notes[topic] == ["hangs", "the end"]
    assert await owned(topic) == []
    said = [record.getMessage() for record in caplog.records if record.name == "ephemeral_state"]
    assert [line for line in said if " is process " not in line] == []


async def test_after_the_end_a_set_says_why_it_is_refused(topic: str) -> None:
    consumer: list[Any] = []

    class Kept(KINDS["async"]):  # type: ignore[misc]
        async def connect(self) -> None:
            consumer.append(self)
            await super().connect()

    async with Peer(Kept.as_asgi(), tag=topic):
        pass
    with pytest.raises(ConnectionGone, match="the connection has ended, nothing can be set in its name"):
        await consumer[0].ephemeral_set(topic, "k")
    with pytest.raises(ConnectionGone, match="the connection has ended"):
        await consumer[0].ephemeral_subscribe(topic)
    await consumer[0].ephemeral_clear(topic, "k")
    assert await owned(topic) == []
    await until(lambda: len(asyncio.all_tasks()) == 1, "without tasks")


# A client that does not read


@pytest.mark.parametrize("kind", ALL)
async def test_a_client_that_does_not_read_ends_with_the_newest_value_of_each_key(topic: str, kind: str) -> None:
    async with Peer(KINDS[kind].as_asgi(), connect=[ACCEPTS, {"do": "subscribe", "topic": topic}]) as client:
        await client.frame()
        await api.aset(topic, "doomed")
        await client.frame()
        client.stop_reading()
        async with Peer(KINDS["async"].as_asgi(), connect=[ACCEPTS, {"do": "subscribe", "topic": topic}]) as quick:
            for number in range(100):
                await api.aset(topic, f"k{number % 3}", f"{number}")
            await api.aset(topic, "came and went")
            await api.aclear(topic, "came and went")
            await api.aclear(topic, "doomed")
            await until(lambda: quick.view.changes == 103, "heard by who reads")
        client.read_again()
        await until(lambda: client.view.state == quick.view.state, "equal")
        # The one that was on its way, the newest of each key, and the clear of what the client knew.
        assert client.view.changes <= 1 + 1 + 3 + 1
    for number in range(3):
        await api.aclear(topic, f"k{number}")


async def test_a_client_that_never_reads_again_can_leave(topic: str) -> None:
    async with peer("async", topic, {"do": "subscribe", "topic": topic}) as client:
        await client.frame()
        client.stop_reading()
        for number in range(100):
            await api.aset(topic, "other", f"{number}")
        client.leave()
        await client.ended()
    assert await owned(topic) == ["other"]
    await api.aclear(topic, "other")


async def test_a_send_that_can_be_awaited_but_not_stepped_delivers(topic: str) -> None:
    # What granian's send returns: an awaitable and iterator without `send`, `throw` and `close`.
    class Awaitable:
        def __init__(self, future: asyncio.Future[None]) -> None:
            self.steps = future.__await__()

        def __await__(self) -> Any:
            return self

        def __iter__(self) -> Any:
            return self

        def __next__(self) -> Any:
            return next(self.steps)

    client = Peer(None, connect=[ACCEPTS, {"do": "subscribe", "topic": topic}])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        def send_in_the_background(message: dict[str, Any]) -> Awaitable:
            return Awaitable(asyncio.ensure_future(send(message)))

        await KINDS["async"].as_asgi()(scope, receive, send_in_the_background)

    client.app = app
    async with client:
        assert (await client.frame())["entries"] == []
        for number in range(3):
            await api.aset(topic, "k", f"{number}")
            assert (await client.frame())["key"] == "k"
    await api.aclear(topic, "k")


# Nothing stays


@pytest.mark.parametrize("kind", ALL)
async def test_no_task_is_left_whatever_way_it_ends(topic: str, kind: str) -> None:
    before = asyncio.all_tasks()
    threads = threading.active_count()
    for number in range(12):
        client = peer(kind, topic, {"do": "subscribe", "topic": topic})
        async with client:
            if number % 4 == 0:
                client.do("raise")
                with pytest.raises(Boom):
                    await client.ended()
            elif number % 4 == 1:
                client.fails_with = OSError("gone")
                client.do("echo", what="lost")
            elif number % 4 == 2:
                client.task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await client.ended()
    await until(lambda: asyncio.all_tasks() == before, "without tasks")
    assert await owned(topic) == []
    assert threading.active_count() <= threads + 1  # Django's one thread for sync code


async def test_an_error_of_something_between_us_and_the_server_is_the_apps_to_see(topic: str) -> None:
    async with peer("async", topic, {"do": "subscribe", "topic": topic}) as client:
        await until(lambda: owned(topic))
        client.fails_with = RuntimeError("a middleware's own mistake")
        await api.aset(topic, "news")
        with pytest.raises(RuntimeError, match="own mistake"):
            await client.ended()
        client.fails_with = None
    assert [entry.key for entry in await api.alist(topic)] == ["news"]
