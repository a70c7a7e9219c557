"""Requests that arrive late, nodes that were reaped, and writing back to a store that has lost something."""

from __future__ import annotations

import pytest
import redis

from ephemeral_state.belongings import Belongings
from ephemeral_state.errors import StoreUnavailable, TopicTooLarge
from ephemeral_state.state import Batches, Change, Clear, Drop, Keep, Limits, Restore, Revision, Set, Topic, Write
from ephemeral_state.stores.memory import MemoryStore
from ephemeral_state.stores.redis import RedisStore
from tests.conformance import ManualClock

from .world import ROOM, World, runs

pytestmark = pytest.mark.redis


@pytest.fixture(params=[1, 5], ids=["1 partition", "5 partitions"])
def shared(request: pytest.FixtureRequest, redis_url: str, prefix: str) -> World:
    clock = ManualClock()
    store = RedisStore(Limits(), url=redis_url, prefix=prefix, partitions=request.param, timeout=20, clock=clock)
    return World(store, clock)


class Delayed:
    """Keeps a store's next requests back, and delivers them later: also after their client has given up."""

    def __init__(self, world: World) -> None:
        self._store = world.store
        self._run = world.store._run  # type: ignore[attr-defined]
        self._late: list[tuple[object, ...]] = []

    def __enter__(self) -> Delayed:
        async def held_back(*args: object) -> bytes:
            self._late.append(args)
            raise StoreUnavailable("no answer")

        self._store._run = held_back  # type: ignore[attr-defined]
        return self

    def __exit__(self, *_: object) -> None:
        self._store._run = self._run  # type: ignore[attr-defined]

    async def arrives(self) -> None:
        assert self._late
        for script, number, _, *args in self._late:
            await self._run(script, number, self._store._until(), *args)  # type: ignore[attr-defined]


async def given_up(world: World, batches: Batches, *writes: Write) -> Delayed:
    with Delayed(world) as delayed, pytest.raises(StoreUnavailable):
        await world.store.apply(writes, batches)
    return delayed


async def applied(world: World, batches: Batches, *writes: Write) -> list[Change]:
    outcomes = await world.store.apply(writes, batches)
    assert [outcome.error for outcome in outcomes] == [None] * len(writes)
    return [change for outcome in outcomes for change in outcome.changes]


def a_set(client: str, key: str, payload: bytes = b"", ttl_ms: int | None = None, node: str = "n") -> Set:
    return Set(client, ROOM, key, payload, ttl_ms, node)


def restore(change: Change, node: str = "n") -> Restore:
    stamp = Revision(change.epoch, change.revision)
    return Restore(change.client_id, change.topic, change.key, change.payload, None, node, stamp)


async def values(world: World) -> dict[str, tuple[str, bytes]]:
    return {entry.key: (entry.client_id, entry.payload) for entry in await world.entries()}


# Late requests


@runs
async def test_a_set_that_arrives_after_its_owner_has_left_changes_nothing(shared: World) -> None:
    batches = Batches("n")
    await applied(shared, batches, a_set("ann", "first"))
    late = await given_up(shared, batches, a_set("ann", "late"))
    await applied(shared, batches, Drop("ann", node="n"))
    await late.arrives()
    assert await values(shared) == {}


@runs
async def test_an_older_value_that_arrives_late_does_not_replace_a_newer_one(shared: World) -> None:
    batches = Batches("n")
    late = await given_up(shared, batches, a_set("ann", "k", b"old", 1500))
    await applied(shared, batches, a_set("ann", "k", b"new"))
    await late.arrives()
    assert [(e.payload, e.expires_in_ms) for e in await shared.entries()] == [(b"new", None)]


@runs
async def test_a_clear_that_arrives_late_does_not_remove_what_was_set_since(shared: World) -> None:
    batches = Batches("n")
    await applied(shared, batches, a_set("ann", "k", b"old"))
    late = await given_up(shared, batches, Clear("ann", ROOM, "k", "n"))
    await applied(shared, batches, a_set("ann", "k", b"new"))
    await late.arrives()
    assert await values(shared) == {"k": ("ann", b"new")}


