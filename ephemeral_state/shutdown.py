"""Being told that the process ends, where the server does not tell: under daphne."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

__all__ = ["before_reactor_stops"]

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
