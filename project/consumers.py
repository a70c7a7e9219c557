"""The chat: an ordinary Channels consumer with one class mixed in. What a project writes is all here."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from channels.generic.websocket import AsyncJsonWebsocketConsumer

from ephemeral_state.consumers import UNTIL_DISCONNECT, EphemeralStateMixin
from ephemeral_state.errors import EphemeralStateError

from .models import KEPT, Message, Room
from .policy import LOBBY

SHOWN = 50
"""Messages that somebody sees who enters."""


class BadFrame(Exception):
    """The client sent what the chat does not understand; the text tells it what."""


class ChatConsumer(EphemeralStateMixin, AsyncJsonWebsocketConsumer):
    """One browser window in one room.

    It sends `hello{name,color,secret}`, `message{text}`, `typing{on}`, `cursor{x,y}` and `away`; it gets `history`,
    `you`, `message` and `error`, and the frames of `ephemeral_state` for who is here, who types, and the cursors.
    """

    ephemeral_ping_interval = 8.0  # seconds; live.js answers

    room: Room | None = None
    me: dict[str, Any] | None = None

    async def connect(self) -> None:
        self.room = await Room.objects.filter(slug=self.scope["url_route"]["kwargs"]["slug"]).afirst()
        if self.room is None:
            await self.close()
            return
        self.group = f"chat.{self.room.pk}"
        self.topic = f"room:{self.room.pk}"
        await self.accept()
        # The group before the history: a message in between then comes twice, which its id tells, and not never.
        await self.channel_layer.group_add(self.group, self.channel_name)
        newest = [message.frame() async for message in self.room.messages.order_by("-pk")[:SHOWN]]
        await self.send_json({"type": "history", "topic": self.topic, "messages": newest[::-1]})
        await self.ephemeral_subscribe(self.topic)

    async def disconnect(self, code: int) -> None:
        # Only the group: presence, typing and cursor clear themselves, also where this is never called.
        if self.room is not None:
            await self.channel_layer.group_discard(self.group, self.channel_name)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None, **kwargs: Any) -> None:
        """Whatever a client sends, it gets an answer and keeps its connection."""
        try:
            if not text_data:
                raise BadFrame("frames are text, and not empty")
            await super().receive(text_data, **kwargs)
        except (BadFrame, EphemeralStateError) as error:
            await self.send_json({"type": "error", "message": str(error)})

    @classmethod
    async def decode_json(cls, text_data: str) -> Any:
        try:
            return json.loads(text_data)
        except (ValueError, RecursionError):
            raise BadFrame("the frame is not JSON") from None

    async def receive_json(self, content: Any, **kwargs: Any) -> None:
        match content:
            case {"type": "hello", "name": str(name), "color": int(color), "secret": str(secret)}:
                await self.hello(name, color, secret)
            case {"type": "hello"}:
                raise BadFrame("hello needs name, color and secret")
            case {"type": "message" | "typing" | "cursor" | "away"} if self.me is None:
                raise BadFrame("say hello first")
            case {"type": "message", "text": str(text)}:
                await self.message(text)
            case {"type": "typing", "on": bool(on)}:
                await self.typing(on)
            case {"type": "cursor", "x": int() | float() as x, "y": int() | float() as y}:
                await self.cursor(x, y)
            case {"type": "away"}:
                await self.ephemeral_clear(self.topic, f"cursor:{self.channel_name}")
            case _:
                raise BadFrame("the frame is none of hello, message, typing, cursor and away")

    async def hello(self, name: str, color: int, secret: str) -> None:
        """Who this is; again after a change of name."""
        name = _words("name", " ".join(name.split()), 40)
        if not 0 <= color < 360:
            raise BadFrame("color is a hue from 0 to 359")
        author = hashlib.sha256(_words("secret", secret, 64).encode()).hexdigest()[:16]
        self.me = {"name": name, "color": int(color), "author": author}
        await self.send_json({"type": "you", "client_id": self.channel_name, "author": author})
        key = f"here:{self.channel_name}"
        await self.ephemeral_set(self.topic, key, self.me, ttl=UNTIL_DISCONNECT)
        where = {"room": self.room.name, "slug": self.room.slug}
        await self.ephemeral_set(LOBBY, key, self.me | where, ttl=UNTIL_DISCONNECT)

    async def message(self, text: str) -> None:
        text = _words("message", text.strip(), 2000)
        message = await self.room.messages.acreate(text=text, **self.me)
        await self.ephemeral_clear(self.topic, f"typing:{self.channel_name}")
        await self.channel_layer.group_send(self.group, {"type": "chat.message", "message": message.frame()})
        async for last in self.room.messages.order_by("-pk").values_list("pk", flat=True)[KEPT : KEPT + 1]:
            await Message.objects.filter(room=self.room, pk__lte=last).adelete()

    async def chat_message(self, event: dict[str, Any]) -> None:
        await self.send_json({"type": "message", "message": event["message"]})

    async def typing(self, on: bool) -> None:
        key = f"typing:{self.channel_name}"
        if on:
            await self.ephemeral_set(self.topic, key, ttl=5)
        else:
            await self.ephemeral_clear(self.topic, key)

    async def cursor(self, x: float, y: float) -> None:
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise BadFrame("x and y are from 0 to 1")
        where = {"x": round(float(x), 4), "y": round(float(y), 4)}
        await self.ephemeral_set(self.topic, f"cursor:{self.channel_name}", where, ttl=UNTIL_DISCONNECT)


def _words(what: str, text: str, limit: int) -> str:
    if not text:
        raise BadFrame(f"{what} is empty")
    if len(text) > limit:
        raise BadFrame(f"{what} of {len(text)} characters exceeds the limit of {limit}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadFrame(f"{what} is not valid Unicode") from None
    return text
