"""The mixin in an async consumer of a project's own: it follows the room, and does nothing else."""

from __future__ import annotations

import json

import django

django.setup()

from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402

from benchmarks.rooms.frames import TOPIC  # noqa: E402
from ephemeral_state.consumers import EphemeralStateMixin  # noqa: E402


class RoomConsumer(EphemeralStateMixin, AsyncWebsocketConsumer):
    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        command = json.loads(text_data or "{}")
        if command["_orama"] == "ephemeral.subscribe":
            await self.ephemeral_subscribe(TOPIC)


application = RoomConsumer.as_asgi()
