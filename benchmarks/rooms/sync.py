"""The mixin in a consumer whose handlers are `def`, as many chat applications have it: Channels runs each in a thread,
one at a time. It hears as the ready-made consumer does, and sets by a way there and back between thread
and loop."""

from __future__ import annotations

import base64
import json

import django

django.setup()

from channels.generic.websocket import WebsocketConsumer  # noqa: E402

from benchmarks.rooms.frames import OK, TOPIC  # noqa: E402
from ephemeral_state.consumers import SyncEphemeralStateMixin  # noqa: E402


class RoomConsumer(SyncEphemeralStateMixin, WebsocketConsumer):
    def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        command = json.loads(text_data or "{}")
        if command["_orama"] == "ephemeral.subscribe":
            self.ephemeral_subscribe(TOPIC, batch=command.get("batch", False), max_rate=command.get("max_rate"))
        elif command["_orama"] == "ephemeral.set":
            self.ephemeral_set(TOPIC, command["key"], base64.b64decode(command["payload"]))
            self.send(text_data=OK)


application = RoomConsumer.as_asgi()
