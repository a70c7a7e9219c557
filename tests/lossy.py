"""A channel layer that loses, delays and repeats messages on purpose, and can fail."""

import asyncio
import random

from channels.layers import InMemoryChannelLayer


class LossyLayer(InMemoryChannelLayer):
    """`lose`, `delay` and `repeat` are probabilities; a delayed message comes up to `delay_seconds` later."""

    def __init__(self, *, lose=0.0, delay=0.0, repeat=0.0, delay_seconds=0.2, seed=0, **options):
        super().__init__(**options)
        self.lose, self.delay, self.repeat = lose, delay, repeat
        self.delay_seconds = delay_seconds
        self.random = random.Random(seed)
        self.failing = False
        self.sent = 0
        self._later = set()

    async def group_send(self, group, message):
        if self.failing:
            raise ConnectionError("the layer is down")
        self.sent += 1
        if self.random.random() < self.lose:
            return
        for _ in range(2 if self.random.random() < self.repeat else 1):
            if self.random.random() < self.delay:
                task = asyncio.create_task(self._send_later(group, message))
                self._later.add(task)
                task.add_done_callback(self._later.discard)
            else:
                await super().group_send(group, message)

    async def _send_later(self, group, message):
        await asyncio.sleep(self.random.random() * self.delay_seconds)
        await super().group_send(group, message)
