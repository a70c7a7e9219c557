"""What the connections of this node own, so that it can be written back if the store loses it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from .protocol import Event
from .state import Change, Clear, Drop, Keep, Restore, Revision, Set, Topic, Write

__all__ = ["Belongings"]


_SETTLE: Final = 2000.0  # ms, several heartbeats


class Belongings:
    """Told of every write that succeeded and every event that is heard. `now` is in ms.

    A key that another node's client took over is noticed if the topic is followed here; if not, the store still
    refuses to give it back while the successor has it.
    """

    def __init__(self) -> None:
        self._things: dict[tuple[Topic, str], _Thing] = {}
        self._places: dict[str, set[tuple[Topic, str]]] = {}
        # Taken over by another client, since when. A former owner's value that is written back looks the same to a node
        # that has not noticed yet that the store has gone back.
        self._contested: dict[tuple[Topic, str], float] = {}
        self._due: dict[int, set[tuple[Topic, str]]] = {}  # by the second of a deadline; it may have been moved since

    def __len__(self) -> int:
        return len(self._things)

    def wrote(self, write: Write, changes: Sequence[Change], now: float, *, taken: bool = False) -> None:
        """A write of this node was carried out, or refused as `taken`."""
        if isinstance(write, Set):
            (change,) = changes
            place = (write.topic, write.key)
            known = self._things.get(place)
            if known is not None and (not write.node or known.write.client != write.client):
                self._forget(place)
                known = None
            self._contested.pop(place, None)
            if write.node:
                deadline = None if change.expires_in_ms is None else now + change.expires_in_ms
                self._things[place] = _Thing(write, deadline, Revision(change.epoch, change.revision))
                if known is None:
                    self._places.setdefault(write.client, set()).add(place)
                if deadline is not None:
                    self._due.setdefault(int(deadline // 1000), set()).add(place)
        elif isinstance(write, Restore):
            thing = self._things.get((write.topic, write.key))
            if taken and thing is not None and thing.stamp == write.stamp:
                self._forget((write.topic, write.key))
        elif isinstance(write, Clear):
            thing = self._things.get((write.topic, write.key))
            if thing is not None and thing.write.client == write.client:
                self._forget((write.topic, write.key))
        elif isinstance(write, Drop):
            for place in list(self._places.get(write.client, ())):
                self._forget(place)

    def heard(self, topic: Topic, events: Sequence[Event], now: float) -> None:
        """Events that the stream has brought of a followed topic. A clear with reason `disconnect` takes nothing away:
        only the end of the connection does, and that is a `Drop` of our own. Nor does the clear of another client's
        value: it tells nothing about ours."""
        for event in events:
            place = (topic, event.key)
            thing = self._things.get(place)
            if thing is None or event.revision <= thing.stamp:
                continue
            if event.client_id != thing.write.client:
                if event.reason is None:
                    self._contested.setdefault(place, now)
            elif event.reason in ("explicit", "expired"):
                self._forget(place)

    def expire(self, now: float) -> None:
        """Let go of what has run out, at most a second ago: nobody tells of a topic that is not followed here. And of
        what another client has taken over, unless the store turns out to have gone back at that time."""
        for place in [place for place, at in self._contested.items() if now - at >= _SETTLE]:
            self._forget(place)
        for second in [second for second in self._due if second < now // 1000]:
            for place in self._due.pop(second):
                thing = self._things.get(place)
                if thing is not None and not thing.is_live(now):
                    self._forget(place)

    def restores(self, now: float) -> list[Restore]:
        """The writes that bring everything back; the store decides about what others may have taken over."""
        self._contested.clear()
        return [
            Restore(
                thing.write.client,
                topic,
                key,
                thing.write.payload,
                None if thing.deadline is None else max(1, int(thing.deadline - now)),
                thing.write.node,
                thing.stamp,
                thing.write.grace_ms,
            )
            for (topic, key), thing in self._things.items()
            if thing.is_live(now)
        ]

    def keeps(self, clients: Iterable[str], node: str, now: float) -> list[Keep]:
        """The writes that remove what these clients do not own any more."""
        return [Keep(client, node, [*self._live(client, now)]) for client in clients]

    def owns_in(self, topics: Collection[Topic]) -> bool:
        """Whether anything is owned in one of these topics."""
        return any(topic in topics for topic, _ in self._things)

    def count(self, client: str) -> int:
        """How many keys the client owns."""
        return len(self._places.get(client, ()))

    def _live(self, client: str, now: float) -> Iterator[tuple[Topic, str]]:
        return (place for place in self._places.get(client, ()) if self._things[place].is_live(now))

    def _forget(self, place: tuple[Topic, str]) -> None:
        self._contested.pop(place, None)
        thing = self._things.pop(place, None)
        if thing is not None:
            places = self._places[thing.write.client]
            places.discard(place)
            if not places:
                del self._places[thing.write.client]


class _Thing(NamedTuple):
    write: Set
    deadline: float | None
    stamp: Revision

    def is_live(self, now: float) -> bool:
        return self.deadline is None or now < self.deadline
