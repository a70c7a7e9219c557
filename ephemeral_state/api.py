"""The verbs for code that is no consumer: views, tasks, commands. `a…` for async code, the others for the rest.

The sync forms run in an event loop of this process that serves connections or, where there is none, in a loop of
their own in a thread that ends when it has had nothing to do for a while. Called from async code they raise
`RuntimeError` instead of blocking its loop.
"""

from __future__ import annotations

import asyncio
import builtins
import hashlib
import os
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, TypeVar

from .errors import EphemeralStateError, InvalidTTL
from .node import current, idle, serving_loop, wait_in
from .protocol import encode_payload, encode_ttl
from .state import Clear, Drop, Entry, Page, Set, Topic, UntilDisconnect
from .stores import Store, get_store

__all__ = [
    "abrowse",
    "aclear",
    "adisconnect",
    "alist",
    "aset",
    "browse",
    "clear",
    "disconnect",
    "list",
    "set",
]

T = TypeVar("T")

_LINGER: Final = 5.0  # seconds that the loop of our own waits for another call


async def aset(
    topic: str,
    key: str,
    payload: object = b"",
    *,
    client: str | None = None,
    namespace: str = "",
    ttl: float | None = None,
) -> None:
    """Set the key and tell every subscriber. On return it is stored.

    `client` is the channel name of the connection to do it for: it owns the key, and the key goes with it. Without
    one nobody's end clears the key, only its `ttl` (seconds, by default `DEFAULT_TTL`) or a `clear`. Raises an
    `EphemeralStateError`, and then nothing was stored or told.
    """
    if isinstance(ttl, UntilDisconnect):
        raise InvalidTTL("UNTIL_DISCONNECT needs a connection whose end would clear the key: set it in its consumer")
    where = Topic(namespace, topic)
    owner = _no_client(where.require(), key) if client is None else client
    await current().write(Set(owner, where, key, encode_payload(payload), encode_ttl(ttl)))


async def aclear(topic: str, key: str, *, client: str | None = None, namespace: str = "") -> None:
    """Clear the key, with reason `explicit`: whoever owns it or, given a `client`, only if that one does."""
    where = Topic(namespace, topic)
    node = current()
    if client is None:
        # Even so the clear names the owner that was seen: a successor's value is not ours to remove.
        snapshot = await node.store.snapshot(where.require())
        owners = [entry.client_id for entry in snapshot.entries if entry.key == key]
        client = owners[0] if owners else _no_client(where, key)
    await node.write(Clear(client, where, key))


async def alist(topic: str, *, namespace: str = "") -> builtins.list[Entry]:
    """What is live in the topic, sorted by key."""
    return builtins.list((await get_store().snapshot(Topic(namespace, topic).require())).entries)


async def adisconnect(client: str) -> None:
    """Clear everything the client owns, in all namespaces, with reason `disconnect`. Its socket stays open."""
    await current().write(Drop(client))


async def abrowse(
    *,
    cursor: str = "",
    limit: int = 100,
    namespace: str | None = None,
    topic: str | None = None,
    search: str = "",
) -> Page:
    """Live entries of all topics, page by page; see `Store.browse`."""
    return await get_store().browse(cursor=cursor, limit=limit, namespace=namespace, topic=topic, search=search)


def set(
    topic: str,
    key: str,
    payload: object = b"",
    *,
    client: str | None = None,
    namespace: str = "",
    ttl: float | None = None,
) -> None:
    """`aset` for sync code."""
    _wait(lambda: aset(topic, key, payload, client=client, namespace=namespace, ttl=ttl))


def clear(topic: str, key: str, *, client: str | None = None, namespace: str = "") -> None:
    """`aclear` for sync code."""
    _wait(lambda: aclear(topic, key, client=client, namespace=namespace))


def list(topic: str, *, namespace: str = "") -> builtins.list[Entry]:
    """`alist` for sync code."""
    return _wait(lambda: alist(topic, namespace=namespace))


def disconnect(client: str) -> None:
    """`adisconnect` for sync code."""
    _wait(lambda: adisconnect(client))


def browse(
    *,
    cursor: str = "",
    limit: int = 100,
    namespace: str | None = None,
    topic: str | None = None,
    search: str = "",
) -> Page:
    """`abrowse` for sync code."""
    return _wait(lambda: abrowse(cursor=cursor, limit=limit, namespace=namespace, topic=topic, search=search))


def _no_client(topic: Topic, key: str) -> str:
    # One name per entry, so that no two of them share one client's cap.
    identity = f"{len(topic.namespace)}:{topic.namespace}{len(topic.name)}:{topic.name}{key}"
    return "api:" + hashlib.blake2b(identity.encode(errors="surrogatepass"), digest_size=12).hexdigest()


def _wait(start: Callable[[], Coroutine[Any, Any, T]]) -> T:
    loop = serving_loop()
    return wait_in(loop, start) if loop is not None else _own.wait(start)


class _OwnLoop:
    """An event loop in a thread, there while it is used: one set of connections for all calls, where a loop per
    call would open one each time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls = 0
        self._pid = 0
        self._used: dict[Store, None] = {}

    def wait(self, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        with self._lock:
            self._calls += 1
            if self._loop is None or self._pid != os.getpid():
                self._pid = os.getpid()  # a fork copies the loop but not its thread
                self._calls = 1
                self._loop = asyncio.new_event_loop()
                self._used.clear()
                threading.Thread(target=self._run, args=(self._loop,), name="ephemeral-state", daemon=True).start()
            with suppress(EphemeralStateError):  # one that cannot be made: the call itself says so
                self._used[get_store()] = None
            loop = self._loop
        try:
            return wait_in(loop, start)
        finally:
            with self._lock:
                self._calls -= 1

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(self._until_unused(loop))
        loop.close()

    async def _until_unused(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            await asyncio.sleep(_LINGER)
            with self._lock:
                if self._calls == 0 and idle():
                    self._loop = None
                    used = [*self._used]
                    break
        for store in used:  # more than one, if the settings have changed
            await store.close()


_own = _OwnLoop()
