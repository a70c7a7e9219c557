"""The apps' own tests, as their authors wrote them: they pass before the mixin is added, and after."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from channels.layers import get_channel_layer
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import Group

from ephemeral_state.testing import app_frames

from .apps import APPS, ROOM

pytestmark = pytest.mark.usefixtures("threaded_db")


@pytest.fixture(params=["before", "after"])
def version(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def policy(settings: Any) -> None:
    settings.EPHEMERAL_STATE = {"POLICY": "tests.integrations.apps.Everything"}


@asynccontextmanager
async def connected(
    name: str, version: str, user: str = "ann", subprotocols: list[str] | None = None
) -> AsyncIterator[WebsocketCommunicator]:
    communicator = app_frames(
        WebsocketCommunicator(APPS[name][version == "after"], f"/?user={user}", subprotocols=subprotocols)
    )
    accepted, _ = await communicator.connect(5)
    assert accepted
    yield communicator
    await communicator.disconnect(timeout=5)


async def ask(communicator: WebsocketCommunicator, **question: Any) -> Any:
    await communicator.send_json_to({"request_id": 1, **question})
    return await communicator.receive_json_from(5)


async def test_an_action_is_answered(version: str) -> None:
    async with connected("rooms", version) as ann:
        answer = await ask(ann, action="join", room=ROOM)
        assert (answer["response_status"], answer["data"]) == (200, {"joined": ROOM})
        assert (await ask(ann, action="nothing"))["response_status"] == 405


async def test_what_is_said_is_heard_by_all_who_joined(version: str) -> None:
    async with connected("rooms", version) as ann, connected("rooms", version, "bob") as bob:
        for each in (ann, bob):
            await ask(each, action="join", room=ROOM)
        await bob.send_json_to({"action": "say", "request_id": 2, "room": ROOM, "text": "hi"})
        assert await ann.receive_json_from(5) == {"said": "hi"}


async def test_each_stream_of_the_multiplexer_answers_for_itself(version: str) -> None:
    async with connected("streams", version) as ann:
        await ann.send_json_to({"stream": "echo", "payload": {"a": 1}})
        assert await ann.receive_json_from(5) == {"stream": "echo", "payload": {"a": 1}}
        await ann.send_json_to(
            {"stream": "rooms", "payload": {"action": "say", "request_id": 1, "room": ROOM, "text": "x"}}
        )
        answer = await ann.receive_json_from(5)
        assert (answer["stream"], answer["payload"]["response_status"]) == ("rooms", 201)


@pytest.mark.parametrize(
    ("protocol", "start", "data"),
    [("graphql-transport-ws", "subscribe", "next"), ("graphql-ws", "start", "data")],
)
async def test_a_subscription_counts(version: str, protocol: str, start: str, data: str) -> None:
    async with connected("graphql", version, subprotocols=[protocol]) as ann:
        await ann.send_json_to({"type": "connection_init"})
        assert await ann.receive_json_from(5) == {"type": "connection_ack"}
        await ann.send_json_to({"id": "1", "type": start, "payload": {"query": "subscription { count(to: 3) }"}})
        for number in range(3):
            assert await ann.receive_json_from(5) == {"id": "1", "type": data, "payload": {"data": {"count": number}}}
        assert (await ann.receive_json_from(5))["type"] == "complete"


async def test_the_online_list_follows_who_comes_and_goes(version: str) -> None:
    online = sync_to_async(lambda: sorted(Group.objects.get(name=ROOM).user_set.values_list("username", flat=True)))
    async with connected("sync-chat", version) as ann:
        assert await ann.receive_json_from(5) == {"online": ["ann"]}
        async with connected("sync-chat", version, "bob") as bob:
            assert await bob.receive_json_from(5) == {"online": ["ann", "bob"]}
            await bob.send_json_to({"text": "hi"})
            for each in (ann, bob):
                assert await each.receive_json_from(5) == {"said": "hi"}
        assert await online() == ["ann"]
    assert await online() == []


async def test_an_async_chat_says_who_one_is_and_what_others_say(version: str) -> None:
    async with AsyncExitStack() as stack:
        people = [await stack.enter_async_context(connected("async-chat", version, name)) for name in ("ann", "bob")]
        for each, name in zip(people, ("ann", "bob"), strict=True):
            assert await each.receive_json_from(5) == {"welcome": name}
        await people[0].send_json_to({"text": "hi"})
        for each in people:
            assert await each.receive_json_from(5) == {"said": "hi"}


async def test_a_status_consumer_is_for_users_only(version: str) -> None:
    communicator = WebsocketCommunicator(APPS["status"][version == "after"], "/")
    accepted, _ = await communicator.connect(5)
    assert not accepted
    await communicator.wait()


async def test_a_status_is_told_and_so_is_that_nothing_happens(version: str) -> None:
    async with connected("status", version) as ann:
        await get_channel_layer().group_send("status", {"type": "status.update", "status": "done"})
        heard = []
        while {"done", "idle"} - set(heard):
            heard.append(json.loads(await ann.receive_from(5))["status"])
    tasks = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]
    assert "Status.say_when_idle" not in tasks
