"""What the live servers serve: a consumer of every kind that does what its client says, and a view of the inside.

`/ws/<kind>/?tag=…&connect=[…]` takes JSON commands, `{"do": name, …}`; `connect` is a list of commands that
`connect()` obeys instead of accepting, `disconnect` one that `disconnect()` obeys. `/debug` tells what is in the
process, `/release?tag=…` lets go of a handler that hangs.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs

from asgiref.sync import async_to_sync
from channels.consumer import AsyncConsumer, SyncConsumer
from channels.exceptions import DenyConnection, StopConsumer
from channels.generic.websocket import (
    AsyncJsonWebsocketConsumer,
    AsyncWebsocketConsumer,
    JsonWebsocketConsumer,
    WebsocketConsumer,
)
from channels.layers import get_channel_layer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.urls import path

from ephemeral_state import api, node
from ephemeral_state.consumers import (
    UNTIL_DISCONNECT,
    EphemeralStateConsumer,
    EphemeralStateMixin,
    SyncEphemeralStateMixin,
)
from ephemeral_state.errors import EphemeralStateError
from ephemeral_state.policy import DenyAll, Policy
from ephemeral_state.stores.base import Store

disconnects: Counter[str] = Counter()
"""How often the app's own disconnect ran, by tag."""
notes: defaultdict[str, list[str]] = defaultdict(list)
"""What consumers wrote down, by tag."""


class Gate:
    """Holds handlers, async and sync, until somebody opens it."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.opened_here = asyncio.Event()

    def open(self) -> None:
        self.opened.set()
        self.opened_here.set()


gates: defaultdict[str, Gate] = defaultdict(Gate)


class Boom(Exception):
    """The app's own fault."""


class AllButDenied(Policy):
    """Allows everything, but decides as the default policy does in the namespace "denied"."""

    _deny = DenyAll()

    def _decides(self, namespace: str) -> bool:
        return namespace != "denied"

    async def can_subscribe(self, scope: Any, namespace: str, topic: str) -> bool:
        return self._decides(namespace) or self._deny.can_subscribe(scope, namespace, topic)

    async def can_set(self, scope: Any, namespace: str, topic: str, key: str) -> bool:
        return self._decides(namespace) or self._deny.can_set(scope, namespace, topic, key)


def _ttl(command: dict[str, Any]) -> Any:
    return UNTIL_DISCONNECT if command.get("ttl") == "until disconnect" else command.get("ttl")


COMMANDS = {
    "set": lambda me, c: me.ephemeral_set(c["topic"], c["key"], c.get("payload", b""), ttl=_ttl(c)),
    "clear": lambda me, c: me.ephemeral_clear(c["topic"], c["key"]),
    "subscribe": lambda me, c: me.ephemeral_subscribe(c["topic"]),
    "unsubscribe": lambda me, c: me.ephemeral_unsubscribe(c["topic"]),
    "set or note": lambda me, c: me.set_or_note(c),
    "whoami": lambda me, c: me.say({"channel_name": me.channel_name}),
    "echo": lambda me, c: me.say(c["what"]),
    "note": lambda me, c: notes[me.tag].append(c["what"]),
    "accept": lambda me, c: me.accept(),
    "close": lambda me, c: me.close(code=c.get("code", 4001)),
    "deny": lambda me, c: me.raises(DenyConnection()),
    "raise": lambda me, c: me.raises(Boom("the app's own fault")),
    "stop": lambda me, c: me.raises(StopConsumer()),
    "hang": lambda me, c: me.hang(),
    "unhandled": lambda me, c: me.layer("send", me.channel_name, {"type": "app.unknown"}),
    "join": lambda me, c: me.join(c["group"]),
    "shout": lambda me, c: me.layer("group_send", c["group"], {"type": "app.message", "what": c["what"]}),
}


class Live:
    """What all kinds share."""

    @property
    def query(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(self.scope["query_string"].decode()).items()}

    @property
    def tag(self) -> str:
        return self.query.get("tag", "")

    @property
    def ephemeral_namespace(self) -> str:
        return self.query.get("namespace", "")

    @property
    def script(self) -> list[dict[str, Any]]:
        return json.loads(self.query.get("connect", '[{"do":"accept"}]'))

    @property
    def last_words(self) -> list[dict[str, Any]]:
        return json.loads(self.query.get("disconnect", "[]"))

    groups: Sequence[str] = ()

    def raises(self, error: Exception) -> None:
        raise error


