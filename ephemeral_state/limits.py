"""How much one client may ask for: frames a second, and what it is remembered to have set. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .state import Topic

__all__ = ["TOO_MANY_REFUSALS", "Bucket", "Claims", "Pace", "Penance"]

TOO_MANY_REFUSALS: Final = 100
"""Frames in a row: so many, and the connection is ended."""
_PAUSE: Final = 0.25  # seconds
_FORGIVEN: Final = 60.0  # seconds after which it is the first time again


class Bucket:
    """A token bucket: so many frames at once, and then so many a second.

    Once it is empty, everything is refused for a moment. Were the next token given away as soon as it is there, a
    client that floods would be served every now and then, and never be refused often enough to be sent away.
    """

    __slots__ = ("_burst", "_clock", "_filled_at", "_rate", "_shut_until", "_tokens", "refusals")

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        """`rate` in frames a second; `clock` in seconds."""
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._tokens = float(burst)
        self._filled_at = self._shut_until = clock()
        self.refusals = 0.0
        """What was refused in a row, up to now."""

    def take(self, cost: float = 1) -> float:
        """0 if the frame may pass; or else the seconds after which one like it may. `cost`: as how many it counts, as
        a refused one, too."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
        cost = min(cost, self._burst)  # or it would never pass
        if now >= self._shut_until and self._tokens >= cost:
            self._tokens -= cost
            self.refusals = 0.0
            return 0.0
        self.refusals += cost
        if now >= self._shut_until:
            self._shut_until = now + _PAUSE
        return max(self._shut_until - now, (cost - self._tokens) / self._rate)

    def refuse(self, cost: float) -> None:
        """For what may never pass."""
        self.refusals += cost
        self.charge(cost)

    def charge(self, cost: float) -> None:
        """For what has passed and turned out to be more. At most so much that a burst is due again."""
        self._tokens = max(-self._burst, self._tokens - cost)


class Pace:
    """When the next command is carried out: some at once, then one after another."""

    __slots__ = ("_ahead", "_clock", "_due", "_pause")

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        """`rate` in commands a second; `clock` in seconds."""
        self._pause = 1 / rate
        self._ahead = burst / rate
        self._clock = clock
        self._due = -math.inf

    def take(self) -> float:
        """The seconds to wait before the next one; 0: none."""
        now = self._clock()
        self._due = max(self._due, now - self._ahead) + self._pause
        return max(0.0, self._due - now)

    def put_off(self, cost: float) -> None:
        """The last one was as good as so many more."""
        self._due += cost * self._pause


class Penance:
    """Who was sent away a moment ago waits until they are let in again: each time twice as long as before, and one
    connection after another, for who floods on many would else come back with all of them at the same moment."""

    def __init__(
        self, seconds: float, longest: float, gap: float, patience: float, most: int, clock: Callable[[], float]
    ) -> None:
        """`seconds` the first time, and `longest` at most; from one connection to the next `gap`. None waits for more
        than `patience`, however many there are. No more than `most` of who was sent away are remembered, the latest."""
        self._seconds = seconds
        self._longest = longest
        self._gap = gap
        self._patience = patience
        self._most = most
        self._clock = clock
        self._sentences: dict[str, _Sentence] = {}

    def add(self, who: str) -> None:
        now, seconds, turn = self._clock(), self._seconds, 0.0
        before = self._sentences.pop(who, None)  # the latest are to be the last
        if before is not None and now < before.until + _FORGIVEN:
            seconds, turn = min(2 * before.seconds, self._longest), before.turn
        until = now + seconds
        self._sentences[who] = _Sentence(seconds, until, max(turn, until))
        if len(self._sentences) > self._most:
            del self._sentences[next(iter(self._sentences))]

    def wait(self, who: str) -> float:
        """Seconds until one more connection of theirs is let in; 0: at once."""
        now, sentence = self._clock(), self._sentences.get(who)
        if sentence is None or now >= sentence.until + self._patience:  # or they could be kept queueing for ever
            return 0.0
        turn = min(max(now, sentence.turn), now + self._patience)
        sentence.turn = turn + self._gap
        return turn - now

    def on_probation(self, who: str) -> bool:
        """They were let in again less than a minute ago, or not yet."""
        sentence = self._sentences.get(who)
        return sentence is not None and self._clock() < sentence.until + _FORGIVEN


@dataclass(slots=True)
class _Sentence:
    seconds: float
    until: float
    turn: float
    """When the next connection is let in."""


class Claims:
    """The keys that a client has set and may still own, no more of them than twice what it may own: what has expired
    or was taken over is not always heard of here."""

    def __init__(self, max_keys: int, clock: Callable[[], float]) -> None:
        self._most = 2 * max_keys
        self._clock = clock
        self._deadlines: dict[tuple[Topic, str], float | None] = {}

    def __len__(self) -> int:
        return len(self._deadlines)

    def __contains__(self, place: tuple[Topic, str]) -> bool:
        deadline = self._deadlines.get(place, 0.0)
        return deadline is None or self._clock() < deadline

    def add(self, topic: Topic, key: str, lifetime: float | None) -> None:
        """`lifetime` in seconds; `None`: no deadline."""
        place = (topic, key)
        self._deadlines.pop(place, None)  # the latest are to be the last
        self._deadlines[place] = None if lifetime is None else self._clock() + lifetime
        if len(self._deadlines) > self._most:
            self._deadlines = {place: self._deadlines[place] for place in self.live()}
            while len(self._deadlines) > self._most:
                del self._deadlines[next(iter(self._deadlines))]

    def discard(self, topic: Topic, key: str) -> None:
        self._deadlines.pop((topic, key), None)

    def live(self) -> list[tuple[Topic, str]]:
        """Those whose time has not passed."""
        return [place for place in self._deadlines if place in self]
