"""The chat: the ready-made consumer, and frames of its own on the same socket. What a project writes is all here."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ephemeral_state.consumers import UNTIL_DISCONNECT, EphemeralStateConsumer
from ephemeral_state.errors import EphemeralStateError

from .models import KEPT, Message, Room
from .policy import LOBBY

SHOWN = 50
"""Messages that somebody sees who enters."""


class BadFrame(Exception):
    """The client sent what the chat does not understand; the text tells it what."""


class ChatConsumer(EphemeralStateConsumer):
    """One browser window in one room.

    It sends `hello{name,color,secret}` and `message{text}`; it gets `history`, `you`, `message` and `error`. Who is
    here is set by the server, so that nobody can be put into a room by somebody else. Typing and cursors the page sets
    itself, in the package's own frames; `DemoPolicy` says which keys.
    """

    room: Room | None = None
    me: dict[str, Any] | None = None

    async def connect(self) -> None:
        self.room = await Room.objects.filter(slug=self.scope["url_route"]["kwargs"]["slug"]).afirst()
        if self.room is None:
            await self.close()
            return
        self.group = f"chat.{self.room.pk}"
        self.topic = self.scope["room"] = self.room.topic
        await super().connect()
        # The group before the history: a message in between then comes twice, which its id tells, and not never.
        await self.channel_layer.group_add(self.group, self.channel_name)
        newest = [message.frame() async for message in self.room.messages.order_by("-pk")[:SHOWN]]
        await self.tell({"type": "history", "messages": newest[::-1]})

    async def disconnect(self, code: int) -> None:
        # Only the group: presence, typing and cursor clear themselves, also where this is never called.
        if self.room is not None:
            await self.channel_layer.group_discard(self.group, self.channel_name)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Whatever a client sends, it gets an answer and keeps its connection."""
        try:
            if not text_data:
                raise BadFrame("frames are text, and not empty")
            try:
                frame = json.loads(text_data)
            except (ValueError, RecursionError):
                raise BadFrame("the frame is not JSON") from None
            if isinstance(frame, dict) and "_orama" in frame:
                await super().receive(text_data)
            else:
                await self.obey(frame)
        except (BadFrame, EphemeralStateError) as error:
            await self.tell({"type": "error", "message": str(error)})

    async def tell(self, frame: dict[str, Any]) -> None:
        await self.send(json.dumps(frame))

    async def obey(self, frame: Any) -> None:
        match frame:
            case {"type": "hello", "name": str(name), "color": int(color), "secret": str(secret)}:
                await self.hello(name, color, secret)
            case {"type": "hello"}:
                raise BadFrame("hello needs name, color and secret")
            case {"type": "message"} if self.me is None:
                raise BadFrame("say hello first")
            case {"type": "message", "text": str(text)}:
                await self.message(text)
            case _:
                raise BadFrame("the frame is neither hello nor message")

    async def hello(self, name: str, color: int, secret: str) -> None:
        """Who this is; again after a change of name."""
        name = _words("name", " ".join(name.split()), 40)
        if not 0 <= color < 360:
            raise BadFrame("color is a hue from 0 to 359")
        author = hashlib.sha256(_words("secret", secret, 64).encode()).hexdigest()[:16]
        self.me = {"name": name, "color": int(color), "author": author}
        self.scope["author"] = author
        await self.tell({"type": "you", "author": author})
        key = f"here:{self.channel_name}"
        await self.ephemeral_set(self.topic, key, self.me, ttl=UNTIL_DISCONNECT)
        where = {"room": self.room.name, "slug": self.room.slug}
        await self.ephemeral_set(LOBBY, key, self.me | where, ttl=UNTIL_DISCONNECT)

    async def message(self, text: str) -> None:
        text = _words("message", text.strip(), 2000)
        message = await self.room.messages.acreate(text=text, **self.me)
        await self.ephemeral_clear(self.topic, f"typing:{self.me['author']}")
        await self.channel_layer.group_send(self.group, {"type": "chat.message", "message": message.frame()})
        async for last in self.room.messages.order_by("-pk").values_list("pk", flat=True)[KEPT : KEPT + 1]:
            await Message.objects.filter(room=self.room, pk__lte=last).adelete()

    async def chat_message(self, event: dict[str, Any]) -> None:
        await self.tell({"type": "message", "message": event["message"]})


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
