"""One client at its WebSocket: asks, is answered, and sees its topics as the frames tell them."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .model import Model
    from .process import Process
    from .world import World

__all__ = ["Person"]

_LEAST, _MOST = 0.0005, 0.003  # seconds that a frame travels


class Person:
    """`number` names it in a history. Its socket is one of the process where it connected."""

    def __init__(self, world: World, model: Model, number: int, process: Process) -> None:
        self.world = world
        self.model = model
        self.number = number
        self.process = process
        self.client_id = ""
        self.there = True
        self.ended_at: float | None = None
        self.views: dict[str, dict[str, tuple[str, str]]] = {}
        self.following: dict[str, bool] = {}
        """Topics, and whether a snapshot has come since it last subscribed."""
        self.followed_since: dict[str, float] = {}
        self._hears = True
        self._speaks = True
        self._asked: dict[int, Any] = {}
        self._refs = 0
        self._subscribing: dict[int, str] = {}
        self._before_hello: list[dict[str, Any]] = []
        self._numbers: dict[str, dict[int, tuple[str, str]]] = {}
        self._rng = world.random_for("person", number)
        self._up_at = self._down_at = 0.0
        self._inbox: deque[dict[str, Any]] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        model.came(self)
        self._send_up(self._connect)

    # What it does

    def subscribe(self, topic: str, batch: bool) -> None:
        self.following[topic] = False
        command: dict[str, Any] = {"_orama": "ephemeral.subscribe", "topic": topic}
        if batch:
            command["batch"] = True
        self._ask(command, None)
        self._subscribing[self._refs] = topic

    def set(self, topic: str, key: str, payload: str, ttl_ms: int | None, grace_ms: int) -> None:
        asked = self.model.sets(self, topic, key, payload, ttl_ms, grace_ms)
        command = {
            "_orama": "ephemeral.set",
            "topic": topic,
            "key": key,
            "payload": base64.b64encode(payload.encode()).decode(),
            "ttl_ms": ttl_ms,
        }
        if grace_ms:
            command["grace_ms"] = grace_ms
        self._ask(command, asked)

    def clear(self, topic: str, key: str) -> None:
        asked = self.model.clears(self, topic, key)
        self._ask({"_orama": "ephemeral.clear", "topic": topic, "key": key}, asked)

    def leave(self, how: str) -> None:
        """`close`: says goodbye; `reset`: its socket breaks; `vanish`: nobody is told."""
        if not self.there:
            return
        self._speaks = self._hears = False
        if how != "vanish":
            code = 1000 if how == "close" else 1006
            self._send_up(self._take, {"type": "websocket.disconnect", "code": code})
        self._gone(grace=how != "close", vanished=how == "vanish")

    def lost(self) -> None:
        """Its process is gone, and its socket with it."""
        self._speaks = self._hears = False
        self._gone(grace=True)

    def _gone(self, *, grace: bool, vanished: bool = False) -> None:
        if self.there:
            self.there = False
            self.ended_at = self.world.now
            self.world.say(f"client {self.number} is gone")
            self.model.went(self, grace=grace, vanished=vanished)

    # Its way to the process

    def _ask(self, command: dict[str, Any], asked: Any) -> None:
        self._refs += 1
        if asked is not None:
            self._asked[self._refs] = asked
        self._say({**command, "ref": self._refs})

    def _say(self, frame: dict[str, Any]) -> None:
        if not self.client_id:
            self._before_hello.append(frame)
        elif self._speaks:
            self._send_up(self._take, {"type": "websocket.receive", "text": json.dumps(frame)})

    def _send_up(self, callback: Any, *args: Any) -> None:
        self._up_at = max(self._up_at, self.world.now + self._rng.uniform(_LEAST, _MOST))
        self.world.at(self._up_at, self._arrive, callback, *args)

    def _arrive(self, callback: Any, *args: Any) -> None:
        if self.process.alive:
            self.process.loop.arrived(callback, *args)

    # In the process

    def _connect(self) -> None:
        self._take({"type": "websocket.connect"})
        self._task = self.process.serve(self._receive, self._send)
        self._task.add_done_callback(self._ended)

    def _take(self, message: dict[str, Any]) -> None:
        self._inbox.append(message)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def _receive(self) -> dict[str, Any]:
        while not self._inbox:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        return self._inbox.popleft()

    async def _send(self, message: dict[str, Any]) -> None:
        self._down_at = max(self._down_at, self.world.now + self._rng.uniform(_LEAST, _MOST))
        self.world.at(self._down_at, self._hear, message)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self.world.say(f"the consumer of client {self.number} ended: {task.exception()!r}")
        self._down_at = max(self._down_at, self.world.now + self._rng.uniform(_LEAST, _MOST))
        self.world.at(self._down_at, self._hear, {"type": "websocket.close", "code": 1006})

    def end_of_process(self) -> None:
        """The server tells the consumer that it ends."""
        self._take({"type": "websocket.disconnect", "code": 1012})

    # What it hears

    def _hear(self, message: dict[str, Any]) -> None:
        if message["type"] == "websocket.close":
            self._speaks = False
            if self.there:
                self._arrive(self._take, {"type": "websocket.disconnect", "code": message.get("code", 1006)})
                self._gone(grace=True)
        elif message["type"] == "websocket.send" and self._hears:
            self._frame(json.loads(message["text"]))

    def _frame(self, frame: dict[str, Any]) -> None:
        kind = frame["_orama"]
        if kind == "ephemeral.hello":
            self.client_id = frame["client_id"]
            self.model.knows(self)
            waiting, self._before_hello = self._before_hello, []
            for each in waiting:
                self._say(each)
            return
        if kind == "ephemeral.ping":
            self._say({"_orama": "ephemeral.pong", "n": frame["n"]})
            return
        self.world.say(f"client {self.number} hears {frame}")
        if kind in ("ephemeral.ok", "ephemeral.error"):
            topic = self._subscribing.pop(frame["ref"], None)
            if topic is not None:
                self.following.pop(topic, None)
            asked = self._asked.pop(frame["ref"], None)
            if asked is not None:
                self.model.answered(asked, frame.get("code"))
            return
        topic = frame["topic"]
        if kind == "ephemeral.snapshot":
            self._subscribing.pop(frame.get("ref", 0), None)
            self.views[topic] = {e["key"]: (e["client_id"], _text(e.get("payload", ""))) for e in frame["entries"]}
            self._numbers[topic] = {e["n"]: (e["key"], e["client_id"]) for e in frame["entries"] if "n" in e}
            if topic in self.following:
                self.following[topic] = True
                self.followed_since.setdefault(topic, self.world.now)
        elif kind == "ephemeral.set":
            self.views.setdefault(topic, {})[frame["key"]] = (frame["client_id"], _text(frame["payload"]))
        elif kind == "ephemeral.clear":
            self.views.setdefault(topic, {}).pop(frame["key"], None)
        elif kind == "ephemeral.batch":
            self._batch(topic, frame["events"])

    def _batch(self, topic: str, events: list[Any]) -> None:
        view, numbers = self.views.setdefault(topic, {}), self._numbers.setdefault(topic, {})
        for event in events:
            if len(event) == 2:
                key, owner = numbers[event[0]]
                view[key] = (owner, _text(event[1]))
            elif event[1] is None:
                view.pop(event[0], None)
            else:
                key, payload, owner, number = event
                numbers[number] = (key, owner)
                view[key] = (owner, _text(payload))


def _text(payload: Any) -> str:
    return base64.b64decode(payload).decode() if isinstance(payload, str) else json.dumps(payload)
