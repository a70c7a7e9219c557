"""Random histories against a model that is too simple to be wrong: one dict, no indexes, no revisions."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from ephemeral_state.errors import EphemeralStateError, TooManyKeys
from ephemeral_state.state import Change, Clear, Drop, Entry, Limits, Outcome, Revision, Set, Sweep, Topic, Write
from ephemeral_state.stores.base import Store
from ephemeral_state.stores.memory import MemoryStore
from ephemeral_state.stores.redis import RedisStore
from tests.conformance import ManualClock

LIMITS = Limits(max_keys_per_client=3, max_payload_bytes=8, default_ttl_ms=50, max_ttl_ms=200)
MS = 1_000_000
T = TypeVar("T")

clients = st.sampled_from(["ann", "bob", "\0", ""])
topics = st.builds(Topic, st.sampled_from(["", "n", "\0"]), st.sampled_from(["t", "\0", "é", ""]))
keys = st.sampled_from(["k", "K", "\0", "k\0", ""])
payloads = st.binary(max_size=9)
ttls = st.none() | st.integers(-1, 250)
graces = st.sampled_from([0, 0, 30, 250, -1])
sets = st.builds(Set, clients, topics, keys, payloads, ttls, st.sampled_from(["", "node"]), graces)
writes = sets | sets | st.builds(Clear, clients, topics, keys) | st.builds(Drop, clients, st.booleans())

Told = tuple[Topic, str, str, bytes, str | None, int | None]


class Model:
    """(topic, key) -> owner, payload, deadline in ns."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.entries: dict[tuple[Topic, str], tuple[str, bytes, int | None]] = {}
        self.graces: dict[tuple[Topic, str], int] = {}
        self.lingering: set[tuple[Topic, str]] = set()

    def apply(self, write: Write) -> list[Told]:
        LIMITS.check(write)
        if isinstance(write, Drop):
            owned = [name for name, (owner, _, _) in self.entries.items() if owner == write.client]
            return [self.remove(name, "disconnect") for name in owned if not (write.abnormal and self.lingers(name))]
        name = (write.topic, write.key)
        owner = self.entries[name][0] if name in self.entries else None
        if isinstance(write, Clear):
            return [self.remove(name, "explicit")] if owner == write.client else []
        count = sum(each == write.client for each, _, _ in self.entries.values())
        if owner != write.client and count >= LIMITS.max_keys_per_client:
            raise TooManyKeys
        lifetime = LIMITS.lifetime_ms(write.ttl_ms)
        deadline = None if lifetime is None else self.clock.now + lifetime * MS
        self.entries[name] = (write.client, write.payload, deadline)
        self.graces[name] = min(max(write.grace_ms, 0), LIMITS.max_ttl_ms)
        self.lingering.discard(name)
        return [(*name, write.client, write.payload, None, lifetime)]

    def lingers(self, name: tuple[Topic, str]) -> bool:
        owner, payload, end = self.entries[name]
        until = self.clock.now + self.graces[name] * MS
        if self.graces[name] and name not in self.lingering and (end is None or until < end):
            self.entries[name] = (owner, payload, until)
            self.lingering.add(name)
        return self.graces[name] > 0

    def remove(self, name: tuple[Topic, str], reason: str) -> Told:
        owner, _, _ = self.entries.pop(name)
        return (*name, owner, b"", reason, 0)

    def expired(self) -> set[tuple[Topic, str]]:
        return {name for name, (_, _, end) in self.entries.items() if end is not None and self.clock.now > end}

    def live(self) -> list[Entry]:
        found = []
        for (topic, key), (owner, payload, end) in self.entries.items():
            if end is None or self.clock.now < end:
                left = None if end is None else (end - self.clock.now) // MS
                found.append(Entry(topic, key, owner, payload, left))
        return sorted(found, key=lambda entry: entry.key.encode())


