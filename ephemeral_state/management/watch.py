"""`watch`: one topic, live, a line per change."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

from channels.layers import InMemoryChannelLayer

from ..broadcast import find_layer
from ..conf import get_settings
from ..delivery import News, View
from ..errors import NotConfigured
from ..hub import Hub
from ..inspection.times import time_left
from ..protocol import Event, Ref
from ..state import Entry, Topic
from ..stores import get_store
from .terminal import json_line, preview, shown

__all__ = ["watch"]


async def watch(topic: Topic, write: Callable[[str], None], *, as_json: bool) -> None:
    """Never ends by itself. It only looks: it holds no lease, sweeps nothing and buries nobody.

    Raises `NotConfigured` for a store or a channel layer that ends at this process.
    """
    settings, store = get_settings(), get_store()
    layer = find_layer(settings.channel_layer)
    if not store.shared or isinstance(layer, InMemoryChannelLayer):
        name = type(layer if store.shared else store).__name__
        raise NotConfigured(f"{name} ends at its own process: there is nothing to watch from here")
    hub = Hub(store, layer, settings.beacon_interval)
    lines = _Lines()
    try:
        await hub.follow(topic.require(), lines)
        while True:
            line = await lines.queue.get()
            write(json_line(line.as_dict(topic)) if as_json else str(line))
    finally:
        await hub.stop()
        await store.close()


class _Lines:
    """A subscriber whose way out is a queue: a `Delivery` may neither block nor raise, and a terminal does both."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[_Line] = asyncio.Queue()

    def welcome(self, topic: Topic, view: View, ref: Ref, *, batch: bool = False) -> None:
        for entry in view.entries():
            self.queue.put_nowait(_Line.of(entry, "live"))

    def hear(self, news: News) -> None:
        for event in news.events:
            self.queue.put_nowait(_Line.of(event, event.reason or "set"))

    def forget(self, topic: Topic) -> None:
        pass

    def close(self) -> None:
        pass


class _Line(NamedTuple):
    when: datetime
    what: str
    """`live`: it was there at the beginning. `set`, or the reason of a clear."""
    key: str
    client_id: str
    payload: bytes
    expires_in_ms: int | None

    @classmethod
    def of(cls, it: Entry | Event, what: str) -> _Line:
        return cls(datetime.now().astimezone(), what, it.key, it.client_id, it.payload, it.expires_in_ms)

    @property
    def is_clear(self) -> bool:
        return self.what not in ("live", "set")

    def __str__(self) -> str:
        what = f"cleared: {self.what}" if self.is_clear else self.what
        line = f"{self.when:%H:%M:%S}.{self.when.microsecond // 1000:03}  {what:<19}  {shown(self.key)}"
        line += f"  {shown(self.client_id)}"
        return line if self.is_clear else f"{line}  {preview(self.payload)}  ({time_left(self.expires_in_ms)})"

    def as_dict(self, topic: Topic) -> dict[str, object]:
        return {
            "time": self.when.isoformat(timespec="milliseconds"),
            "event": "clear" if self.is_clear else self.what,
            "reason": self.what if self.is_clear else None,
            "namespace": topic.namespace,
            "topic": topic.name,
            "key": self.key,
            "client_id": self.client_id,
            "expires_in_ms": None if self.is_clear else self.expires_in_ms,
            "payload": base64.b64encode(self.payload).decode(),
        }
