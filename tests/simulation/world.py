"""Time, what happens next, and which process has the next turn."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .layer import Broker
    from .network import Network
    from .process import Process

__all__ = ["Livelock", "World"]

_TURN = 2e-6  # seconds that a turn takes: what waits for time to pass must not wait for ever
_MANY, _IN_TIME = 100_000, 1.0  # so many turns in so few seconds are no work, but a loop without an end


class Livelock(Exception):
    """Processes go on and on, and no time passes."""


class World:
    """Holds the simulated time in seconds. `trace` is told of everything that happens, in its order."""

    network: Network
    broker: Broker

    def __init__(self, seed: int | str) -> None:
        self.seed = seed
        self.now = 1000.0
        self.processes: list[Process] = []
        self.running: Process | None = None
        self.turns = 0
        self.trace: Callable[[str], None] | None = None
        self.failures: list[str] = []
        """Exceptions that reached an event loop: nobody handled them."""
        self._random = random.Random(f"turns {seed}")
        self._events: list[tuple[float, int, Callable[..., Any], tuple[Any, ...]]] = []
        self._numbers = itertools.count()

    def random_for(self, *what: object) -> random.Random:
        """A stream of its own for each thing: what happens to one does not change what happens to another."""
        return random.Random(f"{self.seed} {what}")

    def at(self, when: float, callback: Callable[..., Any], *args: Any) -> None:
        """Call it then; of what is due at the same time, what was asked for first comes first."""
        heapq.heappush(self._events, (when, next(self._numbers), callback, args))

    def after(self, seconds: float, callback: Callable[..., Any], *args: Any) -> None:
        self.at(self.now + seconds, callback, *args)

    def say(self, text: str) -> None:
        if self.trace is not None:
            self.trace(f"{self.now:.6f} {text}")

    def loop_exception(self, loop: Any, context: dict[str, Any]) -> None:
        if loop.process.alive:
            self.failures.append(
                f"{self.now:.3f} {loop.process.name}: {context.get('message')}: {context.get('exception')!r}"
            )

    def run(self, until: float) -> None:
        """Let everything happen up to that time. Raises `Livelock`."""
        events, since, turns = self._events, self.now, 0
        while True:
            now = self.now
            while events and events[0][0] <= now:
                _, _, callback, args = heapq.heappop(events)
                callback(*args)
            able = [process for process in self.processes if process.can_run and process.loop.next_at <= now]
            if able:
                process = able[0] if len(able) == 1 else able[self._random.randrange(len(able))]
                self.turns += 1
                turns += 1
                if turns == _MANY:
                    if now - since < _IN_TIME:
                        raise Livelock(f"at {now:.6f} {process.name} goes on and on: {process.loop.due()}")
                    since, turns = now, 0
                process.step()
                self.now += _TURN
                continue
            if now >= until:
                return
            then = min(
                [process.loop.next_at for process in self.processes if process.can_run]
                + ([events[0][0]] if events else [])
                + [until]
            )
            self.now = max(now, then)
