"""Server processes that share one store, who is connected to them, and what is really stored."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import ExitStack, asynccontextmanager
from typing import Any

from ephemeral_state.errors import StoreUnavailable
from ephemeral_state.state import Limits, Topic
from ephemeral_state.stores.redis import RedisStore
from tests.redis_server import unique_prefix

from .client import BulkClient, View
from .server import Server, configuration

__all__ = ["Cluster", "cluster"]

Entries = dict[str, tuple[str, str]]


class Cluster:
    """See `cluster`. `clients` says to which server each is connected; `store` is beside them, and only reads."""

    def __init__(self, url: str, **settings: Any) -> None:
        prefix = unique_prefix()
        self.settings = configuration("pubsub", store_url=url, layer_url=url, prefix=prefix, **settings)
        self.store = RedisStore(Limits(), url=url, prefix=prefix, timeout=30)
        self.clients: dict[BulkClient, Server] = {}
        self.stack = ExitStack()

    def start(self, server: str = "uvicorn", application: str = "application", **environment: str) -> Server:
        return self.stack.enter_context(Server(self.settings, server, application, **environment))

    async def connect(self, server: Server, *topics: str) -> BulkClient:
        client = await BulkClient.connect(server.url)
        self.clients[client] = server
        if topics:
            await client.subscribe(*topics)
        return client

    async def owner(self, server: Server, topic: str, *keys: str, grace: float | None = None) -> BulkClient:
        """A new client that has set the keys, until it disconnects."""
        client = await self.connect(server)
        payload = f"{client.client_id} 1"
        assert await client.do(*(["set", topic, key, payload, None, grace] for key in keys)) == {}
        return client

    async def truth(self, topic: str = "room") -> Entries:
        try:
            entries = (await self.store.snapshot(Topic("", topic))).entries
        except StoreUnavailable:  # it was hung up on
            entries = (await self.store.snapshot(Topic("", topic))).entries
        return {e.key: (e.client_id, base64.b64encode(e.payload).decode()) for e in entries}

    async def owners(self, topic: str = "room") -> dict[str, str]:
        return {key: owner for key, (owner, _) in (await self.truth(topic)).items()}

    def views(self) -> Iterable[View]:
        """Of all who are still connected. Raises what a client found wrong."""
        for client in self.clients:
            if client.alive:
                yield from client.views.values()
            elif self.clients[client].running:
                client.raise_what_is_wrong()

    async def settle(self, within: float, expected: dict[str, str] | None = None) -> float:
        """Wait until every view equals the store, and the owners of "room" are as expected. Returns how long."""
        began = time.monotonic()
        while True:
            views = list(self.views())
            truths = {topic: await self.truth(topic) for topic in {"room", *(view.topic for view in views)}}
            owners = {key: owner for key, (owner, _) in truths["room"].items()}
            wrong = [view for view in views if view.entries != truths[view.topic]]
            took = time.monotonic() - began
            if not wrong and (expected is None or owners == expected):
                return took
            assert took < within, (
                f"after {within} s the owners are {owners}, expected were {expected}, and {len(wrong)} views differ: "
                + "; ".join(f"{view.entries} instead of {truths[view.topic]}" for view in wrong[:2])
            )
            await asyncio.sleep(0.02)


@asynccontextmanager
async def cluster(url: str, **settings: Any) -> AsyncIterator[Cluster]:
    """Ends everything that was started. `settings` go into `EPHEMERAL_STATE`."""
    it = Cluster(url, **settings)
    with it.stack:
        try:
            yield it
        finally:
            await asyncio.gather(*(client.close() for client in it.clients if it.clients[client].running))
            await it.store.close()
