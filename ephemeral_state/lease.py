"""Being alive, and noticing who is not: renews this node's lease and judges those of the others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final
from uuid import uuid4

from . import log
from .errors import StoreUnavailable
from .state import Peer, Roll
from .stores.base import Store
from .tracing import housekeeping

__all__ = ["BEAT", "Judge", "Lease", "new_node"]

BEAT: Final = 0.5  # seconds between renewals; a process that is killed is noticed at the second reading after
_LATE: Final = 3 * BEAT  # seconds without an answer after which our own view of the others is not to be trusted
_CALM: Final = 2.0  # seconds that we then give them to renew
_REFRESH: Final = 6 * 3600.0  # seconds; keys of a shared store expire a day after they were last written


class Judge:
    """Decides from consecutive readings which peers are dead. Pure; times in seconds.

    A killed process stops renewing, and its operating system closes its connection to the store: both are seen
    twice. A frozen one keeps the connection, and its lease runs out. If the store lost our own connection too, or
    did not answer for a while, then that is no sign of anybody's death. And a lease has run out only if it was seen
    for a while and not renewed: we may be the first to read after the store was away, or has put its clock forward.
    """

    def __init__(self, *, moves: bool = False) -> None:
        """`moves`: see `Store`. After a move, only who was seen to have a connection to the new place can lose it."""
        self.moves = moves
        self._last: float | None = None
        self._calm_until = 0.0
        self._seen: dict[tuple[str, str], float] = {}
        self._unlinked: set[tuple[str, str]] = set()
        self._seen_linked: set[str] | None = None  # since our own connection was cut, if it ever was

    def dead(self, roll: Roll, now: float) -> list[Peer]:
        """Read a roll, which this node asked for at `now`."""
        if not roll.linked or (self._last is not None and now - self._last > _LATE):
            self._calm_until = now + _CALM
        elif self._last is None:
            self._calm_until = now + 2 * BEAT
        self._last = now
        self._seen = {lease: self._seen.get(lease, now) for lease in map(_lease, roll.peers)}
        if not roll.linked and self.moves:
            self._seen_linked = set()
        elif self._seen_linked is not None:
            self._seen_linked &= {peer.node for peer in roll.peers}
            self._seen_linked |= {peer.node for peer in roll.peers if peer.linked}
        unlinked = {
            _lease(peer) for peer in roll.peers if not peer.linked and roll.linked and self._may_be_killed(peer)
        }
        killed, self._unlinked = unlinked & self._unlinked, unlinked
        if now < self._calm_until:
            return []
        frozen = {_lease(peer) for peer in roll.peers if peer.remaining_ms <= 0}
        frozen = {lease for lease in frozen if now - self._seen[lease] >= _LATE}
        return [peer for peer in roll.peers if _lease(peer) in killed | frozen]

    def _may_be_killed(self, peer: Peer) -> bool:
        return self._seen_linked is None or peer.node in self._seen_linked


def new_node() -> str:
    """A name that no node has had."""
    return uuid4().hex[:16]


def _lease(peer: Peer) -> tuple[str, str]:
    """One of the node's, and not of a later renewal."""
    return peer.node, peer.stamp


class Lease:
    """Runs from `start` to `stop`. Costs the store one round trip per beat, whatever is stored."""

    def __init__(
        self,
        store: Store,
        node: str,
        lease_ms: int,
        info: Callable[[], str],
        *,
        lost: Callable[[], None],
        renamed: Callable[[str], None],
        write_back: Callable[[], None],
        bury: Callable[[Peer], Awaitable[None]],
    ) -> None:
        """`lost` is called when the store is not as the last beat left it, so that it may lack what is owned here, or
        have what is not any more; `renamed` before that, with the new name of a node that was taken for dead;
        `write_back` from time to time, for the store to keep it. `bury` is awaited with each peer found dead."""
        self._store = store
        self._node = node
        self._lease_ms = lease_ms
        self._info = info
        self._lost = lost
        self._renamed = renamed
        self._write_back = write_back
        self._bury = bury
        self._before: Roll | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._trouble = log.Trouble(
            "lease_trouble",
            f"renewing the lease fails, retrying every {BEAT} s: %(error)s",
            "the lease is renewed again",
            traceback=True,
        )
        self.renewed_at = time.monotonic()
        """When the store last took it; before the first time, when this was made."""

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self, *, resign: bool) -> None:
        """End, and give the lease back if the store answers. Without `resign` it runs out, and the other nodes clear
        what this one could not."""
        if self._task is None:
            return
        # Not cancelled: a beat tells which lease is ours, and who was buried must be told.
        self._stopping.set()
        await asyncio.wait([self._task])
        self._task = None
        if resign and self._before is not None:
            with suppress(StoreUnavailable), housekeeping():  # then it runs out
                # Somebody may have joined by now, and the new lease has the same name.
                await self._store.resign(self._node, self._before.stamp)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        judge = Judge(moves=self._store.moves)
        written = loop.time()
        is_reaped = False
        while not self._stopping.is_set():
            started = loop.time()
            before = self._before
            try:
                stamp = before.stamp if before is not None else ""
                with housekeeping():
                    roll = await self._store.beat(self._node, self._lease_ms, self._info(), stamp)
                if roll.reaped:
                    # Whatever it has sent by its name is refused from now on, also what arrives late.
                    self._node, self._before, is_reaped = new_node(), None, True
                    continue
                self.renewed_at = time.monotonic()
                self._trouble.over()
                is_kept = not is_reaped and (before is None or (roll.held and roll.generation == before.generation))
                if is_reaped:
                    is_reaped = False
                    self._renamed(self._node)
                if not is_kept:
                    log.warning("lease_lost", "the lease was lost, writing back what this process owns")
                if not is_kept or not roll.linked:
                    self._lost()
                    written = started
                elif started - written > _REFRESH:
                    self._write_back()
                    written = started
                self._before = roll
                judge.moves = self._store.moves  # it may have just moved for the first time
                await self._bury_all(judge.dead(roll, started))
            except StoreUnavailable:
                pass  # whoever writes meets it too, and says so
            except Exception as error:
                self._trouble.met(error)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(max(loop.time() + 0.05, started + BEAT)):
                    await self._stopping.wait()

    async def _bury_all(self, dead: Sequence[Peer]) -> None:
        for peer in dead:
            if not self._stopping.is_set():
                await self._bury(peer)
