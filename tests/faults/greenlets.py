"""A process under gevent, as a worker of Celery's pool or of gunicorn is. Says on its output how each thing went."""

# ruff: noqa: E402 - gevent patches before anything else is imported
from gevent import monkey

monkey.patch_all()

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import django
import gevent
import redis
from asgiref.sync import async_to_sync

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.faults.settings")
django.setup()

from django.conf import settings

from ephemeral_state import api, background
from ephemeral_state.signals import entry_set

ACTS: dict[str, Callable[[], Any]] = {}
ROOM = "room"


def act(function: Callable[[], Any]) -> Callable[[], Any]:
    ACTS[function.__name__] = function
    return function


def pause(ms: int) -> None:
    """Redis answers nobody for so long."""
    with redis.Redis.from_url(settings.EPHEMERAL_STATE["OPTIONS"]["url"]) as client:
        client.execute_command("CLIENT", "PAUSE", ms)


@act
def many_at_once() -> Any:
    def one(n: int) -> None:
        for m in range(10):
            api.set(ROOM, f"k{n}", f"{m}", ttl=60)

    with gevent.Timeout(60):
        gevent.joinall([gevent.spawn(one, n) for n in range(20)], raise_error=True)
    return sorted({entry.payload.decode() for entry in api.list(ROOM)}), api.count([ROOM])


@act
def others_run_while_one_waits() -> Any:
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        while True:
            gevent.sleep(0.01)
            ticks += 1

    ticking = gevent.spawn(tick)
    pause(500)
    api.set(ROOM, "waited for", ttl=60)
    ticking.kill()
    return ticks >= 10


@act
def a_time_limit_ends_the_waiting_and_no_more() -> Any:
    api.count([ROOM])
    pause(1000)
    try:
        with gevent.Timeout(0.2):
            api.set(ROOM, "given up", ttl=60)
    except gevent.Timeout:
        api.set(ROOM, "after that", ttl=60)
        return "after that" in {entry.key for entry in api.list(ROOM)}
    return "was not ended"


@act
def held_in_several_greenlets() -> Any:
    together = gevent.event.Event()
    inside: list[str] = []

    def hold(n: int) -> None:
        with api.hold("held", f"k{n}") as held:
            inside.append(held.client_id)
            together.wait()
            held.set("done")

    holding = [gevent.spawn(hold, n) for n in range(3)]
    while len(inside) < 3:
        gevent.sleep(0.01)
    gevent.sleep(2)  # beats of the lease
    during = api.count(["held"])["held"]
    together.set()
    gevent.joinall(holding, raise_error=True)
    return during, len(set(inside)), api.count(["held"])["held"]


@act
def receivers_of_signals_may_wait() -> Any:
    heard: list[str] = []

    def receive(key: str, **_: Any) -> None:
        gevent.sleep(0.01)
        heard.append(key)

    entry_set.connect(receive)
    try:
        api.set("told", "k", ttl=60)
        with gevent.Timeout(10):
            while not heard:
                gevent.sleep(0.01)
    finally:
        entry_set.disconnect(receive)
    return heard


@act
def beside_loops_of_the_projects_own() -> Any:
    def runs_a_loop() -> None:
        asyncio.run(asyncio.sleep(0.5))

    looping = gevent.spawn(runs_a_loop)
    gevent.sleep(0.1)  # now it is running
    api.set(ROOM, "beside a loop", ttl=60)
    looping.get()
    async_to_sync(api.aset)(ROOM, "in a loop", ttl=60)
    return sorted({"beside a loop", "in a loop"} - {entry.key for entry in api.list(ROOM)})


@act
def refused_in_async_code() -> Any:
    async def wrong() -> str:
        try:
            api.set(ROOM, "wrong", ttl=60)
        except RuntimeError as error:
            return str(error)
        return "no error"

    return "use the async form" in asyncio.run(wrong())


@act
def the_loop_ends_when_nobody_needs_it() -> Any:
    deadline = time.monotonic() + 20
    while background._own.loop is not None and time.monotonic() < deadline:
        gevent.sleep(0.05)
    ended = background._own.loop is None
    api.set(ROOM, "with another one", ttl=60)
    return ended


def main() -> None:
    if sys.argv[1:] == ["uvloop"]:
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
        done = {"many_at_once": many_at_once()}
    else:
        done = {}
        for name, doing in ACTS.items():
            try:
                done[name] = doing()
            except Exception as error:
                done[name] = repr(error)
    print(json.dumps(done))


if __name__ == "__main__":
    main()
