"""What a developer writes who knows Channels: a group, a message per change, and the clears in `disconnect()`.

It does less than ours: no store, so nothing to tell a newcomer, no expiry, no limits, no check of what clients send.
"""

from __future__ import annotations

import json
from typing import Any

import django

django.setup()

from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402

from benchmarks.rooms.frames import OK, SNAPSHOT, TOPIC, clear_frame, set_frame  # noqa: E402


class RoomConsumer(AsyncWebsocketConsumer):
    async def connect(self) -> None:
        self.keys: set[str] = set()
        await self.channel_layer.group_add(TOPIC, self.channel_name)
        await self.accept()

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        command = json.loads(text_data or "{}")
        if command["_orama"] == "ephemeral.subscribe":
            await self.send(text_data=SNAPSHOT)
        elif command["_orama"] == "ephemeral.set":
            self.keys.add(command["key"])
            await self.tell(set_frame(command["key"], self.channel_name, command["payload"]))
            await self.send(text_data=OK)

    async def disconnect(self, code: int) -> None:
        await self.channel_layer.group_discard(TOPIC, self.channel_name)
        for key in self.keys:
            await self.tell(clear_frame(key, self.channel_name))

    async def tell(self, text: str) -> None:
        await self.channel_layer.group_send(TOPIC, {"type": "room.change", "text": text})

    async def room_change(self, event: dict[str, Any]) -> None:
        await self.send(text_data=event["text"])


application = RoomConsumer.as_asgi()
