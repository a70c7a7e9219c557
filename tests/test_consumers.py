from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest
from channels.consumer import AsyncConsumer, SyncConsumer
from channels.generic.http import AsyncHttpConsumer
from channels.generic.websocket import (
    AsyncJsonWebsocketConsumer,
    AsyncWebsocketConsumer,
    JsonWebsocketConsumer,
    WebsocketConsumer,
)
from channels.layers import get_channel_layer
from channels.testing import HttpCommunicator, WebsocketCommunicator

from ephemeral_state import api, writer
from ephemeral_state.broadcast import group_name
from ephemeral_state.consumers import EphemeralStateConsumer, EphemeralStateMixin, SyncEphemeralStateMixin
from ephemeral_state.errors import ConnectionGone, NotAccepted, NotConfigured
from ephemeral_state.policy import Policy

from .live.app import KINDS
from .live.peer import Peer
from .live.server import until
from .redis_server import RedisServer
from .waiting import events, settle

ALL = ["async", "async-json", "async-raw", "sync", "sync-json", "sync-raw"]
BOTH = ["async", "sync"]
ASYNC_BASES = [AsyncWebsocketConsumer, AsyncJsonWebsocketConsumer]
SYNC_BASES = [WebsocketConsumer, JsonWebsocketConsumer]
ACCEPTS = {"do": "accept"}


@pytest.fixture
def topic() -> str:
    return uuid.uuid4().hex


def peer(kind: str, **query: Any) -> Peer:
    return Peer(KINDS[kind].as_asgi(), **query)


def watching(kind: str, topic: str, **query: Any) -> Peer:
    return peer(kind, **{"connect": [ACCEPTS, {"do": "subscribe", "topic": topic}], **query})


# Which classes


class Upper:
    """Somebody else's mixin, which wraps the whole call and calls on."""

    calls = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        type(self).calls += 1
        await super().__call__(scope, receive, send)


def made(mixin: type, base: type, order: str) -> type:
    bases = {
        "left": (mixin, base),
        "right": (base, mixin),
        "left, behind another": (Upper, mixin, base),
        "left, before another": (mixin, Upper, base),
        "right, behind another": (Upper, base, mixin),
    }[order]

    async def connect(self: Any) -> None:
        await self.accept()
        await self.ephemeral_subscribe(self.scope["topic"])
        await self.ephemeral_set(self.scope["topic"], "k", "here")

    def connect_sync(self: Any) -> None:
        self.accept()
        self.ephemeral_subscribe(self.scope["topic"])
        self.ephemeral_set(self.scope["topic"], "k", "here")

    body = {"connect": connect if mixin is EphemeralStateMixin else connect_sync, "calls": 0}
    return type("Made", bases, body)


@pytest.mark.parametrize(
    "order", ["left", "right", "left, behind another", "left, before another", "right, behind another"]
)
@pytest.mark.parametrize(
    ("mixin", "base"),
    [(EphemeralStateMixin, base) for base in ASYNC_BASES] + [(SyncEphemeralStateMixin, base) for base in SYNC_BASES],
)
async def test_the_mixin_works_in_any_order_of_bases(topic: str, mixin: type, base: type, order: str) -> None:
    consumer = made(mixin, base, order)
    client = Peer(consumer.as_asgi())
    client.scope["topic"] = topic
    async with client:
        assert (await client.frame())["_orama"] == "ephemeral.snapshot"
        assert (await client.frame())["key"] == "k"
        assert [entry.key for entry in await api.alist(topic)] == ["k"]
    assert await api.alist(topic) == []
    assert consumer.calls == ("another" in order)


@pytest.mark.parametrize("base", [*SYNC_BASES, SyncConsumer])
def test_the_async_mixin_on_a_sync_consumer_is_refused(base: type) -> None:
    with pytest.raises(TypeError, match="Wrong is a sync consumer: use SyncEphemeralStateMixin"):
        type("Wrong", (EphemeralStateMixin, base), {})


@pytest.mark.parametrize("base", ASYNC_BASES)
def test_the_sync_mixin_on_an_async_consumer_is_refused(base: type) -> None:
    with pytest.raises(TypeError, match="Wrong is an async consumer: use EphemeralStateMixin"):
        type("Wrong", (SyncEphemeralStateMixin, base), {})


async def test_as_asgi_hands_its_arguments_to_the_consumer(topic: str) -> None:
    class Configured(EphemeralStateMixin, AsyncWebsocketConsumer):
        def __init__(self, *, greeting: str) -> None:
            super().__init__()
            self.greeting = greeting

        async def connect(self) -> None:
            await self.accept()
            await self.ephemeral_set(topic, "k", self.greeting)

    app = Configured.as_asgi(greeting="hello")
    assert app.consumer_class is Configured
    async with Peer(app):
        await until(lambda: api.alist(topic))
        assert [entry.payload for entry in await api.alist(topic)] == [b"hello"]


