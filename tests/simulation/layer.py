"""A channel layer that loses, doubles, delays and reorders messages, and may not answer."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import TYPE_CHECKING, Any

from channels.layers import BaseChannelLayer

if TYPE_CHECKING:
    from .process import Process
    from .world import World

__all__ = ["Broker", "Layer"]

_LEAST, _MOST = 0.0002, 0.001  # seconds that a message travels, each way


class Broker:
    """What all processes' layers have in common: who is in which group, and how badly messages travel."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.groups: dict[str, dict[tuple[Process, str], None]] = {}
        self.lose = self.repeat = self.delay = 0.0
        """Probabilities, for each receiver; what is delayed is overtaken."""
        self.delay_seconds = 0.2
        self.carried = 0
        self._bad_until = 0.0
        self._deaf_until: dict[str, float] = {}
        self._silent_until: dict[str, float] = {}
        self._random = world.random_for("layer")
        self._last: dict[Process, float] = {}

    def be_bad(self, seconds: float, lose: float, repeat: float, delay: float) -> None:
        self.lose, self.repeat, self.delay = lose, repeat, delay
        self._bad_until = self.world.now + seconds

    def deafen(self, name: str, seconds: float) -> None:
        """A process gets no messages for so long, and is told of no error."""
        self._deaf_until[name] = self.world.now + seconds

    def silence(self, name: str, seconds: float) -> None:
        """What a process asks of the layer fails for so long."""
        self._silent_until[name] = self.world.now + seconds

    def fails_for(self, process: Process) -> bool:
        return self._silent_until.get(process.name, 0.0) > self.world.now

    def is_deaf(self, process: Process) -> bool:
        return self._deaf_until.get(process.name, 0.0) > self.world.now

    def forget(self, process: Process) -> None:
        for members in self.groups.values():
            for member in [member for member in members if member[0] is process]:
                del members[member]

    def spread(self, group: str, data: str) -> None:
        for process, channel in list(self.groups.get(group, ())):
            self.deliver(process, channel, data)

    def deliver(self, process: Process, channel: str, data: str) -> None:
        rng, now = self._random, self.world.now
        is_bad = now < self._bad_until
        if self.is_deaf(process) or (is_bad and rng.random() < self.lose):
            self.world.say(f"a message to {process.name} is lost")
            return
        for _ in range(2 if is_bad and rng.random() < self.repeat else 1):
            when = now + rng.uniform(_LEAST, _MOST)
            if is_bad and rng.random() < self.delay:
                when += rng.random() * self.delay_seconds
            else:
                when = self._last[process] = max(when, self._last.get(process, 0.0))
            self.world.at(when, self._hand_over, process, channel, data)

    def _hand_over(self, process: Process, channel: str, data: str) -> None:
        if process.alive and not self.is_deaf(process):
            self.carried += 1
            process.loop.arrived(process.channels.take, channel, data)


class Channels:
    """The channels of one process."""

    def __init__(self) -> None:
        self.count = 0
        self._waiting: dict[str, deque[str]] = {}
        self._readers: dict[str, asyncio.Future[None]] = {}

    def take(self, channel: str, data: str) -> None:
        self._waiting.setdefault(channel, deque()).append(data)
        reader = self._readers.pop(channel, None)
        if reader is not None and not reader.done():
            reader.set_result(None)

    async def next(self, channel: str) -> Any:
        while not (waiting := self._waiting.get(channel)):
            reader = self._readers.get(channel)
            if reader is None or reader.done():
                reader = self._readers[channel] = asyncio.get_running_loop().create_future()
            await reader
        return json.loads(waiting.popleft())


class Layer(BaseChannelLayer):  # type: ignore[misc]
    """The layer of whichever process is running."""

    extensions = ("groups",)

    def __init__(self, **_: Any) -> None:
        super().__init__()

    async def new_channel(self, prefix: str = "specific") -> str:
        process = _here()
        process.channels.count += 1
        return f"{prefix}.{process.name}!{process.channels.count}"

    async def receive(self, channel: str) -> Any:
        process = _here()
        if process.broker.fails_for(process):
            raise ConnectionError("the layer of the simulation does not answer")
        return await process.channels.next(channel)

    async def send(self, channel: str, message: Any) -> None:
        process = await _travelled()
        data = json.dumps(message)
        for other in process.world.processes:
            if f".{other.name}!" in channel:
                process.broker.deliver(other, channel, data)

    async def group_add(self, group: str, channel: str) -> None:
        process = await _travelled()
        process.broker.groups.setdefault(group, {})[process, channel] = None

    async def group_discard(self, group: str, channel: str) -> None:
        process = await _travelled()
        process.broker.groups.get(group, {}).pop((process, channel), None)

    async def group_send(self, group: str, message: Any) -> None:
        data = json.dumps(message)
        process = await _travelled()
        process.broker.spread(group, data)


def _here() -> Process:
    loop: Any = asyncio.get_running_loop()
    process: Process = loop.process
    return process


async def _travelled() -> Process:
    process = _here()
    await asyncio.sleep(_MOST)
    if process.broker.fails_for(process):
        raise ConnectionError("the layer of the simulation does not answer")
    return process
