"""What stands in Redis: every key expires by itself, and foreign or missing keys hurt nobody else."""

from __future__ import annotations

import json
import time

import pytest
import redis

from ephemeral_state.errors import NotConfigured, StoreUnavailable
from ephemeral_state.state import Clear, Drop, Limits, Revision, Set, Topic
from ephemeral_state.stores import redis_wire as wire
from ephemeral_state.stores.redis import RedisStore
from tests.conformance import ManualClock
from tests.redis_server import RedisServer
from tests.stores.world import ROOM, World, runs

pytestmark = pytest.mark.redis

HOUR_MS = 60 * 60 * 1000
OTHER = Topic("", "other")


@pytest.fixture
def server(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def keys(server, prefix):
    return lambda: sorted(server.scan_iter(match=f"{{{prefix}:*", count=1000))


@pytest.fixture
def world(redis_url, prefix):
    return World(RedisStore(Limits(), url=redis_url, prefix=prefix, timeout=20), None)


@pytest.fixture
def topic_key(prefix):
    return lambda topic: f"{{{prefix}:v2:0}}:topic:{topic.namespace}\0\0{topic.name}\0\0"


def shown(key):
    return key.replace("\0", "\\x00")


@pytest.fixture
def client_key(prefix):
    return lambda client: f"{{{prefix}:v2:0}}:client:{client}"


@runs
async def test_every_key_expires_by_itself(world, keys, server):
    await world.changes(
        Set("ann", ROOM, "a", b"x", 1_000),
        Set("ann", OTHER, "b", b"x", None),
        Set("bob", ROOM, "a", b"x", 1_000),
        Set("bob", OTHER, "c"),
        Clear("bob", OTHER, "c"),
    )
    await world.store.sweep()
    assert len(keys()) == 8
    for key in keys():
        # What was removed is noted only while the store recovers from a loss, as at the beginning of its life.
        most = 30_000 if key.endswith(b":gone") else 24 * HOUR_MS
        assert 0.9 * most < server.pttl(key) <= most


@runs
async def test_after_everybody_left_nothing_stays_but_the_life_of_the_store(world, keys, server):
    sets = [Set(f"c{n % 3}", Topic("n", f"t{n % 4}"), f"k{n}", b"x", 1 if n % 5 == 0 else None) for n in range(40)]
    await world.changes(*sets)
    await world.changes(*(Clear(write.client, write.topic, write.key) for write in sets[:7]))
    while (sweep := await world.store.sweep()).next_in_ms is not None and len(sweep.changes) == 0:
        if sweep.next_in_ms > 10_000:
            break
    await world.changes(*(Drop(f"c{n}") for n in range(3)))
    assert await world.store.count() == 0
    assert {key.rpartition(b":")[2] for key in keys()} <= {b"life", b"gone"}


@runs
async def test_topics_that_are_empty_again_take_no_memory(redis_url, prefix, server):
    world = World(RedisStore(Limits(max_keys_per_client=10**6), url=redis_url, prefix=prefix, timeout=20), None)
    await world.set("ann", "k")
    server.hset(f"{{{prefix}:v2:0}}:life", "recovers", 0)
    before = server.info("memory")["used_memory"]
    for first in range(0, 100_000, 250):
        topics = [Topic("", f"passing {n}") for n in range(first, first + 250)]
        await world.changes(*(Set("bob", topic, "k", b"x") for topic in topics))
        await world.changes(*(Clear("bob", topic, "k") for topic in topics))
    assert server.info("memory")["used_memory"] - before < 1_000_000


@runs
async def test_a_long_max_ttl_lengthens_the_last_resort(redis_url, prefix, server, topic_key):
    limits = Limits(max_ttl_ms=100 * HOUR_MS)
    world = World(RedisStore(limits, url=redis_url, prefix=prefix), None)
    await world.set("ann", "k", ttl_ms=100 * HOUR_MS)
    assert server.pttl(topic_key(ROOM)) > 100 * HOUR_MS


@runs
async def test_a_topic_that_was_empty_begins_a_larger_epoch_whatever_the_clock_does(redis_url, prefix):
    clock = ManualClock()
    world = World(RedisStore(Limits(), url=redis_url, prefix=prefix, clock=clock, timeout=20), clock)
    epochs = []
    for step_ms in (0, 10, -600_000, 0, 5):
        world.advance(step_ms)
        change = await world.set("ann", "k")
        assert change.revision == 1
        epochs.append(change.epoch)
        await world.drop("ann")
    assert epochs == sorted(set(epochs))


@runs
async def test_a_topic_that_was_lost_begins_a_larger_epoch(world, server, topic_key):
    first = await world.set("ann", "k")
    server.delete(topic_key(ROOM))
    assert await world.store.revisions([ROOM]) == [Revision(0, 0)]
    again = await world.set("ann", "k")
    assert again.epoch > first.epoch
    assert again.revision == 1
    assert await world.store.count() == 1


@runs
async def test_the_epoch_is_redis_own_time_in_microseconds(world, server):
    before = server.time()
    epoch = (await world.set("ann", "k")).epoch
    after = server.time()
    assert before[0] * 10**6 + before[1] <= epoch <= after[0] * 10**6 + after[1]


@runs
async def test_scripts_are_loaded_again_after_they_were_flushed(world, server):
    await world.set("ann", "k")
    for call in (
        lambda: world.set("ann", "k2"),
        lambda: world.store.snapshot(ROOM),
        lambda: world.store.entry(ROOM, "k"),
        lambda: world.store.revisions([ROOM]),
        lambda: world.store.sweep(),
        lambda: world.store.count(),
        lambda: world.store.browse(),
    ):
        server.script_flush()
        await call()
    assert await world.keys() == ["k", "k2"]


@runs
async def test_a_foreign_value_under_a_topic_harms_that_topic_only(world, server, topic_key):
    server.set(topic_key(ROOM), "somebody else's", ex=60)
    outcomes = await world.apply(
        Set("ann", OTHER, "a"), Set("ann", ROOM, "b"), Clear("ann", ROOM, "b"), Set("ann", OTHER, "c")
    )
    errors = [outcome.error for outcome in outcomes]
    assert errors[0] is errors[3] is None
    for error in errors[1:3]:
        assert isinstance(error, StoreUnavailable)
        assert "WRONGTYPE" in str(error)
        assert shown(topic_key(ROOM)) in str(error)
    with pytest.raises(StoreUnavailable, match="WRONGTYPE") as caught:
        await world.store.snapshot(ROOM)
    assert shown(topic_key(ROOM)) in str(caught.value)
    with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
        await world.store.entry(ROOM, "k")
    # One topic that cannot be read must not blind a process to all the others.
    assert [revision.revision for revision in await world.store.revisions([ROOM, OTHER])] == [0, 2]
    assert await world.keys(OTHER) == ["a", "c"]
    assert len(await world.drop("ann")) == 2
    assert server.get(topic_key(ROOM)) == b"somebody else's"


@runs
async def test_a_foreign_value_in_place_of_what_a_client_owns_harms_that_client_only(world, server, client_key):
    server.set(client_key("ann"), "somebody else's", ex=60)
    outcomes = await world.apply(Set("ann", ROOM, "a"), Drop("ann"), Set("bob", ROOM, "b"))
    assert [type(outcome.error) for outcome in outcomes] == [StoreUnavailable, StoreUnavailable, type(None)]
    assert client_key("ann") in str(outcomes[0].error)
    assert await world.keys() == ["b"]


@pytest.mark.parametrize("name", ["deadlines", "index"])
@runs
async def test_a_foreign_value_under_an_index_is_named(world, server, prefix, name):
    key = f"{{{prefix}:v2:0}}:{name}"
    server.set(key, "somebody else's", ex=60)
    with pytest.raises(StoreUnavailable, match="WRONGTYPE") as caught:
        await world.set("ann", "k")
    assert key in str(caught.value)
    assert await world.entries() == []


@runs
async def test_a_topic_that_vanished_leaves_no_ghost_in_the_indexes(world, server, topic_key):
    await world.changes(Set("ann", ROOM, "a", b"", 1), Set("ann", ROOM, "b"), Set("ann", OTHER, "c"))
    server.delete(topic_key(ROOM))
    assert [entry.key for entry in (await world.store.browse()).entries] == ["c"]
    assert [change.key for change in await world.drop("ann")] == ["c"]
    assert await world.store.count() == 0


@runs
async def test_a_lost_topic_does_not_use_up_its_owners_cap(redis_url, prefix, server, topic_key):
    world = World(RedisStore(Limits(max_keys_per_client=2), url=redis_url, prefix=prefix), None)
    await world.changes(Set("ann", ROOM, "a"), Set("ann", ROOM, "b"))
    server.delete(topic_key(ROOM))
    await world.changes(Set("ann", ROOM, "a"), Set("ann", ROOM, "b"))
    assert await world.keys() == ["a", "b"]


@runs
async def test_a_drop_asks_each_entry_who_owns_it(world, server, client_key):
    await world.changes(Set("ann", ROOM, "a"), Set("bob", ROOM, "b"))
    server.sadd(client_key("ann"), *server.smembers(client_key("bob")))
    assert [change.key for change in await world.drop("ann")] == ["a"]
    assert await world.keys() == ["b"]


@runs
async def test_a_sweep_asks_each_entry_for_its_deadline(world, server, prefix):
    await world.set("ann", "k")
    deadlines = f"{{{prefix}:v2:0}}:deadlines"
    (entry,) = server.zrange(deadlines, 0, -1)
    server.zadd(deadlines, {entry: 1})
    assert not (await world.store.sweep()).changes
    assert await world.keys() == ["k"]
    assert server.zscore(deadlines, entry) > 10**15


@pytest.mark.parametrize("harm", ["no payload", "no header", "no real header"])
@runs
async def test_half_an_entry_is_none_and_harms_no_other(world, server, prefix, topic_key, harm):
    await world.changes(Set("ann", ROOM, "k", b"x", 1), Set("ann", ROOM, "l", b"y"), Set("ann", OTHER, "k", b"z"))
    if harm == "no real header":
        server.hset(topic_key(ROOM), "hk", "short")
    else:
        server.hdel(topic_key(ROOM), "pk" if harm == "no payload" else "hk")
    assert await world.keys() == ["l"]
    await world.changes(Clear("bob", ROOM, "k"), Set("bob", ROOM, "m"))
    deadline = time.monotonic() + 5
    while server.zscore(f"{{{prefix}:v2:0}}:deadlines", wire.topic_id(ROOM) + b"k") is not None:
        await world.store.sweep()
        assert time.monotonic() < deadline
    assert await world.keys() == ["l", "m"]
    assert await world.store.counts([ROOM]) == [2]
    await world.set("bob", "k", b"new")
    assert await world.keys() == ["k", "l", "m"]
    assert sorted((change.topic.name, change.key) for change in await world.drop("ann")) == [
        ("other", "k"),
        ("room", "l"),
    ]


@pytest.mark.parametrize("member", [b"", b"garbage", b"\0\0", b"n\0\0t", b"n\0\0t\0\0\xff", b"\0" * 9])
@runs
async def test_a_malformed_member_of_an_index_breaks_nothing(world, server, prefix, client_key, member):
    await world.changes(Set("ann", ROOM, "k", b"x", 1), Set("bob", ROOM, "l"))
    server.zadd(f"{{{prefix}:v2:0}}:deadlines", {member: 1})
    server.zadd(f"{{{prefix}:v2:0}}:index", {member: 0})
    server.sadd(client_key("bob"), member)
    deadline = time.monotonic() + 5
    changes = []
    while not changes:
        changes += (await world.store.sweep()).changes
        assert time.monotonic() < deadline
    assert [change.key for change in changes] == ["k"]
    assert [entry.key for entry in (await world.store.browse(search="o")).entries] == ["l"]
    assert [change.key for change in await world.drop("bob")] == ["l"]
    assert await world.store.count() == 0


@runs
async def test_a_revision_that_is_none_begins_anew_and_harms_no_other(world, server, topic_key):
    await world.changes(Set("ann", ROOM, "k"), Set("ann", OTHER, "k"))
    server.hset(topic_key(ROOM), "", "short")
    assert [revision.revision for revision in await world.store.revisions([ROOM, OTHER])] == [0, 1]
    assert await world.keys() == ["k"]
    assert (await world.set("ann", "k")).revision == 1
    assert len(await world.drop("ann")) == 2


@pytest.mark.parametrize("partitions", [1, 8])
@runs
async def test_a_client_with_many_large_values_leaves_nothing(redis_url, prefix, partitions):
    world = World(RedisStore(Limits(), url=redis_url, prefix=prefix, partitions=partitions), None)
    await world.changes(*(Set("ann", Topic("", f"t{n % 9}"), f"k{n}", b"x" * 16_384) for n in range(256)))
    assert len(await world.drop("ann")) == 256
    assert await world.store.count() == 0


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"url": "redis://h", "hosts": ["redis://h"]}, "both"),
        ({"hosts": "redis://h"}, "list"),
        ({"hosts": [{"address": "redis://h"}, ("h", 1)]}, "partitions"),
        ({"hosts": [3]}, "host"),
        ({"hosts": [{"master_name": "m"}]}, "sentinels"),
        ({"url": "http://user:secret@h"}, "URL"),
        ({"url": "redis+sentinel://user:secret@h"}, "master_name"),
        ({"url": "redis://:secret@h:port"}, "URL"),
        ({"prefix": "a{b}"}, "braces"),
        ({"prefix": ""}, "prefix"),
        ({"partitions": 0}, "partitions"),
        ({"partitions": True}, "partitions"),
        ({"partitions": "3"}, "partitions"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
    ],
)
def test_options_that_cannot_work_are_refused_without_telling_secrets(options, part):
    with pytest.raises(NotConfigured, match=part) as caught:
        RedisStore(Limits(), **options)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "form",
    [
        lambda url, host, port: {"url": url},
        lambda url, host, port: {"hosts": [url]},
        lambda url, host, port: {"hosts": [(host, port)]},
        lambda url, host, port: {"hosts": [[host, port]]},
        lambda url, host, port: {"hosts": [{"address": url, "socket_keepalive": True}]},
        lambda url, host, port: {"hosts": [{"host": host, "port": port, "db": 0}]},
        lambda url, host, port: {"hosts": [url, (host, port)], "partitions": 4},
        lambda url, host, port: {"url": f"{url}?decode_responses=true"},
        lambda url, host, port: {"url": url.replace("redis://", "valkey://")},
    ],
)
@runs
async def test_hosts_may_be_given_in_every_form_of_channels_redis(redis_url, prefix, form):
    with redis.Redis.from_url(redis_url) as client:
        options = client.connection_pool.connection_kwargs
    world = World(RedisStore(Limits(), **form(redis_url, options["host"], options["port"]), prefix=prefix), None)
    await world.set("ann", "k", b"\xff")
    assert (await world.entries())[0].payload == b"\xff"


