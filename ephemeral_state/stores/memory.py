"""The store for one process: dictionaries, indexed by topic, by client and by deadline.

`snapshot` costs O(entries of the topic), `entry` O(1), a drop O(owned), a sweep O(expired), whatever else is stored.
"""

from __future__ import annotations

import base64
import heapq
import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any
from uuid import uuid4

from ..errors import EphemeralStateError, TooManyKeys, TopicTooLarge
from ..state import (
    Batches,
    Change,
    Clear,
    Digest,
    Drop,
    Entry,
    Keep,
    Limits,
    Outcome,
    Page,
    Reason,
    Restore,
    Revision,
    Set,
    Snapshot,
    Sweep,
    Topic,
    Write,
    mixed,
)
from .base import KEPT_TRANSITIONS, MINUTES, History, Owner, Report, Store, Transition

__all__ = ["MemoryStore"]

# Deadlines are filed by slices of 2**24 ns (17 ms): leaving one costs O(1), where a heap of all deadlines
# would cost O(log stored) and keep a dead item for every set that was replaced before it ran out.
_SLICE_BITS = 24
_MS = 1_000_000
_MINUTE = 60_000 * _MS


class MemoryStore(Store):
    """Keeps everything in this process, under one lock that is never held across an await."""

    at_once = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "apply" in vars(cls) and "at_once" not in vars(cls):
            cls.at_once = False  # who knows what it waits for

    def __init__(self, limits: Limits, clock: Callable[[], int] = time.monotonic_ns) -> None:
        """`clock` returns ns and never goes backwards."""
        super().__init__(limits)
        self._identity = uuid4().hex
        self._clock = clock
        self._lock = threading.Lock()
        self._topics: dict[Topic, _Topic] = {}
        self._clients: dict[str, dict[_Record, None]] = {}
        self._slices: dict[int, dict[_Record, None]] = {}
        self._slice_heap: list[int] = []  # every id in _slices
        self._count = 0
        self._last_epoch = 0
        self._minutes: dict[int, Counter[str]] = {}
        self._recent: deque[tuple[int, Transition]] = deque(maxlen=KEPT_TRANSITIONS)
        self._owners: dict[str, Owner] = {}

    @property
    def identity(self) -> str:
        return self._identity

    async def apply(self, writes: Sequence[Write], batches: Batches | None = None) -> list[Outcome]:
        with self._lock:
            now = self._clock()
            return [self._outcome(write, now) for write in writes]

    async def snapshot(self, topic: Topic, most_bytes: int | None = None) -> Snapshot:
        with self._lock:
            now = self._clock()
            state = self._topics.get(topic)
            if state is None:
                return Snapshot(topic, Revision(0, 0), ())
            if most_bytes is not None and state.size > most_bytes and len(state.records) > 1:
                text = f"the topic has {state.size} bytes, at most {most_bytes} can be read at once"
                raise TopicTooLarge(text, state.size)
            changed = {key: record.changed for key, record in state.records.items()}
            live = [r.entry(now) for r in state.records.values() if r.deadline is None or now < r.deadline]
            revision = Revision(state.epoch, state.revision)
        # Code points sort as their UTF-8 bytes do.
        live.sort(key=lambda entry: entry.key)
        return Snapshot(topic, revision, live, 0, changed)

    async def entry(self, topic: Topic, key: str) -> Entry | None:
        with self._lock:
            now = self._clock()
            state = self._topics.get(topic)
            record = state.records.get(key) if state is not None else None
            if record is None or (record.deadline is not None and now >= record.deadline):
                return None
            return record.entry(now)

    async def revisions(self, topics: Sequence[Topic]) -> list[Revision]:
        with self._lock:
            states = [self._topics.get(topic) for topic in topics]
            return [Revision(s.epoch, s.revision) if s else Revision(0, 0) for s in states]

    async def digests(self, topics: Sequence[Topic]) -> list[Digest]:
        with self._lock:
            states = [self._topics.get(topic) for topic in topics]
            return [Digest(Revision(s.epoch, s.revision), s.digest) if s else Digest(Revision(0, 0), 0) for s in states]

    async def sweep(self, limit: int = 300) -> Sweep:
        with self._lock:
            now = self._clock()
            expired = list(islice(self._expired(now), limit))
            changes = [self._remove(record, "disconnect" if record.lingers else "expired") for record in expired]
            if len(changes) == limit:
                return Sweep(changes, 0)
            return Sweep(changes, self._next_in_ms(now))

    async def count(self) -> int:
        return self._count

    @property
    def held(self) -> int:
        return self._count

    async def browse(
        self,
        *,
        cursor: str = "",
        limit: int = 100,
        namespace: str | None = None,
        topic: str | None = None,
        search: str = "",
    ) -> Page:
        after = _decode_cursor(cursor) if cursor else None
        needle = search.casefold()
        entries: list[Entry] = []
        with self._lock:
            now = self._clock()
            for name in sorted(self._topics):
                if namespace not in (None, name.namespace) or topic not in (None, name.name):
                    continue
                if after is not None and name < after[0]:
                    continue
                records = self._topics[name].records
                for key in sorted(records):
                    record = records[key]
                    if after is not None and (name, key) <= after:
                        continue
                    if record.deadline is not None and now >= record.deadline:
                        continue
                    if needle and not any(needle in text.casefold() for text in (name.name, key, record.client)):
                        continue
                    if len(entries) == limit:
                        return Page(entries, _encode_cursor(entries[-1]))
                    entries.append(record.entry(now))
        return Page(entries, "")

    async def counts(self, topics: Sequence[Topic]) -> list[int]:
        with self._lock:
            now = self._clock()
            states = [self._topics.get(topic) for topic in topics]
            return [
                sum(1 for r in state.records.values() if r.deadline is None or now < r.deadline) if state else 0
                for state in states
            ]

    async def owners(self, clients: Sequence[str]) -> Mapping[str, Owner]:
        with self._lock:
            return {client: self._owners[client] for client in clients if client in self._owners}

    async def topics(self, *, cursor: str = "", limit: int = 1000) -> tuple[Sequence[tuple[Topic, int]], str]:
        with self._lock:
            return [(topic, len(self._topics[topic].records)) for topic in sorted(self._topics)], ""

    async def report(self, report: Report) -> None:
        with self._lock:
            now = self._clock()
            minute = now // _MINUTE
            for old in [each for each in self._minutes if each <= minute - MINUTES]:
                del self._minutes[old]
            self._minutes.setdefault(minute, Counter()).update(report.counts)
            self._recent.extendleft((now - int(each.age_ms * _MS), each) for each in report.transitions)
            for client in report.gone:
                self._owners.pop(client, None)
            self._owners.update((client, Owner(report.node, about)) for client, about in report.came.items())

    async def history(self, topic: Topic | None = None, key: str = "") -> History:
        with self._lock:
            now = self._clock()
            minutes = [dict(self._minutes.get(now // _MINUTE - age, ())) for age in reversed(range(MINUTES))]
            wanted = [
                each._replace(age_ms=(now - at) / _MS)
                for at, each in self._recent
                if topic is None or (each.topic, each.key) == (topic, key)
            ]
        return History(minutes, wanted[:30])

    def _outcome(self, write: Write, now: int) -> Outcome:
        try:
            self.limits.check(write)
            if isinstance(write, Set):
                return Outcome((self._set(write, now),))
            if isinstance(write, Restore | Keep):
                return Outcome()  # nothing is ever lost here
        except EphemeralStateError as error:
            return Outcome((), error)
        if isinstance(write, Drop):
            owned = list(self._clients.get(write.client, ()))
            gone = [r for r in owned if not (write.abnormal and self._linger(r, now))]
            return Outcome([self._remove(record, "disconnect") for record in gone])
        return Outcome(self._clear(write))

    def _set(self, write: Set, now: int) -> Change:
        state = self._topics.get(write.topic)
        record = state.records.get(write.key) if state is not None else None
        if record is None or record.client != write.client:
            owned = len(self._clients.get(write.client, ()))
            if owned >= self.limits.max_keys_per_client:
                raise TooManyKeys(
                    f"client {write.client} owns {owned} keys, the limit is {self.limits.max_keys_per_client} "
                    "(MAX_KEYS_PER_CLIENT)"
                )
        grown = len(write.key.encode()) + len(write.payload) - (record.size if record is not None else 0)
        size = grown + (state.size if state is not None else 0)
        if grown > 0 and size > self.limits.max_topic_bytes:
            raise TopicTooLarge(
                f"the topic would have {size} bytes, the limit is {self.limits.max_topic_bytes} (MAX_TOPIC_BYTES)"
            )
        if state is None:
            state = self._topics[write.topic] = _Topic(write.topic, self._next_epoch())
        state.size = size
        if record is None:
            record = state.records[write.key] = _Record(state, write.key)
            self._count += 1
        else:
            self._unfile(record)
            state.digest -= mixed(record.changed)
        record.client = write.client
        record.payload = bytes(write.payload)
        lifetime = self.limits.lifetime_ms(write.ttl_ms)
        record.deadline = None if lifetime is None else now + lifetime * _MS
        record.grace = self.limits.grace_ms(write.grace_ms)
        record.lingers = False
        self._file(record)
        state.revision += 1
        record.changed = state.revision
        state.digest = (state.digest + mixed(record.changed)) % 2**32
        return Change(
            state.topic,
            record.key,
            record.client,
            record.payload,
            None,
            lifetime,
            state.epoch,
            state.revision,
        )

    def _clear(self, write: Clear) -> Sequence[Change]:
        state = self._topics.get(write.topic)
        record = state.records.get(write.key) if state is not None else None
        if record is None or record.client != write.client:
            return ()
        return (self._remove(record, "explicit"),)

    def _remove(self, record: _Record, reason: Reason) -> Change:
        state = record.state
        self._unfile(record)
        state.size -= record.size
        state.digest = (state.digest - mixed(record.changed)) % 2**32
        del state.records[record.key]
        self._count -= 1
        state.revision += 1
        if not state.records:
            del self._topics[state.topic]
        return Change(state.topic, record.key, record.client, b"", reason, 0, state.epoch, state.revision)

    def _linger(self, record: _Record, now: int) -> bool:
        """Whether the entry stays for its grace though its client is gone."""
        if record.grace and not record.lingers:
            until = now + record.grace * _MS
            if record.deadline is None or until < record.deadline:
                self._unfile(record)
                record.deadline = until
                record.lingers = True
                self._file(record)
            return True
        return record.lingers

    def _file(self, record: _Record) -> None:
        self._clients.setdefault(record.client, {})[record] = None
        if record.deadline is not None:
            number = record.deadline >> _SLICE_BITS
            filed = self._slices.get(number)
            if filed is None:
                filed = self._slices[number] = {}
                heapq.heappush(self._slice_heap, number)
            filed[record] = None

    def _unfile(self, record: _Record) -> None:
        owned = self._clients[record.client]
        del owned[record]
        if not owned:
            del self._clients[record.client]
        if record.deadline is not None:
            # Emptied, the slice stays until it is the earliest: its id is in the heap, once.
            del self._slices[record.deadline >> _SLICE_BITS][record]

    def _expired(self, now: int) -> Iterator[_Record]:
        """Records with `now > deadline`, earliest slice first. Consume it before removing any."""
        this = now >> _SLICE_BITS
        heap = self._slice_heap
        passed: list[int] = []
        try:
            while heap and heap[0] <= this:
                passed.append(heapq.heappop(heap))
                for record in self._slices[passed[-1]]:
                    if record.deadline is not None and record.deadline < now:
                        yield record
        finally:
            for number in passed:
                heapq.heappush(heap, number)

    def _next_in_ms(self, now: int) -> int | None:
        heap = self._slice_heap
        while heap and not self._slices[heap[0]]:
            del self._slices[heapq.heappop(heap)]
        if not heap:
            return None
        # At the end of the slice everything in it has passed its deadline; rounded up, not to come early.
        return max(1, -(-(((heap[0] + 1) << _SLICE_BITS) - now) // _MS))

    def _next_epoch(self) -> int:
        # Larger than any before it, also than those of an earlier process: a replica may compare two.
        self._last_epoch = max(self._last_epoch + 1, time.time_ns() // 1000)
        return self._last_epoch


class _Topic:
    """The entries of one topic and how often it has changed. It exists while it has entries."""

    __slots__ = ("digest", "epoch", "records", "revision", "size", "topic")

    def __init__(self, topic: Topic, epoch: int) -> None:
        self.topic = topic
        self.epoch = epoch
        self.revision = 0
        self.size = 0  # bytes of keys and payloads
        self.digest = 0
        self.records: dict[str, _Record] = {}


class _Record:
    __slots__ = ("changed", "client", "deadline", "grace", "key", "lingers", "payload", "state")

    changed: int
    client: str
    payload: bytes
    deadline: int | None
    grace: int
    lingers: bool

    def __init__(self, state: _Topic, key: str) -> None:
        self.state = state
        self.key = key

    @property
    def size(self) -> int:
        return len(self.key.encode()) + len(self.payload)

    def entry(self, now: int) -> Entry:
        left = None if self.deadline is None else (self.deadline - now) // _MS
        return Entry(self.state.topic, self.key, self.client, self.payload, left)


def _encode_cursor(entry: Entry) -> str:
    return base64.urlsafe_b64encode(json.dumps([*entry.topic, entry.key]).encode()).decode()


def _decode_cursor(cursor: str) -> tuple[Topic, str]:
    try:
        namespace, name, key = json.loads(base64.urlsafe_b64decode(cursor))
        if not all(isinstance(part, str) for part in (namespace, name, key)):
            raise TypeError("not text")
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"cursor {cursor[:80]!r} is none of this store's: begin again without one") from None
    return Topic(namespace, name), key
