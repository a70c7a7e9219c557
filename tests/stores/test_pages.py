"""Topics that are read in several steps, and digests: what a topic holds, as one number."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import redis

from ephemeral_state.errors import StoreUnavailable, TopicTooLarge
from ephemeral_state.protocol import Batch, as_batches
from ephemeral_state.replica import Replica
from ephemeral_state.state import Change, Clear, Digest, Drop, Limits, Revision, Set, Topic
from ephemeral_state.stores import redis as redis_module
from ephemeral_state.stores.redis import RedisStore
from tests.redis_server import RedisServer

from .world import ROOM, World, runs

pytestmark = pytest.mark.redis

NOW = 0.0


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_module, "_SNAPSHOT_STEP", 300)


@pytest.fixture
def paged(small_pages: None, redis_url: str, prefix: str) -> World:
    return World(RedisStore(Limits(), url=redis_url, prefix=prefix, timeout=20), None)  # type: ignore[arg-type]


async def filled(world: World, count: int = 50) -> dict[str, bytes]:
    values = {f"k{n:03}": b"%03d" % n * 10 for n in range(count)}
    await world.changes(*(Set(f"c{key}", ROOM, key, value, None, "n") for key, value in values.items()))
    return values


def between_pages(world: World, *steps: Callable[[], object]) -> None:
    """Carry out one of the steps after each page."""
    run, waiting = world.store._run, list(steps)  # type: ignore[attr-defined]

    async def reads(script: object, *args: object) -> bytes:
        data = await run(script, *args)
        if script is redis_module._SNAPSHOT and waiting:
            await waiting.pop(0)()  # type: ignore[misc]
        return bytes(data)

    world.store._run = reads  # type: ignore[attr-defined]


@runs
async def test_a_topic_that_is_read_in_pages_is_whole_and_in_order(paged: World) -> None:
    values = await filled(paged)
    await paged.set("x", "another topic", topic=Topic(ROOM.namespace, ROOM.name + "2"))
    snapshot = await paged.store.snapshot(ROOM)
    assert {entry.key: entry.payload for entry in snapshot.entries} == values
    assert [entry.key for entry in snapshot.entries] == sorted(values)
    assert snapshot.revision.revision == 50
    assert snapshot.changed == {key: n for n, key in enumerate(values, 1)}
    assert snapshot.ahead == {}


@runs
async def test_what_changes_between_the_pages_is_right_once_the_stream_has_brought_it(paged: World) -> None:
    values = await filled(paged)
    told: list[Change] = []

    async def overwrites() -> None:
        told.extend(await paged.changes(Set("ck040", ROOM, "k040", b"1", None, "n")))
        told.extend(await paged.changes(Set("ck040", ROOM, "k040", b"2", None, "n")))

    async def removes_what_was_read_and_what_was_not() -> None:
        told.extend(await paged.changes(Clear("ck000", ROOM, "k000", "n"), Drop("ck045", node="n")))

    async def adds_before_and_behind() -> None:
        told.extend(await paged.changes(*(Set("new", ROOM, key, b"new", None, "n") for key in ("a", "z"))))

    between_pages(paged, overwrites, removes_what_was_read_and_what_was_not, adds_before_and_behind)
    replica = Replica(ROOM)
    asked_at = replica.asking()
    snapshot = await paged.store.snapshot(ROOM)
    replica.reset(snapshot, asked_at, NOW)
    heard = [event for batch in as_batches(told) for event in replica.apply(batch, NOW)]
    values |= {"k040": b"2", "a": b"new", "z": b"new"}
    del values["k000"], values["k045"]
    assert {entry.key: entry.payload for entry in replica.entries(NOW)} == values
    # What the snapshot had already is not told again, least of all an older value.
    assert [event.payload for event in heard if event.key == "k040"] == []
    (digest,) = await paged.store.digests([ROOM])
    assert digest is not None
    assert digest.revision == replica.revision
    assert not replica.contradicts(digest)


@runs
async def test_a_topic_that_begins_anew_between_the_pages_is_read_again(paged: World) -> None:
    values = await filled(paged)

    async def begins_anew() -> None:
        await paged.changes(*(Drop(f"c{key}", node="n") for key in values))
        await paged.set("new", "k")

    between_pages(paged, begins_anew)
    assert [entry.key for entry in (await paged.store.snapshot(ROOM)).entries] == ["k"]

    async def again() -> None:
        await paged.drop("new")
        await paged.changes(*(Set("new", ROOM, f"{n}", b"x" * 200) for n in range(3)))

    await again()
    between_pages(paged, *[again] * 10)
    with pytest.raises(StoreUnavailable, match="emptied and used again"):
        await paged.store.snapshot(ROOM)


@runs
async def test_what_is_too_large_to_be_read_at_once_is_refused_before_it_is_read(world: World) -> None:
    await world.changes(*(Set("ann", ROOM, f"{n}", b"x" * 99) for n in range(10)))
    assert len((await world.store.snapshot(ROOM, 1000)).entries) == 10
    with pytest.raises(TopicTooLarge, match="the topic has 1000 bytes, at most 999"):
        await world.store.snapshot(ROOM, 999)


@runs
async def test_the_digest_is_that_of_a_replica_which_has_heard_everything(world: World) -> None:
    choose, replica = random.Random(3), Replica(ROOM)
    replica.reset(await world.store.snapshot(ROOM), replica.asking(), NOW)
    for _ in range(400):
        client, key = f"c{choose.randrange(4)}", f"k{choose.randrange(12)}"
        kind = choose.random()
        if kind < 0.6:
            changes = await world.changes(Set(client, ROOM, key, b"x", choose.choice([None, 50])))
        elif kind < 0.9:
            changes = await world.changes(Clear(client, ROOM, key))
        else:
            changes = await world.changes(Drop(client))
        world.advance(choose.choice([0, 20]))
        changes += (await world.store.sweep()).changes
        for batch in as_batches(changes):
            replica.apply(batch, NOW)
        (digest,) = await world.store.digests([ROOM])
        assert digest is not None
        assert replica.agrees(digest.revision)
        assert not replica.contradicts(digest)
        another = Replica(ROOM)
        another.reset(await world.store.snapshot(ROOM), another.asking(), NOW)
        assert not another.contradicts(digest)


@runs
async def test_a_replica_of_the_right_revision_with_something_else_in_it_is_found_out(world: World) -> None:
    first, *_ = await world.changes(*(Set("ann", ROOM, key, b"x") for key in "abc"))
    replica = Replica(ROOM)
    replica.reset(await world.store.snapshot(ROOM), replica.asking(), NOW)
    (digest,) = await world.store.digests([ROOM])
    assert digest is not None
    assert not replica.contradicts(digest)
    del replica._held["b"]
    replica._sum -= 1
    assert replica.contradicts(digest)
    assert not replica.contradicts(digest._replace(revision=Revision(first.epoch, 99)))
    assert not replica.contradicts(Digest(digest.revision, None))


def test_an_entry_that_expired_here_before_the_store_said_so_is_no_contradiction() -> None:
    change = Change(ROOM, "k", "ann", b"x", None, 1000, 7, 1)
    (batch,) = as_batches([change])
    replica = Replica(ROOM)
    replica.apply(Batch(ROOM, batch.first, batch.events), NOW)
    from ephemeral_state.state import Snapshot, mixed

    replica.reset(Snapshot(ROOM, Revision(0, 0), ()), replica.asking(), NOW)
    replica.apply(batch, NOW)
    assert [event.reason for event in replica.expire(NOW + 999)] == []
    assert [(event.key, event.reason) for event in replica.expire(NOW + 1001)] == [("k", "expired")]
    assert replica.entries(NOW) == []
    assert not replica.contradicts(Digest(Revision(7, 1), mixed(1)))
    (gone,) = as_batches([Change(ROOM, "k", "ann", b"", "expired", 0, 7, 2)])
    assert replica.apply(gone, NOW) == []
    assert not replica.contradicts(Digest(Revision(7, 2), 0))


@runs
async def test_no_script_keeps_redis_from_others_for_long() -> None:
    """A topic of the most that the limits allow, and a client at its cap: SLOWLOG names every command of over 10 ms."""
    limits = Limits(max_topic_bytes=10**9)
    with RedisServer() as server:
        store = RedisStore(limits, url=server.url, timeout=60)
        World(store, None)  # type: ignore[arg-type]
        server.command("CONFIG", "SET", "slowlog-log-slower-than", "10000")
        server.command("CONFIG", "SET", "slowlog-max-len", "1000")
        for n in range(1000):
            await store.apply([Set(f"c{n // 200}", ROOM, f"{n}", random.randbytes(16_384), None, "n")])
        server.command("SLOWLOG", "RESET")
        snapshot = await store.snapshot(ROOM)
        assert len(snapshot.entries) == 1000
        page = await store.browse(limit=100)
        assert len(page.entries) == 100
        for n in range(5):
            await store.apply([Drop(f"c{n}", node="n")])
        with redis.Redis(port=server.port) as client:
            slow = [(entry["duration"], entry["command"][:60]) for entry in client.slowlog_get(100)]
        # The machine may be busy, and the time in SLOWLOG is the wall clock's: most reads must have been short.
        assert len(slow) <= 5, slow
