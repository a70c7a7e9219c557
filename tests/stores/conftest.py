from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import redis

from ephemeral_state.state import Limits
from ephemeral_state.stores.memory import MemoryStore
from ephemeral_state.stores.redis import RedisStore
from tests.conformance import ManualClock
from tests.redis_server import shared_url, unique_prefix

pytest.register_assert_rewrite("tests.stores.contract")

from tests.stores.world import World  # noqa: E402 - after the registration, by pytest's own rule


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    with shared_url() as url:
        yield url


@pytest.fixture
def prefix(redis_url: str) -> Iterator[str]:
    """A prefix of one's own, whose keys are gone afterwards: the server may be somebody else's."""
    prefix = unique_prefix()
    yield prefix
    with redis.Redis.from_url(redis_url) as client:
        for key in client.scan_iter(match=f"{{{prefix}:*", count=1000):
            client.unlink(key)


@pytest.fixture(params=["memory", "redis", "redis with 5 partitions"])
def make_world(request: pytest.FixtureRequest) -> Callable[[Limits], World]:
    """For tests that need limits of their own."""

    def make(limits: Limits) -> World:
        clock = ManualClock()
        if request.param == "memory":
            return World(MemoryStore(limits, clock), clock)
        url, prefix = request.getfixturevalue("redis_url"), request.getfixturevalue("prefix")
        partitions = 5 if request.param.endswith("partitions") else 1
        # A longer time limit than the default: the machine that runs the tests may be busy.
        store = RedisStore(limits, url=url, prefix=prefix, partitions=partitions, timeout=20, clock=clock)
        return World(store, clock)

    return make


@pytest.fixture
def world(make_world: Callable[[Limits], World]) -> World:
    return make_world(Limits())
