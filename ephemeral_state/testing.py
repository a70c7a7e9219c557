"""For the tests of projects that use the package: a store of one's own whose clock moves only when told to.

As a context manager, `with fresh_store() as clock:`; or as a pytest fixture, with
`pytest_plugins = ["ephemeral_state.testing"]` in the root conftest.py:

    async def test_typing_is_over_after_five_seconds(ephemeral_store):
        await api.aset("room:1", "typing:7", {"name": "Ann"}, ttl=5)
        assert live("room:1")["typing:7"].json() == {"name": "Ann"}
        ephemeral_store.advance(5)
        assert live("room:1") == {}

`kill`, `drop` and `reconnect` do to a `WebsocketCommunicator` what networks and servers do to a WebSocket. `app_frames`
lets it hand out the project's own frames only, for tests that were written before a consumer had the mixin.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

from channels.testing import WebsocketCommunicator
from django.conf import settings
from django.test.utils import override_settings

from .conf import SETTING, Settings, get_settings
from .state import Entry, Snapshot, Topic
from .stores import get_store

__all__ = [
    "AppCommunicator",
    "ManualClock",
    "app_frames",
    "assert_cleared",
    "drop",
    "ephemeral_frame",
    "fresh_store",
    "kill",
    "live",
    "reconnect",
]

Communicator = TypeVar("Communicator", bound=WebsocketCommunicator)

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


def app_frames(communicator: Communicator) -> Communicator:
    """Let the communicator hand out what the project's own code sends, and nothing of this package: as if the consumer
    had no mixin. `ephemeral_frame` has the rest. Returns the communicator, which may be of any subclass."""
    if communicator in _frames:
        return communicator
    queue, ours = communicator.output_queue, asyncio.Queue[dict[str, Any]]()
    put = queue.put_nowait

    def sort(message: Any) -> None:
        frame = _frame_of_ours(message)
        if frame is None:
            put(message)
        else:
            ours.put_nowait(frame)

    before = [queue.get_nowait() for _ in range(queue.qsize())]
    queue.put_nowait = sort  # `put` calls it too, and the consumer has that already, if it runs
    for message in before:
        sort(message)
    _frames[communicator] = ours
    return communicator


class AppCommunicator(WebsocketCommunicator):
    """`WebsocketCommunicator` with `app_frames`. A project's tests import it under that name, and stay as they are."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        app_frames(self)


async def ephemeral_frame(
    communicator: WebsocketCommunicator, kind: str | None = None, *, timeout: float = 1.0
) -> dict[str, Any]:
    """The next frame of ours that `app_frames` kept apart; with a `kind`, such as `"set"`, the next of that kind, and
    those before it are passed over. The consumer lives on if none comes within so many seconds."""
    if communicator not in _frames:
        raise ValueError("this communicator hands out all frames: give it to app_frames() first")
    try:
        async with asyncio.timeout(timeout):
            while True:
                frame = await _frames[communicator].get()
                if kind is None or frame["_orama"] == f"ephemeral.{kind}":
                    return frame
    except TimeoutError:
        wanted = "frame" if kind is None else f"ephemeral.{kind}"
        raise AssertionError(f"no {wanted} came within {timeout} s") from None


_frames: WeakKeyDictionary[WebsocketCommunicator, asyncio.Queue[dict[str, Any]]] = WeakKeyDictionary()


def _frame_of_ours(message: Mapping[str, Any]) -> dict[str, Any] | None:
    text = message.get("text") if message["type"] == "websocket.send" else None
    if not text or '"_orama"' not in text:
        return None
    try:
        frame = json.loads(text)
    except ValueError:
        return None
    if isinstance(frame, dict) and frame.keys() == {"stream", "payload"}:  # of a consumer behind a multiplexer
        frame = frame["payload"]
    is_ours = isinstance(frame, dict) and str(frame.get("_orama")).startswith("ephemeral.")
    return frame if is_ours else None


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
    if communicator in _frames:
        app_frames(again)
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
