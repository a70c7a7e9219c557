"""Two clients of each app on real servers: one sees the other come, and go, in whatever way it goes."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect

from tests.faults.server import Server

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 60.0
JOIN = {"action": "join", "request_id": 1, "room": "lobby"}
QUERY = {"query": 'subscription { here(room: "lobby") }'}
FIRST_FRAMES: dict[str, list[dict[str, Any]]] = {
    "rooms": [JOIN],
    "streams": [{"stream": "rooms", "payload": JOIN}],
    "graphql": [{"type": "connection_init"}, {"id": "1", "type": "subscribe", "payload": QUERY}],
    "watch": [{"_orama": "ephemeral.subscribe", "topic": "lobby"}],
}


@pytest.fixture(scope="module", params=["uvicorn", "daphne"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    database = str(tmp_path_factory.mktemp("integrations") / "db.sqlite3")
    environment = os.environ | {"DATABASE": database, "DJANGO_SETTINGS_MODULE": "tests.integrations.settings"}
    subprocess.run(
        [sys.executable, "-m", "tests.integrations.apps"], cwd=ROOT, env=environment, check=True, timeout=120
    )
    settings = {
        "DATABASES": {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": database}},
        "EPHEMERAL_STATE": {"POLICY": "tests.integrations.apps.Everything"},
    }
    with Server(settings, request.param, "tests.integrations.apps:application") as server:
        yield server


class Client:
    def __init__(self, app: str, websocket: ClientConnection) -> None:
        self.app = app
        self.websocket = websocket

    async def hears(self, kind: str, key: str | None = None) -> dict[str, Any]:
        """The next frame of the package's that is of this kind, about this key."""
        async with asyncio.timeout(DEADLINE):
            while True:
                frame = json.loads(await self.websocket.recv())
                if self.app == "streams":
                    frame = frame["payload"]
                if frame.get("_orama") == f"ephemeral.{kind}" and key in (None, frame.get("key")):
                    return frame

    async def close(self) -> None:
        await self.websocket.close()

    async def reset(self) -> None:
        connection = self.websocket.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.websocket.transport.abort()


@asynccontextmanager
async def client(server: Server, app: str, user: str) -> AsyncIterator[Client]:
    subprotocols = ["graphql-transport-ws"] if app == "graphql" else None
    url = f"{server.url}ws/{app}/?user={user}"
    async with connect(url, open_timeout=DEADLINE, proxy=None, subprotocols=subprotocols) as websocket:  # type: ignore[arg-type]
        for frame in FIRST_FRAMES.get(app, []):
            await websocket.send(json.dumps(frame))
        yield Client(app, websocket)


@pytest.mark.parametrize("way", ["close", "reset"])
@pytest.mark.parametrize("app", ["rooms", "streams", "graphql", "sync-chat", "async-chat", "status"])
async def test_one_client_sees_another_come_and_go(server: Server, app: str, way: str) -> None:
    name = f"ann-{uuid.uuid4().hex[:8]}"
    # GraphQL's own clients take no frames of others.
    async with client(server, "watch" if app == "graphql" else app, "bob") as bob:
        await bob.hears("snapshot")
        async with client(server, app, name) as ann:
            came = await bob.hears("set", name)
            await getattr(ann, way)()
            went = await bob.hears("clear", name)
    assert (went["client_id"], went["reason"]) == (came["client_id"], "disconnect")
    assert "Traceback" not in server.log()