@runs
async def test_what_was_given_up_is_forbidden_though_nothing_else_is_written(shared: World) -> None:
    batches = Batches("n")
    late = await given_up(shared, batches, a_set("ann", "k"))
    assert batches.open_partitions
    await shared.store.settle(batches)
    assert not batches.open_partitions
    await late.arrives()
    assert await values(shared) == {}
    await applied(shared, batches, a_set("ann", "k"))
    assert await shared.keys() == ["k"]


@runs
async def test_several_batches_that_arrive_late_and_in_any_order_change_nothing(shared: World) -> None:
    batches = Batches("n")
    late = [await given_up(shared, batches, a_set("ann", f"{n}")) for n in range(5)]
    await shared.store.settle(batches)
    for delayed in (late[3], late[0], late[4], late[2], late[1]):
        await delayed.arrives()
    assert await values(shared) == {}


@runs
async def test_a_set_that_arrives_after_its_time_does_not_replace_what_another_process_has_set_since(
    shared: World,
) -> None:
    batches = Batches("n")
    await applied(shared, batches, a_set("ann", "k", b"1"))
    late = await given_up(shared, batches, a_set("ann", "k", b"late"))
    await applied(shared, Batches("m"), a_set("bob", "k", b"2", node="m"))
    shared.advance(30_000)  # more than the time that the store has for an answer
    await late.arrives()
    assert await values(shared) == {"k": ("bob", b"2")}


@pytest.mark.parametrize("clock_jumps_ms", [-600_000, 600_000])
@runs
async def test_a_clock_that_jumps_refuses_no_write(shared: World, clock_jumps_ms: int) -> None:
    batches = Batches("n")
    for n in range(10):
        await applied(shared, batches, a_set("ann", f"{n}"))
        shared.advance(clock_jumps_ms)
    assert len(await shared.keys()) == 10


@runs
async def test_one_writers_fence_stops_nobody_else(shared: World) -> None:
    batches, other = Batches("n"), Batches("m")
    await given_up(shared, batches, a_set("ann", "k"))
    await shared.store.settle(batches)
    await applied(shared, other, a_set("bob", "k", node="m"))
    await applied(shared, batches, a_set("ann", "l"))
    assert await values(shared) == {"k": ("bob", b""), "l": ("ann", b"")}


@runs
async def test_as_long_as_all_is_answered_no_fence_is_kept(shared: World, redis_url: str, prefix: str) -> None:
    batches = Batches("n")
    for n in range(5):
        await applied(shared, batches, a_set("ann", f"{n}"))
    with redis.Redis.from_url(redis_url) as client:
        assert not list(client.scan_iter(match=f"{{{prefix}:*:fence:*"))
        await given_up(shared, batches, a_set("ann", "k"))
        await shared.store.settle(batches)
        fences = list(client.scan_iter(match=f"{{{prefix}:*:fence:*"))
        assert fences
        assert all(0 < client.pttl(key) <= 3_600_000 for key in fences)


def test_a_batch_that_fails_while_a_later_one_is_answered_stays_given_up_only_if_it_is_the_later_one() -> None:
    batches = Batches("n")
    (first, _), (second, _) = batches.begin(0), batches.begin(0)
    batches.give_up(0, second)
    batches.applied(0, first)
    assert batches.open_partitions == [0]
    third, is_after_one_given_up = batches.begin(0)
    assert is_after_one_given_up
    batches.applied(0, third)
    assert batches.open_partitions == []


# Nodes that were reaped


async def reaped(world: World, node: str) -> list[Change]:
    world.advance(20_000)
    roll = await world.store.beat("other", 12_000, "{}")
    (peer,) = (peer for peer in roll.peers if peer.node == node)
    return list(await world.store.bury(peer))