async def test_the_mixin_lets_other_protocols_pass() -> None:
    class Page(EphemeralStateMixin, AsyncHttpConsumer):
        async def handle(self, body: bytes) -> None:
            await self.send_response(200, b"hello")

    response = await HttpCommunicator(Page.as_asgi(), "GET", "/").get_response()
    assert response["body"] == b"hello"


async def test_outside_of_a_websocket_there_is_nothing_to_set_for(topic: str) -> None:
    with pytest.raises(NotConfigured, match="AsyncText is not serving a WebSocket"):
        await KINDS["async"]().ephemeral_set(topic, "k")


@pytest.mark.parametrize("kind", ALL)
async def test_without_a_channel_layer_the_error_says_so(settings: Any, topic: str, kind: str) -> None:
    settings.CHANNEL_LAYERS = {}
    async with peer(kind) as client:
        assert client.sent[0]["type"] == "websocket.accept"  # a consumer that sets nothing needs none
        client.do("set", topic=topic, key="k")
        with pytest.raises(NotConfigured, match="CHANNEL_LAYERS"):
            await client.ended()


async def test_the_ready_made_consumer_without_a_channel_layer_fails_at_once(settings: Any) -> None:
    settings.CHANNEL_LAYERS = {}
    with pytest.raises(NotConfigured, match="CHANNEL_LAYERS"):
        async with Peer(EphemeralStateConsumer.as_asgi()) as client:
            await client.ended()


@pytest.mark.parametrize("kind", ALL)
async def test_subscribing_before_accepting_is_refused(topic: str, kind: str) -> None:
    with pytest.raises(NotAccepted, match="accept the connection before subscribing"):
        async with watching(kind, topic, connect=[{"do": "subscribe", "topic": topic}]) as client:
            await client.ended()


async def test_the_default_policy_forbids_everything(topic: str) -> None:
    communicator = WebsocketCommunicator(EphemeralStateConsumer.as_asgi(), "/")
    await communicator.connect()
    assert (await communicator.receive_json_from())["_orama"] == "ephemeral.hello"
    for verb, more in [("subscribe", {}), ("list", {}), ("set", {"key": "k"}), ("clear", {"key": "k"})]:
        await communicator.send_json_to({"_orama": f"ephemeral.{verb}", "topic": topic, "ref": verb, **more})
        answer = await communicator.receive_json_from()
        assert (answer["code"], answer["ref"]) == ("forbidden", verb)
    await communicator.disconnect()
    assert await api.alist(topic) == []


# Topics


@pytest.mark.parametrize("kind", ALL)
async def test_namespaces_do_not_mix(topic: str, kind: str) -> None:
    async with watching(kind, topic, namespace="a") as a, watching(kind, topic, namespace="b") as b:
        await a.frame()
        await b.frame()
        a.do("set", topic=topic, key="k")
        assert (await a.frame())["key"] == "k"
        assert await b.settled() == []
        assert [entry.key for entry in await api.alist(topic, namespace="a")] == ["k"]
        assert await api.alist(topic, namespace="b") == []
        assert await api.alist(topic) == []


async def test_a_sync_handler_does_not_keep_its_thread_while_it_waits_for_the_sets_of_others(
    settings: Any, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.EPHEMERAL_STATE = {"BACKEND": "tests.test_node.SlowStore"}
    monkeypatch.setattr(writer, "_SPACING", 60.0)
    async with watching("sync", topic) as ann, watching("sync", topic) as bob:
        await ann.frame()
        await bob.frame()
        for number in range(6):
            (ann, bob)[number % 2].do("set", topic=topic, key=f"{number}")
            assert (await ann.frame())["key"] == f"{number}"


async def test_any_channel_may_join_the_group_of_a_topic(topic: str) -> None:
    name = group_name("tenant", f"{topic}: / ☃")
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,99}", name)
    layer = get_channel_layer()
    channel = await layer.new_channel()
    await layer.group_add(name, channel)
    async with peer("async", namespace="tenant") as client:
        client.do("set", topic=f"{topic}: / ☃", key="k")
        async with asyncio.timeout(10):
            message = await layer.receive(channel)
    assert message["type"] == "ephemeral.events"
    assert [json.loads(frame)["key"] for frame in message["frames"]] == ["k"]
    await layer.group_discard(name, channel)


def test_group_names_keep_topics_apart() -> None:
    pairs = [("", "a"), ("a", ""), ("a", "bc"), ("ab", "c"), ("", "abc"), ("1", ":a"), ("", "A"), ("", "a\0")]
    assert len({group_name(*pair) for pair in pairs}) == len(pairs)


