"""The chat of the Channels tutorial gets a typing indicator with three lines, and is the same chat otherwise."""

from __future__ import annotations

import base64
import difflib
import uuid
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from channels.layers import get_channel_layer
from channels.routing import URLRouter
from channels.testing import WebsocketCommunicator
from django.urls import re_path

from ephemeral_state import api

from .tutorial.async_version import chat_after as async_after
from .tutorial.async_version import chat_before as async_before
from .tutorial.sync_version import chat_after as sync_after
from .tutorial.sync_version import chat_before as sync_before

PAIRS = [
    pytest.param(sync_before, sync_after, "SyncEphemeralStateMixin", "WebsocketConsumer", id="sync"),
    pytest.param(async_before, async_after, "EphemeralStateMixin", "AsyncWebsocketConsumer", id="async"),
]


@pytest.fixture
def room() -> str:
    return uuid.uuid4().hex


def visitor(chat: ModuleType, room: str) -> WebsocketCommunicator:
    app = URLRouter([re_path(r"ws/chat/(?P<room_name>\w+)/$", chat.ChatConsumer.as_asgi())])
    return WebsocketCommunicator(app, f"/ws/chat/{room}/")


async def hears(who: WebsocketCommunicator, **frame: Any) -> dict[str, Any]:
    """The next frame, which has at least these fields."""
    heard: dict[str, Any] = await who.receive_json_from(timeout=10)
    assert frame.items() <= heard.items()
    return heard


async def enter(chat: ModuleType, room: str) -> WebsocketCommunicator:
    who = visitor(chat, room)
    connected, _ = await who.connect(timeout=10)
    assert connected
    if chat in (sync_after, async_after):
        await hears(who, _orama="ephemeral.snapshot", topic=room)
    return who


@pytest.mark.parametrize(("before", "after", "mixin", "base"), PAIRS)
def test_three_lines_and_the_mixin_are_all_the_difference(
    before: ModuleType, after: ModuleType, mixin: str, base: str
) -> None:
    texts = [Path(str(module.__file__)).read_text().splitlines() for module in (before, after)]
    changes = [line for line in difflib.ndiff(*texts) if line[0] in "+-" and line[2:].strip()]
    assert [line for line in changes if line[0] == "-"] == [f"- class ChatConsumer({base}):"]
    added = [line[2:] for line in changes if line[0] == "+"]
    assert added[:2] == [
        f"from ephemeral_state.consumers import {mixin}",
        f"class ChatConsumer({mixin}, {base}):",
    ]
    assert len(added[2:]) == 3


@pytest.mark.parametrize("chat", [sync_before, sync_after, async_before, async_after], ids=lambda m: m.__name__)
async def test_a_message_is_seen_by_everyone_in_the_same_room(chat: ModuleType, room: str) -> None:
    ann, bob = await enter(chat, room), await enter(chat, room)
    await ann.send_json_to({"message": "hello"})
    assert await hears(ann) == {"message": "hello"}
    assert await hears(bob) == {"message": "hello"}
    await ann.disconnect()
    await bob.disconnect()


@pytest.mark.parametrize("chat", [sync_before, sync_after, async_before, async_after], ids=lambda m: m.__name__)
async def test_a_message_is_not_seen_in_a_different_room(chat: ModuleType, room: str) -> None:
    ann, bob = await enter(chat, f"{room}_1"), await enter(chat, f"{room}_2")
    await ann.send_json_to({"message": "hello"})
    assert await hears(ann) == {"message": "hello"}
    await bob.send_json_to({"message": "world"})
    assert await hears(bob) == {"message": "world"}  # and nothing before it
    await ann.disconnect()
    await bob.disconnect()


@pytest.mark.parametrize("chat", [sync_before, sync_after, async_before, async_after], ids=lambda m: m.__name__)
async def test_who_leaves_is_in_no_group_any_more(chat: ModuleType, room: str) -> None:
    ann = await enter(chat, room)
    assert f"chat_{room}" in get_channel_layer().groups
    await ann.disconnect()
    assert f"chat_{room}" not in get_channel_layer().groups


@pytest.mark.parametrize("chat", [sync_after, async_after], ids=lambda m: m.__name__)
async def test_who_is_typing_is_told_and_forgotten(chat: ModuleType, room: str) -> None:
    ann, bob = await enter(chat, room), await enter(chat, room)
    await ann.send_json_to({"typing": "Ann"})
    typing = await hears(bob, _orama="ephemeral.set", topic=room, payload=base64.b64encode(b"Ann").decode())
    # Who comes later sees it too, and the chat goes on.
    eve = visitor(chat, room)
    await eve.connect(timeout=10)
    snapshot = await hears(eve, _orama="ephemeral.snapshot")
    assert [entry["key"] for entry in snapshot["entries"]] == [typing["key"]]
    await ann.send_json_to({"message": "hello"})
    await hears(bob, message="hello")
    await hears(eve, message="hello")
    (entry,) = await api.alist(room)
    assert 0 < entry.expires_in_ms <= 5000
    # Nobody has to say that Ann has stopped: it is enough that she is gone.
    await ann.disconnect()
    for who in (bob, eve):
        await hears(who, _orama="ephemeral.clear", key=typing["key"], reason="disconnect")
        await who.disconnect()
    assert await api.alist(room) == []


@pytest.mark.parametrize("chat", [sync_after, async_after], ids=lambda m: m.__name__)
async def test_who_stops_typing_is_forgotten_after_the_ttl(settings: Any, chat: ModuleType, room: str) -> None:
    settings.EPHEMERAL_STATE = {"DEFAULT_TTL": 0.2, "MAX_TTL": 0.2}  # which cuts the five seconds asked for
    ann, bob = await enter(chat, room), await enter(chat, room)
    await ann.send_json_to({"typing": "Ann"})
    typing = await hears(bob, _orama="ephemeral.set")
    assert await hears(bob, _orama="ephemeral.clear", reason="expired") == {
        "_orama": "ephemeral.clear",
        "topic": room,
        "key": typing["key"],
        "client_id": typing["client_id"],
        "reason": "expired",
    }
    await ann.disconnect()
    await bob.disconnect()
