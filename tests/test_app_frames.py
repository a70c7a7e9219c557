"""The tests that an app had before its consumer subscribed in `connect()`: they stay as they are."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from channels.generic.websocket import AsyncJsonWebsocketConsumer, JsonWebsocketConsumer
from channels.testing import WebsocketCommunicator

from ephemeral_state import api
from ephemeral_state.consumers import UNTIL_DISCONNECT, EphemeralStateMixin, SyncEphemeralStateMixin
from ephemeral_state.testing import AppCommunicator, app_frames, ephemeral_frame, fresh_store, reconnect


class Chat(AsyncJsonWebsocketConsumer):
    """An app of somebody else: it greets, echoes to the room, and refuses."""

    async def connect(self) -> None:
        if b"banned" in self.scope["query_string"]:
            await self.close(4001)
            return
        await self.channel_layer.group_add("chat", self.channel_name)
        await self.accept()
        await self.send_json({"type": "welcome"})

    async def receive_json(self, content: Any, **_: Any) -> None:
        if content["type"] == "say":
            await self.channel_layer.group_send("chat", {"type": "chat.said", "text": content["text"]})
        elif content["type"] == "bytes":
            await self.send(bytes_data=b"\x00")
        elif content["type"] == "quote":
            await self.send_json({"type": "quote", "of": '{"_orama":"ephemeral.set"}', "_orama": "mine"})
        elif content["type"] == "leave":
            await self.close(4002)

    async def chat_said(self, event: Any) -> None:
        await self.send_json({"type": "said", "text": event["text"]})

    async def disconnect(self, code: int) -> None:
        await self.channel_layer.group_discard("chat", self.channel_name)


class LiveChat(EphemeralStateMixin, Chat):
    async def connect(self) -> None:
        await super().connect()
        if b"banned" not in self.scope["query_string"]:
            await self.ephemeral_subscribe("chat")
            await self.ephemeral_set("chat", f"here:{self.channel_name}", {"name": "Zoé"}, ttl=UNTIL_DISCONNECT)

    async def receive_json(self, content: Any, **more: Any) -> None:
        await self.ephemeral_set("chat", f"typing:{self.channel_name}", ttl=5)
        await super().receive_json(content, **more)
        await self.ephemeral_clear("chat", f"typing:{self.channel_name}")


class SyncChat(JsonWebsocketConsumer):
    def connect(self) -> None:
        if b"banned" in self.scope["query_string"]:
            self.close(4001)
            return
        async_to_sync(self.channel_layer.group_add)("chat", self.channel_name)
        self.accept()
        self.send_json({"type": "welcome"})

    def receive_json(self, content: Any, **_: Any) -> None:
        if content["type"] == "say":
            message = {"type": "chat.said", "text": content["text"]}
            async_to_sync(self.channel_layer.group_send)("chat", message)
        elif content["type"] == "bytes":
            self.send(bytes_data=b"\x00")
        elif content["type"] == "quote":
            self.send_json({"type": "quote", "of": '{"_orama":"ephemeral.set"}', "_orama": "mine"})
        elif content["type"] == "leave":
            self.close(4002)

    def chat_said(self, event: Any) -> None:
        self.send_json({"type": "said", "text": event["text"]})

    def disconnect(self, code: int) -> None:
        async_to_sync(self.channel_layer.group_discard)("chat", self.channel_name)


class SyncLiveChat(SyncEphemeralStateMixin, SyncChat):
    def connect(self) -> None:
        super().connect()
        if b"banned" not in self.scope["query_string"]:
            self.ephemeral_subscribe("chat")
            self.ephemeral_set("chat", f"here:{self.channel_name}", {"name": "Zoé"}, ttl=UNTIL_DISCONNECT)

    def receive_json(self, content: Any, **more: Any) -> None:
        self.ephemeral_set("chat", f"typing:{self.channel_name}", ttl=5)
        super().receive_json(content, **more)
        self.ephemeral_clear("chat", f"typing:{self.channel_name}")


class Multiplexed(LiveChat):
    """Behind a multiplexer: each frame names its stream."""

    async def send_json(self, content: Any, close: bool = False) -> None:
        await self.base_send({"type": "websocket.send", "text": json.dumps(content)})

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def wrapped(message: Any) -> None:
            if message.get("text"):
                message = {**message, "text": json.dumps({"stream": "chat", "payload": json.loads(message["text"])})}
            await send(message)

        await super().__call__(scope, receive, wrapped)


Open = Callable[..., Any]


# The app's own tests


async def greets(open_: Open) -> None:
    window = open_()
    assert (await window.connect())[0]
    assert await window.receive_json_from() == {"type": "welcome"}
    assert await window.receive_nothing()
    await window.disconnect()


async def tells_the_room(open_: Open) -> None:
    ann, bob = open_(), open_()
    for window in (ann, bob):
        await window.connect()
        assert json.loads(await window.receive_from()) == {"type": "welcome"}
    for text in ("one", "two"):
        await ann.send_json_to({"type": "say", "text": text})
        for window in (ann, bob):
            assert await window.receive_json_from() == {"type": "said", "text": text}
    await ann.disconnect()
    assert await bob.receive_nothing()
    await bob.disconnect()


async def answers_with_bytes(open_: Open) -> None:
    window = open_()
    await window.connect()
    await window.receive_output()
    await window.send_json_to({"type": "bytes"})
    assert await window.receive_from() == b"\x00"
    await window.disconnect()


async def has_a_field_of_the_same_name(open_: Open) -> None:
    window = open_()
    await window.connect()
    await window.receive_output()
    await window.send_json_to({"type": "quote"})
    assert (await window.receive_json_from())["_orama"] == "mine"
    await window.disconnect()


async def sends_away(open_: Open) -> None:
    assert await open_("/?banned").connect() == (False, 4001)
    window = open_()
    await window.connect()
    await window.receive_output()
    await window.send_json_to({"type": "leave"})
    assert await window.receive_output() == {"type": "websocket.close", "code": 4002}
    await window.disconnect()


OWN_TESTS = (greets, tells_the_room, answers_with_bytes, has_a_field_of_the_same_name, sends_away)


@pytest.fixture(autouse=True)
def _store() -> Iterator[None]:
    with fresh_store():
        yield


def apart(consumer: Any) -> Open:
    return lambda path="/": AppCommunicator(consumer.as_asgi(), path)


def made_later(consumer: Any) -> Open:
    return lambda path="/": app_frames(WebsocketCommunicator(consumer.as_asgi(), path))


@pytest.mark.parametrize("test", OWN_TESTS)
@pytest.mark.parametrize("consumer", [Chat, SyncChat])
async def test_the_apps_own_tests_hold_without_the_mixin(
    consumer: Any, test: Callable[[Open], Awaitable[None]]
) -> None:
    await test(lambda path="/": WebsocketCommunicator(consumer.as_asgi(), path))


@pytest.mark.parametrize("test", OWN_TESTS)
@pytest.mark.parametrize("how", [apart, made_later])
@pytest.mark.parametrize("consumer", [LiveChat, SyncLiveChat])
async def test_they_hold_with_the_mixin_as_they_are(
    consumer: Any, how: Callable[[Any], Open], test: Callable[[Open], Awaitable[None]]
) -> None:
    await test(how(consumer))


@pytest.mark.parametrize("consumer", [LiveChat, SyncLiveChat])
async def test_without_it_our_frames_come_in_between(consumer: Any) -> None:
    window = WebsocketCommunicator(consumer.as_asgi(), "/")
    await window.connect()
    assert await window.receive_json_from() == {"type": "welcome"}
    assert not await window.receive_nothing()
    await window.disconnect()


@pytest.mark.parametrize("consumer", [LiveChat, SyncLiveChat])
async def test_what_is_kept_apart_can_be_had(consumer: Any) -> None:
    window = AppCommunicator(consumer.as_asgi(), "/")
    await window.connect()
    assert (await ephemeral_frame(window))["_orama"] == "ephemeral.snapshot"
    assert (await ephemeral_frame(window, "set"))["key"].startswith("here:")
    await window.send_json_to({"type": "nothing"})
    assert (await ephemeral_frame(window, "clear"))["key"].startswith("typing:")
    with pytest.raises(AssertionError, match=r"no ephemeral\.clear came within 0\.05 s"):
        await ephemeral_frame(window, "clear", timeout=0.05)
    with pytest.raises(AssertionError, match="no frame came within"):
        await ephemeral_frame(window, timeout=0.05)
    await window.send_json_to({"type": "say", "text": "the consumer lives on"})
    assert await window.receive_json_from() == {"type": "welcome"}
    assert (await window.receive_json_from())["type"] == "said"
    await window.disconnect()


async def test_frames_that_came_before_are_sorted_too_and_twice_is_once() -> None:
    window = WebsocketCommunicator(LiveChat.as_asgi(), "/")
    await window.connect()

    async def came(number: int) -> None:
        async with asyncio.timeout(5):
            while window.output_queue.qsize() < number:  # noqa: ASYNC110 - a queue that tells nobody
                await asyncio.sleep(0.001)

    await came(3)
    await api.aset("chat", "k")
    await came(4)
    assert app_frames(app_frames(window)) is window
    assert await window.receive_json_from() == {"type": "welcome"}
    assert await window.receive_nothing()
    assert [(await ephemeral_frame(window))["_orama"] for _ in range(3)] == [
        "ephemeral.snapshot",
        "ephemeral.set",
        "ephemeral.set",
    ]
    await window.disconnect()


async def test_one_that_comes_back_keeps_them_apart_again() -> None:
    window = AppCommunicator(LiveChat.as_asgi(), "/")
    await window.connect()
    again = await reconnect(window)
    assert await again.receive_json_from() == {"type": "welcome"}
    assert await again.receive_nothing()
    assert (await ephemeral_frame(again, "snapshot"))["topic"] == "chat"
    await again.disconnect()


async def test_behind_a_multiplexer_the_streams_frames_are_told_apart() -> None:
    window = AppCommunicator(Multiplexed.as_asgi(), "/")
    await window.connect()
    assert await window.receive_json_from() == {"stream": "chat", "payload": {"type": "welcome"}}
    assert await window.receive_nothing()
    assert (await ephemeral_frame(window, "set"))["key"].startswith("here:")
    await window.disconnect()


async def test_a_communicator_that_keeps_nothing_apart_is_told_the_remedy() -> None:
    with pytest.raises(ValueError, match="give it to app_frames"):
        await ephemeral_frame(WebsocketCommunicator(LiveChat.as_asgi(), "/"))


@pytest.mark.parametrize("consumer", [LiveChat, SyncLiveChat])
async def test_a_client_that_a_test_leaves_connected_is_no_matter_for_the_log(
    consumer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def a_test_that_forgets_to_disconnect() -> None:
        window = WebsocketCommunicator(consumer.as_asgi(), "/")
        await window.connect()
        for _ in range(3):
            await window.receive_from()

    await asyncio.to_thread(lambda: asyncio.run(a_test_that_forgets_to_disconnect()))
    assert [record.getMessage() for record in caplog.records if record.name == "ephemeral_state"] == []