@runs
async def test_a_node_that_was_reaped_writes_nothing_by_its_old_name(shared: World) -> None:
    batches = Batches("n")
    await shared.store.beat("n", 12_000, "{}")
    await applied(shared, batches, *(a_set("ann", f"{n}") for n in range(8)))
    late = await given_up(shared, batches, a_set("ann", "late"))
    assert len(await reaped(shared, "n")) == 8
    await late.arrives()
    with pytest.raises(StoreUnavailable, match="taken for dead"):
        await shared.store.apply([a_set("ann", "k")], batches)
    assert (await shared.store.beat("n", 12_000, "{}")).reaped
    assert await values(shared) == {}
    # By a new name it has everything again.
    again = Batches("n2")
    assert not (await shared.store.beat("n2", 12_000, "{}")).reaped
    await applied(shared, again, a_set("ann", "k", node="n2"))
    assert await shared.keys() == ["k"]


@runs
async def test_a_former_owner_gets_nothing_back_that_a_successor_had_and_left(shared: World) -> None:
    await shared.store.beat("n", 12_000, "{}")
    kept, taken = await applied(shared, Batches("n"), a_set("ann", "kept", b"1"), a_set("ann", "taken", b"1"))
    assert len(await reaped(shared, "n")) == 2
    other = Batches("m")
    await applied(shared, other, a_set("bob", "taken", b"2", node="m"), Drop("bob", node="m"))
    outcomes = await shared.store.apply([restore(kept, "n2"), restore(taken, "n2")], Batches("n2"))
    assert [outcome.taken for outcome in outcomes] == [False, True]
    assert await values(shared) == {"kept": ("ann", b"1")}


@runs
async def test_a_grace_that_ended_while_its_node_was_taken_for_dead_takes_nothing_away(shared: World) -> None:
    await shared.store.beat("n", 12_000, "{}")
    write = Set("ann", ROOM, "k", b"", None, "n", 1500)
    (change,) = await applied(shared, Batches("n"), write)
    assert await reaped(shared, "n") == []
    shared.advance(2000)
    assert [each.reason for each in (await shared.store.sweep()).changes] == ["disconnect"]
    await applied(shared, Batches("n2"), restore(change, "n2"))
    assert await shared.keys() == ["k"]


@runs
async def test_what_is_refused_as_taken_is_owned_no_more(shared: World) -> None:
    owned, batches = Belongings(), Batches("n")
    write = a_set("ann", "k")
    owned.wrote(write, await applied(shared, batches, write), 0)
    await applied(shared, Batches("m"), a_set("bob", "k", node="m"), Drop("bob", node="m"))
    (again,) = owned.restores(0)
    (outcome,) = await shared.store.apply([again], batches)
    owned.wrote(again, outcome.changes, 0, taken=outcome.taken)
    assert owned.restores(0) == []


# Losses


