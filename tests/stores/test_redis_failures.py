"""A Redis that is away, slow, full, foreign or wrong: a clear error within the time limit, never a hang."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from ephemeral_state.errors import NotConfigured, StoreUnavailable
from ephemeral_state.state import Clear, Drop, Limits, Set, Topic
from ephemeral_state.stores.redis import RedisStore
from tests.redis_server import RedisServer, wait_for
from tests.stores.world import ROOM, World, runs

pytestmark = pytest.mark.redis

TIMEOUT = 0.5


def calls(store):
    return [
        lambda: store.apply([Set("ann", ROOM, "k")]),
        lambda: store.snapshot(ROOM),
        lambda: store.revisions([ROOM, Topic("", "other")]),
        lambda: store.sweep(),
        lambda: store.count(),
        lambda: store.browse(search="x"),
    ]


async def all_fail(store, match, error=StoreUnavailable):
    """Every method says what happened, in time."""
    for call in calls(store):
        began = time.monotonic()
        with pytest.raises(error, match=match) as caught:
            await call()
        assert time.monotonic() - began < TIMEOUT + 1
        assert caught.value.__cause__ is not None or error is NotConfigured


def away(url, **options):
    return World(RedisStore(Limits(), url=url, timeout=TIMEOUT, **options), None).store


@contextlib.asynccontextmanager
async def listening(answer):
    """A server that answers each request with these bytes; None: with nothing, ever."""

    async def serve(reader, writer):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if answer is not None:
                    writer.write(answer * data.count(b"*"))  # redis-py sends several commands at once
                    await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await asyncio.sleep(0)


def info(text):
    return b"$%d\r\n%b\r\n" % (len(text), text)


@pytest.mark.parametrize("partitions", [1, 3])
@runs
async def test_a_closed_port_is_a_refused_connection(partitions):
    await all_fail(away("redis://127.0.0.1:1", partitions=partitions), "refused the connection")


@runs
async def test_an_unknown_host_is_an_error():
    await all_fail(away("redis://no-such-host.invalid:1"), "Redis")


@pytest.mark.parametrize("partitions", [1, 3])
@runs
async def test_a_server_that_says_nothing_is_a_timeout(partitions):
    async with listening(None) as url:
        store = away(url, partitions=partitions)
        await all_fail(store, "did not answer within 0.5 s")
        await store.close()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH\r\n"])
@runs
async def test_a_server_that_is_not_redis_is_named_so(answer):
    async with listening(answer) as url:
        store = away(url)
        await all_fail(store, "not Redis", NotConfigured)


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        (b"redis_version:6.0.16\r\nredis_mode:standalone\r\n", "6.0.16 is too old"),
        (b"redis_version:7.0.0\r\nredis_mode:sentinel\r\n", "Sentinel"),
        (b"redis_version:7.0.0\r\nredis_mode:cluster\r\n", "partitions must be more than 1"),
        (b"redis_version:7.2.4\r\nserver_mode:cluster\r\nvalkey_version:8.0.0\r\n", "partitions must be more than 1"),
    ],
)
@runs
async def test_a_redis_that_will_never_do_is_a_fault_of_the_settings(answer, part):
    async with listening(info(answer)) as url:
        await all_fail(away(url), part, NotConfigured)


@runs
async def test_a_wrong_or_missing_password_is_refused_credentials():
    with RedisServer(password="right") as server:
        await all_fail(away(f"redis://127.0.0.1:{server.port}"), "credentials")
        await all_fail(away(f"redis://:wrong-secret@127.0.0.1:{server.port}"), "credentials")
        store = World(RedisStore(Limits(), url=server.url), None)
        await store.set("ann", "k")


@runs
async def test_an_account_without_info_is_enough():
    with RedisServer() as server:
        server.command("ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "-info")
        world = World(RedisStore(Limits(), url=f"redis://app:pw@127.0.0.1:{server.port}"), None)
        await world.set("ann", "k")
        assert await world.keys() == ["k"]


@runs
async def test_a_redis_that_pauses_is_a_timeout_and_then_works_again():
    with RedisServer() as server:
        store = World(RedisStore(Limits(), url=server.url, timeout=TIMEOUT), None).store
        await store.apply([Set("ann", ROOM, "k")])
        server.command("CLIENT", "PAUSE", round(len(calls(store)) * TIMEOUT * 1000) + 500)
        await all_fail(store, "did not answer")
        patient = World(RedisStore(Limits(), url=server.url, timeout=10), None)
        assert await patient.keys() == ["k"]
        assert len((await store.snapshot(ROOM)).entries) == 1


@runs
async def test_a_redis_that_is_frozen_is_a_timeout_and_then_works_again():
    with RedisServer() as server:
        store = World(RedisStore(Limits(), url=server.url, timeout=TIMEOUT), None).store
        await store.apply([Set("ann", ROOM, "k")])
        server.stop()
        await all_fail(store, "did not answer")
        server.cont()
        assert len((await store.snapshot(ROOM)).entries) == 1


@runs
async def test_a_redis_that_restarts_is_found_again_by_the_next_call():
    with RedisServer() as server:
        world = World(RedisStore(Limits(), url=server.url, timeout=TIMEOUT), None)
        first = await world.set("ann", "k")
        await asyncio.gather(*(world.entries() for _ in range(5)))  # five pooled connections, all to go stale
        server.kill()
        await all_fail(world.store, "connection")
        server.start()
        again = await world.set("ann", "k")
        assert again.epoch > first.epoch
        assert again.revision == 1
        await asyncio.gather(*(world.entries() for _ in range(5)))


@runs
async def test_a_full_redis_refuses_sets_and_still_carries_out_clears_and_drops():
    with RedisServer("--maxmemory-policy", "noeviction") as server:
        world = World(RedisStore(Limits(), url=server.url), None)
        await world.changes(*(Set("ann", ROOM, f"k{n}", b"x" * 1000) for n in range(10)), Set("bob", ROOM, "b"))
        server.command("CONFIG", "SET", "maxmemory", 1000)
        (outcome,) = await world.apply(Set("cy", ROOM, "c"))
        assert isinstance(outcome.error, StoreUnavailable)
        assert "OOM" in str(outcome.error)
        before = (await world.store.revisions([ROOM]))[0]
        # Refused and carried out side by side: a full Redis must not keep ghosts.
        outcomes = await world.apply(Set("cy", ROOM, "c"), Clear("ann", ROOM, "k0"), Drop("bob"))
        assert [type(outcome.error) for outcome in outcomes] == [StoreUnavailable, type(None), type(None)]
        assert [change.key for outcome in outcomes for change in outcome.changes] == ["k0", "b"]
        assert outcomes[1].changes[0].revision == before.revision + 1
        assert len(await world.drop("ann")) == 9
        assert await world.keys() == []
        server.command("CONFIG", "SET", "maxmemory", 0)
        await world.set("cy", "c")


@runs
async def test_a_replica_refuses_all_writes():
    with RedisServer() as primary, RedisServer() as replica:
        world = World(RedisStore(Limits(), url=primary.url), None)
        await world.set("ann", "k")
        replica.command("REPLICAOF", "127.0.0.1", primary.port)
        wait_for(lambda: replica.command("INFO", "replication")["master_link_status"] == "up")
        reader = World(RedisStore(Limits(), url=replica.url), None)
        assert await reader.keys() == ["k"]
        for writes in ([Set("ann", ROOM, "k")], [Clear("ann", ROOM, "k"), Set("bob", ROOM, "b")], [Drop("ann")]):
            with pytest.raises(StoreUnavailable, match="READONLY"):
                await reader.store.apply(writes)
        assert await reader.keys() == ["k"]


@runs
async def test_one_host_of_two_that_is_away_harms_its_own_partitions_only():
    with RedisServer() as near, RedisServer() as far:
        options = {"hosts": [near.url, far.url], "partitions": 2, "timeout": TIMEOUT}
        world = World(RedisStore(Limits(), **options), None)
        topics = [Topic("", f"t{number}") for number in range(8)]
        await world.changes(*(Set("ann", topic, "k") for topic in topics))
        far.kill()
        writes = [Drop("nobody"), *(Set("ann", t, "k") for t in topics), *(Clear("ann", t, "k") for t in topics)]
        for process in (world, World(RedisStore(Limits(), **options), None)):
            outcomes = await process.apply(*writes)
            failed = [isinstance(outcome.error, StoreUnavailable) for outcome in outcomes]
            assert failed[0]
            assert failed[1:9] == failed[9:]
            assert 0 < sum(failed[9:]) < len(topics)
            for topic, refused in zip(topics, failed[9:], strict=True):
                if not refused:
                    assert await process.keys(topic) == []


@runs
async def test_a_cancelled_call_leaves_no_answer_for_the_next():
    with RedisServer() as server:
        world = World(RedisStore(Limits(), url=server.url), None)
        await world.set("ann", "k")
        server.stop()
        task = asyncio.ensure_future(world.store.count())
        done, _ = await asyncio.wait([task], timeout=0.1)
        assert not done
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        server.cont()
        assert await world.keys() == ["k"]
