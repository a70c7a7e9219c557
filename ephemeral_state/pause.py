"""A sleep that somebody else may end."""

from __future__ import annotations

import asyncio

__all__ = ["Pause"]


class Pause:
    """From one thing to the next of its kind. It ends earlier where somebody cannot wait."""

    def __init__(self) -> None:
        self._until = 0.0
        self._ended = asyncio.Event()

    def begin(self, seconds: float) -> None:
        """From now on."""
        self._until = asyncio.get_running_loop().time() + seconds
        self._ended.clear()

    def end(self) -> None:
        """Whoever waits for its end goes on."""
        self._ended.set()

    async def over(self) -> None:
        """Wait until it is."""
        loop = asyncio.get_running_loop()
        if self._ended.is_set() or self._until <= loop.time():
            return
        timer = loop.call_at(self._until, self._ended.set)
        try:
            await self._ended.wait()
        finally:
            timer.cancel()