class AsyncLive(Live):
    async def run(self, *commands: dict[str, Any]) -> None:
        for command in commands:
            result = COMMANDS[command["do"]](self, command)
            if result is not None:
                await result

    async def say(self, what: Any) -> None:
        await self.base_send({"type": "websocket.send", "text": json.dumps(what)})

    async def hang(self) -> None:
        notes[self.tag].append("hangs")
        try:
            await gates[self.tag].opened_here.wait()
        except asyncio.CancelledError:
            notes[self.tag].append("cancelled")
            raise

    async def layer(self, verb: str, *args: Any) -> None:
        await getattr(self.channel_layer, verb)(*args)

    async def join(self, group: str) -> None:
        self.groups = [*self.groups, group]
        await self.layer("group_add", group, self.channel_name)

    async def set_or_note(self, command: dict[str, Any]) -> None:
        try:
            await self.ephemeral_set(command["topic"], command["key"], ttl=_ttl(command))
        except EphemeralStateError as error:
            notes[self.tag].append(error.code)
        else:
            notes[self.tag].append("stored")

    async def app_message(self, event: dict[str, Any]) -> None:
        await self.say(event["what"])


class SyncLive(Live):
    def run(self, *commands: dict[str, Any]) -> None:
        for command in commands:
            COMMANDS[command["do"]](self, command)

    def say(self, what: Any) -> None:
        self.base_send({"type": "websocket.send", "text": json.dumps(what)})

    def hang(self) -> None:
        notes[self.tag].append("hangs")
        gates[self.tag].opened.wait(60)

    def layer(self, verb: str, *args: Any) -> None:
        async_to_sync(getattr(self.channel_layer, verb))(*args)

    def join(self, group: str) -> None:
        self.groups = [*self.groups, group]
        self.layer("group_add", group, self.channel_name)

    def set_or_note(self, command: dict[str, Any]) -> None:
        try:
            self.ephemeral_set(command["topic"], command["key"], ttl=_ttl(command))
        except EphemeralStateError as error:
            notes[self.tag].append(error.code)
        else:
            notes[self.tag].append("stored")

    def app_message(self, event: dict[str, Any]) -> None:
        self.say(event["what"])


class AsyncText(AsyncLive, EphemeralStateMixin, AsyncWebsocketConsumer):
    async def connect(self) -> None:
        await self.run(*self.script)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        await self.run(json.loads(text_data or ""))

    async def disconnect(self, code: int) -> None:
        disconnects[self.tag] += 1
        await self.run(*self.last_words)


class AsyncJson(AsyncLive, EphemeralStateMixin, AsyncJsonWebsocketConsumer):
    async def connect(self) -> None:
        await self.run(*self.script)

    async def receive_json(self, content: Any, **kwargs: Any) -> None:
        await self.run(content)

    async def disconnect(self, code: int) -> None:
        disconnects[self.tag] += 1
        await self.run(*self.last_words)


class AsyncRaw(AsyncLive, EphemeralStateMixin, AsyncConsumer):
    async def accept(self) -> None:
        await self.send({"type": "websocket.accept"})

    async def close(self, code: int = 1000) -> None:
        await self.send({"type": "websocket.close", "code": code})

    async def websocket_connect(self, message: Any) -> None:
        await self.run(*self.script)

    async def websocket_receive(self, message: Any) -> None:
        await self.run(json.loads(message["text"]))

    async def websocket_disconnect(self, message: Any) -> None:
        disconnects[self.tag] += 1
        await self.run(*self.last_words)
        for group in self.groups:
            await self.layer("group_discard", group, self.channel_name)
        await super().websocket_disconnect(message)
        raise StopConsumer


class SyncText(SyncLive, SyncEphemeralStateMixin, WebsocketConsumer):
    def connect(self) -> None:
        self.run(*self.script)

    def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        self.run(json.loads(text_data or ""))

    def disconnect(self, code: int) -> None:
        disconnects[self.tag] += 1
        self.run(*self.last_words)


