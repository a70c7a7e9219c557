"""Each app as its author wrote it, and below it the same app with the few lines that give it state.

`python -m tests.integrations.apps` migrates the database; a server is pointed at `tests.integrations.apps:application`.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs

import django
from django.apps import apps

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.integrations.settings")
if not apps.ready:
    django.setup()

import strawberry
from asgiref.sync import async_to_sync
from channels.db import database_sync_to_async
from channels.exceptions import DenyConnection
from channels.generic.websocket import (
    AsyncJsonWebsocketConsumer,
    AsyncWebsocketConsumer,
    JsonWebsocketConsumer,
)
from channels.routing import ProtocolTypeRouter, URLRouter
from channelsmultiplexer import AsyncJsonWebsocketDemultiplexer
from django.contrib.auth.models import Group, User
from django.core.asgi import get_asgi_application
from django.urls import path
from djangochannelsrestframework.consumers import AsyncAPIConsumer
from djangochannelsrestframework.decorators import action
from djangochannelsrestframework.permissions import AllowAny
from strawberry.channels import GraphQLWSConsumer

from ephemeral_state.consumers import (
    UNTIL_DISCONNECT,
    EphemeralStateConsumer,
    EphemeralStateMixin,
    SyncEphemeralStateMixin,
)
from ephemeral_state.policy import Policy

__all__ = ["APPS", "ROOM", "application"]

ROOM = "lobby"


class Everything(Policy):
    def can_subscribe(self, scope: Any, namespace: str, topic: str) -> bool:
        return True

    def can_set(self, scope: Any, namespace: str, topic: str, key: str) -> bool:
        return True


def name_of(scope: Any) -> str:
    """The user, as the query string says. Empty for none."""
    return parse_qs(scope["query_string"].decode()).get("user", [""])[0]


# A REST-like API over a WebSocket


class Rooms(AsyncAPIConsumer):
    permission_classes = [AllowAny]  # noqa: RUF012

    @action()
    async def join(self, room: str, **_: Any) -> tuple[dict[str, str], int]:
        await self.add_group(room)
        return {"joined": room}, 200

    @action()
    async def say(self, room: str, text: str, **_: Any) -> tuple[dict[str, str], int]:
        await self.channel_layer.group_send(room, {"type": "room.said", "text": text})
        return {}, 201

    async def room_said(self, event: dict[str, str]) -> None:
        await self.send_json({"said": event["text"]})


class LiveRooms(EphemeralStateMixin, Rooms):
    @action()
    async def join(self, room: str, **more: Any) -> tuple[dict[str, str], int]:
        answer = await super().join(room, **more)
        await self.ephemeral_subscribe(room)
        await self.ephemeral_set(room, name_of(self.scope), ttl=UNTIL_DISCONNECT)
        return answer


# The same API as one of two streams of a multiplexer


class Echo(AsyncJsonWebsocketConsumer):
    async def receive_json(self, content: Any, **_: Any) -> None:
        await self.send_json(content)


class Streams(AsyncJsonWebsocketDemultiplexer):
    applications = {"rooms": Rooms.as_asgi(), "echo": Echo.as_asgi()}  # noqa: RUF012


class LiveStreams(AsyncJsonWebsocketDemultiplexer):
    applications = {"rooms": LiveRooms.as_asgi(), "echo": Echo.as_asgi()}  # noqa: RUF012


# GraphQL


@strawberry.type
class Query:
    room: str = ROOM


@strawberry.type
class Subscription:
    @strawberry.subscription
    async def count(self, to: int) -> AsyncGenerator[int, None]:
        for number in range(to):
            yield number

    @strawberry.subscription
    async def here(self, info: strawberry.Info, room: str) -> AsyncGenerator[str, None]:
        """Present in the room as long as this goes on."""
        consumer = info.context["ws"]
        name = name_of(consumer.scope)
        await consumer.ephemeral_set(room, name, ttl=UNTIL_DISCONNECT)
        try:
            yield name
            await asyncio.Event().wait()
        finally:
            await consumer.ephemeral_clear(room, name)


SCHEMA = strawberry.Schema(Query, subscription=Subscription)


class LiveGraphQL(EphemeralStateMixin, GraphQLWSConsumer):
    pass


# A sync chat that keeps who is online in a many-to-many relation; Django's groups have one to users


class SyncChat(JsonWebsocketConsumer):
    def connect(self) -> None:
        self.user, _ = User.objects.get_or_create(username=name_of(self.scope))
        self.room, _ = Group.objects.get_or_create(name=ROOM)
        self.room.user_set.add(self.user)
        async_to_sync(self.channel_layer.group_add)(ROOM, self.channel_name)
        self.accept()
        self.send_json({"online": sorted(self.room.user_set.values_list("username", flat=True))})

    def receive_json(self, content: Any, **_: Any) -> None:
        async_to_sync(self.channel_layer.group_send)(ROOM, {"type": "chat.said", "text": content["text"]})

    def chat_said(self, event: dict[str, str]) -> None:
        self.send_json({"said": event["text"]})

    def disconnect(self, code: int) -> None:
        async_to_sync(self.channel_layer.group_discard)(ROOM, self.channel_name)
        self.room.user_set.remove(self.user)


class LiveSyncChat(SyncEphemeralStateMixin, SyncChat):
    def connect(self) -> None:
        super().connect()
        self.ephemeral_subscribe(ROOM)
        self.ephemeral_set(ROOM, self.user.username, ttl=UNTIL_DISCONNECT)


# An async chat


class AsyncChat(AsyncJsonWebsocketConsumer):
    groups = [ROOM]  # noqa: RUF012

    async def connect(self) -> None:
        self.user, _ = await database_sync_to_async(User.objects.get_or_create)(username=name_of(self.scope))
        await self.accept()
        await self.send_json({"welcome": self.user.username})

    async def receive_json(self, content: Any, **_: Any) -> None:
        await self.channel_layer.group_send(ROOM, {"type": "chat.said", "text": content["text"]})

    async def chat_said(self, event: dict[str, str]) -> None:
        await self.send_json({"said": event["text"]})


class LiveAsyncChat(EphemeralStateMixin, AsyncChat):
    async def connect(self) -> None:
        await super().connect()
        await self.ephemeral_subscribe(ROOM)
        await self.ephemeral_set(ROOM, self.user.username, ttl=UNTIL_DISCONNECT)


# A status consumer: users only, says what it is told by a group, and by a task of its own when nothing happens


class Status(AsyncWebsocketConsumer):
    async def connect(self) -> None:
        if not name_of(self.scope):
            raise DenyConnection
        await self.channel_layer.group_add("status", self.channel_name)
        await self.accept()
        self.idle = asyncio.create_task(self.say_when_idle())

    async def say_when_idle(self) -> None:
        while True:
            await asyncio.sleep(0.2)
            await self.send(json.dumps({"status": "idle"}))

    async def status_update(self, event: dict[str, str]) -> None:
        await self.send(json.dumps({"status": event["status"]}))

    async def disconnect(self, code: int) -> None:
        await self.channel_layer.group_discard("status", self.channel_name)
        self.idle.cancel()
        with suppress(asyncio.CancelledError):
            await self.idle


class LiveStatus(EphemeralStateMixin, Status):
    async def connect(self) -> None:
        await super().connect()
        await self.ephemeral_subscribe(ROOM)
        await self.ephemeral_set(ROOM, name_of(self.scope), ttl=UNTIL_DISCONNECT)


APPS = {
    "rooms": (Rooms.as_asgi(), LiveRooms.as_asgi()),
    "streams": (Streams.as_asgi(), LiveStreams.as_asgi()),
    "graphql": (GraphQLWSConsumer.as_asgi(schema=SCHEMA), LiveGraphQL.as_asgi(schema=SCHEMA)),
    "sync-chat": (SyncChat.as_asgi(), LiveSyncChat.as_asgi()),
    "async-chat": (AsyncChat.as_asgi(), LiveAsyncChat.as_asgi()),
    "status": (Status.as_asgi(), LiveStatus.as_asgi()),
}
"""By name: the app as it was, and with state."""

routes = [path(f"ws/{name}/", live) for name, (_, live) in APPS.items()]
application = ProtocolTypeRouter(
    {
        "http": get_asgi_application(),
        "websocket": URLRouter([*routes, path("ws/watch/", EphemeralStateConsumer.as_asgi())]),
    }
)

if __name__ == "__main__":
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
