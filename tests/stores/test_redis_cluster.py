"""Eight partitions on a real cluster of three nodes."""

from __future__ import annotations

import asyncio

import pytest

from ephemeral_state.errors import NotConfigured, StoreUnavailable, TooManyKeys
from ephemeral_state.state import Drop, Limits, Set, Topic
from ephemeral_state.stores.redis import RedisStore
from tests.conformance import ManualClock
from tests.redis_server import RedisCluster, unique_prefix
from tests.stores.contract import StoreContract
from tests.stores.world import World, runs

pytestmark = pytest.mark.redis

TOPICS = [Topic("n", f"t{number}") for number in range(40)]


@pytest.fixture(scope="module")
def cluster():
    with RedisCluster() as cluster:
        yield cluster


class TestCluster(StoreContract):
    """Passes the contract."""

    @pytest.fixture
    def make_world(self, cluster):
        def make(limits):
            clock = ManualClock()
            options = {"prefix": unique_prefix(), "partitions": 8, "timeout": 20, "clock": clock}
            return World(RedisStore(limits, url=cluster.urls[0], **options), clock)

        return make


@runs
async def test_every_node_has_its_share(cluster):
    prefix = unique_prefix()
    world = World(RedisStore(Limits(), hosts=cluster.urls, prefix=prefix, partitions=8, timeout=20), None)
    changes = await world.changes(*(Set("ann", topic, "k") for topic in TOPICS))
    assert [change.topic for change in changes] == TOPICS
    for node in cluster.nodes:
        keys = [key for key in node.command("KEYS", "*") if key.startswith(b"{%b:" % prefix.encode())]
        assert keys
        assert all(node.command("TTL", key) > 0 for key in keys)
    assert {change.topic for change in await world.drop("ann")} == set(TOPICS)


@runs
async def test_the_cap_is_exact_although_no_script_sees_all_partitions(cluster):
    options = {"url": cluster.urls[1], "prefix": unique_prefix(), "partitions": 8, "timeout": 20}
    world = World(RedisStore(Limits(max_keys_per_client=30), **options), None)
    sets = [Set("ann", topic, key) for topic in TOPICS for key in ("a", "b")]
    outcomes = await world.apply(*sets[:25])
    outcomes += await world.apply(*sets[25:])
    assert [n for n, outcome in enumerate(outcomes) if outcome.error is None] == list(range(30))
    outcomes = await world.apply(Set("ann", *sets[0][1:3], b"mine"), Set("bob", *sets[1][1:3]), sets[40], sets[41])
    assert [type(outcome.error) for outcome in outcomes] == [type(None), type(None), type(None), TooManyKeys]


@runs
async def test_a_cluster_with_one_partition_is_a_fault_of_the_settings(cluster):
    world = World(RedisStore(Limits(), url=cluster.urls[0]), None)
    with pytest.raises(NotConfigured, match=r"\['partitions'\] must be more than 1"):
        await world.entries()


@runs
async def test_a_node_that_is_gone_harms_its_own_partitions_only():
    with RedisCluster() as cluster:
        for node in cluster.nodes:
            node.command("CONFIG", "SET", "cluster-require-full-coverage", "no")
        options = {"url": cluster.urls[0], "prefix": unique_prefix(), "partitions": 8, "timeout": 1.0}
        world = World(RedisStore(Limits(), **options), None)
        await world.changes(*(Set("ann", topic, "k") for topic in TOPICS))
        cluster.nodes[2].kill()
        began = asyncio.get_running_loop().time()
        outcomes = await world.apply(*(Set("ann", topic, "k") for topic in TOPICS), Drop("nobody"))
        assert asyncio.get_running_loop().time() - began < 3
        failed = [isinstance(outcome.error, StoreUnavailable) for outcome in outcomes]
        assert failed[-1]
        assert 0 < sum(failed[:-1]) < len(TOPICS)
        assert (await world.entries(TOPICS[failed.index(False)]))[0].key == "k"


@runs
async def test_a_user_without_info_finds_the_nodes_of_a_cluster(cluster):
    for node in cluster.nodes:
        node.command("ACL", "SETUSER", "app", "reset", "on", ">pw", "~*", "&*", "+@all", "-info")
    url = cluster.urls[0].replace("redis://", "redis://app:pw@")
    world = World(RedisStore(Limits(), url=url, prefix=unique_prefix(), partitions=8, timeout=20), None)
    await world.changes(*(Set("ann", topic, "k") for topic in TOPICS))
    assert [await world.keys(topic) for topic in TOPICS] == [["k"]] * len(TOPICS)
    await world.store.close()
