"""Being told that the process ends, where the server does not tell the application, or does not wait for it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from types import FrameType
from typing import Any, Final

__all__ = ["Signals", "before_reactor_stops"]

_installed: list[bool] = []


def before_reactor_stops(callback: Callable[[], Awaitable[None]]) -> None:
    """Have Twisted wait for the callback before its reactor stops; once per process, and only under daphne.

    daphne has no lifespan protocol, and its own shutdown cancels all consumers but waits for the first of them only.
    """
    if _installed or "daphne.server" not in sys.modules:
        return
    _installed.append(True)
    from twisted.internet import defer, reactor

    def wait() -> defer.Deferred[None]:
        return defer.Deferred.fromFuture(asyncio.ensure_future(callback()))

    reactor.addSystemEventTrigger("before", "shutdown", wait)  # type: ignore[arg-type]


Handler = Callable[[int, FrameType | None], Any]

# SIGQUIT is what gunicorn sends its workers when it is interrupted.
_NUMBERS: Final = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGQUIT", "SIGBREAK") if hasattr(signal, name)
]


class Signals:
    """Hears the signals that end the process, and hands each on to the handler that was there before.

    Only handlers written in Python are listened in on: a signal that the system or nobody handles stays as it is. A
    handler that somebody installs later is never replaced; one that calls ours goes on doing so.
    """

    def __init__(self, ended: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """`ended` is started in the loop that called `watch` when a signal has come. A server that does not run the
        loop to its end (granian) is made to wait for it."""
        self._ended = ended
        self._watching: dict[int, tuple[Handler, Handler]] = {}  # ours and the one before it
        self._task: asyncio.Task[None] | None = None
        self._waits_at_exit = False

    def watch(self) -> None:
        """From now on, if the running loop is the main thread's: only there signals are handled."""
        if self._watching or threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()
        for number in _NUMBERS:
            before = signal.getsignal(number)
            if callable(before):
                # A new one each time: one that was taken away, but is called by a later handler, only hands on.
                ours = partial(self._heard, loop, os.getpid(), before)
                self._watching[number] = ours, before
                _handle(number, ours)

    def unwatch(self) -> None:
        """Put the handlers back that were there before, where nobody has installed others since."""
        watching, self._watching = self._watching, {}
        if threading.current_thread() is threading.main_thread():
            for number, (ours, before) in watching.items():
                if signal.getsignal(number) is ours:
                    _handle(number, before)

    def _heard(
        self, loop: asyncio.AbstractEventLoop, pid: int, before: Handler, number: int, frame: FrameType | None
    ) -> None:
        if self._watching and pid == os.getpid() and not loop.is_closed():  # a fork inherits handlers
            loop.call_soon_threadsafe(self._begin, loop)
        before(number, frame)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._task is not None and not self._task.done():
            return
        self._task = loop.create_task(self._ended())
        if "granian" in sys.modules and not self._waits_at_exit:
            # It stops the loop at once. Its workers are processes of multiprocessing, which run no atexit.
            from multiprocessing.util import Finalize

            self._waits_at_exit = True
            Finalize(None, self._finish, args=(loop,), exitpriority=100)

    def _finish(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._task is not None and not loop.is_closed() and not loop.is_running():
            loop.run_until_complete(asyncio.wait([self._task]))


def _handle(number: int, handler: Handler) -> None:
    signal.signal(number, handler)
    if hasattr(signal, "siginterrupt"):
        signal.siginterrupt(number, False)  # as event loops have it
