from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import pytest

from ephemeral_state.state import Limits, Topic
from ephemeral_state.stores.redis import RedisStore
from tests.redis_server import unique_prefix
from tests.waiting import until

from .client import BulkClient
from .convergence import CONVERGED_WITHIN, Plan, converge
from .server import Server, configuration

pytestmark = [pytest.mark.redis, pytest.mark.faults]


async def test_every_view_equals_the_store_through_a_layer_that_loses_reorders_and_repeats(redis_url, pytestconfig):
    report = await converge(Plan(seconds=pytestconfig.getoption("faults_seconds")), redis_url)
    print(report)
    assert report.settled <= CONVERGED_WITHIN
    assert all(report.counts[name] for name in ("sets", "clears", "lists", "subscriptions", "disconnects"))
    assert all(report.heard[name] for name in ("transfers", "expiries"))


@pytest.mark.parametrize(
    ("layer", "pause"), [("pubsub", 0.0), ("lossy core", 0.3), ("core", 0.3), ("core", 0.0)], ids=str
)
async def test_every_view_equals_the_store_through(layer, pause, redis_url, pytestconfig):
    seconds = pytestconfig.getoption("faults_seconds") / 4
    report = await converge(Plan(seconds=seconds, layer=layer, pause=pause, seed=1), redis_url)
    print(report)
    assert report.settled <= CONVERGED_WITHIN


async def test_every_view_equals_the_store_when_redis_hangs_up_on_everybody_again_and_again(redis_server, pytestconfig):
    seconds = pytestconfig.getoption("faults_seconds") / 2
    report = await converge(Plan(seconds=seconds, cuts=1.5, seed=2), redis_server.url)
    print(report)
    assert report.settled <= CONVERGED_WITHIN


@asynccontextmanager
async def two_processes(layer: str, url: str) -> AsyncIterator[tuple[BulkClient, BulkClient, RedisStore]]:
    """A client in each, both subscribed to "room", and a store to look into."""
    prefix = unique_prefix()
    store = RedisStore(Limits(), url=url, prefix=prefix, timeout=30)
    with ExitStack() as stack:
        settings = configuration(layer, store_url=url, layer_url=url, prefix=prefix)
        servers = [stack.enter_context(Server(settings)) for _ in range(2)]
        clients = [await BulkClient.connect(server.url) for server in servers]
        for client in clients:
            await client.subscribe("room")
        try:
            yield clients[0], clients[1], store
        finally:
            await asyncio.gather(*(client.close() for client in clients))
            await store.close()


@pytest.mark.parametrize("layer", ["lossy pubsub", "lossy core"])
async def test_a_lost_last_message_is_made_good_within_five_seconds(layer, redis_url):
    async with two_processes(layer, redis_url) as (ann, bob, store):
        for number in range(4):
            # The message that says this is lost, and none comes after it that would show the gap.
            change = (
                ["set", "room", "typing", f"ann {number}", None] if number % 2 == 0 else ["clear", "room", "typing"]
            )
            assert await ann.do(["lose", 1], change) == {}
            entries = (await store.snapshot(Topic("", "room"))).entries
            truth = {e.key: (e.client_id, base64.b64encode(e.payload).decode()) for e in entries}
            assert bool(truth) == (number % 2 == 0)
            await ann.do(["has lost"])
            for client in (ann, bob):
                view = client.views["room"]
                await until(lambda view=view, truth=truth: view.entries == truth, CONVERGED_WITHIN)


async def test_the_lost_clears_of_an_owner_that_left_are_made_good_within_five_seconds(redis_url):
    async with two_processes("lossy pubsub", redis_url) as (ann, bob, store):
        assert await ann.do(*(["set", "room", f"k{n}", "ann 1", None] for n in range(50))) == {}
        view = bob.views["room"]
        await until(lambda: len(view.entries) == 50)
        await ann.do(["lose", 1])
        await ann.close()
        await until(lambda: not view.entries, CONVERGED_WITHIN)
        assert not (await store.snapshot(Topic("", "room"))).entries
