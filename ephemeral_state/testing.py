"""For the tests of projects that use the package: a store of one's own whose clock moves only when told to.

As a context manager, `with fresh_store() as clock:`; or as a pytest fixture, with
`pytest_plugins = ["ephemeral_state.testing"]` in the root conftest.py:

    async def test_typing_is_over_after_five_seconds(ephemeral_store):
        await api.aset("room:1", "typing:7", {"name": "Ann"}, ttl=5)
        assert live("room:1")["typing:7"].json() == {"name": "Ann"}
        ephemeral_store.advance(5)
        assert live("room:1") == {}

`kill`, `drop` and `reconnect` do to a `WebsocketCommunicator` what networks and servers do to a WebSocket.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, Final

from channels.testing import WebsocketCommunicator
from django.conf import settings
from django.test.utils import override_settings

from .conf import SETTING, Settings, get_settings
from .state import Entry, Snapshot, Topic
from .stores import get_store

__all__ = ["ManualClock", "assert_cleared", "drop", "fresh_store", "kill", "live", "reconnect"]

_SWEEP_INTERVAL: Final = 0.05  # seconds of real time; subscribers hear so soon of what `advance` made expire


class ManualClock:
    """A clock in ns that stands still until it is told to move."""

    def __init__(self) -> None:
        self._now = 0

    def __call__(self) -> int:
        return self._now

    def advance(self, seconds: float) -> None:
        """Move on. What has expired is gone from every list at once, and cleared at subscribers within 0.05 s."""
        if seconds < 0:
            raise ValueError(f"a clock does not go back: {seconds} s")
        self._now += round(seconds * 1_000_000_000)


@contextmanager
def fresh_store() -> Iterator[ManualClock]:
    """Replace the store by an empty `MemoryStore` and the channel layer by an in-memory one, and give its clock.

    The project's limits and policy stay. Begin it before the first connection of a test, and end it after the last:
    a connection keeps the store it began with.
    """
    clock = ManualClock()
    ours = {
        "BACKEND": Settings.__dataclass_fields__["backend"].default,
        "OPTIONS": {"clock": clock},
        "SWEEP_INTERVAL": _SWEEP_INTERVAL,
        "PING_INTERVAL": 0,  # or a slow test would hear a ping where it expects something else
    }
    layer = {get_settings().channel_layer: {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
    changed: dict[str, Any] = {
        SETTING: {**getattr(settings, SETTING, {}), **ours},
        "CHANNEL_LAYERS": {**getattr(settings, "CHANNEL_LAYERS", {}), **layer},
    }
    with override_settings(**changed):
        yield clock


def live(topic: str, namespace: str = "") -> dict[str, Entry]:
    """What is live in the topic, by key. For sync and async tests alike."""
    # In a thread, because an async test has a running loop that must not be waited in.
    with ThreadPoolExecutor(1) as thread:
        snapshot = thread.submit(lambda: asyncio.run(_snapshot(Topic(namespace, topic)))).result()
    return {entry.key: entry for entry in snapshot.entries}


async def assert_cleared(topic: str, key: str, *, namespace: str = "", within: float = 1.0) -> None:
    """Fail unless the key is gone within so many seconds of real time."""
    store = get_store()
    deadline = time.monotonic() + within
    while True:
        entries = (await store.snapshot(Topic(namespace, topic))).entries
        found = [entry for entry in entries if entry.key == key]
        if not found:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"{key!r} of {topic!r} is still there after {within} s: {found[0]}")
        await asyncio.sleep(0.005)


async def kill(communicator: WebsocketCommunicator) -> None:
    """The server process of this connection dies: its consumer gets no chance to do anything, `disconnect()` is not
    called, and what it owns is cleared as another process would do it."""
    communicator.stop(exceptions=False)
    if communicator.future is not None:
        await asyncio.wait([communicator.future])


async def drop(communicator: WebsocketCommunicator, code: int = 1006) -> None:
    """The client is gone without a goodbye: its network, its host, its tab. What has a grace lingers."""
    await communicator.disconnect(code=code)


async def reconnect(communicator: WebsocketCommunicator, code: int = 1006) -> WebsocketCommunicator:
    """The client is dropped and comes back as a new connection with the same scope. It owns nothing yet."""
    await drop(communicator, code)
    again = WebsocketCommunicator(communicator.application, "/")
    again.scope = {**communicator.scope}
    connected, refused_with = await again.connect()
    if not connected:
        raise AssertionError(f"the new connection was refused with {refused_with}")
    return again


async def _snapshot(topic: Topic) -> Snapshot:
    store = get_store()
    try:
        return await store.snapshot(topic)
    finally:
        await store.close()


with suppress(ImportError):
    import pytest

    @pytest.fixture
    def ephemeral_store() -> Iterator[ManualClock]:
        """`fresh_store` for the length of a test."""
        with fresh_store() as clock:
            yield clock
