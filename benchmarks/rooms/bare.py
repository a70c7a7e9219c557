"""A bare ASGI application, without Django and Channels: text is built once and sent to all in a loop.

The sends are awaited one after another: that was faster than `asyncio.gather`, which makes a task of each. It is a
yardstick and no server to use: a socket that does not read stops the whole room.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.rooms.frames import OK, SNAPSHOT, clear_frame, set_frame

Send = Callable[[dict[str, Any]], Awaitable[None]]

_room: dict[Send, None] = {}


async def application(scope: Any, receive: Any, send: Send) -> None:
    if scope["type"] != "websocket":
        return
    client_id = f"specific.inmemory!{uuid.uuid4().hex[:12]}"  # as long as a channel name
    keys: set[str] = set()
    await receive()
    await send({"type": "websocket.accept"})
    if scope["path"] != "/":  # who means harm: what is left of that is what the server's own reading costs
        while (await receive())["type"] != "websocket.disconnect":
            pass
        return
    try:
        while (message := await receive())["type"] == "websocket.receive":
            command = json.loads(message["text"])
            if command["_orama"] == "ephemeral.subscribe":
                _room[send] = None
                await send({"type": "websocket.send", "text": SNAPSHOT})
            elif command["_orama"] == "ephemeral.set":
                keys.add(command["key"])
                await _tell(set_frame(command["key"], client_id, command["payload"]))
                await send({"type": "websocket.send", "text": OK})
    finally:
        _room.pop(send, None)
        for key in keys:
            await _tell(clear_frame(key, client_id))


async def _tell(text: str) -> None:
    message = {"type": "websocket.send", "text": text}
    for send in list(_room):
        with contextlib.suppress(Exception):  # it has gone, and its own task will notice
            await send(message)
