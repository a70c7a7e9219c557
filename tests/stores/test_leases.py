"""Leases, burying and writing back, on the stores that processes share."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from ephemeral_state.state import Clear, Drop, Limits, Peer, Restore, Revision, Set, Topic
from ephemeral_state.stores import redis_client
from ephemeral_state.stores.base import Report
from ephemeral_state.stores.memory import MemoryStore
from ephemeral_state.stores.redis import RedisStore
from ephemeral_state.stores.redis_wire import read_buried
from tests.redis_server import RedisServer
from tests.waiting import events

from .world import ROOM, World, runs

pytestmark = pytest.mark.redis


@pytest.fixture(params=["redis", "redis with 5 partitions"])
def shared(request: pytest.FixtureRequest, redis_url: str, prefix: str) -> World:
    from ephemeral_state.stores.redis import RedisStore
    from tests.conformance import ManualClock

    clock = ManualClock()
    partitions = 5 if request.param.endswith("partitions") else 1
    store = RedisStore(Limits(), url=redis_url, prefix=prefix, partitions=partitions, timeout=20, clock=clock)
    return World(store, clock)


async def beat(world: World, node: str, lease_ms: int = 12_000) -> dict[str, Peer]:
    roll = await world.store.beat(node, lease_ms, "{}")
    return {peer.node: peer for peer in roll.peers}


async def owners(world: World, *topics: Topic) -> dict[str, str]:
    return {e.key: e.client_id for topic in topics or (ROOM,) for e in await world.entries(topic)}


@runs
async def test_a_lease_is_held_from_the_second_beat_on_and_not_after_it_was_given_back(shared: World) -> None:
    assert not (await shared.store.beat("n", 1000, "{}")).held
    assert (await shared.store.beat("n", 1000, "{}")).held
    await shared.store.resign("n")
    assert not (await shared.store.beat("n", 1000, "{}")).held


async def test_what_was_cleared_in_the_first_topic_of_a_life_does_not_come_back(redis_url: str, prefix: str) -> None:
    from ephemeral_state.stores.redis import RedisStore

    store = RedisStore(Limits(), url=redis_url, prefix=prefix, timeout=20)  # by Redis' own clock
    (stored,) = await store.apply([Set("c", ROOM, "k", b"", None, "n")])
    await store.apply([Clear("c", ROOM, "k")])
    stamp = Revision(stored.changes[0].epoch, stored.changes[0].revision)
    (restored,) = await store.apply([Restore("c", ROOM, "k", b"", None, "n", stamp)])
    assert (restored.changes, restored.error) == ((), None)
    await store.close()


@runs
async def test_everybody_sees_everybody_elses_lease_and_link(shared: World) -> None:
    await beat(shared, "a", 1000)
    peers = await beat(shared, "b", 5000)
    assert set(peers) == {"a"}
    assert peers["a"].remaining_ms == 1000
    shared.advance(1500)
    assert (await beat(shared, "b"))["a"].remaining_ms == -500


@runs
async def test_the_dead_are_buried_once_with_everything_their_clients_own(shared: World) -> None:
    topics = [Topic(str(n), "t") for n in range(20)]
    await beat(shared, "dead")
    await beat(shared, "alive")
    for n, topic in enumerate(topics):
        await shared.changes(Set(f"d{n % 3}", topic, f"{n}", b"", None, "dead"))
        await shared.changes(Set("a", topic, f"a{n}", b"", None, "alive"))
    shared.advance(20_000)
    peer = (await beat(shared, "alive"))["dead"]
    changes = await shared.store.bury(peer)
    assert sorted(int(change.key) for change in changes) == list(range(20))
    assert {change.reason for change in changes} == {"disconnect"}
    assert set((await owners(shared, *topics)).values()) == {"a"}
    assert not await shared.store.bury(peer)
    assert await beat(shared, "alive") == {}


@runs
async def test_who_renews_in_time_is_not_buried(shared: World) -> None:
    await beat(shared, "slow", 1000)
    await shared.changes(Set("c", ROOM, "k", b"", None, "slow"))
    shared.advance(5000)
    peer = (await beat(shared, "other"))["slow"]
    shared.advance(1)
    await beat(shared, "slow")
    assert not await shared.store.bury(peer)
    assert await shared.keys() == ["k"]


@runs
async def test_burying_never_touches_what_a_successor_took_over(shared: World) -> None:
    await beat(shared, "dead")
    await shared.changes(Set("d", ROOM, "k", b"old", None, "dead"), Set("s", ROOM, "k", b"new", None, "alive"))
    shared.advance(20_000)
    assert not await shared.store.bury((await beat(shared, "alive"))["dead"])
    assert await owners(shared) == {"k": "s"}


@runs
async def test_a_funeral_that_was_interrupted_is_finished_by_whoever_comes_by(shared: World) -> None:
    await beat(shared, "dead")
    await shared.changes(*(Set("d", Topic("", f"{n}"), "k", b"", None, "dead") for n in range(20)))
    shared.advance(20_000)
    peer = (await beat(shared, "first"))["dead"]
    store = shared.store
    run = store._run  # type: ignore[attr-defined]

    async def dies(script: object, number: int, until: float, *args: object) -> bytes:
        if b"clear" in args:
            raise ConnectionError("killed")
        return bytes(await run(script, number, until, *args))

    store._run = dies  # type: ignore[attr-defined]
    with pytest.raises(ConnectionError):
        await store.bury(peer)
    store._run = run  # type: ignore[attr-defined]
    peer = (await beat(shared, "second"))["dead"]
    assert peer.remaining_ms <= 0
    assert len(await store.bury(peer)) == 20


@runs
async def test_a_funeral_goes_on_without_those_who_have_come_back_meanwhile(shared: World) -> None:
    await beat(shared, "n")
    change = await shared.changes(*(Set(client, ROOM, client, b"", None, "n") for client in ("back", "gone")))
    shared.advance(20_000)
    peer = (await beat(shared, "other"))["n"]
    store = shared.store
    run = store._run  # type: ignore[attr-defined]

    async def wakes(script: object, number: int, until: float, *args: object) -> bytes:
        if b"clear" in args:
            store._run = run  # type: ignore[attr-defined]
            shared.advance(10)
            stamp = Revision(change[0].epoch, change[0].revision)
            await shared.changes(Restore("back", ROOM, "back", b"", None, "n again", stamp))
            await shared.changes(Set("new", ROOM, "new", b"", None, "n again"))
        return bytes(await run(script, number, until, *args))

    store._run = wakes  # type: ignore[attr-defined]
    assert [(change.client_id, change.reason) for change in await store.bury(peer)] == [("gone", "disconnect")]
    assert await shared.keys() == ["back", "new"]


@runs
async def test_a_dead_node_with_more_entries_than_one_script_removes_is_cleared_whole(shared: World) -> None:
    await beat(shared, "dead")
    for client in range(10):
        await shared.changes(*(Set(f"c{client}", ROOM, f"{client}/{n}", b"", None, "dead") for n in range(200)))
    shared.advance(20_000)
    peer = (await beat(shared, "alive"))["dead"]
    store = shared.store
    run, removed = store._run, []  # type: ignore[attr-defined]

    async def counted(script: object, number: int, until: float, *args: object) -> bytes:
        data = bytes(await run(script, number, until, *args))
        if b"clear" in args:
            removed.append(len(read_buried(data)[1]))
        return data

    store._run = counted  # type: ignore[attr-defined]
    assert len(await store.bury(peer)) == sum(removed) == 2000
    assert max(removed) <= 400  # while one script runs, nobody else gets anything from Redis
    assert await store.count() == 0


@runs
async def test_what_was_lost_comes_back_and_what_is_there_is_not_told_again(shared: World) -> None:
    lost = Restore("c", ROOM, "k", b"x", None, "n", Revision(1, 1))
    (change,) = await shared.changes(lost)
    assert (change.client_id, change.payload, change.reason) == ("c", b"x", None)
    assert await shared.changes(lost) == []
    assert await owners(shared) == {"k": "c"}


@runs
async def test_a_successors_value_is_never_written_over(shared: World) -> None:
    before = await shared.set("c", "k", b"old")
    await shared.set("successor", "k", b"new")
    stamp = Revision(before.epoch, before.revision)
    assert await shared.changes(Restore("c", ROOM, "k", b"old", None, "n", stamp)) == []
    assert await owners(shared) == {"k": "successor"}


@pytest.mark.parametrize("first", ["former", "successor"])
@runs
async def test_when_both_write_back_the_later_owner_has_it_whoever_comes_first(shared: World, first: str) -> None:
    restores = {
        "former": Restore("former", ROOM, "k", b"", None, "n", Revision(5, 1)),
        "successor": Restore("successor", ROOM, "k", b"", None, "m", Revision(5, 2)),
    }
    await shared.changes(restores.pop(first))
    await shared.changes(*restores.values())
    assert await owners(shared) == {"k": "successor"}


@runs
async def test_what_a_woken_node_writes_back_survives_its_own_funeral(shared: World) -> None:
    await beat(shared, "n")
    change = await shared.changes(Set("c", ROOM, "k", b"", None, "n"))
    shared.advance(20_000)
    peer = (await beat(shared, "other"))["n"]
    assert len(await shared.store.bury(peer)) == 1
    shared.advance(10)
    assert (await shared.store.beat("n", 12_000, "{}")).reaped
    assert not (await shared.store.beat("n again", 12_000, "{}")).reaped
    stamp = Revision(change[0].epoch, change[0].revision)
    await shared.changes(Restore("c", ROOM, "k", b"", None, "n again", stamp))
    assert not await shared.store.bury(peer)
    assert await shared.keys() == ["k"]
    shared.advance(20_000)
    assert len(await shared.store.bury((await beat(shared, "other"))["n again"])) == 1


@runs
async def test_what_came_back_after_a_funeral_and_was_cleared_then_does_not_come_back_again(shared: World) -> None:
    await beat(shared, "n")
    (change,) = await shared.changes(Set("c", ROOM, "k", b"", None, "n"))
    shared.advance(20_000)
    await shared.store.bury((await beat(shared, "other"))["n"])
    restore = Restore("c", ROOM, "k", b"", None, "n", Revision(change.epoch, change.revision))
    assert len(await shared.changes(restore)) == 1
    await shared.clear("c", "k")
    assert not await shared.changes(restore)


@runs
async def test_a_client_that_left_is_not_at_home_any_more(shared: World) -> None:
    await beat(shared, "n")
    await shared.changes(Set("c", ROOM, "k", b"", None, "n"), Drop("c"))
    await shared.changes(Set("c", ROOM, "k", b"", None, "m"))
    shared.advance(20_000)
    assert not await shared.store.bury((await beat(shared, "m"))["n"])
    assert await shared.keys() == ["k"]


def lose_everything(prefix: str, redis_url: str) -> None:
    import redis

    with redis.Redis.from_url(redis_url) as client:
        for key in client.scan_iter(match=f"{{{prefix}:*"):
            client.delete(key)


@runs
async def test_what_was_lost_comes_back_to_a_topic_that_others_use_already(
    shared: World, prefix: str, redis_url: str
) -> None:
    changes = await shared.changes(*(Set("c", ROOM, key, b"", None, "n") for key in ("lost", "taken")))
    stamps = {change.key: Revision(change.epoch, change.revision) for change in changes}
    lose_everything(prefix, redis_url)
    shared.advance(1)
    await shared.changes(Set("d", ROOM, "taken", b"", None, "m"))
    await shared.changes(*(Restore("c", ROOM, key, b"", None, "n", stamp) for key, stamp in stamps.items()))
    assert await owners(shared) == {"lost": "c", "taken": "d"}
    assert not await shared.changes(Restore("c", ROOM, "lost", b"", None, "n", stamps["lost"]))


@runs
async def test_whoever_is_the_first_to_write_back_brings_back_every_entry_at_once(
    shared: World, prefix: str, redis_url: str
) -> None:
    topics = [ROOM, Topic("", "other")]
    changes = await shared.changes(*(Set("c", topic, key, b"", None, "n") for topic in topics for key in "abc"))
    lose_everything(prefix, redis_url)
    shared.advance(1)
    # No beat, and nobody's set, has begun the new life: the first of these does.
    restores = [Restore("c", c.topic, c.key, b"", None, "n", Revision(c.epoch, c.revision)) for c in changes]
    back = await shared.changes(*restores)
    assert [(change.topic, change.key) for change in back] == [(topic, key) for topic in topics for key in "abc"]
    assert not await shared.changes(*restores)


@runs
async def test_a_store_that_lost_everything_says_so_by_its_generation(
    shared: World, prefix: str, redis_url: str
) -> None:
    await shared.set("c", "k")
    before = await shared.store.snapshot(ROOM)
    await shared.set("c", "l")
    assert (await shared.store.snapshot(ROOM)).generation == before.generation > 0
    lose_everything(prefix, redis_url)
    shared.advance(1)
    assert (await shared.store.snapshot(ROOM)).generation == 0
    await shared.set("c", "k")
    assert (await shared.store.snapshot(ROOM)).generation > before.generation


@runs
async def test_a_store_of_one_process_has_no_peers() -> None:
    store = MemoryStore(Limits())
    roll = await store.beat("n", 1000, "{}")
    assert (roll.held, roll.peers) == (True, ())
    assert await store.bury(Peer("p", 0, False, "")) == ()
    await store.resign("n")


def test_every_shared_store_is_one_whose_nodes_need_leases(make_world: Callable[[Limits], World]) -> None:
    store = make_world(Limits()).store
    assert store.shared == (type(store).__name__ == "RedisStore")


@runs
async def test_what_a_successor_cleared_is_not_brought_back(shared: World) -> None:
    (before,) = await shared.changes(Set("ann", ROOM, "k", b"old", None, "n"))
    await shared.set("bob", "k", b"new")
    await shared.clear("bob", "k")
    await shared.set("bob", "other")
    stamp = Revision(before.epoch, before.revision)
    assert await shared.changes(Restore("ann", ROOM, "k", b"old", None, "n", stamp)) == []
    assert await shared.keys() == ["other"]


@runs
async def test_what_was_cleared_for_its_owner_elsewhere_is_not_brought_back(shared: World) -> None:
    (before,) = await shared.changes(Set("ann", ROOM, "k", b"", None, "n"))
    await shared.changes(Drop("ann"))
    stamp = Revision(before.epoch, before.revision)
    assert await shared.changes(Restore("ann", ROOM, "k", b"", None, "n", stamp)) == []


@runs
async def test_a_key_that_was_first_set_for_a_client_is_its_nodes_once_the_client_sets_it(shared: World) -> None:
    await beat(shared, "n")
    await shared.changes(Set("c", ROOM, "k", b"", 60_000), Set("c", ROOM, "k", b"", None, "n"))
    shared.advance(20_000)
    assert len(await shared.store.bury((await beat(shared, "other"))["n"])) == 1


@runs
async def test_a_lease_that_is_not_as_its_node_left_it_is_not_held(shared: World, redis_url: str, prefix: str) -> None:
    import redis

    first = await shared.store.beat("n", 1000, "{}")
    shared.advance(1)
    second = await shared.store.beat("n", 1000, "{}", first.stamp)
    assert second.held
    assert second.stamp != first.stamp
    with redis.Redis.from_url(redis_url) as client:  # as if it had gone back to where it was before
        client.zadd(f"{{{prefix}:v2:0}}:leases", {"n": float(first.stamp)})
    told = await shared.store.beat("n", 1000, "{}", second.stamp)
    assert not told.held
    assert (await shared.store.beat("n", 1000, "{}", told.stamp)).held


@runs
async def test_a_lost_answer_is_no_lost_lease_unless_it_said_so(shared: World) -> None:
    stamp = (await shared.store.beat("n", 1000, "{}")).stamp
    for _ in range(3):
        shared.advance(1)
        assert (await shared.store.beat("n", 1000, "{}", stamp)).held  # and the node never hears of it
    await shared.store.resign("n")
    for _ in range(3):
        shared.advance(1)
        roll = await shared.store.beat("n", 1000, "{}", stamp)
        assert not roll.held
    for _ in range(2):
        shared.advance(1)
        roll = await shared.store.beat("n", 1000, "{}", roll.stamp)
        assert roll.held


@runs
async def test_it_is_known_who_is_at_home_at_a_node(shared: World) -> None:
    sets = [Set(f"c{n}", Topic("", f"{n}"), "k", b"", None, "n" if n % 2 else "m") for n in range(20)]
    await shared.changes(*sets, Drop("c1", node="n"))
    assert sorted(await shared.store.clients("n")) == sorted(f"c{n}" for n in range(3, 20, 2))
    assert await shared.store.clients("nobody") == []


@runs
async def test_an_older_value_of_its_own_owner_is_no_reason_not_to_write_back(shared: World) -> None:
    before = await shared.set("c", "k", b"old")
    lost = Restore("c", ROOM, "k", b"new", None, "n", Revision(before.epoch, before.revision + 7))
    assert [change.payload for change in await shared.changes(lost)] == [b"new"]
    assert await shared.changes(lost) == []
    assert [entry.payload for entry in await shared.entries()] == [b"new"]


@pytest.mark.parametrize("ttl_ms", [1000, None])  # before its grace is over it ends by itself, or not
@runs
async def test_a_client_that_was_dropped_and_sets_its_key_again_is_at_home_again(
    shared: World, ttl_ms: int | None
) -> None:
    await beat(shared, "n")
    await shared.changes(Set("c", ROOM, "k", b"", ttl_ms, "n", grace_ms=5000), Drop("c", abnormal=True))
    await shared.changes(Set("c", ROOM, "k", b"", None, "n"))
    shared.advance(20_000)
    assert len(await shared.store.bury((await beat(shared, "other"))["n"])) == 1


@runs
async def test_what_is_written_back_in_time_outlives_the_last_resort(shared: World) -> None:
    (change,) = await shared.changes(Set("c", ROOM, "k", b"", None, "n"))
    hour = 3_600_000
    for _ in range(5):
        shared.advance(23 * hour)
        assert not await shared.changes(
            Restore("c", ROOM, "k", b"", None, "n", Revision(change.epoch, change.revision))
        )
        shared.advance(0.001)
        assert not (await shared.store.sweep()).changes
    shared.advance(25 * hour)
    assert [change.key for change in (await shared.store.sweep()).changes] == ["k"]


@runs
async def test_a_link_that_was_cut_is_told_and_made_again() -> None:
    from ephemeral_state.stores.redis import RedisStore
    from tests.conformance import ManualClock

    with RedisServer() as server:
        worlds = [World(RedisStore(Limits(), url=server.url, timeout=20), ManualClock()) for _ in range(2)]
        one, other = (world.store for world in worlds)

        async def linked() -> tuple[list[bool], list[bool]]:
            rolls = [await one.beat("one", 60_000, "{}"), await other.beat("other", 60_000, "{}")]
            return [roll.linked for roll in rolls], [peer.linked for peer in rolls[1].peers]

        assert await linked() == ([True, True], [True])
        server.command("CLIENT", "KILL", "TYPE", "pubsub")
        assert await linked() == ([False, False], [True])
        assert await linked() == ([True, True], [True])


@runs
async def test_a_store_that_has_lost_only_its_last_writes_gets_them_back(shared: World) -> None:
    before = await shared.set("x", "x")
    stamp = Revision(before.epoch, before.revision + 5)
    assert len(await shared.changes(Restore("c", ROOM, "k", b"", None, "n", stamp))) == 1


@runs
async def test_a_beat_keeps_what_is_known_of_the_node_and_giving_back_the_lease_forgets_who_was_there(
    redis_url: str, prefix: str
) -> None:
    import redis

    from ephemeral_state.stores.redis import RedisStore

    store = RedisStore(Limits(), url=redis_url, prefix=prefix, timeout=20)
    World.made.append(World(store, None))  # type: ignore[arg-type]
    await store.beat("n", 12_000, "{}")
    await store.apply([Set("c", ROOM, "k", b"", None, "n")])
    await store.report(Report("n", {}, (), {"c": "{}"}))
    with redis.Redis.from_url(redis_url) as client:
        names = [f"{{{prefix}:v2:0}}:{name}" for name in ("leases", "nodes", "node:n", "who:n", "homes", "life")]
        for name in names:
            assert client.pexpire(name, 60_000)
        await store.beat("n", 12_000, "{}")
        assert all(client.pttl(name) > 60_000 for name in names)
        await store.resign("n")
        assert not client.exists(f"{{{prefix}:v2:0}}:who:n")


@runs
async def test_a_user_without_channels_goes_by_leases_and_is_told_of_it_once(caplog, monkeypatch):
    monkeypatch.setattr(redis_client, "_RETRY_RIGHT", 0.0)
    with RedisServer() as server:
        server.command("ACL", "SETUSER", "app", "reset", "on", ">pw", "~*", "+@all", "resetchannels", "&none")
        store = RedisStore(Limits(), url=f"redis://app:pw@127.0.0.1:{server.port}")
        await store.beat("dead", 500, "{}")
        for _ in range(3):
            roll = await store.beat("alive", 60_000, "{}")
            assert roll.linked
            assert [peer.linked for peer in roll.peers] == [True]
        assert events(caplog) == ["link_denied"]
        assert "{ephemeral:v2:0}:alive:*" in caplog.text
        server.command("ACL", "SETUSER", "app", "&{ephemeral:*")
        assert not (await store.beat("alive", 60_000, "{}")).peers[0].linked
        assert events(caplog) == ["link_denied", "link_denied_over"]
        await store.close()


@runs
async def test_a_redis_that_evicts_is_told_of_before_and_a_node_has_lost_something_after(caplog, monkeypatch):
    monkeypatch.setattr(redis_client, "_LOOK", 0.0)
    with RedisServer("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-random") as server:
        store = RedisStore(Limits(), url=server.url)
        for _ in range(3):
            assert (await store.beat("n", 60_000, "{}")).linked
        assert events(caplog) == ["store_advice"]
        server.command("CONFIG", "SET", "maxmemory", server.command("INFO", "memory")["used_memory"] + 1_000_000)
        while not server.command("INFO", "stats")["evicted_keys"]:
            server.command("SET", f"other:{time.monotonic()}", b"x" * 10_000)
        assert not (await store.beat("n", 60_000, "{}")).linked
        assert events(caplog) == ["store_advice", "keys_evicted"]
        server.command("CONFIG", "SET", "maxmemory", 0)
        await store.beat("n", 60_000, "{}")
        assert (await store.beat("n", 60_000, "{}")).linked
        await store.close()
