"""What the server processes serve: `/` the ready-made consumer, `/bulk` one that takes many commands in a frame.

`python -m tests.faults.asgi SERVER APPLICATION FD` serves on the listening socket that it inherits as FD, until its
stdin ends. granian takes no socket: it is given the number of a port instead.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.faults.settings")

if "CLOCK" in os.environ:  # this process believes that it is so many seconds later
    _wrong_by = float(os.environ["CLOCK"])
    _time, _monotonic = time.time, time.monotonic
    time.time = lambda: _time() + _wrong_by
    time.monotonic = lambda: _monotonic() + _wrong_by

import django

django.setup()

from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402
from channels.layers import get_channel_layer  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.urls import path  # noqa: E402

from ephemeral_state.asgi import with_lifespan  # noqa: E402
from ephemeral_state.consumers import UNTIL_DISCONNECT, EphemeralStateConsumer, EphemeralStateMixin  # noqa: E402
from ephemeral_state.errors import EphemeralStateError  # noqa: E402
from ephemeral_state.policy import Policy, TopicPermissions  # noqa: E402


class AllowAll(Policy):
    async def can_subscribe(self, scope: Any, namespace: str, topic: str) -> bool:
        return True

    async def can_set(self, scope: Any, namespace: str, topic: str, key: str) -> bool:
        return True


class Rooms(TopicPermissions):
    permissions = {"room": ("auth.view_user", "auth.change_user")}  # noqa: RUF012


class ReadyMade(EphemeralStateConsumer):
    ephemeral_ping_interval = float(os.environ.get("PING", EphemeralStateConsumer.ephemeral_ping_interval))


class Bulk(EphemeralStateMixin, AsyncWebsocketConsumer):
    """A frame is `[ref, [[verb, argument, …], …]]`: all its commands are begun in order, none waits for another.
    The answer `{"ref", "errors"}` counts errors by code. The first frame tells the client's name."""

    ephemeral_ping_interval = 0  # its clients take the frames of their topics, and no others

    async def connect(self) -> None:
        self._task = asyncio.current_task()
        await self.accept()
        await self.send(json.dumps({"client_id": self.channel_name}))

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        ref, commands = json.loads(text_data or "")
        results = await asyncio.gather(*(self._obey(*command) for command in commands), return_exceptions=True)
        errors = [result for result in results if result is not None]
        for error in errors:
            if not isinstance(error, EphemeralStateError):
                raise error
        await self.send(json.dumps({"ref": ref, "errors": Counter(error.code for error in errors)}))

    async def _obey(self, verb: str, *arguments: Any) -> None:
        if verb == "set":
            topic, key, payload, ttl, *grace = arguments
            ttl = UNTIL_DISCONNECT if ttl is None else ttl
            await self.ephemeral_set(topic, key, payload, ttl=ttl, grace=grace[0] if grace else None)
        elif verb == "clear":
            await self.ephemeral_clear(*arguments)
        elif verb == "subscribe":
            await self.ephemeral_subscribe(*arguments)
        elif verb == "unsubscribe":
            await self.ephemeral_unsubscribe(*arguments)
        elif verb == "list":
            await self.ephemeral_list(*arguments)
        elif verb == "lose":
            get_channel_layer().chaos.lose_next = arguments[0]
        elif verb == "has lost":
            assert get_channel_layer().chaos.lose_next == 0
        elif verb == "fail":
            _told()
            raise ValueError(verb)
        elif verb == "hang":
            await asyncio.Event().wait()
        elif verb == "cancel":  # as servers cancel: the consumer's task, from another
            assert self._task is not None
            _told()
            self._task.cancel()
            await asyncio.sleep(60)
        else:
            raise ValueError(verb)


def _told(code: object = "") -> None:
    """Leave a note of when an application was told of an end, and with which code."""
    os.write(2, f"told {time.monotonic():.6f} {code}\n".encode())


def _noting(application: Any) -> Any:
    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        async def noting() -> Any:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                _told(message.get("code"))
            return message

        await application(scope, noting, send)

    return wrapped


application = ProtocolTypeRouter(
    {"websocket": URLRouter([path("", ReadyMade.as_asgi()), path("bulk", Bulk.as_asgi())])}
)


users = AuthMiddlewareStack(application)
lifespan = with_lifespan(application)
noting = _noting(lifespan)
noting_alone = _noting(application)


def _uvicorn(application: str, fd: int) -> None:
    import uvicorn

    lifespan = "on" if application.endswith(":lifespan") else "off"
    ping = float(os.environ.get("SERVER_PING", "600"))
    config = uvicorn.Config(
        application, lifespan=lifespan, log_level="warning", ws_ping_interval=ping, access_log=False
    )
    with socket.socket(fileno=fd) as listening:
        uvicorn.Server(config).run(sockets=[listening])


def _daphne(application: str, fd: int) -> None:
    from daphne.cli import CommandLineInterface

    CommandLineInterface().run(["--fd", str(fd), "-v", "0", application])


def _granian(application: str, port: int) -> None:
    from granian import Granian
    from granian.constants import Interfaces

    Granian(application, address="127.0.0.1", port=port, interface=Interfaces.ASGI, websockets=True).serve()


def _hypercorn(application: str, fd: int, workers: int = 0) -> None:
    from hypercorn.config import Config
    from hypercorn.run import run

    config = Config()
    config.application_path, config.bind, config.workers = application, [f"fd://{fd}"], workers
    run(config)


def _hypercorn_worker(application: str, fd: int) -> None:
    _hypercorn(application, fd, workers=1)


def _gunicorn(application: str, fd: int, worker: str = "asgi") -> None:
    from gunicorn.app.wsgiapp import run

    sys.argv = ["gunicorn", f"--bind=fd://{fd}", f"--worker-class={worker}", "--no-control-socket", application]
    run()


def _gunicorn_uvicorn(application: str, fd: int) -> None:
    _gunicorn(application, fd, "uvicorn_worker.UvicornWorker")


SERVERS = {
    "uvicorn": _uvicorn,
    "daphne": _daphne,
    "granian": _granian,
    "hypercorn": _hypercorn,
    "hypercorn-worker": _hypercorn_worker,
    "gunicorn": _gunicorn,
    "gunicorn-uvicorn": _gunicorn_uvicorn,
}


def _end_with_the_parent() -> None:
    os.read(0, 1)  # not sys.stdin: a process that waits in there cannot end in order
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    # However the tests end: a killed test run must not leave servers behind.
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    SERVERS[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
