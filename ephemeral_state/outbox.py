"""What a subscriber of one topic still has to hear: the newest event per key, or all. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from .protocol import Event

__all__ = ["Log", "Outbox"]


class Outbox:
    """Bounded by the keys the subscriber knew when it fell behind plus those that are live now.

    Events leave in the order in which their keys first had something new, each as its newest value. A key
    that came and went meanwhile is never mentioned; a clear of a key that the subscriber knows never is lost.
    """

    __slots__ = ("_events",)

    def __init__(self) -> None:
        self._events: dict[str, Event] = {}

    def __bool__(self) -> bool:
        return bool(self._events)

    def __len__(self) -> int:
        return len(self._events)

    def add(self, events: Iterable[Event]) -> None:
        pending = self._events
        for event in events:
            waiting = pending.get(event.key)
            if waiting is None:
                pending[event.key] = event
            elif event.reason is not None and waiting.fresh:
                del pending[event.key]
            elif event.fresh != waiting.fresh or event.same_owner != waiting.same_owner:
                # What the subscriber knows of the key was settled by the first event that waited.
                same_owner = waiting.same_owner and event.same_owner
                pending[event.key] = event._replace(fresh=waiting.fresh, same_owner=same_owner)
            else:
                pending[event.key] = event

    def pop(self) -> Event:
        """The next event to tell. Raises `KeyError` when there is none."""
        for key in self._events:
            return self._events.pop(key)
        raise KeyError("outbox is empty")

    def pop_all(self) -> list[Event]:
        """All there is to tell."""
        events = list(self._events.values())
        self._events.clear()
        return events

    def pop_some(self, characters: int) -> list[Event]:
        """The next events to tell, one at least, until their texts are as long as that."""
        events = []
        while self._events and characters > 0:
            event = self.pop()
            events.append(event)
            characters -= event.length
        return events


class Log:
    """All that there is to hear, in order. Only for what is soon to be sent: nothing bounds it."""

    __slots__ = ("_events",)

    def __init__(self) -> None:
        self._events: list[Event] = []

    def __bool__(self) -> bool:
        return bool(self._events)

    def add(self, events: Iterable[Event]) -> None:
        self._events += events

    def pop_all(self) -> list[Event]:
        events, self._events = self._events, []
        return events