@pytest.mark.parametrize("kind", ALL)
async def test_sets_from_anywhere_reach_the_socket(topic: str, kind: str) -> None:
    async with watching(kind, topic) as client:
        await client.frame()
        await api.aset(topic, "async", 1)
        assert (await client.frame())["key"] == "async"
        await asyncio.to_thread(api.set, topic, "thread", 2)
        assert (await client.frame())["key"] == "thread"
        thread = threading.Thread(target=api.set, args=(topic, "plain thread"))
        thread.start()
        assert (await client.frame())["key"] == "plain thread"
        await asyncio.to_thread(thread.join)
        await asyncio.to_thread(api.clear, topic, "thread")
        assert (await client.frame())["reason"] == "explicit"
        await api.aclear(topic, "async")
        await api.aclear(topic, "plain thread")


@pytest.mark.parametrize("kind", ALL)
async def test_what_expires_is_told_soon_and_with_the_last_connection_everything_ends(topic: str, kind: str) -> None:
    before = asyncio.all_tasks()
    loop = asyncio.get_running_loop()
    async with watching(kind, topic) as client:
        await client.frame()
        late = []
        for number in range(3):
            client.do("set", topic=topic, key=f"{number}", ttl=0.1)
            await client.frame()
            set_at = loop.time()
            assert (await client.frame())["reason"] == "expired"
            late.append(loop.time() - set_at - 0.1)
        assert sorted(late)[1] < 0.25
        client.do("set", topic=topic, key="k", ttl=30)
        await client.frame()
    await until(lambda: asyncio.all_tasks() == before, "without tasks")
    assert not [thread.name for thread in threading.enumerate() if "ephemeral" in thread.name]


@pytest.mark.parametrize("kind", ALL)
async def test_subscribing_twice_gives_a_second_snapshot_and_every_change_once(topic: str, kind: str) -> None:
    async with watching(kind, topic) as client:
        assert (await client.frame())["entries"] == []
        client.do("set", topic=topic, key="a")
        assert (await client.frame())["key"] == "a"
        client.do("subscribe", topic=topic)
        assert [entry["key"] for entry in (await client.frame())["entries"]] == ["a"]
        client.do("set", topic=topic, key="b")
        assert (await client.frame())["key"] == "b"
        assert await client.settled() == []
        client.do("unsubscribe", topic=topic)
        client.do("set", topic=topic, key="c")
        assert await client.settled() == []
        client.do("unsubscribe", topic=topic)
        client.do("subscribe", topic=topic)
        assert len((await client.frame())["entries"]) == 3


# Handling events oneself


def handling(kind: str, topic: str, **body: Any) -> type:
    mixin, base = {
        "async": (EphemeralStateMixin, AsyncWebsocketConsumer),
        "sync": (SyncEphemeralStateMixin, WebsocketConsumer),
    }[kind]

    async def connect(self: Any) -> None:
        await self.accept()
        await self.ephemeral_subscribe(topic)

    def connect_sync(self: Any) -> None:
        self.accept()
        self.ephemeral_subscribe(topic)

    return type("Handling", (mixin, base), {"connect": connect if kind == "async" else connect_sync, **body})


@pytest.mark.parametrize("kind", BOTH)
async def test_an_overridden_event_handler_decides_what_is_sent(topic: str, kind: str) -> None:
    await api.aset(topic, "old", "1")
    await api.aset(topic, "secret", "1")
    async with watching(f"{kind}-reshaping", topic) as client:
        assert (await client.frame())["entries"] == []
        assert await client.frame() == ["set", "old", "1", None]
        await api.aset(topic, "secret", "2")
        await api.aset(topic, "new", "2")
        assert await client.frame() == ["set", "new", "2", None]
        for key in ("secret", "new", "old"):
            await api.aclear(topic, key)
        assert await client.frame() == ["clear", "new", "", "explicit"]
        assert await client.frame() == ["clear", "old", "", "explicit"]


@pytest.mark.parametrize("kind", BOTH)
async def test_an_overridden_snapshot_handler_decides_what_is_sent(topic: str, kind: str) -> None:
    async def snapshot(self: Any, event: dict[str, Any]) -> None:
        await self.send(json.dumps([entry.key for entry in event["entries"]]))

    def snapshot_sync(self: Any, event: dict[str, Any]) -> None:
        self.send(json.dumps([entry.key for entry in event["entries"]]))

    consumer = handling(kind, topic, ephemeral_snapshot=snapshot if kind == "async" else snapshot_sync)
    await api.aset(topic, "k")
    async with Peer(consumer.as_asgi()) as client:
        assert await client.frame() == ["k"]
        await api.aclear(topic, "k")
        assert (await client.frame())["_orama"] == "ephemeral.clear"


