"""An event loop that takes a step when the world says so, and whose time is the world's."""

from __future__ import annotations

import asyncio
import heapq
import sys
import threading
from asyncio import events
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .process import Process

__all__ = ["ProcessLoop"]


class ProcessLoop(asyncio.BaseEventLoop):
    """The loop of one process of the cluster. Bytes from the network come as `arrived` callbacks."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process
        self.set_debug(False)
        self._clock_resolution = 1e-9
        self._arrivals: list[asyncio.Handle] = []
        self.set_exception_handler(process.world.loop_exception)

    def time(self) -> float:
        return self.process.world.now

    def arrived(self, callback: Callable[..., Any], *args: Any) -> None:
        """The network has something for this process; it sees it when it takes its next step."""
        self._arrivals.append(asyncio.Handle(callback, args, self, Context()))

    @property
    def next_at(self) -> float:
        """When it has something to do: now, at its earliest timer, or never."""
        if self._ready or self._arrivals:
            return 0.0
        scheduled = self._scheduled
        while scheduled and scheduled[0]._cancelled:
            self._timer_cancelled_count -= 1
            heapq.heappop(scheduled)._scheduled = False
        return scheduled[0]._when if scheduled else float("inf")

    def due(self) -> str:
        """What it would do now, for people."""
        return ", ".join(repr(each)[:300] for each in [*self._arrivals, *self._ready, *self._scheduled[:1]])

    def step(self) -> None:
        """One turn, as `BaseEventLoop._run_once` has it: what has arrived, then timers, then all callbacks so far."""
        before = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=self._asyncgen_firstiter_hook, finalizer=self._asyncgen_finalizer_hook)
        self._thread_id = threading.get_ident()
        events._set_running_loop(self)
        try:
            self._run_once()
        finally:
            events._set_running_loop(None)
            self._thread_id = None
            sys.set_asyncgen_hooks(*before)

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled
        if self._arrivals:
            ready.extend(self._arrivals)
            self._arrivals.clear()
        end = self.time() + self._clock_resolution
        while scheduled and scheduled[0]._when < end:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            if handle._cancelled:
                self._timer_cancelled_count -= 1
            ready.append(handle)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()

    def __del__(self, _warn: Any = None) -> None:
        """It has nothing to close."""

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        raise RuntimeError(f"a thread would be no part of the simulation: {func}")

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        """To Redis: there is nothing else to connect to."""
        protocol = protocol_factory()
        transport = await self.process.world.network.connect(self.process, protocol)
        return transport, protocol
