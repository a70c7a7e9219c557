"""Two sites on one Redis, which share the channel layer and not the store: neither sees anybody of the other."""

from __future__ import annotations

import asyncio

import pytest

from tests.redis_server import unique_prefix
from tests.waiting import until

from .server import Server, configuration
from .test_store_trouble import Place

pytestmark = [pytest.mark.redis, pytest.mark.faults]


def another_database(settings):
    settings["EPHEMERAL_STATE"]["OPTIONS"]["url"] = settings["EPHEMERAL_STATE"]["OPTIONS"]["url"][:-1] + "1"


def another_prefix(settings):
    settings["EPHEMERAL_STATE"]["OPTIONS"]["prefix"] = unique_prefix()


@pytest.mark.parametrize("separate", [another_database, another_prefix])
async def test_a_site_sees_nobody_of_another_site_on_the_same_redis(separate, redis_server):
    prefix = unique_prefix()
    settings = [
        configuration("pubsub", store_url=redis_server.url, layer_url=redis_server.url, prefix=prefix) for _ in range(2)
    ]
    separate(settings[1])
    with Server(settings[0]) as one, Server(settings[1]) as other:
        production, staging = Place([one], redis_server, prefix), Place([other], redis_server, prefix)
        ann, bob = await production.enter("ann"), await staging.enter("bob")
        try:
            heard = len(bob.frames)
            for n in range(30):
                assert await ann.set(f"{n}") == "ok"
            await until(lambda: staging.said("the channel layer brings changes of another store"))
            assert await bob.set("bobs") == "ok"
            await until(lambda: "bobs" in bob.view.entries)
            await asyncio.sleep(3)  # a beacon, which would take away again what was believed
            assert [frame["key"] for frame in bob.frames[heard:] if "key" in frame] == ["bobs"]
            await production.settled(*(f"{n}" for n in range(30)))
            assert len(staging.log()) == 1, staging.log()
        finally:
            await ann.leave()
            await bob.leave()
