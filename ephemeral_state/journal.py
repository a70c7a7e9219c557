"""What one node tells people: counts, the latest transitions, who is connected; and Django's signals."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context
from itertools import islice
from typing import Final

from channels.db import database_sync_to_async
from django.db import close_old_connections

from . import log, signals
from .errors import StoreUnavailable
from .state import Change, Topic
from .stores import Store
from .stores.base import KINDS, Report, Transition
from .tally import tally
from .tracing import housekeeping

__all__ = ["Journal"]

_EVERY: Final = 1.0  # seconds between reports
_MOST: Final = 200  # transitions in one report
_MOST_CAME: Final = 500  # connections in one report; Redis is busy for about 1 µs for each
_REMEMBERED: Final = 5000  # keys whose last owner is remembered, so that setting them again is no transition
_UNSAID: Final = 10_000  # changes that may wait for the receivers of signals


class Journal:
    """Belongs to one event loop. Costs the store one short script a second, and nothing while nothing happens."""

    def __init__(self, store: Store, node: str) -> None:
        self._store = store
        self._node = node
        self._tally = tally()
        self._told = {kind: self._tally[kind] for kind in KINDS}
        self._transitions: deque[tuple[float, Transition]] = deque(maxlen=_MOST)
        self._owners: dict[tuple[Topic, str], str] = {}
        self._here: dict[str, str] = {}
        self._came: dict[str, str] = {}
        self._gone: dict[str, None] = {}
        self._reported = time.monotonic()
        self._reporting: asyncio.Task[None] | None = None
        self._unsaid: deque[Change] = deque()
        self._saying: asyncio.Task[None] | None = None
        self._slow = log.Trouble(
            "signals_trouble",
            f"the receivers of signals are too slow: {_UNSAID} changes wait for them, and more are not told to them",
            "the receivers of signals have caught up, all changes are told to them",
        )

    @property
    def busy(self) -> bool:
        """Receivers of signals are at work."""
        return self._saying is not None

    def note(self, changes: Sequence[Change]) -> None:
        """These changes were made by this node."""
        now = time.monotonic()
        for change in changes:
            self._tally[change.reason or "set"] += 1
            place = (change.topic, change.key)
            if change.reason is None:
                if self._owners.get(place) == change.client_id:
                    continue
                if len(self._owners) >= _REMEMBERED:
                    self._owners.clear()
                self._owners[place] = change.client_id
            else:
                self._owners.pop(place, None)
            what = Transition(0, *place, change.client_id, change.reason, self._node)
            self._transitions.append((now, what))
        if signals.wanted():
            self._say(changes)

    def came(self, client: str, about: str) -> None:
        """A connection is here, of which people may want to know this, JSON."""
        self._gone.pop(client, None)
        self._here[client] = self._came[client] = about

    def went(self, client: str) -> None:
        """The connection has ended."""
        self._here.pop(client, None)
        if self._came.pop(client, None) is None:
            self._gone[client] = None

    def again(self, node: str) -> None:
        """The store has lost who is here, or the node has another name now."""
        self._node = node
        self._came = {**self._here}

    def start(self) -> None:
        """Report from now on by itself."""
        if self._reporting is None:
            self._reporting = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Report a last time."""
        reporting, self._reporting = self._reporting, None
        if reporting is not None:
            reporting.cancel()
            await asyncio.wait([reporting])
        await self._report()

    async def report_if_due(self) -> None:
        """For a node without connections, whose loop may end at any time."""
        if not self._store.shared or time.monotonic() - self._reported >= _EVERY:
            await self._report()

    async def said(self) -> None:
        """Wait until the receivers of signals have heard everything."""
        while self._saying is not None:
            await asyncio.wait([self._saying])

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_EVERY)
            await self._report()

    async def _report(self) -> None:
        self._reported = now = time.monotonic()
        counted = {kind: self._tally[kind] for kind in KINDS}
        counts = {kind: number for kind in KINDS if (number := counted[kind] - self._told[kind])}
        if not (counts or self._came or self._gone):
            return
        transitions = [each._replace(age_ms=(now - at) * 1000) for at, each in self._transitions]
        came = dict(islice(self._came.items(), _MOST_CAME))
        report = Report(self._node, counts, transitions, came, [*self._gone])
        self._told, self._gone = counted, {}
        for client in came:
            del self._came[client]
        self._transitions.clear()
        try:
            with housekeeping():
                await self._store.report(report)
        except StoreUnavailable:  # whoever writes says so; only who is here must not be forgotten
            self._came.update((client, about) for client, about in came.items() if client in self._here)
        except Exception as error:  # nothing that anybody depends on
            log.debug("reporting failed: %r", error)

    # Signals

    def _say(self, changes: Sequence[Change]) -> None:
        room = _UNSAID - len(self._unsaid)
        if len(changes) > room:
            self._slow.met()
        self._unsaid.extend(changes[:room])
        if self._saying is None and self._unsaid:
            # In nobody's context: what the receivers do is no part of the trace of whoever set the first of them.
            self._saying = asyncio.get_running_loop().create_task(self._say_all(), context=Context())

    async def _say_all(self) -> None:
        # A thread of their own: they may use the ORM, and wait for what only this loop can do.
        thread = ThreadPoolExecutor(1, thread_name_prefix="ephemeral-state-signals")
        say = database_sync_to_async(self._say_what_waits, thread_sensitive=False, executor=thread)
        try:
            with suppress(Exception):
                while self._unsaid:
                    await say()
                self._slow.over()
        finally:
            self._saying = None
            thread.shutdown(wait=False)

    def _say_what_waits(self) -> None:
        # One job until nothing waits: a process that ends waits for a job that has begun, and begins no other.
        while self._unsaid:
            changes = [self._unsaid.popleft() for _ in range(len(self._unsaid))]
            with suppress(Exception):  # send_robust has logged what receivers raise
                signals.send(changes)
                close_old_connections()
