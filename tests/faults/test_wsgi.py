"""A project under WSGI, in a real gunicorn: it shares Redis with those who hold the sockets, and keeps no loop busy."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect

from tests.waiting import until

from .cluster import Cluster, cluster
from .server import Gunicorn

pytestmark = [pytest.mark.redis, pytest.mark.faults]

PASSWORD = "for this test only"
LIST = "/admin/ephemeral_state/entry/"


@asynccontextmanager
async def served(redis_url: str, folder: Path) -> AsyncIterator[tuple[Cluster, httpx.AsyncClient]]:
    """A cluster, and a gunicorn that is part of it, with a database of its own."""
    async with cluster(redis_url) as here:
        database = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(folder / "db.sqlite3")}
        ours = {"DATABASES": {"default": database}, "ROOT_URLCONF": "tests.faults.wsgi"}
        process = Gunicorn({**here.settings, **ours}, DJANGO_SUPERUSER_PASSWORD=PASSWORD)
        process.prepare("migrate", "--verbosity=0")
        process.prepare("createsuperuser", "--noinput", "--username=admin", "--email=a@example.com")
        here.stack.enter_context(process)
        async with httpx.AsyncClient(base_url=process.url, timeout=120, trust_env=False) as client:
            yield here, client


async def listen(url: str, frames: list[dict[str, str]]) -> None:
    async with connect(url, proxy=None) as socket:
        await socket.send(json.dumps({"_orama": "ephemeral.subscribe", "topic": "room"}))
        async for text in socket:
            frame = json.loads(text)
            if frame["_orama"] != "ephemeral.hello":
                frames.append(frame)


async def test_10_000_sets_in_views_leave_no_connection_thread_or_loop_behind(redis_server, tmp_path):
    async with served(redis_server.url, tmp_path) as (_, client):

        def connections() -> int:
            return len(redis_server.command("CLIENT", "LIST").splitlines())

        async def many(number: int) -> dict[str, int]:
            return (await client.get(f"/many/{number}/")).json()

        alone = connections()
        first = await many(10)
        used = connections()
        assert used > alone
        together = [many(2500) for _ in range(4)]  # as many as gunicorn has threads
        await asyncio.gather(*together)
        last = await many(10)
        assert last["loops"] == first["loops"] == 1
        # gunicorn's threads come as they are needed, and nothing of ours with them.
        assert last["threads"] <= first["threads"] + 3
        # Each of those threads has a client and perhaps a database open; a leak would be thousands.
        assert last["files"] <= first["files"] + 12
        assert connections() <= used + 3
        seen = last

        async def ended() -> None:
            nonlocal seen
            while seen["loops"]:
                await asyncio.sleep(0.5)
                seen = (await client.get("/counts/")).json()

        await asyncio.wait_for(ended(), 30)
        await until(lambda: connections() <= alone)


async def test_what_a_view_says_on_commit_arrives_in_order_or_not_at_all(redis_url, tmp_path):
    async with served(redis_url, tmp_path) as (here, client):
        heard: list[list[dict[str, str]]] = [[] for _ in range(6)]
        urls = [here.start(server).url for server in ("uvicorn", "daphne")]
        listening = [asyncio.create_task(listen(urls[n % 2], frames)) for n, frames in enumerate(heard)]
        await until(lambda: all(heard), 30)
        for frames in heard:
            frames.clear()
        typist = await here.connect(here.start())
        for n in range(20):
            assert await typist.do(["set", "room", "typing", f"x {n}", 60]) == {}
            for text in (f"no{n}", f"yes{n}"):
                answer = (await client.get(f"/say/{text}/")).json()
                # Nothing was told or stored before the transaction ended.
                assert answer == {"before": 1 + n, "committed": text.startswith("yes")}
        expected = [
            kind for n in range(20) for kind in (("set", "typing"), ("set", f"message:yes{n}"), ("clear", "typing"))
        ]
        await until(lambda: all(len(frames) == len(expected) for frames in heard), 10)
        for frames in heard:
            assert [(frame["_orama"].removeprefix("ephemeral."), frame["key"]) for frame in frames] == expected
        for task in listening:
            task.cancel()


async def test_the_admin_under_wsgi_sees_what_others_hold_and_clearing_reaches_their_sockets(redis_url, tmp_path):
    async with served(redis_url, tmp_path) as (here, client):
        servers = [here.start("uvicorn"), here.start("daphne")]
        watcher = await here.connect(servers[0], "room")
        owners = [await here.owner(server, "room", f"k{n}") for n, server in enumerate(servers)]
        await here.settle(5)
        await client.get("/admin/login/")
        form = {"username": "admin", "password": PASSWORD, "next": LIST}

        async def post(url: str, **data: str) -> str:
            token = {"csrfmiddlewaretoken": client.cookies["csrftoken"]}
            response = await client.post(url, data=data | token, follow_redirects=True)
            assert response.status_code == 200
            return response.text

        html = await post("/admin/login/", **form)
        for owner in owners:
            assert owner.client_id in html

        async def processes() -> bool:
            # Which process holds each owner, as soon as those have said so.
            shown = (await client.get(LIST)).text
            return len(set(re.findall(r'field-process"[^>]*><bdi>([\w.-]+:\d+)<', shown))) == 2

        async with asyncio.timeout(10):
            while not await processes():  # noqa: ASYNC110 - it is asked over HTTP
                await asyncio.sleep(0.1)
        first, second = re.findall(r'name="_selected_action" value="([^"]*)"', html)
        await post(LIST, action="clear_selected", post="yes", _selected_action=first)
        await until(lambda: "k0" not in watcher.views["room"].entries, 5)
        assert "k1" in watcher.views["room"].entries
        entry = re.findall(r'field-key"[^>]*><a href="([^"]*)"', (await client.get(LIST)).text)[0]
        await post(LIST + entry, action="disconnect", post="yes", client=second, code="4002")
        await until(lambda: not owners[1].alive, 5)
        await here.settle(5, {})
        overview = (await client.get(LIST + "overview/")).text
        assert re.search(r'number">0</span> Entries', overview)
        assert re.search(r'number">1</span> Processes', overview)  # of the other one the last connection is gone

        # A process that is frozen is shown as such, long before its lease is over.
        await here.owner(servers[1], "room", "k2")
        servers[1].send(signal.SIGSTOP)
        async with asyncio.timeout(10):
            while "does not renew its lease" not in (await client.get(LIST + "overview/")).text:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        servers[1].kill()
