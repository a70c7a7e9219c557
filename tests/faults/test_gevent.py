"""Processes under gevent: what waits for the store is one greenlet, and the others go on."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from celery import Celery

from ephemeral_state.state import Topic
from tests.redis_server import RedisServer
from tests.waiting import until

from .cluster import Cluster, cluster
from .server import CeleryWorker, Gunicorn
from .test_hold import Room

pytestmark = [pytest.mark.redis, pytest.mark.faults]

GONE_WITHIN = 2.0  # seconds after kill -9


def run(here: Cluster, *arguments: str, code: str | None = None) -> str:
    """What a process under gevent says on its output."""
    command = ["-c", code] if code is not None else ["-m", "tests.faults.greenlets", *arguments]
    environment = {"DJANGO_SETTINGS_MODULE": "tests.faults.settings", "FAULTS": json.dumps(here.settings)}
    done = subprocess.run(
        [sys.executable, "-W", "error", *command],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


async def test_what_greenlets_do_with_the_api_is_done(redis_server: RedisServer) -> None:
    async with cluster(redis_server.url) as here:
        said = json.loads(await asyncio.to_thread(run, here))
    assert said == {
        "many_at_once": [["9"], {"room": 20}],
        "others_run_while_one_waits": True,
        "a_time_limit_ends_the_waiting_and_no_more": True,
        "held_in_several_greenlets": [3, 3, 0],
        "receivers_of_signals_may_wait": ["k"],
        "beside_loops_of_the_projects_own": [],
        "refused_in_async_code": True,
        "the_loop_ends_when_nobody_needs_it": True,
    }


async def test_a_project_that_prefers_uvloop_is_none_the_worse_for_it(redis_url: str) -> None:
    pytest.importorskip("uvloop")
    async with cluster(redis_url) as here:
        said = json.loads(await asyncio.to_thread(run, here, "uvloop"))
    assert said == {"many_at_once": [["9"], {"room": 20}]}


async def test_a_process_that_is_patched_by_half_is_told_the_remedy(redis_url: str) -> None:
    code = """
from gevent import monkey
monkey.patch_all(select=False)
import django
django.setup()
from ephemeral_state import api
try:
    api.set("room", "k")
except Exception as error:
    print(error)
"""
    async with cluster(redis_url) as here:
        said = await asyncio.to_thread(run, here, code=code)
    assert "gevent.monkey.patch_all(), without select=False" in said


@asynccontextmanager
async def served(redis_url: str) -> AsyncIterator[tuple[Cluster, httpx.AsyncClient]]:
    async with cluster(redis_url) as here:
        process = Gunicorn({**here.settings, "ROOT_URLCONF": "tests.faults.wsgi"}, worker="gevent")
        here.stack.enter_context(process)
        async with httpx.AsyncClient(base_url=process.url, timeout=120, trust_env=False) as client:
            yield here, client


async def test_views_of_a_gevent_worker_of_gunicorn_wait_side_by_side(redis_server: RedisServer) -> None:
    async with served(redis_server.url) as (here, client):
        await client.get("/many/1/")
        counts = [answer.json() for answer in await asyncio.gather(*(client.get("/many/100/") for _ in range(8)))]
        assert {count["loops"] for count in counts} == {1}
        assert len((await here.store.snapshot(Topic("", "many"))).entries) == 50
        redis_server.command("CLIENT", "PAUSE", 1000)
        waiting = asyncio.create_task(client.get("/many/1/"))
        assert (await client.get("/counts/")).status_code == 200
        assert not waiting.done(), "another view was not answered while one waited for Redis"
        assert (await waiting).status_code == 200


async def test_what_tasks_of_a_gevent_pool_hold_ends_with_them_and_with_kill_9(redis_url: str) -> None:
    with RedisServer() as broker:
        async with cluster(redis_url) as here:
            room = Room(here)
            following = asyncio.create_task(room.follow(here.start().url))
            await until(lambda: room.frames, 20)
            environment: dict[str, Any] = {"BROKER": broker.url}
            worker = here.stack.enter_context(CeleryWorker(here.settings, pool="gevent", **environment))
            app = Celery("tests", broker=broker.url)
            for key in ("first", "second", "third"):
                app.send_task("tests.faults.tasks.work", [key, f"end {key}"])
            await until(lambda: len(room.entries) == 3, 60)
            assert len(set(room.entries.values())) == 3, "each task has an owner of its own"
            assert len(set((await room.stored()).values())) == 1, "all of them are in one process"
            client = await here.connect(here.start())
            assert await client.do(["set", "end second", "now", "x 1", 60]) == {}
            await until(lambda: room.entries.keys() == {"first", "third"}, 10)
            worker.kill()
            killed = time.monotonic()
            await until(lambda: not room.entries, GONE_WITHIN + 1)
            print(f"gone after {time.monotonic() - killed:.2f} s")
            following.cancel()