class Slow:
    """An event handler that waits until it may, and notices when it is not alone."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.may_here = asyncio.Event()
        self.seen: list[tuple[str, bytes]] = []
        self.inside = 0
        self.crowded = False

    def let_go(self) -> None:
        self.may.set()
        self.may_here.set()

    def enter(self, what: tuple[str, bytes]) -> None:
        self.inside += 1
        self.crowded = self.crowded or self.inside > 1
        self.seen.append(what)

    def leave(self) -> None:
        self.inside -= 1

    def body(self, kind: str) -> dict[str, Any]:
        async def event(_: Any, event: dict[str, Any]) -> None:
            self.enter((event["key"], event["payload"]))
            await self.may_here.wait()
            self.leave()

        async def receive(_: Any, text_data: str) -> None:
            self.enter(("received", text_data.encode()))
            await asyncio.sleep(0)
            self.leave()

        def event_sync(_: Any, event: dict[str, Any]) -> None:
            self.enter((event["key"], event["payload"]))
            self.may.wait(30)
            self.leave()

        def receive_sync(_: Any, text_data: str) -> None:
            self.enter(("received", text_data.encode()))
            self.leave()

        if kind == "async":
            return {"ephemeral_event": event, "receive": receive}
        return {"ephemeral_event": event_sync, "receive": receive_sync}


@pytest.mark.parametrize("kind", BOTH)
async def test_a_slow_handler_is_never_concurrent_and_gets_the_newest_value_of_each_key(topic: str, kind: str) -> None:
    slow = Slow()
    consumer = handling(kind, topic, **slow.body(kind))
    async with Peer(consumer.as_asgi()) as client, Peer(handling("async", topic).as_asgi()) as other:
        await client.frame()
        await other.frame()
        await api.aset(topic, "first", "0")
        await until(lambda: slow.seen, "busy")
        for number in range(50):
            await api.aset(topic, "a", f"{number}")
            await api.aset(topic, "b", f"{number}")
        await api.aset(topic, "came and went")
        await api.aclear(topic, "came and went")
        await api.aclear(topic, "first")
        client.arrive("websocket.receive", text="hello")
        await api.aset(topic, "last")
        while (await other.frame()).get("key") != "last":
            pass  # both hear of it in one step
        slow.let_go()
        await until(lambda: ("last", b"") in slow.seen, "last")
        await until(lambda: ("received", b"hello") in slow.seen, "received")
    told = [what for what in slow.seen if what[0] != "received"]
    assert told == [("first", b"0"), ("a", b"49"), ("b", b"49"), ("first", b""), ("last", b"")]
    assert not slow.crowded
    for key in ("a", "b", "last"):
        await api.aclear(topic, key)


# Endings that the app asks for


@pytest.mark.parametrize("kind", BOTH)
async def test_calling_websocket_disconnect_clears_and_later_sets_are_refused(topic: str, kind: str) -> None:
    outcome: list[object] = []

    async def receive(self: Any, text_data: str) -> None:
        await self.ephemeral_set(topic, "k")
        outcome.append(len(await self.ephemeral_list(topic)))
        try:
            await self.websocket_disconnect({"type": "websocket.disconnect", "code": 1000})
        finally:
            outcome.append(len(await self.ephemeral_list(topic)))
            try:
                await self.ephemeral_set(topic, "k")
            except ConnectionGone as error:
                outcome.append(str(error))

    def receive_sync(self: Any, text_data: str) -> None:
        self.ephemeral_set(topic, "k")
        outcome.append(len(self.ephemeral_list(topic)))
        try:
            self.websocket_disconnect({"type": "websocket.disconnect", "code": 1000})
        finally:
            outcome.append(len(self.ephemeral_list(topic)))
            try:
                self.ephemeral_set(topic, "k")
            except ConnectionGone as error:
                outcome.append(str(error))

    consumer = handling(kind, topic, receive=receive if kind == "async" else receive_sync)
    async with Peer(consumer.as_asgi()) as client:
        await client.frame()
        client.arrive("websocket.receive", text="go")
        await client.ended()
    assert outcome == [1, 0, "the connection has ended, nothing can be set in its name"]
    assert await api.alist(topic) == []


@pytest.mark.parametrize("mixin", [EphemeralStateMixin, SyncEphemeralStateMixin])
async def test_a_bare_consumer_ends_with_its_client(topic: str, mixin: type) -> None:
    base = AsyncConsumer if mixin is EphemeralStateMixin else SyncConsumer

    async def connect(self: Any, message: Any) -> None:
        await self.send({"type": "websocket.accept"})
        await self.ephemeral_set(topic, "k")

    def connect_sync(self: Any, message: Any) -> None:
        self.send({"type": "websocket.accept"})
        self.ephemeral_set(topic, "k")

    handler = connect if mixin is EphemeralStateMixin else connect_sync
    consumer = type("Bare", (mixin, base), {"websocket_connect": handler})
    async with Peer(consumer.as_asgi()):
        await until(lambda: api.alist(topic))
    assert await api.alist(topic) == []


class Handling:
    called: list[float]

    async def ephemeral_event(self, event: dict[str, Any]) -> None:
        self.called.append(asyncio.get_running_loop().time())


@pytest.mark.parametrize("ready_made", [True, False])
async def test_a_handler_of_events_is_called_no_more_often_than_the_rate_says_also_where_batches_are_wanted(
    settings: Any, topic: str, ready_made: bool
) -> None:
    settings.EPHEMERAL_STATE = {"POLICY": "tests.test_consumers.Yes"}

    class ReadyMade(Handling, EphemeralStateConsumer):
        called: list[float] = []  # noqa: RUF012

    class Mixed(Handling, EphemeralStateMixin, AsyncWebsocketConsumer):
        called = ReadyMade.called

        async def connect(self) -> None:
            await self.accept()
            await self.ephemeral_subscribe(topic, batch=True, max_rate=5)

    async with Peer((ReadyMade if ready_made else Mixed).as_asgi()) as client:
        await client.frame()
        if ready_made:
            command = {"_orama": "ephemeral.subscribe", "topic": topic, "batch": True, "max_rate": 5}
            client.arrive("websocket.receive", text=json.dumps(command))
            await client.frame()
        for number in range(6):
            await api.aset(topic, f"{number}")
        await until(lambda: len(ReadyMade.called) == 6)
        assert ReadyMade.called[-1] - ReadyMade.called[0] > 0.8  # all but the last of the five fifths of a second
    for number in range(6):
        await api.aclear(topic, f"{number}")


# Limits of the ready-made consumer


class Yes(Policy):
    async def can_subscribe(self, scope: Any, namespace: str, topic: str) -> bool:
        return True

    async def can_set(self, scope: Any, namespace: str, topic: str, key: str) -> bool:
        return True


@pytest.fixture
def limited(settings: Any) -> Callable[..., Peer]:
    def make(**limits: int) -> Peer:
        settings.EPHEMERAL_STATE = {"POLICY": "tests.test_consumers.Yes", **limits}
        return Peer(EphemeralStateConsumer.as_asgi())

    return make


async def test_a_client_gets_no_longer_grace_than_the_project_allows(settings: Any, topic: str) -> None:
    settings.EPHEMERAL_STATE = {"POLICY": "tests.test_consumers.Yes", "MAX_GRACE": 20}
    async with Peer(EphemeralStateConsumer.as_asgi()) as ann:
        await ann.frame()
        for key, grace_ms in {"long": 10**8, "short": 5_000}.items():
            command = {"_orama": "ephemeral.set", "topic": topic, "key": key, "ttl_ms": None, "grace_ms": grace_ms}
            ann.arrive("websocket.receive", text=json.dumps(command))
            assert (await ann.frame())["_orama"] == "ephemeral.ok"
        ann.arrive("websocket.disconnect", code=1006)
        await ann.ended()
    left = {entry.key: entry.expires_in_ms or 0 for entry in await api.alist(topic)}
    assert 15_000 < left["long"] <= 20_000
    assert 0 < left["short"] <= 5_000
    for key in left:
        await api.aclear(topic, key)


def command(verb: str, topic: str, ref: int, **more: Any) -> str:
    return json.dumps({"_orama": f"ephemeral.{verb}", "topic": topic, **more, "ref": ref})


async def answer(client: Peer, ref: int) -> dict[str, Any]:
    while (frame := await client.frame()).get("ref") != ref:
        pass
    return frame


async def obeyed(client: Peer, verb: str, topic: str, ref: int, **more: Any) -> str:
    client.arrive("websocket.receive", text=command(verb, topic, ref, **more))
    frame = await answer(client, ref)
    return frame.get("code", "ok")


def closed_with(client: Peer) -> list[int]:
    return [message["code"] for message in client.sent if message["type"] == "websocket.close"]


async def test_too_many_frames_are_refused_with_their_ref_and_served_again_later(limited: Any, topic: str) -> None:
    async with limited(MAX_FRAME_BURST=5, MAX_FRAMES_PER_SECOND=50) as client:
        for ref in range(8):
            client.arrive("websocket.receive", text=command("set", topic, ref, key=f"{ref}"))
        answers = {ref: await client.frame() for ref in ["hello", *range(8)]}
        refused = [frame for frame in answers.values() if frame.get("code") == "rate_limited"]
        assert sorted(frame["ref"] for frame in refused) == [5, 6, 7]
        assert all(0 < frame["retry_after_ms"] <= 250 for frame in refused)
        assert [entry.key for entry in await api.alist(topic)] == [f"{ref}" for ref in range(5)]
        await asyncio.sleep(refused[-1]["retry_after_ms"] / 1000)
        assert await obeyed(client, "set", topic, 9, key="9") == "ok"


async def test_the_hundredth_refusal_in_a_row_ends_the_connection_and_clears(
    limited: Any, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ephemeral_state")
    client = limited(MAX_FRAME_BURST=5, MAX_FRAMES_PER_SECOND=1)
    async with client:
        assert await obeyed(client, "set", topic, 1, key="k", ttl_ms=None) == "ok"
        for _ in range(4 + 99):
            client.arrive("websocket.receive", text="{}")
        codes = [(await client.frame())["code"] for _ in range(4 + 99)]
        assert sorted(codes) == ["bad_frame"] * 4 + ["rate_limited"] * 99
        client.arrive("websocket.receive", bytes=b"the hundredth")
        await client.ended()
    assert closed_with(client) == [4008]
    assert [event for event in events(caplog) if event != "node_began"] == ["client_too_fast"]
    assert await api.alist(topic) == []


async def test_a_flood_is_refused_even_if_the_server_gives_its_frames_without_suspending(limited: Any) -> None:
    async with limited(MAX_FRAME_BURST=5, MAX_FRAMES_PER_SECOND=1) as client:
        for _ in range(100_000):
            client.arrive("websocket.receive", text="x")
        await client.ended()
    assert closed_with(client) == [4008]
    assert len(client.sent) < 120


async def test_a_huge_frame_counts_as_many(limited: Any, topic: str) -> None:
    async with limited(MAX_FRAME_BURST=30, MAX_FRAMES_PER_SECOND=10, MAX_FRAME_BYTES=1000) as client:
        for data in ({"text": "x" * 5000}, {"bytes": b"x" * 5000}, {"text": "{}"}):
            client.arrive("websocket.receive", **data)
        await client.frame()
        *too_large, too_many = [await client.frame() for _ in range(3)]
        assert [frame["code"] for frame in (*too_large, too_many)] == ["bad_frame", "bad_frame", "rate_limited"]
        assert too_large[0]["message"] == "frame of 5000 bytes exceeds the limit of 1000 (MAX_FRAME_BYTES)"
        assert too_many["retry_after_ms"] >= 1000


async def test_pongs_are_never_refused_but_a_flood_of_them_ends_the_connection(limited: Any) -> None:
    client = limited(MAX_FRAME_BURST=1, MAX_FRAMES_PER_SECOND=1)
    async with client:
        assert (await client.frame())["_orama"] == "ephemeral.hello"
        for _ in range(1 + 99):
            client.arrive("websocket.receive", text='{"_orama":"ephemeral.pong"}')
        await settle()
        assert [frame["type"] for frame in client.sent] == ["websocket.accept", "websocket.send"]
        client.arrive("websocket.receive", text='{"_orama":"ephemeral.pong"}')
        await client.ended()
    assert closed_with(client) == [4008]


async def test_so_many_topics_and_no_more(limited: Any, topic: str) -> None:
    async with limited(MAX_TOPICS_PER_CLIENT=2) as client:
        assert await obeyed(client, "subscribe", f"{topic}1", 1) == "ok"
        assert await obeyed(client, "subscribe", f"{topic}2", 2) == "ok"
        assert await obeyed(client, "subscribe", f"{topic}3", 3) == "too_many_topics"
        assert await obeyed(client, "subscribe", f"{topic}2", 4) == "ok"
        assert await obeyed(client, "unsubscribe", f"{topic}1", 5) == "ok"
        assert await obeyed(client, "subscribe", f"{topic}3", 6) == "ok"
        assert await obeyed(client, "subscribe", "", 7) == "too_many_topics"
        assert await obeyed(client, "unsubscribe", f"{topic}3", 8) == "ok"
        assert await obeyed(client, "subscribe", "", 9) == "name_required"
        assert await obeyed(client, "subscribe", f"{topic}4", 10) == "ok"


@pytest.mark.parametrize("followed", [True, False])
async def test_so_many_entries_in_a_topic_and_no_more(limited: Any, topic: str, followed: bool) -> None:
    async with limited(MAX_ENTRIES_PER_TOPIC=3) as client, Peer(EphemeralStateConsumer.as_asgi()) as other:
        if followed:
            assert await obeyed(other, "subscribe", topic, 0) == "ok"
        for ref in (1, 2, 3):
            assert await obeyed(client, "set", topic, ref, key=f"{ref}") == "ok"
            if followed:
                while len(other.view.state) < ref:
                    await other.frame()
        assert await obeyed(client, "set", topic, 4, key="4") == "too_many_entries"
        assert await obeyed(other, "set", topic, 5, key="5") == "too_many_entries"
        assert await obeyed(client, "set", topic, 6, key="2") == "ok"
        # Another's key: from here it is seen to be there only if somebody follows the topic.
        assert await obeyed(other, "set", topic, 7, key="1") == ("ok" if followed else "too_many_entries")
        assert await obeyed(client, "set", f"{topic}2", 8, key="4") == "ok"
        await api.aset(topic, "from a view")
        assert await obeyed(client, "clear", topic, 9, key="2") == "ok"
        await api.aclear(topic, "from a view")
        if followed:
            await until(lambda: _drained(other, 2))
        assert await obeyed(client, "set", topic, 10, key="4") == "ok"
        assert len(await api.alist(topic)) == 3


async def test_who_does_not_wait_for_answers_gets_them_in_order_and_sees_what_was_set(limited: Any, topic: str) -> None:
    async with limited(MAX_KEYS_PER_CLIENT=200) as client:
        sets = [command("set", topic, ref, key=f"{ref}", ttl_ms=None) for ref in range(300)]
        commands = [*sets[:100], "{}", *sets[100:], command("list", topic, 300), command("clear", topic, 301, key="0")]
        for text in [*commands, command("set", topic, 302, key="last")]:
            client.arrive("websocket.receive", text=text)
        answers = [await client.frame() for _ in range(1 + 304)][1:]
        assert [frame.get("ref", "bad") for frame in answers] == [*range(100), "bad", *range(100, 303)]
        assert [frame.get("code", "ok") for frame in answers[:301]] == [
            *["ok"] * 100,
            "bad_frame",
            *["ok"] * 100,
            *["too_many_keys"] * 100,
        ]
        assert {entry["key"] for entry in answers[301]["entries"]} == {f"{ref}" for ref in range(200)}
        assert [frame["_orama"] for frame in answers[302:]] == ["ephemeral.ok"] * 2


async def test_a_handler_may_hand_on_a_message(settings: Any, topic: str) -> None:
    settings.EPHEMERAL_STATE = {"POLICY": "tests.test_consumers.Yes"}

    class Consumer(EphemeralStateConsumer):
        async def chat_message(self, message: dict[str, Any]) -> None:
            if message["times"]:
                await self.dispatch(message | {"times": message["times"] - 1})
            await self.send(text_data=str(message["times"]))

    async with Peer(Consumer.as_asgi()) as client:
        name = (await client.frame())["client_id"]
        await get_channel_layer().send(name, {"type": "chat.message", "times": 2})
        assert [await client.frame() for _ in range(3)] == [0, 1, 2]
        assert await obeyed(client, "set", topic, 1, key="k") == "ok"


async def test_the_handlers_of_a_project_share_their_context(settings: Any, topic: str) -> None:
    settings.EPHEMERAL_STATE = {"POLICY": "tests.test_consumers.Yes"}
    language: ContextVar[str] = ContextVar("language", default="en")
    seen = []

    class Consumer(EphemeralStateConsumer):
        async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            if text_data == "de":
                language.set(text_data)
                await self.channel_layer.send(self.channel_name, {"type": "chat.message"})
            else:
                await super().receive(text_data, bytes_data)

        async def chat_message(self, message: dict[str, Any]) -> None:
            await self.send(text_data=f'"{language.get()}"')

        async def disconnect(self, code: int) -> None:
            seen.append(language.get())

    async with Peer(Consumer.as_asgi()) as client:
        await client.frame()
        client.arrive("websocket.receive", text="de")
        assert await client.frame() == "de"
        assert await obeyed(client, "set", topic, 1, key="k") == "ok"
    assert seen == ["de"]


@pytest.mark.parametrize("followed", [False, True])
async def test_who_sends_many_new_keys_at_once_gets_no_more_than_the_topic_may_have(
    limited: Any, topic: str, followed: bool
) -> None:
    async with limited(MAX_ENTRIES_PER_TOPIC=3) as client:
        await client.frame()
        if followed:
            await obeyed(client, "subscribe", topic, 0)
        for ref in range(1, 21):
            client.arrive("websocket.receive", text=command("set", topic, ref, key=f"{ref}"))
        await answer(client, 20)
        assert len(await api.alist(topic)) == 3


class Unhurried(Yes):
    """Takes its time over every set."""

    asked: asyncio.Event
    may: asyncio.Event

    async def can_set(self, scope: Any, namespace: str, topic: str, key: str) -> bool:
        type(self).asked.set()
        await type(self).may.wait()
        return True


async def test_one_message_is_handled_at_a_time_wherever_it_comes_from(settings: Any, topic: str) -> None:
    settings.EPHEMERAL_STATE = {"POLICY": "tests.test_consumers.Unhurried"}
    Unhurried.asked, Unhurried.may = asyncio.Event(), asyncio.Event()
    handled = []

    class Consumer(EphemeralStateConsumer):
        async def chat_message(self, message: dict[str, Any]) -> None:
            handled.append(message["text"])
            await self.send(text_data=message["text"])

        async def disconnect(self, code: int) -> None:
            handled.append("disconnect")

    layer = get_channel_layer()
    async with Peer(Consumer.as_asgi()) as client:
        name = (await client.frame())["client_id"]
        client.arrive("websocket.receive", text=command("set", topic, 1, key="k"))
        await Unhurried.asked.wait()
        await layer.send(name, {"type": "chat.message", "text": '"hello"'})
        await asyncio.sleep(0.1)  # Channels asks another thread first
        assert handled == []
        Unhurried.may.set()
        assert [await client.frame(), await client.frame()] == [{"_orama": "ephemeral.ok", "ref": 1}, "hello"]
    assert handled == ['"hello"', "disconnect"]


@pytest.fixture
def busy_redis(settings: Any) -> Iterator[RedisServer]:
    """`busy_redis.command(*BUSY)`: it answers nobody for a moment, so that sets stay on their way for that long."""
    with RedisServer() as server:
        store = {"BACKEND": "ephemeral_state.stores.redis.RedisStore", "OPTIONS": {"url": server.url}}
        settings.EPHEMERAL_STATE = {"POLICY": "tests.test_consumers.Yes", "MAX_ENTRIES_PER_TOPIC": 20, **store}
        yield server


BUSY = ("CLIENT", "PAUSE", 300)


@pytest.mark.redis
async def test_sets_of_who_does_not_wait_go_to_the_store_together(busy_redis: RedisServer, topic: str) -> None:
    def scripts() -> int:
        return sum(stat["calls"] for name, stat in busy_redis.command("INFO", "commandstats").items() if "eval" in name)

    async with Peer(EphemeralStateConsumer.as_asgi()) as client:
        assert await obeyed(client, "set", topic, 0, key="k") == "ok"
        before = scripts()
        busy_redis.command(*BUSY)
        for ref in range(1, 61):
            client.arrive("websocket.receive", text=command("set", topic, ref, key="k"))
        await answer(client, 60)
        assert scripts() - before < 30


@pytest.mark.redis
async def test_an_error_does_not_overtake_the_answers_to_sets_on_their_way(busy_redis: RedisServer, topic: str) -> None:
    async with Peer(EphemeralStateConsumer.as_asgi()) as client:
        assert await obeyed(client, "set", topic, 0, key="k") == "ok"
        busy_redis.command(*BUSY)
        client.arrive("websocket.receive", text=command("set", topic, 1, key="k"))
        client.arrive("websocket.receive", text="{}")
        assert [(await client.frame())["_orama"] for _ in range(2)] == ["ephemeral.ok", "ephemeral.error"]


@pytest.mark.redis
async def test_a_list_shows_what_was_set_before_it_and_is_on_its_way(busy_redis: RedisServer, topic: str) -> None:
    async with Peer(EphemeralStateConsumer.as_asgi()) as client:
        assert await obeyed(client, "set", topic, 0, key="k") == "ok"
        busy_redis.command(*BUSY)
        client.arrive("websocket.receive", text=command("set", topic, 1, key="k"))
        client.arrive("websocket.receive", text=command("set", topic, 2, key="k", payload="Mg=="))  # in the next batch
        client.arrive("websocket.receive", text=command("list", topic, 3))
        frames = [await client.frame() for _ in range(3)]
        assert [frame["ref"] for frame in frames] == [1, 2, 3]
        assert [entry.get("payload") for entry in frames[2]["entries"]] == ["Mg=="]


@pytest.mark.redis
async def test_sets_on_their_way_count_where_the_topic_is_followed(busy_redis: RedisServer, topic: str) -> None:
    async with Peer(EphemeralStateConsumer.as_asgi()) as client:
        assert await obeyed(client, "subscribe", topic, 0) == "ok"
        busy_redis.command(*BUSY)
        for ref in range(1, 101):
            client.arrive("websocket.receive", text=command("set", topic, ref, key=f"{ref}"))
        await answer(client, 100)
        # Not exact: what was stored a moment ago may not have been heard of yet.
        assert 20 <= len(await api.alist(topic)) <= 40


async def test_sets_on_their_way_count_as_entries_of_the_topic(limited: Any, topic: str) -> None:
    async with limited(MAX_ENTRIES_PER_TOPIC=20) as client:
        for ref in range(30):
            client.arrive("websocket.receive", text=command("set", topic, ref, key=f"{ref}"))
        codes = [(await client.frame()).get("code", "ok") for _ in range(1 + 30)][1:]
        assert codes == [*["ok"] * 20, *["too_many_entries"] * 10]


async def _drained(client: Peer, entries: int) -> bool:
    while len(client.view.state) != entries:
        await client.frame()
    return True