def lose_everything(prefix: str, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        for key in client.scan_iter(match=f"{{{prefix}:*"):
            client.delete(key)


class Past:
    """What Redis had, to which it can go back."""

    def __init__(self, prefix: str, redis_url: str) -> None:
        self._prefix, self._url = prefix, redis_url
        with redis.Redis.from_url(redis_url) as client:
            self._had = {key: client.dump(key) for key in client.scan_iter(match=f"{{{prefix}:*")}

    def comes_back(self) -> None:
        lose_everything(self._prefix, self._url)
        with redis.Redis.from_url(self._url) as client:
            for key, value in self._had.items():
                client.restore(key, 3_600_000, value)


@pytest.mark.parametrize("clock_jumps_ms", [1, -600_000, 600_000])
@runs
async def test_everything_comes_back_whatever_the_clock_does(
    shared: World, prefix: str, redis_url: str, clock_jumps_ms: int
) -> None:
    stamps = {node: (await shared.store.beat(node, 12_000, "{}")).stamp for node in ("n", "m")}
    changes = [
        change
        for n in range(8)
        for change in await applied(shared, Batches("nm"[n % 2]), a_set(f"c{n}", f"{n}", b"x", node="nm"[n % 2]))
    ]
    lose_everything(prefix, redis_url)
    shared.advance(clock_jumps_ms)
    for node, stamp in stamps.items():
        assert not (await shared.store.beat(node, 12_000, "{}", stamp)).held
    for n, change in enumerate(changes):  # one after another: the first makes the topic anew
        await applied(shared, Batches("nm"[n % 2]), restore(change, "nm"[n % 2]))
    assert await values(shared) == {f"{n}": (f"c{n}", b"x") for n in range(8)}


@runs
async def test_a_store_that_comes_back_older_than_a_topic_gets_all_of_it_back(
    shared: World, prefix: str, redis_url: str
) -> None:
    stamps = {node: (await shared.store.beat(node, 12_000, "{}")).stamp for node in ("n", "m")}
    past = Past(prefix, redis_url)
    shared.advance(500)
    changes = [
        change
        for n in range(8)
        for change in await applied(shared, Batches("nm"[n % 2]), a_set(f"c{n}", f"{n}", b"x", node="nm"[n % 2]))
    ]
    stamps = {node: (await shared.store.beat(node, 12_000, "{}", stamps[node])).stamp for node in stamps}
    past.comes_back()
    shared.advance(100)
    for node, stamp in stamps.items():
        assert not (await shared.store.beat(node, 12_000, "{}", stamp)).held
    for n, change in enumerate(changes):
        await applied(shared, Batches("nm"[n % 2]), restore(change, "nm"[n % 2]))
    assert await values(shared) == {f"{n}": (f"c{n}", b"x") for n in range(8)}


@runs
async def test_a_key_that_its_living_owner_cleared_does_not_stay_in_a_store_that_went_back(
    shared: World, prefix: str, redis_url: str
) -> None:
    batches = Batches("n")
    await applied(shared, batches, a_set("ann", "kept"), a_set("ann", "cleared"), a_set("ann", "older", b"1"))
    await shared.changes(Set("ann", ROOM, "by another writer", b"", 60_000))
    past = Past(prefix, redis_url)
    await applied(shared, batches, Clear("ann", ROOM, "cleared", "n"))
    (newer,) = await applied(shared, batches, a_set("ann", "older", b"2"))
    past.comes_back()
    changes = await applied(shared, batches, restore(newer), Keep("ann", "n", [(ROOM, "kept"), (ROOM, "older")]))
    assert [(change.key, change.reason) for change in changes] == [("older", None), ("cleared", "explicit")]
    assert await values(shared) == {
        "kept": ("ann", b""),
        "older": ("ann", b"2"),
        "by another writer": ("ann", b""),
    }


@runs
async def test_what_a_store_that_went_back_has_again_does_not_keep_the_latest_owner_out(
    shared: World, prefix: str, redis_url: str
) -> None:
    ann, bob = Batches("n"), Batches("m")
    await applied(shared, ann, a_set("ann", "k", b"1"), a_set("ann", "l", b"1"))
    stamp = (await shared.store.beat("n", 12_000, "{}")).stamp
    past = Past(prefix, redis_url)
    newest = await applied(shared, bob, a_set("bob", "k", b"2", node="m"), a_set("bob", "l", b"2", node="m"))
    shared.advance(500)
    stamp = (await shared.store.beat("n", 12_000, "{}", stamp)).stamp
    past.comes_back()
    await shared.store.beat("n", 12_000, "{}", stamp)
    # The node of the former owner knows that it has lost one of them; of the other one it does not, and its owner ends.
    await applied(shared, ann, Keep("ann", "n", [(ROOM, "l")]))
    await applied(shared, ann, Drop("ann", node="n"))
    await applied(shared, bob, *(restore(change, "m") for change in newest))
    assert await values(shared) == {"k": ("bob", b"2"), "l": ("bob", b"2")}


@runs
async def test_of_what_its_own_client_has_set_the_node_knows_the_last_value(shared: World) -> None:
    batches = Batches("n")
    (before,) = await applied(shared, batches, a_set("ann", "k", b"known"))
    await applied(shared, batches, a_set("ann", "k", b"of another server that took over for a moment"))
    assert len(await applied(shared, batches, restore(before))) == 1
    assert await values(shared) == {"k": ("ann", b"known")}


@pytest.mark.parametrize("is_noticed_before", [False, True])
@runs
async def test_a_take_over_right_after_everything_was_lost_is_the_end_of_the_former_value(
    shared: World, prefix: str, redis_url: str, is_noticed_before: bool
) -> None:
    stamp = (await shared.store.beat("n", 12_000, "{}")).stamp
    lost, taken = await applied(shared, Batches("n"), a_set("ann", "lost"), a_set("ann", "taken"))
    lose_everything(prefix, redis_url)
    shared.advance(300)
    if is_noticed_before:
        await shared.store.beat("n", 12_000, "{}", stamp)
    await applied(shared, Batches("m"), a_set("bob", "taken", node="m"), Drop("bob", node="m"))
    shared.advance(900)
    await shared.store.beat("n", 12_000, "{}", stamp)
    await applied(shared, Batches("n"), restore(lost), restore(taken))
    assert await values(shared) == {"lost": ("ann", b"")}


@runs
async def test_what_is_set_after_a_loss_was_noticed_is_newer_than_all_that_was_lost(
    shared: World, prefix: str, redis_url: str
) -> None:
    stamp = (await shared.store.beat("n", 12_000, "{}")).stamp
    past = Past(prefix, redis_url)
    for n in range(10):
        (change,) = await applied(shared, Batches("n"), a_set("ann", "k", b"%d" % n))
    shared.advance(500)
    stamp = (await shared.store.beat("n", 12_000, "{}", stamp)).stamp
    past.comes_back()
    await shared.store.beat("n", 12_000, "{}", stamp)
    await applied(shared, Batches("m"), a_set("bob", "k", b"newest", node="m"))
    (outcome,) = await shared.store.apply([restore(change)], Batches("n"))
    assert outcome.taken
    assert await values(shared) == {"k": ("bob", b"newest")}


@runs
async def test_a_client_that_left_for_good_leaves_no_notes(shared: World, redis_url: str, prefix: str) -> None:
    await applied(shared, Batches("n"), a_set("ann", "k"), a_set("ann", "own"))
    await applied(shared, Batches("m"), a_set("bob", "k", node="m"))
    with redis.Redis.from_url(redis_url) as client:
        assert list(client.scan_iter(match=f"{{{prefix}:*:taken:ann"))
        await applied(shared, Batches("n"), Drop("ann", node="n"))
        assert not list(client.scan_iter(match=f"{{{prefix}:*:taken:*"))


# The clock


@runs
async def test_entries_do_not_outlive_their_time_when_the_clock_is_put_back(shared: World) -> None:
    stamp = (await shared.store.beat("n", 12_000, "{}")).stamp
    await applied(shared, Batches("n"), a_set("ann", "k", ttl_ms=5000))
    for _ in range(8):
        shared.advance(500)
        await shared.store.sweep()
        stamp = (await shared.store.beat("n", 12_000, "{}", stamp)).stamp
    shared.advance(-600_000)
    changes: list[Change] = []
    for _ in range(5):
        roll = await shared.store.beat("n", 12_000, "{}", stamp)
        assert roll.held
        stamp = roll.stamp
        shared.advance(500)
        changes += (await shared.store.sweep()).changes
    assert [change.key for change in changes] == ["k"]


# The size of a topic


@pytest.mark.parametrize("kind", ["memory", "redis"])
@runs
async def test_a_topic_has_no_more_bytes_than_it_may(kind: str, redis_url: str, prefix: str) -> None:
    limits, clock = Limits(max_topic_bytes=1000), ManualClock()
    store = MemoryStore(limits, clock) if kind == "memory" else RedisStore(limits, url=redis_url, prefix=prefix)
    world = World(store, clock)
    await world.changes(*(Set("ann", ROOM, f"{n}", b"x" * 99, None, "n") for n in range(10)))
    before = await world.everything(ROOM)
    (outcome,) = await world.apply(Set("ann", ROOM, "k", b"", None, "n"))
    assert isinstance(outcome.error, TopicTooLarge)
    assert str(outcome.error) == "the topic would have 1001 bytes, the limit is 1000 (MAX_TOPIC_BYTES)"
    assert await world.everything(ROOM) == before
    await world.set("ann", "0", b"x" * 98)  # what it has may get smaller, and then there is room again
    await world.set("ann", "k")
    await world.drop("ann")
    await world.set("ann", "k", b"x" * 999)
    await world.set("ann", "k", b"x" * 999, topic=Topic("", "another"))