class SyncJson(SyncLive, SyncEphemeralStateMixin, JsonWebsocketConsumer):
    def connect(self) -> None:
        self.run(*self.script)

    def receive_json(self, content: Any, **kwargs: Any) -> None:
        self.run(content)

    def disconnect(self, code: int) -> None:
        disconnects[self.tag] += 1
        self.run(*self.last_words)


class SyncRaw(SyncLive, SyncEphemeralStateMixin, SyncConsumer):
    def accept(self) -> None:
        self.send({"type": "websocket.accept"})

    def close(self, code: int = 1000) -> None:
        self.send({"type": "websocket.close", "code": code})

    def websocket_connect(self, message: Any) -> None:
        self.run(*self.script)

    def websocket_receive(self, message: Any) -> None:
        self.run(json.loads(message["text"]))

    def websocket_disconnect(self, message: Any) -> None:
        disconnects[self.tag] += 1
        self.run(*self.last_words)
        for group in self.groups:
            self.layer("group_discard", group, self.channel_name)
        super().websocket_disconnect(message)
        raise StopConsumer


class AsyncReshaping(AsyncText):
    async def ephemeral_event(self, event: dict[str, Any]) -> None:
        if not event["key"].startswith("secret"):
            await self.say([event["event"], event["key"], event["payload"].decode(), event["reason"]])


class SyncReshaping(SyncText):
    def ephemeral_event(self, event: dict[str, Any]) -> None:
        if not event["key"].startswith("secret"):
            self.say([event["event"], event["key"], event["payload"].decode(), event["reason"]])


class Ready(Live, EphemeralStateConsumer):
    async def disconnect(self, code: int) -> None:
        disconnects[self.tag] += 1


KINDS = {
    "async": AsyncText,
    "async-json": AsyncJson,
    "async-raw": AsyncRaw,
    "sync": SyncText,
    "sync-json": SyncJson,
    "sync-raw": SyncRaw,
    "async-reshaping": AsyncReshaping,
    "sync-reshaping": SyncReshaping,
    "ready": Ready,
}


async def inside(query: dict[str, str]) -> dict[str, Any]:
    """Counts of all that may stay behind, and what consumers have written down."""
    if "collect" in query:
        gc.collect()
    topic = query.get("topic")
    entries = await api.alist(topic, namespace=query.get("namespace", "")) if topic is not None else []
    layer = get_channel_layer()
    here = node.current()
    if "all" in query:
        return {"all": await everything(here.store)}
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    return {
        "stored": await here.store.count(),
        "entries": [
            {"key": e.key, "client_id": e.client_id, "payload": base64.b64encode(e.payload).decode()} for e in entries
        ],
        "tasks": len(tasks),
        "task_names": dict(Counter(task.get_coro().__qualname__ for task in tasks)),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "connections": len(here._members),
        "feeds": [list(topic) for topic in here.hub._feeds],
        "groups": {group: len(members) for group, members in layer.groups.items()},
        "channels": len(layer.channels),
        "disconnects": {tag: count for tag, count in disconnects.items() if tag.startswith(query.get("tag", ""))},
        "notes": {tag: words for tag, words in notes.items() if tag.startswith(query.get("tag", ""))},
    }


async def everything(store: Store) -> list[list[Any]]:
    """Of each live entry: its namespace, topic, key, owner, and the bytes of its payload."""
    found, cursor = [], ""
    while True:
        page = await store.browse(cursor=cursor, limit=1000)
        found += [[*entry.topic, entry.key, entry.client_id, len(entry.payload)] for entry in page.entries]
        if not (cursor := page.cursor):
            return found


async def debug(scope: Any, receive: Any, send: Any) -> None:
    query = {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}
    if scope["path"] == "/release":
        gates[query["tag"]].open()
        answer: dict[str, Any] = {}
    else:
        answer = await inside(query)
    body = json.dumps(answer).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


application = ProtocolTypeRouter(
    {
        "http": debug,
        "websocket": URLRouter([path(f"ws/{kind}/", consumer.as_asgi()) for kind, consumer in KINDS.items()]),
    }
)