class Histories(RuleBasedStateMachine):
    """Runs every step on all stores and on the model. `url` and `prefix` are set by the test below."""

    steps = 0
    url = ""
    prefix = ""
    numbers = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.model = Model(self.clock)
        self.runner = asyncio.Runner()
        self.stores: list[Store] = [MemoryStore(LIMITS, self.clock)]
        for partitions in (1, 3):
            prefix = f"{self.prefix}:{next(self.numbers)}"
            options = {"url": self.url, "prefix": prefix, "partitions": partitions}
            self.stores.append(RedisStore(LIMITS, **options, timeout=20, clock=self.clock))
        self.replicas: list[dict[Topic, Revision]] = [{} for _ in self.stores]

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @invariant()
    def count_the_step(self) -> None:
        type(self).steps += 1

    @rule(batch=st.lists(writes, min_size=1, max_size=5))
    def apply(self, batch: list[Write]) -> None:
        expected = []
        for write in batch:
            try:
                expected.append((self.model.apply(write), None))
            except EphemeralStateError as error:
                expected.append(([], type(error)))
        for number, store in enumerate(self.stores):
            outcomes = self.run(store.apply(batch))
            assert [self.told(outcome) for outcome in outcomes] == [(sort(told), error) for told, error in expected]
            self.follow(number, [change for outcome in outcomes for change in outcome.changes])

    @rule(ms=st.integers(0, 120) | st.sampled_from([50, 200]))
    def advance(self, ms: int) -> None:
        self.clock.now += ms * MS

    @rule(limit=st.integers(1, 4))
    def sweep(self, limit: int) -> None:
        # Which of the expired go first is the store's own business, so each sweeps to the end.
        lingering = self.model.lingering
        gone = sort(
            [self.model.remove(name, "disconnect" if name in lingering else "expired") for name in self.model.expired()]
        )
        for number, store in enumerate(self.stores):
            swept, last = self.run(sweep_all(store, limit))
            assert sort(told(change) for change in swept) == gone
            self.follow(number, swept)
            ends = [end for _, _, end in self.model.entries.values() if end is not None]
            if not ends:
                assert last.next_in_ms is None or isinstance(store, RedisStore)
            else:
                assert last.next_in_ms is not None
                assert 0 < last.next_in_ms * MS - (min(ends) - self.clock.now) <= 20 * MS

    @rule(topic=topics)
    def read(self, topic: Topic) -> None:
        live = [entry for entry in self.model.live() if entry.topic == topic]
        for number, store in enumerate(self.stores):
            snapshot = self.run(store.snapshot(topic))
            assert list(snapshot.entries) == live
            assert [snapshot.revision] == self.run(store.revisions([topic]))
            if snapshot.revision != Revision(0, 0):
                assert snapshot.revision == self.replicas[number][topic]
            else:
                assert not any(name[0] == topic for name in self.model.entries)

    @rule(limit=st.integers(1, 5))
    def browse(self, limit: int) -> None:
        for store in self.stores:
            assert self.run(store.count()) == len(self.model.entries)
            found = self.run(browse_all(store, limit))
            assert sorted(found) == sorted(self.model.live())

    def follow(self, number: int, changes: Sequence[Change]) -> None:
        """As a replica would: the next revision, or the first of a larger epoch."""
        replica = self.replicas[number]
        for change in changes:
            last = replica.get(change.topic, Revision(0, 0))
            following = (change.epoch, change.revision)
            assert following == (last.epoch, last.revision + 1) or (change.epoch > last.epoch and change.revision == 1)
            replica[change.topic] = Revision(*following)

    def told(self, outcome: Outcome) -> tuple[list[Told], type[Exception] | None]:
        return sort(told(change) for change in outcome.changes), type(outcome.error) if outcome.error else None

    def teardown(self) -> None:
        for store in self.stores:
            self.runner.run(store.close())
        self.runner.close()


def told(change: Change) -> Told:
    return change[:6]


def sort(changes: Any) -> list[Told]:
    return sorted(changes, key=repr)


async def sweep_all(store: Store, limit: int) -> tuple[list[Change], Sweep]:
    changes: list[Change] = []
    while True:
        sweep = await store.sweep(limit)
        changes += sweep.changes
        if sweep.next_in_ms != 0:
            return changes, sweep


async def browse_all(store: Store, limit: int) -> list[Entry]:
    entries: list[Entry] = []
    cursor = ""
    while True:
        page = await store.browse(cursor=cursor, limit=limit)
        entries += page.entries
        cursor = page.cursor
        if not cursor:
            return entries


@pytest.mark.redis
def test_any_history_is_what_the_model_says(redis_url, prefix):
    """`--hypothesis-seed=N` replays one run."""

    class Here(Histories):
        url = redis_url

    Here.prefix = prefix
    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=100,
            stateful_step_count=80,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
    assert Here.steps >= 5_000
