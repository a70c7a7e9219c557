"""Where sync callers run what is asynchronous: in a loop that serves connections, or in a thread with its own."""

from __future__ import annotations

import asyncio
import atexit
import os
import selectors
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent import futures
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeVar

from .errors import EphemeralStateError, NotConfigured
from .node import conclude, idle, serving_loop, wait_in
from .stores import Store, get_store

__all__ = ["begin", "wait"]

T = TypeVar("T")

_LINGER: Final = 5.0  # seconds that the loop of our own waits for another call
_LAST_WORDS: Final = 2.0  # seconds that the end of the process waits for it


def wait(start: Callable[[], Coroutine[Any, Any, T]], loop: asyncio.AbstractEventLoop | None = None) -> T:
    """Run a coroutine and wait for it: in the given loop, or in one that serves connections, or in one of our own.

    Raises `RuntimeError` where that would block an event loop.
    """
    loop = loop or serving_loop()
    return _own.wait(start) if loop is None or loop is _own.loop else wait_in(loop, start)


class Begun(NamedTuple):
    """Something that nobody waits for, and the loop that it runs in."""

    future: Future[None]
    loop: asyncio.AbstractEventLoop

    @property
    def is_under_way(self) -> bool:
        return not self.future.done() and self.loop.is_running()


def begin(start: Callable[[], Coroutine[Any, Any, None]]) -> Begun:
    """Run a coroutine that never raises where `wait` would run it, without waiting. The end of the process waits for
    it, for 2 s at most, unless it runs in a loop that serves connections."""
    loop = serving_loop()
    return _own.begin(start) if loop is None or loop is _own.loop else _begin_in(loop, start)


def _begin_in(loop: asyncio.AbstractEventLoop, start: Callable[[], Coroutine[Any, Any, None]]) -> Begun:
    coroutine = start()
    try:
        return Begun(asyncio.run_coroutine_threadsafe(coroutine, loop), loop)
    except RuntimeError:  # the loop has ended just now
        coroutine.close()
        raise


class _OwnLoop:
    """An event loop in a thread, there while it is used: one set of connections for all calls, where a loop per
    call would open one each time."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._calls = 0
        self._last_call = 0.0
        self._begun: set[Future[None]] = set()
        self._used: dict[Store, None] = {}

    def wait(self, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        loop = self._enter()
        try:
            return wait_in(loop, start)
        finally:
            self._leave()

    def begin(self, start: Callable[[], Coroutine[Any, Any, None]]) -> Begun:
        begun = _begin_in(self._enter(), start)
        with self._lock:
            self._begun.add(begun.future)
        begun.future.add_done_callback(self._leave)
        return begun

    def _enter(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self.loop is None:
                self.loop = _new_loop()
                self._used.clear()
                threading.Thread(
                    target=self._run, args=(self.loop, _LINGER), name="ephemeral-state", daemon=True
                ).start()
            self._calls += 1
            with suppress(EphemeralStateError):  # one that cannot be made: the call itself says so
                self._used[get_store()] = None
            return self.loop

    def _leave(self, begun: Future[None] | None = None) -> None:
        with self._lock:
            if begun is not None:
                self._begun.discard(begun)
            self._calls -= 1
            self._last_call = time.monotonic()

    def conclude(self) -> None:
        """The process ends, and the loop's thread is not waited for."""
        if (loop := self.loop) is not None and loop.is_running():
            with self._lock:
                begun = [*self._begun]
            futures.wait(begun, _LAST_WORDS)
            with suppress(Exception):  # nothing that anybody depends on
                asyncio.run_coroutine_threadsafe(conclude(), loop).result(_LAST_WORDS)

    def _run(self, loop: asyncio.AbstractEventLoop, linger: float) -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(self._until_unused(linger))
        loop.close()

    async def _until_unused(self, linger: float) -> None:
        while True:
            await asyncio.sleep(linger / 2)
            with self._lock:
                if self._calls == 0 and idle() and time.monotonic() - self._last_call >= linger:
                    self.loop = None
                    used = [*self._used]
                    break
        await conclude()
        for store in used:  # more than one, if the settings have changed
            await store.close()


def _new_loop() -> asyncio.AbstractEventLoop:
    monkey: Any = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched("threading"):
        return asyncio.new_event_loop()
    if not monkey.is_module_patched("select"):
        raise NotConfigured(
            "gevent has patched threading but not select, so waiting for the store would stop all greenlets: call "
            "gevent.monkey.patch_all(), without select=False, before anything else is imported"
        )
    return _greenlet_loop()


def _greenlet_loop() -> asyncio.AbstractEventLoop:
    # Found now, since gevent may have replaced it after this module was imported.
    class Cooperative(selectors.DefaultSelector):
        """Other greenlets run while this one waits. asyncio knows one running loop for a thread, so meanwhile this
        loop must seem not to run: a greenlet may begin one of its own, or wait for this one."""

        def select(self, timeout: float | None = None) -> Any:
            running = asyncio._get_running_loop()
            asyncio._set_running_loop(None)
            try:
                return super().select(timeout)
            finally:
                asyncio._set_running_loop(running)

    # Not as the project's policy says: while uvloop waits, no greenlet of the thread has its turn.
    return asyncio.SelectorEventLoop(Cooperative())


_own = _OwnLoop()
_inherited: list[_OwnLoop] = []


@atexit.register
def _at_exit() -> None:
    _own.conclude()


def _after_fork() -> None:
    # The child has a copy of the loop, without its thread, and maybe of a lock that nobody will release. Kept: to
    # collect the loop would close, or talk on, sockets that the parent still uses.
    global _own
    _inherited.append(_own)
    _own = _OwnLoop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
