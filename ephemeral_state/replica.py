"""One topic as this process sees it: applies what is next, holds what is early, knows what it missed. Pure."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from .protocol import Batch, Event
from .state import Digest, Entry, Reason, Revision, Snapshot, Topic, mixed

__all__ = ["Replica"]

_NOTHING = Revision(0, 0)
_ROUNDING = 1.0  # ms that are cut off the time that an entry has left


class Replica:
    """A copy of a topic that follows batches by revision. Every method that takes one gets `now`, in ms.

    It starts empty and waits for its first snapshot: until `reset`, every batch is early.
    """

    __slots__ = (
        "_ahead",
        "_early",
        "_held",
        "_hidden",
        "_numbers",
        "_order",
        "_ready",
        "_sum",
        "revision",
        "topic",
        "version",
    )

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.revision = _NOTHING
        self._ready = False
        self._held: dict[str, _Held] = {}
        self._hidden: dict[str, int] = {}  # entries whose time is over here, and that the store has still: last change
        self._ahead: dict[str, int] = {}  # entries as of a later revision than the others
        self._sum = 0  # of the digest
        self._numbers = itertools.count(1)
        self._early: dict[Revision, Batch] = {}
        self._order: list[Revision] = []  # of what is early
        self.version = 0
        """Another one after every change of what `entries` returns, but for the passing of time."""

    @property
    def behind(self) -> bool:
        """Something came that cannot be applied before what is missing: a snapshot will tell."""
        return bool(self._early)

    def others(self, key: str, coming: Iterable[str] = ()) -> int:
        """How many other keys are held, whether expired or not, or are `coming`."""
        new = {each for each in coming if each != key and each not in self._held}
        return len(self._held) - (key in self._held) + len(new)

    def agrees(self, revision: Revision) -> bool:
        """Whether this replica has come as far as the store, which says `revision`."""
        return self._ready and (revision == self.revision or (revision == _NOTHING and not self._held))

    def contradicts(self, digest: Digest) -> bool:
        """Whether the store, of this very revision, holds something else: then one of the two is wrong."""
        is_same = self._ready and digest.revision == self.revision and not self._ahead
        return is_same and digest.sum is not None and digest.sum != self._sum % 2**32

    def expire(self, now: float) -> list[Event]:
        """Let go of what should have been told as expired by `now`, where the store cannot be asked."""
        due = [key for key, held in self._held.items() if not held.is_live(now)]
        heard = []
        for key in due:
            held = self._held.pop(key)
            self._hidden[key] = held.changed
            heard.append(Event(key, held.client_id, b"", "expired", 0, "", self.revision))
        self.version += bool(due)
        return heard

    def has_come_to(self, revision: Revision) -> bool:
        """Whether a batch that ends there has nothing new."""
        return self._ready and revision <= self.revision

    def apply(self, batch: Batch, now: float) -> list[Event]:
        """Take in a batch, in whatever order batches come; return what subscribers are to hear, in order."""
        before = self.revision
        heard = self._apply(batch, now)
        return heard + self._apply_early(now) if self._early and self.revision != before else heard

    def asking(self) -> Revision:
        """Call it before asking the store for a snapshot: what came early until now will be part of that."""
        self._early.clear()
        self._order.clear()
        return self.revision

    def reset(self, snapshot: Snapshot, asked_at: Revision, now: float, took: float = 0.0) -> list[Event]:
        """Become the snapshot; return the difference. Where this replica has come further since `asking`,
        the snapshot may be the older of the two and is not used. Ask again while `behind`.

        `took`: ms since `asking`. The snapshot may be as old, and show what has expired by now.
        """
        if asked_at != self.revision:
            return []
        heard = self._difference(snapshot, now, took)
        self._ready = True
        if snapshot.revision == _NOTHING:
            # Keep the revision: what was sent in that epoch and comes yet is old. And nothing here tells
            # whether what is early came before this nothing or after it, so that has to wait.
            return heard
        self.revision = snapshot.revision
        return heard + self._apply_early(now)

    def entries(self, now: float) -> list[Entry]:
        """What a new subscriber is to see: live entries, sorted by key."""
        return [held.entry(self.topic, key, now) for key, held in sorted(self._held.items()) if held.is_live(now)]

    def numbers(self) -> Mapping[str, int]:
        """By key, what stands for it in the events that are told from here."""
        return {key: held.number for key, held in self._held.items()}

    def _apply(self, batch: Batch, now: float) -> list[Event]:
        if not self._waits(batch.first):
            return self._take(batch, now)
        known_early = self._early.get(batch.first)
        if known_early is None:
            bisect.insort(self._order, batch.first)
        if known_early is None or len(known_early.events) < len(batch.events):
            self._early[batch.first] = batch
        return []

    def _apply_early(self, now: float) -> list[Event]:
        heard: list[Event] = []
        at = 0
        while at < len(self._order):
            first = self._order[at]
            if not self._waits(first):
                del self._order[at]
                heard += self._take(self._early.pop(first), now)
            elif self._held:
                break  # what comes after it waits as well: there may be thousands, where several processes write much
            else:
                at += 1  # but a later epoch need not, as nothing is held
        return heard

    def _waits(self, first: Revision) -> bool:
        """Something is missing before a batch that begins there."""
        if self._ready and first.epoch < self.revision.epoch:
            return False
        return not self._ready or first.revision > self._known(first.epoch) + 1

    def _known(self, epoch: int) -> int:
        """The last revision of this epoch, or of one that is not over, that is known."""
        if epoch <= self.revision.epoch:
            return self.revision.revision
        # A topic that was empty and forgotten starts anew. As nothing is held, nothing can be stale.
        return -1 if self._held else 0

    def _take(self, batch: Batch, now: float) -> list[Event]:
        epoch, first = batch.first
        if epoch < self.revision.epoch:
            return []
        known = self._known(epoch)
        self.revision = Revision(epoch, known)
        return self._advance(batch.events[known + 1 - first :], now)

    def _advance(self, events: Sequence[Event], now: float) -> list[Event]:
        heard = []
        self.version += 1
        revision = self.revision.revision
        for event in events:
            revision += 1
            if self._ahead.get(event.key, 0) >= revision:
                continue  # the snapshot had this change, or a later one
            if event.reason is None:
                held = self._held.get(event.key)
                number = next(self._numbers) if held is None else held.number
                # Whoever has joined since its deadline does not know it.
                same_owner = held is not None and held.client_id == event.client_id and held.is_live(now)
                event = Event(*event[:7], held is None, same_owner, number)
                deadline = None if event.expires_in_ms is None else now + event.expires_in_ms
                self._forget(event.key)
                self._put(event.key, _Held(event.client_id, event.payload, deadline, number, revision))
            elif self._forget(event.key) is None:
                continue  # it had expired before anybody here could hear of it
            heard.append(event)
        self.revision = Revision(self.revision.epoch, revision)
        if self._ahead and revision >= max(self._ahead.values()):
            self._ahead.clear()
        return heard

    def _put(self, key: str, held: _Held) -> None:
        self._held[key] = held
        self._sum += mixed(held.changed)

    def _forget(self, key: str) -> _Held | None:
        """What was held of the key, and shown; the store has it no more."""
        held = self._held.pop(key, None)
        changed = self._hidden.pop(key, None) if held is None else held.changed
        if changed is not None:
            self._sum -= mixed(changed)
        return held

    def _difference(self, snapshot: Snapshot, now: float, took: float) -> list[Event]:
        self.version += 1
        there = {entry.key: entry for entry in snapshot.entries}
        heard = []
        self._hidden = {key: changed for key, changed in snapshot.changed.items() if key not in there}
        self._ahead = dict(snapshot.ahead)
        self._sum = sum(map(mixed, self._hidden.values()))
        for key in [key for key in self._held if key not in there]:
            held = self._held.pop(key)
            # Nobody is left to say why it went; a passed deadline explains it, or else its owner left.
            expired = held.deadline is not None and held.deadline <= now
            reason: Reason = "expired" if expired else "disconnect"
            heard.append(Event(key, held.client_id, b"", reason, 0, "", snapshot.revision))
        for key, entry in there.items():
            before = self._held.get(key)
            changed = snapshot.changed.get(key, 0)
            self._sum += mixed(changed)
            if before is not None and before.expired_since(entry, now, took):
                self._held[key] = before._replace(changed=changed)
                continue  # told long ago, and whoever has joined since its deadline need not hear of it
            known = before if before is not None and before.is_live(now) else None
            number = next(self._numbers) if before is None else before.number
            deadline = None if entry.expires_in_ms is None else now + entry.expires_in_ms
            self._held[key] = _Held(entry.client_id, entry.payload, deadline, number, changed)
            # Also if nothing but its deadline has changed, for those who have joined since it passed.
            if known is None or known[:2] != (entry.client_id, entry.payload):
                same_owner = known is not None and known.client_id == entry.client_id
                event = Event(key, entry.client_id, entry.payload, None, entry.expires_in_ms, "", snapshot.revision)
                heard.append(event._replace(fresh=before is None, same_owner=same_owner, number=number))
        return heard


class _Held(NamedTuple):
    client_id: str
    payload: bytes
    deadline: float | None
    number: int
    changed: int
    """The revision of its last change."""

    def is_live(self, now: float) -> bool:
        return self.deadline is None or now < self.deadline

    def expired_since(self, entry: Entry, now: float, took: float) -> bool:
        """The entry, read up to `took` ms ago, is this one with the same deadline, and by now that is over."""
        if self.deadline is None or now < self.deadline or entry.expires_in_ms is None:
            return False
        # Counted from the question, the store's deadline seems early; counted from when it was heard of, late.
        unmoved = now - took + entry.expires_in_ms <= self.deadline + _ROUNDING
        return unmoved and self[:2] == (entry.client_id, entry.payload)

    def entry(self, topic: Topic, key: str, now: float) -> Entry:
        left = None if self.deadline is None else int(self.deadline - now)
        return Entry(topic, key, self.client_id, self.payload, left)
