"""A process without connections meets what a dead process has left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator

import pytest

from ephemeral_state import api
from ephemeral_state.state import Set, Topic
from ephemeral_state.stores import get_store
from tests.redis_server import shared_url, unique_prefix

pytestmark = pytest.mark.redis

LEASE = 1.5  # seconds

HOLDER = """
import sys, django
django.setup()
from ephemeral_state import api
with api.hold("room", "held", "x"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def options(settings) -> Iterator[dict[str, object]]:
    with shared_url() as url:
        settings.EPHEMERAL_STATE = {
            "BACKEND": "ephemeral_state.stores.redis.RedisStore",
            "OPTIONS": {"url": url, "prefix": unique_prefix()},
            "LEASE": LEASE,
        }
        yield settings.EPHEMERAL_STATE


@pytest.fixture
def holder(options, tmp_path) -> Iterator[subprocess.Popen[str]]:
    (tmp_path / "holding.py").write_text(f"from tests.settings import *\nEPHEMERAL_STATE = {options!r}\n")
    path = os.pathsep.join([str(tmp_path), os.getcwd()])
    env = os.environ | {"DJANGO_SETTINGS_MODULE": "holding", "PYTHONPATH": path}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():  # noqa: ASYNC110 - of other processes
            await asyncio.sleep(0.02)


async def held() -> bool:
    return "held" in [entry.key for entry in await api.alist("room")]


async def stored() -> list[str]:
    return [entry.key for entry in (await get_store().snapshot(Topic("", "room"))).entries]


@pytest.mark.parametrize("does", ["list", "list_many", "browse", "set"])
async def test_what_a_killed_process_held_is_told_no_more_and_then_cleared(holder, does):
    assert await held()
    holder.send_signal(signal.SIGKILL)

    async def use() -> list[str]:
        if does == "set":
            await api.aset("room", "mine")
            return ["held"] if "held" in await stored() else []
        if does == "list_many":
            return [entry.key for entry in (await api.alist_many(["room"]))["room"]]
        entries = await api.alist("room") if does == "list" else (await api.abrowse()).entries
        return [entry.key for entry in entries]

    async def is_told_no_more() -> bool:
        return "held" not in await use()

    async def is_cleared() -> bool:
        await use()
        return "held" not in await stored()

    await eventually(is_told_no_more)
    await eventually(is_cleared)


async def test_what_a_living_process_holds_stays_though_nobody_else_has_a_lease(holder):
    ends = asyncio.get_running_loop().time() + 2 * LEASE
    while asyncio.get_running_loop().time() < ends:  # its lease would be over twice by then
        assert await held()
    assert "held" in await stored()


async def test_entries_of_clients_without_a_connection_are_told_whatever_is_overdue(options):
    await get_store().beat("dead", 1, "{}")
    await get_store().apply([Set("gone", Topic("", "room"), "k", b"", None, "dead")])
    await api.aset("room", "of nobody")

    async def is_told_no_more() -> bool:
        return [entry.key for entry in await api.alist("room")] == ["of nobody"]

    await eventually(is_told_no_more)