@runs
async def test_an_option_that_redis_py_does_not_know_is_named(redis_url):
    world = World(RedisStore(Limits(), hosts=[{"address": redis_url, "nonsense": 1}]), None)
    with pytest.raises(NotConfigured, match="nonsense"):
        await world.entries()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({}, {}, True),
        ({"url": "redis://127.0.0.1:{port}"}, {"hosts": [("localhost", "{port}")]}, True),
        ({"url": "redis://127.0.0.1:{port}"}, {"url": "redis://127.0.0.1:{port}/0"}, True),
        ({"url": "redis://127.0.0.1:{port}/1"}, {"hosts": [{"host": "127.0.0.1", "port": "{port}", "db": "1"}]}, True),
        ({"url": "redis://127.0.0.1:{port}/1"}, {"url": "redis://127.0.0.1:{port}/0"}, False),
        ({"prefix": "one"}, {"prefix": "other"}, False),
        ({"partitions": 2}, {"partitions": 3}, False),
    ],
)
@runs
async def test_stores_have_the_same_identity_if_they_share_what_they_keep(one, other, same):
    with RedisServer() as server:

        def store(options):
            options = json.loads(json.dumps({"url": server.url} | options).replace("{port}", str(server.port)))
            if "hosts" in options:
                del options["url"]
            return World(RedisStore(Limits(), **options), None)

        first, second = store(one), store(other)
        assert (first.store.identity == second.store.identity) is same
        topics = [Topic("", f"t{n}") for n in range(8)]
        await first.changes(*(Set("ann", topic, "k") for topic in topics))
        assert all([await second.keys(topic) == ["k"] for topic in topics]) is same
