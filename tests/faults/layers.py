"""The layers of channels_redis, losing, delaying and repeating group messages on purpose."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from channels_redis.core import RedisChannelLayer
from channels_redis.pubsub import RedisPubSubChannelLayer

Message = dict[str, Any]
DELAY = 0.2  # seconds, at most


class Chaos:
    """Decides what becomes of a message. `lose`, `delay`, `repeat` and `deaf` are probabilities.

    What is lost reaches nobody; when a process is `deaf` to a message, only that process misses it.
    """

    def __init__(self, lose: float, delay: float, repeat: float, deaf: float, seed: int) -> None:
        self.lose, self.delay, self.repeat, self.deaf = lose, delay, repeat, deaf
        self.lose_next = 0
        self.random = random.Random(seed)
        self._later: set[asyncio.Task[None]] = set()

    async def send(self, send: Callable[[str, Message], Awaitable[None]], group: str, message: Message) -> None:
        if self.lose_next:
            self.lose_next -= 1
            return
        if self.random.random() < self.lose:
            return
        for _ in range(2 if self.random.random() < self.repeat else 1):
            if self.random.random() < self.delay:
                task = asyncio.create_task(self._send_later(send, group, message))
                self._later.add(task)
                task.add_done_callback(self._later.discard)
            else:
                await send(group, message)

    def misses(self) -> bool:
        return self.random.random() < self.deaf

    async def _send_later(self, send: Callable[[str, Message], Awaitable[None]], group: str, message: Message) -> None:
        await asyncio.sleep(self.random.random() * DELAY)
        await send(group, message)


class LossyPubSub(RedisPubSubChannelLayer):
    def __init__(self, *, lose=0.0, delay=0.0, repeat=0.0, deaf=0.0, seed=0, **options):
        super().__init__(**options)
        self.chaos = Chaos(lose, delay, repeat, deaf, seed)

    async def group_send(self, group, message):
        await self.chaos.send(self._get_layer().group_send, group, message)

    async def receive(self, channel):
        while True:
            message = await self._get_layer().receive(channel)
            if not self.chaos.misses():
                return message


class LossyCore(RedisChannelLayer):
    def __init__(self, *, lose=0.0, delay=0.0, repeat=0.0, deaf=0.0, seed=0, **options):
        super().__init__(**options)
        self.chaos = Chaos(lose, delay, repeat, deaf, seed)

    async def group_send(self, group, message):
        await self.chaos.send(super().group_send, group, message)

    async def receive(self, channel):
        while True:
            message = await super().receive(channel)
            if not self.chaos.misses():
                return message
