"""A Redis user that may not do everything: killed processes are cleared all the same, and the log names the right."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

import pytest

from ephemeral_state.inspection.processes import processes
from ephemeral_state.management.checkup import Checkup
from ephemeral_state.state import Limits
from ephemeral_state.stores.redis import RedisStore
from tests.redis_server import RedisServer, unique_prefix
from tests.waiting import until

from .server import Server, configuration
from .test_store_trouble import Place

pytestmark = [pytest.mark.redis, pytest.mark.faults]

LEASE = 3.0  # seconds
LIMITED = {
    "without channels": ((), "~* resetchannels +@all"),
    "without PUBSUB": ((), "~* &* +@all -pubsub"),
    "without SUBSCRIBE": ((), "~* &* +@all -subscribe"),
    "PUBSUB renamed": (("--rename-command", "PUBSUB", "X1"), "~* &* +@all"),
    "SUBSCRIBE renamed": (("--rename-command", "SUBSCRIBE", "X2"), "~* &* +@all"),
    "INFO and CONFIG renamed": (("--rename-command", "INFO", "X3", "--rename-command", "CONFIG", ""), "~* &* +@all"),
    "INFO, CONFIG, CLIENT and SCRIPT denied": ((), "~* &* +@all -info -config -client -script"),
}


@pytest.mark.parametrize("limits", LIMITED)
async def test_a_user_that_lacks_a_right_is_told_so_and_a_killed_process_is_cleared(limits):
    options, rules = LIMITED[limits]
    with RedisServer(*options) as store, RedisServer() as layer:
        store.command("ACL", "SETUSER", "limited", "reset", "on", ">pw", *rules.split())
        prefix = unique_prefix()
        url = as_user(store)
        settings = configuration("pubsub", store_url=url, layer_url=layer.url, prefix=prefix, LEASE=LEASE)
        with Server(settings) as one, Server(settings) as other:
            here = Place([one, other], store, prefix)
            ann, bob = await here.enter("ann"), await here.enter("bob", 1)
            assert [await ann.set("hers"), await bob.set("his")] == ["ok"] * 2
            await here.settled("hers", "his")
            await asyncio.sleep(1.5)  # beats of both, for none of them to seem killed
            for redis in (store.url, url):
                await are(["alive", "alive"], redis, prefix)
            other.kill()
            await here.settled("hers", within=LEASE + 3)
            await are(["alive"], url, prefix)
            told = here.said("a right is missing in Redis")
            assert told == (0 if limits.startswith("INFO") else 1), here.log()
            if told:
                (line,) = (line for line in here.log() if "a right is missing" in line)
                assert f"SUBSCRIBE, and PUBSUB NUMSUB, of {{{prefix}:v2:0}}:alive:*" in line
            await ann.leave()


async def test_a_right_that_is_given_later_is_used(redis_server):
    prefix = unique_prefix()
    redis_server.command("ACL", "SETUSER", "limited", "reset", "on", ">pw", "~*", "+@all", "resetchannels", "&other")
    url = as_user(redis_server)
    with RedisServer() as layer:
        settings = configuration("pubsub", store_url=url, layer_url=layer.url, prefix=prefix)
        with Server(settings) as server:
            here = Place([server], redis_server, prefix)
            ann = await here.enter("ann")
            await until(lambda: here.said("a right is missing in Redis"))
            redis_server.command("ACL", "SETUSER", "limited", f"&{{{prefix}:*")
            await until(lambda: here.said("the right is there"), 15)
            (channel,) = redis_server.command("PUBSUB", "CHANNELS", f"{{{prefix}:v2:0}}:alive:*")
            assert channel
            await ann.leave()


def as_user(server: RedisServer) -> str:
    return f"redis://limited:pw@127.0.0.1:{server.port}/0"


async def are(states: list[str], url: str, prefix: str) -> None:
    """Wait for it: a beat may be late where the machine is busy."""
    store = RedisStore(Limits(), url=url, prefix=prefix)
    try:
        end = time.monotonic() + 10
        while (found := [process.state for process in await processes(store)]) != states:
            assert time.monotonic() < end, found
            await asyncio.sleep(0.1)
    finally:
        await store.close()


async def test_the_documented_user_can_do_everything(redis_server):
    guide = Path(__file__).parents[2] / "docs" / "deployment.md"
    (rules,) = re.findall(r"^ACL SETUSER app on >password (.*)$", guide.read_text(encoding="utf-8"), re.MULTILINE)
    prefix = unique_prefix()
    rules = rules.replace("{ephemeral:", f"{{{prefix}:").replace("&asgi*", f"&{prefix}*")
    redis_server.command("ACL", "SETUSER", "limited", "reset", "on", ">pw", *rules.split())
    url = as_user(redis_server)
    settings = configuration("pubsub", store_url=url, layer_url=url, prefix=prefix)
    with Server(settings) as one, Server(settings) as other:
        here = Place([one, other], redis_server, prefix)
        ann, bob = await here.enter("ann"), await here.enter("bob", 1)
        assert [await ann.set("hers"), await bob.set("his"), await ann.set("gone")] == ["ok"] * 3
        assert await ann.clear("gone") == "ok"
        await here.settled("hers", "his")
        await asyncio.sleep(1.5)  # beats of both
        other.kill()
        await here.settled("hers", within=5)  # by its subscription, and not by its lease of 12 s
        assert [line for line in here.log() if " is dead, cleared" not in line] == []
        await ann.leave()
    store = RedisStore(Limits(), url=url, prefix=prefix)
    try:
        assert list(await store.advice()) == []
        checkup = Checkup(store)
        assert {fault.kind async for faults in checkup.look() for fault in faults} <= {"L"}
        assert checkup.keys
    finally:
        await store.close()
