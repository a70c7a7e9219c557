"""A Redis that evicts: said before the harm, and what living owners have lost comes back."""

from __future__ import annotations

import asyncio

import pytest

from ephemeral_state.state import Topic
from ephemeral_state.stores import redis_wire as wire
from tests.redis_server import RedisServer
from tests.waiting import until

from .test_store_trouble import ROOM, place

pytestmark = [pytest.mark.redis, pytest.mark.faults]

BACK_WITHIN = 15.0  # seconds: a look at what was evicted every 5 s, then writing back


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-lru", "allkeys-random"])
async def test_what_a_full_redis_has_evicted_comes_back_and_is_said(policy, redis_server):
    with RedisServer() as layer:
        redis_server.command("CONFIG", "SET", "maxmemory-policy", policy)
        redis_server.command("CONFIG", "SET", "maxmemory", "64mb")
        async with place(redis_server, layer) as here:
            ann, bob = await here.enter("ann"), await here.enter("bob", 1)
            assert [await ann.set("hers"), await bob.set("bobs"), await ann.set("more")] == ["ok"] * 3
            await here.settled("hers", "bobs", "more")
            await until(lambda: here.said(f"Redis may evict keys (maxmemory-policy {policy})"))
            assert not here.said("Redis was full")

            (topic,) = redis_server.command("KEYS", b"*:topic:" + wire.topic_id(Topic("", ROOM)))
            await asyncio.to_thread(evict, redis_server, topic)
            redis_server.command("CONFIG", "SET", "maxmemory", 0)
            await until(lambda: here.said("Redis was full and has evicted"), BACK_WITHIN)
            await here.settled("hers", "bobs", "more", within=BACK_WITHIN)
            assert here.said("Redis may evict") == 1, here.log()


def evict(redis: RedisServer, key: bytes) -> None:
    """Fill it with what is read all the time until this key is gone."""
    redis.command("CONFIG", "SET", "maxmemory", redis.command("INFO", "memory")["used_memory"] + 200_000)
    for n in range(100_000):
        redis.command("SET", f"other:{n % 50}", b"x" * 10_000, "EX", 600)
        if not redis.command("EXISTS", key):
            return
    raise AssertionError("it was never evicted")
