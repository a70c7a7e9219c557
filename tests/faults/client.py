"""A client that takes nothing on trust: whatever frames must never say, it raises."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections import Counter
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

__all__ = ["BulkClient", "View", "Violation"]


class Violation(AssertionError):
    """A frame said what it must not say."""


class View:
    """A topic as its frames tell it, strictly.

    Payloads are "WRITER NUMBER", and each writer counts up: so a value that is told twice, or after a later one
    of the same writer, is seen at once. Keys that begin with "t" may expire, all others are known to the view
    when they are cleared; what has expired may be missing from a snapshot and still be cleared afterwards.
    """

    def __init__(self, topic: str, *, lost: bool = False) -> None:
        """`lost`: the store may lose entries, and their owners write them back, so a value may be told again."""
        self.topic = topic
        self.lost = lost
        self.entries: dict[str, tuple[str, str]] = {}
        self.welcomed = False
        self.heard: Counter[str] = Counter()
        self.disconnected: Counter[str] = Counter()
        """Keys that were cleared because their owner had left."""
        self.may_return = False
        """Who has left was perhaps only frozen, and comes back with the values it had."""
        self._last: dict[tuple[str, str], int] = {}

    def hear(self, frame: dict[str, Any]) -> None:
        self.heard["frames"] += 1
        kind = frame["_orama"]
        if kind == "ephemeral.snapshot":
            self._snapshot(frame)
        elif not self.welcomed:
            raise Violation(f"before its snapshot {self.topic} got {frame}")
        elif kind == "ephemeral.set":
            self._set(frame)
        elif kind == "ephemeral.clear":
            self._clear(frame)
        else:
            raise Violation(f"{self.topic} got {frame}")

    def _snapshot(self, frame: dict[str, Any]) -> None:
        if list(frame) != ["_orama", "topic", "entries"]:
            raise Violation(f"fields of {frame}")
        keys = [entry["key"] for entry in frame["entries"]]
        if keys != sorted(set(keys)):
            raise Violation(f"keys of a snapshot: {keys}")
        self.welcomed = True
        self.entries = {e["key"]: (e["client_id"], e.get("payload", "")) for e in frame["entries"]}
        self._last.clear()
        for key, (_, payload) in self.entries.items():
            self._count(key, payload)

    def _set(self, frame: dict[str, Any]) -> None:
        if list(frame) != ["_orama", "topic", "key", "client_id", "payload"]:
            raise Violation(f"fields of {frame}")
        key, owner = frame["key"], frame["client_id"]
        self._count(key, frame["payload"])
        if key in self.entries and self.entries[key][0] != owner:
            self.heard["transfers"] += 1
        self.entries[key] = (owner, frame["payload"])

    def _count(self, key: str, payload: str) -> None:
        writer, number = base64.b64decode(payload, validate=True).decode().rsplit(" ", 1)
        before = self._last.get((key, writer), -1)
        if int(number) < before + (not self.lost):
            raise Violation(f"{self.topic}: {key} is {writer} {number} after {before}")
        self._last[key, writer] = int(number)

    def _clear(self, frame: dict[str, Any]) -> None:
        if list(frame) != ["_orama", "topic", "key", "client_id", "reason"]:
            raise Violation(f"fields of {frame}")
        key = frame["key"]
        known = self.entries.pop(key, None)
        self.heard["clears"] += 1
        if frame["reason"] == "disconnect":
            self.disconnected[key] += 1
            if self.may_return and known is not None:
                self._last = {place: n - (place[0] == key) for place, n in self._last.items()}
        self.heard["expiries"] += frame["reason"] == "expired"
        if key.startswith("t"):
            return
        if known is None:
            raise Violation(f"{self.topic} got {frame} without having {key}")
        if frame["reason"] not in ("explicit", "disconnect"):
            raise Violation(f"{self.topic}: {frame} of a key that does not expire")


class BulkClient:
    """One connection to `/bulk`. `views` holds what it has subscribed to."""

    def __init__(self, websocket: ClientConnection, client_id: str, *, lost: bool = False) -> None:
        """`lost`: see `View`."""
        self.client_id = client_id
        self._lost = lost
        self.views: dict[str, View] = {}
        self._websocket = websocket
        self._answers: dict[int, asyncio.Future[dict[str, int]]] = {}
        self._ref = 0
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def connect(cls, url: str, *, lost: bool = False) -> BulkClient:
        websocket = await connect(
            url + "bulk", open_timeout=60, ping_interval=None, compression=None, max_queue=None, proxy=None
        )
        return cls(websocket, json.loads(await websocket.recv())["client_id"], lost=lost)

    async def do(self, *commands: list[Any]) -> dict[str, int]:
        """Give commands, and return the errors that came of them, counted by code."""
        return await asyncio.wait_for(await self.begin(*commands), 60)

    async def begin(self, *commands: list[Any]) -> asyncio.Future[dict[str, int]]:
        self._ref += 1
        answer = self._answers[self._ref] = asyncio.get_running_loop().create_future()
        await self._websocket.send(json.dumps([self._ref, commands]))
        return answer

    async def subscribe(self, *topics: str) -> None:
        for topic in topics:
            self.views[topic] = View(topic, lost=self._lost)
        if errors := await self.do(*(["subscribe", topic] for topic in topics)):
            raise Violation(f"subscribing: {errors}")

    async def close(self) -> None:
        await self._websocket.close()
        await self.ended()

    def abort(self) -> None:
        """Reset the connection."""
        self._websocket.transport.abort()

    async def leave(self, rng: random.Random) -> None:
        """Close properly, or reset the connection."""
        if rng.random() < 0.5:
            self.abort()
        await self.close()

    async def ended(self) -> None:
        """Raises what the reader raised."""
        await self._reading

    def raise_what_is_wrong(self) -> None:
        """What the reader raised, if it did."""
        if self._reading.done():
            self._reading.result()

    @property
    def alive(self) -> bool:
        return not self._reading.done()

    async def _read(self) -> None:
        try:
            async for text in self._websocket:
                frame = json.loads(text)
                if "_orama" in frame:
                    self.views[frame["topic"]].hear(frame)
                else:
                    answer = self._answers.pop(frame["ref"])
                    if not answer.done():
                        answer.set_result(frame["errors"])
        except ConnectionClosed:  # by `leave`, or the driver will see that it is not alive
            pass
        finally:
            for answer in self._answers.values():
                answer.cancel()
