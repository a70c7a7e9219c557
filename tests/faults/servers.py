"""What each server tells an application of its clients' ends and of its own, measured: the table in docs/deployment.md.

`python -m tests.faults.servers [SERVER …]` takes about three minutes, and prints the table in Markdown.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")

import django

django.setup()

from tests.redis_server import shared_url  # noqa: E402

from .asgi import SERVERS  # noqa: E402
from .client import BulkClient  # noqa: E402
from .cluster import Cluster, cluster  # noqa: E402
from .server import Server  # noqa: E402
from .test_ends import Wire  # noqa: E402

__all__ = ["ends_of_clients", "ends_of_the_server", "vanished"]

PATIENCE = 70.0  # seconds that a client which has vanished may seem to be there
ENDING = 35.0  # seconds that a server may take to end


async def after(condition: Callable[[], object], patience: float) -> float | None:
    """How many seconds it takes until the condition is true."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > patience:
            return None
        await asyncio.sleep(0.01)
    return time.monotonic() - began


def told(server: Server) -> list[str]:
    """The codes that the application was told, one for each connection that ended."""
    return re.findall(r"^told [\d.]+ (\S*)$", server.log(), re.MULTILINE)


async def ends_of_clients(here: Cluster, name: str) -> dict[str, str]:
    """The codes that an application is told for each way in which a client leaves."""

    async def close_with(client: BulkClient, code: int) -> None:
        await client._websocket.close(code)

    async def close_without(client: BulkClient) -> None:
        client._websocket.transport.write(b"\x88\x80" + bytes(4))

    async def reset(client: BulkClient) -> None:
        client.abort()

    ways = {
        "close 1000": lambda client: close_with(client, 1000),
        "close 4001": lambda client: close_with(client, 4001),
        "close without a code": close_without,
        "reset": reset,
    }
    server = here.start(name, "noting_alone")
    codes = {}
    for way, leave in ways.items():
        client = await here.connect(server)
        known = len(told(server))
        await leave(client)
        await after(lambda known=known: len(told(server)) > known, 10)
        codes[way] = ", ".join(told(server)[known:]) or "nothing"
    return codes


async def ends_of_the_server(here: Cluster, name: str, number: int) -> str:
    """When the entries of its clients are cleared, what these hear, and when it has ended."""
    watcher = await here.connect(here.start(), "room")
    server = here.start(name, "noting_alone")
    clients = [await here.owner(server, "room", f"{n}") for n in range(5)]
    await after(lambda: len(watcher.views["room"].entries) == 5, 30)
    await asyncio.sleep(1.2)
    server.send(number)
    cleared, closed, ended = await asyncio.gather(
        after(lambda: not watcher.views["room"].entries, ENDING),
        after(lambda: not any(client.alive for client in clients), ENDING),
        after(lambda: not server.running, ENDING),
    )
    codes = sorted({int(client._websocket.close_code or 0) for client in clients})
    return (
        f"cleared {_seconds(cleared)}; closed {_seconds(closed)} with {', '.join(map(str, codes))}; "
        f"ended {_seconds(ended)}"
    )


async def vanished(here: Cluster, name: str) -> str:
    """When the application is told of a client whose host is gone, with the server's own settings."""
    server = here.start(name, "noting_alone", SERVER_PING="20")
    wire = Wire(server.port)
    async with await asyncio.start_server(wire, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        client = await BulkClient.connect(f"ws://127.0.0.1:{port}/")
        wire.is_cut = True
        seconds = await after(lambda: told(server), PATIENCE)
        client.abort()
        for writer in wire.writers:
            writer.transport.abort()
        await client.ended()
    return f"not within {PATIENCE:.0f} s" if seconds is None else f"{seconds:.0f} s"


def _seconds(seconds: float | None) -> str:
    return "never" if seconds is None else "≤ 0.1 s" if seconds <= 0.1 else f"{seconds:.1f} s"


def _title(name: str) -> str:
    server = name.partition("-")[0]
    more = {
        "hypercorn": ", `--workers 0`",
        "hypercorn-worker": " (one worker)",
        "gunicorn": " `-k asgi`",
        "gunicorn-uvicorn": f", uvicorn-worker {version('uvicorn-worker')}",
    }
    return f"{server} {version(server)}{more.get(name, '')}"


async def main(names: list[str]) -> None:
    rows = []
    with shared_url() as url:

        async def of(measure: Callable[..., object], *arguments: object) -> object:
            async with cluster(url) as here:
                return await measure(here, *arguments)

        late = [asyncio.create_task(of(vanished, name)) for name in names]
        await asyncio.wait(late)
        for name, vanishing in zip(names, late, strict=True):
            codes = await of(ends_of_clients, name)
            term, interrupt = [await of(ends_of_the_server, name, n) for n in (signal.SIGTERM, signal.SIGINT)]
            row = [_title(name), *codes.values(), vanishing.result(), term, interrupt]
            rows.append(row)
            print("measured:", row, file=sys.stderr)
    print("| server | close 1000 | close 4001 | no code | reset | host gone | SIGTERM | SIGINT |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")


if __name__ == "__main__":
    # A shell's background job ignores it, and so would the servers: what is ignored is inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    asyncio.run(main(sys.argv[1:] or list(SERVERS)))
