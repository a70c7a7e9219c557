"""`manage.py demo`: the example, from nothing to two windows that see each other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from argparse import ArgumentParser
from importlib.util import find_spec
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.management import BaseCommand, CommandError, call_command


class Command(BaseCommand):
    help = "Run the example chat: makes the database and an admin login, and serves until Ctrl-C."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets others on your network in")
        parser.add_argument("--port", type=int, default=8000)
        parser.add_argument("--server", choices=("daphne", "uvicorn"), default="daphne")

    def handle(self, *, host: str, port: int, server: str, **options: Any) -> None:
        serve = {"daphne": daphne, "uvicorn": uvicorn}[server]
        if find_spec(server) is None:  # said before anything is printed that would not be true
            remedy = {"daphne": "daphne", "uvicorn": "'uvicorn[standard]'"}[server]
            raise CommandError(f"{server} is not installed: pip install {remedy}")
        listener = listen(host, port)
        shown = lan_address() if host == "0.0.0.0" else host
        settings.ALLOWED_HOSTS = [*settings.ALLOWED_HOSTS, host, shown, socket.gethostname()]
        call_command("migrate", verbosity=0, interactive=False)
        self.check(databases=["default"])  # with the databases asks the store, too: a Redis that is away is said here
        password = reset_admin()
        self.stdout.write(
            f"\n  Chat      http://{shown}:{listener.getsockname()[1]}/\n"
            f"  Admin     http://{shown}:{listener.getsockname()[1]}/admin/\n"
            f"  Username  admin\n"
            f"  Password  {password}\n\n"
            f"Open the chat in two windows. State is kept in {'Redis' if settings.REDIS_URL else 'memory'}, "
            f"{server} serves. Ctrl-C ends.\n"
        )
        self.stdout.flush()

        from project.asgi import application  # now, since it reads ALLOWED_HOSTS

        serve(ASGIStaticFilesHandler(application), listener)
        self.stdout.write("Bye.")


def listen(host: str, port: int) -> socket.socket:
    """Taken before anything is printed, so that what is printed is true."""
    if not 0 <= port <= 65535:
        raise CommandError(f"--port {port} is not from 0 to 65535")
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if os.name == "posix":  # elsewhere it would let two servers share a port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(512)
    except OSError as error:
        listener.close()
        raise CommandError(f"cannot listen on {host}:{port}: {error.strerror} (--port takes another)") from None
    return listener


def reset_admin() -> str:
    """The password of a superuser `admin`, new each time: the one that is printed works."""
    password = secrets.token_urlsafe(9)
    user, _ = get_user_model().objects.get_or_create(username="admin")
    user.is_active = user.is_staff = user.is_superuser = True
    user.set_password(password)
    user.save()
    return password


def lan_address() -> str:
    """This machine's address as its network sees it. Asks the routing table; no packet leaves."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def daphne(application: Any, listener: socket.socket) -> None:
    from daphne.endpoints import build_endpoint_description_strings
    from daphne.server import Server, twisted_loop

    endpoints = build_endpoint_description_strings(file_descriptor=listener.fileno())
    Server(application, endpoints=endpoints, websocket_handshake_timeout=10).run()
    # daphne may stop without having ended its connections, young ones above all: they clear what they own.
    tasks = asyncio.all_tasks(twisted_loop)
    for task in tasks:
        task.cancel()
    if tasks:
        twisted_loop.run_until_complete(asyncio.wait(tasks, timeout=5))


def uvicorn(application: Any, listener: socket.socket) -> None:
    from uvicorn import Config, Server

    config = Config(application, log_level="warning", timeout_graceful_shutdown=5)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after a clean end
        Server(config).run(sockets=[listener])
