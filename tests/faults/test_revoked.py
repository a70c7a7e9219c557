"""Rights that end in one process, while the socket that has them is in another."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.redis_server import unique_prefix

from .server import Server, Worker, configuration
from .worker import serve

pytestmark = [pytest.mark.redis, pytest.mark.faults]

MOST = 5.0  # seconds from before the act until the socket and those who follow the topic have heard; of tens of ms,
# and far below the interval after which rights are asked for anyway
SENT_AWAY = 4403


class Person:
    """A socket of the ready-made consumer, with a session, that follows the room."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self.frames: list[dict[str, Any]] = []
        self.news = asyncio.Event()
        self.reading = asyncio.create_task(self._read())

    @classmethod
    async def come(cls, server: Server, session: str) -> Person:
        cookie = {"Cookie": f"sessionid={session}"}
        person = cls(await connect(server.url, additional_headers=cookie, open_timeout=60, proxy=None))
        await person.say("subscribe", topic="room")
        await person.hears("ephemeral.snapshot")
        return person

    async def say(self, verb: str, **fields: str) -> None:
        await self._socket.send(json.dumps({"_orama": f"ephemeral.{verb}", **fields}))

    async def hears(self, kind: str, **fields: str) -> float:
        """When the first frame of the kind came that has these fields."""
        async with asyncio.timeout(30):
            while True:
                for frame in self.frames:
                    if frame["_orama"] == kind and fields.items() <= frame.items():
                        return frame["at"]
                self.news.clear()
                await self.news.wait()

    async def is_sent_away(self) -> float:
        """When the server has closed it."""
        async with asyncio.timeout(30):
            at = await self.reading
        assert self._socket.close_code == SENT_AWAY
        return at

    async def _read(self) -> float:
        try:
            while True:
                self.frames.append(json.loads(await self._socket.recv()) | {"at": time.monotonic()})
                self.news.set()
        except ConnectionClosed:
            return time.monotonic()

    async def leave(self) -> None:
        await self._socket.close()
        await self.reading


@pytest.mark.parametrize("layer", ["pubsub", "core"])
async def test_revoked_rights_reach_a_socket_of_another_process_at_once(
    layer: str, redis_url: str, tmp_path: Path
) -> None:
    database = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(tmp_path / "db.sqlite3"),
        "OPTIONS": {"timeout": 30},
    }
    settings = configuration(
        layer, store_url=redis_url, layer_url=redis_url, prefix=unique_prefix(), POLICY="tests.faults.asgi.Rooms"
    )
    settings["DATABASES"] = {"default": database}
    with Worker("tests.faults.test_revoked", settings) as office:

        async def do(act: str, user: str = "") -> Any:
            office.tell(act=act, user=user)
            return await asyncio.to_thread(office.answer)

        await do("prepare")
        with Server(settings, application="users") as server:
            watcher = await Person.come(server, await do("hire", "watcher"))
            for act, ends in {
                "log out": True,
                "deactivate": True,
                "deactivate by proxy": True,
                "take rights": False,
                "revoke": False,
            }.items():
                person = await Person.come(server, await do("hire", act))
                await person.say("set", topic="room", key=act)
                await watcher.hears("ephemeral.set", key=act)
                began = await do(act, act)
                cleared = watcher.hears("ephemeral.clear", key=act, reason="disconnect" if ends else "explicit")
                told = person.is_sent_away() if ends else person.hears("ephemeral.revoked", topic="room")
                took = [at - began for at in await asyncio.gather(cleared, told)]
                print(f"{layer}, {act}: cleared after {took[0] * 1000:.0f} ms, told after {took[1] * 1000:.0f} ms")
                assert max(took) < MOST
                await person.leave()
            await watcher.leave()


class Office:
    """What the worker does: it hires people and ends their rights. It has no sockets."""

    async def __call__(self, act: str, user: str) -> Any:
        from django.core.management import call_command

        if act == "prepare":
            return await sync_to_async(call_command)("migrate", verbosity=0)
        if act == "hire":
            return await sync_to_async(self._hire)(user)
        began = time.monotonic()
        await sync_to_async(self._end)(act, user)
        return began

    def _hire(self, name: str) -> str:
        """The key of the session in which the user is logged in."""
        from django.contrib.auth.models import Permission, User
        from django.test import Client

        user = User.objects.create_user(name)
        user.user_permissions.set(Permission.objects.filter(codename__in=("view_user", "change_user")))
        self._browser = Client()
        self._browser.force_login(user)
        key: str = self._browser.session.session_key
        return key

    def _proxy(self) -> Any:
        from django.contrib.auth.models import User

        class Person(User):
            class Meta:
                proxy = True
                app_label = "auth"

        return Person

    def _end(self, act: str, name: str) -> None:
        from django.contrib.auth.models import User

        from ephemeral_state import api

        user = User.objects.get(username=name)
        if act == "log out":
            self._browser.logout()
        elif act == "deactivate":
            user.is_active = False
            user.save()
        elif act == "deactivate by proxy":
            person = self._proxy().objects.get(username=name)
            person.is_active = False
            person.save()
        elif act == "take rights":
            user.user_permissions.clear()
        else:
            User.user_permissions.through.objects.filter(user=user).delete()  # no signal tells of that
            api.revoke(user)


if __name__ == "__main__":
    serve(Office)
