"""This process's seat in the cluster: writes for its connections, sweeps on time, lives and is mourned."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from contextvars import Context
from typing import Any, Final, NamedTuple, Protocol, TypeVar
from weakref import WeakKeyDictionary

from . import log
from .belongings import Belongings
from .broadcast import find_layer
from .conf import Settings, get_settings
from .errors import EphemeralStateError, StoreUnavailable
from .hub import Hub
from .journal import Journal
from .lease import Lease, new_node
from .protocol import Event
from .shutdown import Signals, before_reactor_stops
from .state import Change, Clear, Drop, Keep, Outcome, Peer, Set, Topic, Write
from .stores import Store, get_store
from .tracing import housekeeping, span
from .writer import Writer

__all__ = ["Here", "Member", "Node", "conclude", "current", "drain", "here", "idle", "serving_loop", "wait_in"]

T = TypeVar("T")

_SWEEP_SPACING: Final = 0.1  # seconds; many deadlines close together cost one sweep
_JITTER: Final = 0.3  # seconds
_ANSWER_TIMEOUT: Final = 30.0  # seconds; far beyond every bound below, so it only ends what would never end
_IN_A_ROW: Final = 32  # writes that a store answers at once before others have their turn
_RETRY: Final = 0.5  # seconds between attempts to finish what a failing store owes

_nodes: WeakKeyDictionary[asyncio.AbstractEventLoop, Node] = WeakKeyDictionary()
_nodes_lock = threading.Lock()


def current() -> Node:
    """The running event loop's node. Raises `NotConfigured`."""
    loop = asyncio.get_running_loop()
    node = _nodes.get(loop)
    if node is None or (node.idle and node.settings is not get_settings()):
        node = Node(get_settings(), get_store())
        with _nodes_lock:
            _nodes[loop] = node
    return node


def _after_fork() -> None:
    # The child has copies of its parent's loops, which nobody runs, and maybe of a lock that nobody will release.
    global _nodes_lock
    _nodes.clear()
    _nodes_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def idle() -> bool:
    """Whether nothing is under way in the running event loop. Never raises: a loop that only reads needs no node."""
    node = _nodes.get(asyncio.get_running_loop())
    return node is None or node.idle


def serving_loop() -> asyncio.AbstractEventLoop | None:
    """An event loop of this process that has connections, for callers who have no loop of their own."""
    with _nodes_lock:
        nodes = list(_nodes.items())
    for loop, node in nodes:
        if not node.idle and loop.is_running():
            return loop
    return None


class Here(NamedTuple):
    """What this process has, in all its event loops."""

    connections: int
    entries: int
    """That its connections own; of a store of one process, all that it has."""
    topics: int
    """That are followed."""
    lease_age: float | None
    """Seconds since its lease was renewed, of several the one that is oldest; `None` where there is none."""


def here() -> Here:
    """As it is now. For any thread."""
    with _nodes_lock:
        nodes = [node for loop, node in _nodes.items() if not loop.is_closed()]
    held = 0
    with suppress(EphemeralStateError):  # a store that cannot be made has nothing
        held = get_store().held
    ages = [time.monotonic() - lease.renewed_at for node in nodes if (lease := node._lease) is not None]
    return Here(
        sum(len(node._members) for node in nodes),
        held + sum(len(node._belongings or ()) for node in nodes),
        sum(node.hub.topics for node in nodes),
        max(ages, default=None),
    )


async def drain() -> None:
    """The process is about to end: clear what the connections of this loop own, within `SHUTDOWN_TIMEOUT`."""
    node = _nodes.get(asyncio.get_running_loop())
    if node is not None:
        await node.drain()


async def conclude() -> None:
    """The running event loop is about to end, and has no connections: tell people what they have not been told."""
    node = _nodes.get(asyncio.get_running_loop())
    if node is not None:
        await node.signalled()
        await node.journal.stop()


class Member(Protocol):
    """What a node needs of a connection."""

    client_id: str

    process_ends: Callable[[], None] | None
    """To be called when a signal says that the process ends. `None` for what does not end then."""

    @property
    def ended(self) -> bool: ...

    def end(self, *, abnormal: bool) -> asyncio.Task[None]:
        """Begin to clear what it owns."""


class Node:
    """Belongs to one event loop; its hub, lease and timer run while a connection is there."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self.settings = settings
        self.store = store
        self.layer = find_layer(settings.channel_layer)
        self.id = new_node()
        self._belongings = Belongings() if store.shared else None
        self.hub = self._new_hub()
        self._lease: Lease | None = None
        self._restoring: asyncio.Task[None] | None = None
        self._restore_again = False
        self._started = time.time()
        self._said_so = False
        self._has_had_a_lease = False
        self._members: dict[Member, None] = {}
        self._sweeping: asyncio.Task[None] | None = None
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._sweep_due = 0.0  # loop time; uvloop's handle of what is due at once does not tell
        self._longest_grace = 0.0  # seconds, of all that were granted here
        self._graces_end = 0.0  # loop time
        self._in_a_row = 0
        self._owed: dict[tuple[object, ...], Clear | Drop] = {}  # by what a later set makes superfluous
        self._paying: asyncio.Task[None] | None = None
        self._store_trouble = log.Trouble(
            "store_trouble",
            "the store fails, sets are refused and clears wait for it: %(error)s",
            "the store works again",
        )
        self.sockets = 0  # members that end with the process
        self._signals = Signals(self._process_ends)
        self.journal = Journal(store, self.id)
        self._writer = Writer(store, self.layer, self._store_trouble, self._carried_out, self._changed, self._owned_by)
        self._writer.name = self.id

    @property
    def idle(self) -> bool:
        """No connection, and nothing on its way."""
        return not self._members and not self._writer.busy and self._paying is None and not self.journal.busy

    def join(self, member: Member) -> None:
        """A connection is here."""
        self._members[member] = None
        if len(self._members) == 1:
            # In nobody's context: it outlives whoever came first, and is no part of what is traced there.
            Context().run(self._begin)
        if member.process_ends is not None:
            self.sockets += 1
            self._signals.watch()

    def _begin(self) -> None:
        before_reactor_stops(drain)
        self._sweep_in(0)
        self.journal.start()
        if self.store.shared:
            if self._has_had_a_lease:
                # A store that goes back may have the lease that was given back, and clients that have left since. By
                # another name, this node lets it run out.
                self.id = self._writer.name = new_node()
                self.journal.again(self.id)
            self._has_had_a_lease = True
            self._lease = self._new_lease()
            self._lease.start()
        if not self._said_so:
            self._said_so = True
            host, pid = socket.gethostname(), os.getpid()
            log.info("node_began", "node %(node)s is process %(pid)s of %(host)s", node=self.id, pid=pid, host=host)

    async def _process_ends(self) -> None:
        """A signal says so. The server may tell its applications now, late, or not at all."""
        sockets = [member for member in self._members if member.process_ends is not None]
        for member in sockets:
            assert member.process_ends is not None
            member.process_ends()
        await self._end(sockets)

    async def drain(self) -> None:
        """End all connections at once, as far as they own anything: their sockets are the server's to close."""
        await self._end(list(self._members))

    async def _end(self, members: Sequence[Member]) -> None:
        live = sum(not member.ended for member in members)
        ending = [member.end(abnormal=True) for member in members]
        if live:
            log.info(
                "node_ends",
                "the process ends, clearing what its %(connections)s connections own",
                node=self.id,
                connections=live,
            )
        if ending:
            _, late = await asyncio.wait(ending, timeout=self.settings.shutdown_timeout)
            if late:
                log.warning(
                    "node_ends_late",
                    "what %(connections)s connections own was not cleared within %(seconds)s s of the end "
                    "(SHUTDOWN_TIMEOUT); others do it when the lease is over",
                    node=self.id,
                    connections=len(late),
                    seconds=self.settings.shutdown_timeout,
                )
            await self._writer.published()
        await self.signalled()

    async def signalled(self) -> None:
        """Wait until the receivers of signals have heard everything, for `SHUTDOWN_TIMEOUT` at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.settings.shutdown_timeout):
                await self.journal.said()

    async def leave(self, member: Member) -> None:
        """A connection is gone; with the last one, everything of this node ends."""
        del self._members[member]
        if member.process_ends is not None:
            self.sockets -= 1
            if not self.sockets:
                self._signals.unwatch()
        if self._members:
            return
        hub, self.hub = self.hub, self._new_hub()
        lease, self._lease = self._lease, None
        if self._sweep_timer is not None and self._sweep_due > self._graces_end:
            self._sweep_timer.cancel()
            self._sweep_timer = None
        if self._sweeping is not None:
            await self._sweeping
        await self._writer.published()
        await hub.stop()
        if not self._members:
            await self.journal.stop()
        if lease is not None:
            is_clean = not self._owed and self._restoring is None
            await lease.stop(resign=is_clean and self._lease is None)
            await self._writer.published()  # of whom it has just buried
        if self._restoring is not None and not self._members:
            self._restoring.cancel()
            await asyncio.wait([self._restoring])
        if self.idle:
            await self.store.close()

    async def write(self, write: Write) -> Outcome:
        """Store and publish one write, in order with all others of this loop. On return it is stored, and its
        changes are on their way; where no connection keeps the loop running, they are with the channel layer.
        Raises the error that refused it, or `StoreUnavailable`.

        A caller that is cancelled gives up the answer, not the write.
        """
        outcome = await self.outcome(self._writer.put(write))
        if outcome.error is not None:
            raise outcome.error
        await self._told()
        return outcome

    def begin(self, write: Write, *, in_company: bool = False) -> asyncio.Future[Outcome]:
        """`write` for a connection that does something else meanwhile. The future never fails: its outcome says what
        became of the write. `in_company`: it can wait a few ms for what others write."""
        return self._writer.put(write, in_company=in_company)

    async def outcome(self, done: asyncio.Future[Outcome]) -> Outcome:
        """Wait for what became of a write."""
        if done.done():
            self._in_a_row += 1
            if self._in_a_row % _IN_A_ROW == 0:
                await asyncio.sleep(0)  # or whoever writes on and on to a store that answers at once never suspends
        return await done

    async def _told(self) -> None:
        if not self._members:
            await self._writer.published()
            await self.journal.report_if_due()

    async def finish(self, write: Clear | Drop) -> None:
        """Like `write`, but what the store cannot do now is done when it can, unless a later set by the same client is
        carried out before. Raises only what is wrong with the write itself."""
        try:
            await self.write(write)
        except StoreUnavailable:
            self._owed[_what(write)] = write
            if self._belongings is not None:  # not to be written back to a store that comes back empty
                self._belongings.wrote(write, (), 0)
            self._pay_soon()

    def _pay_off(self, write: Write, error: EphemeralStateError | None) -> None:
        if isinstance(write, Clear | Drop) or (isinstance(write, Set) and error is None):
            self._owed.pop(_what(write), None)

    def _pay_soon(self) -> None:
        if self._paying is None:
            self._paying = asyncio.get_running_loop().create_task(self._pay())

    async def _pay(self) -> None:
        try:
            while self._owed or self._writer.unsettled:
                await asyncio.sleep(_RETRY)
                # Ahead of what waits, and while nothing is under way: so no clear comes behind a set that overtook it.
                if self._owed:
                    await self._writer.put_ahead(lambda: list(self._owed.values()))
                    await self._told()
                await self._writer.settle()
        finally:
            self._paying = None
        if self.idle:
            await self.store.close()

    def _owned_by(self, client: str) -> int:
        return self._belongings.count(client) if self._belongings is not None else 0

    def _changed(self, changes: Sequence[Change]) -> None:
        self.journal.note(changes)
        if not self.store.shared:
            # Where other processes write too, what they do comes in between, and until it has come one's own would be
            # early: a busy topic would be read again and again for gaps that are none.
            self.hub.changed(changes)

    def _carried_out(self, writes: Sequence[Write], outcomes: Sequence[Outcome]) -> None:
        now = time.monotonic() * 1000
        soonest, grace_ms, someone_lost = math.inf, 0, False
        if self._writer.unsettled:
            self._pay_soon()
        for write, (changes, error, taken) in zip(writes, outcomes, strict=True):
            if error is None and self._belongings is not None:
                self._belongings.wrote(write, changes, now, taken=taken)
            if self._owed and not isinstance(error, StoreUnavailable):
                self._pay_off(write, error)
            if isinstance(write, Drop):
                someone_lost = someone_lost or write.abnormal
            elif not isinstance(write, Clear | Keep):
                grace_ms = max(grace_ms, write.grace_ms)
                for change in changes:
                    if change.expires_in_ms is not None and change.expires_in_ms < soonest:
                        soonest = change.expires_in_ms
        if soonest < math.inf:
            self._sweep_in(soonest / 1000)
        if grace_ms:
            self._longest_grace = max(self._longest_grace, self.store.limits.grace_ms(grace_ms) / 1000)
        if self._longest_grace and someone_lost:
            # The sweep tells when the next grace ends. If nobody stays here, subscribers elsewhere still wait for it.
            self._graces_end = asyncio.get_running_loop().time() + self._longest_grace + _SWEEP_SPACING
            self._sweep_in(_SWEEP_SPACING)

    # Staying alive

    def _new_hub(self) -> Hub:
        return Hub(
            self.store,
            self.layer,
            self.settings.beacon_interval,
            heard=self._heard,
            went_back=self._went_back,
        )

    def _went_back(self, topics: Collection[Topic]) -> None:
        if self._belongings is not None and self._belongings.owns_in(topics):
            self._restore_soon()

    def _heard(self, topic: Topic, events: Sequence[Event], is_stream: bool) -> None:
        if self._belongings is None:
            return
        if is_stream:  # what a snapshot shows may be of a store that has gone back
            self._belongings.heard(topic, events, time.monotonic() * 1000)
        # Whoever set it may have no connections, and then nobody else would come in time.
        lifetimes = [event.expires_in_ms for event in events if event.reason is None and event.expires_in_ms]
        if lifetimes:
            self._sweep_in(min(lifetimes) / 1000)

    def _new_lease(self) -> Lease:
        lease_ms = round(self.settings.lease * 1000)
        return Lease(
            self.store,
            self.id,
            lease_ms,
            self._info,
            lost=self._lost,
            renamed=self._rename,
            write_back=self._restore_soon,
            bury=self._bury,
        )

    def _rename(self, name: str) -> None:
        """This node was taken for dead: nothing that it has sent by its old name is carried out any more."""
        log.warning(
            "node_reaped",
            "node %(node)s was taken for dead, and goes on as %(successor)s",
            node=self.id,
            successor=name,
        )
        self.id = self._writer.name = name

    def _lost(self) -> None:
        self.hub.doubt()
        self._restore_soon()

    def _info(self) -> str:
        if self._belongings is not None:  # with each beat, so that it is done in time
            self._belongings.expire(time.monotonic() * 1000)
        return json.dumps(
            {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "started": round(self._started, 3),
                "connections": len(self._members),
                "entries": len(self._belongings or ()),
                "lease": self.settings.lease,  # seconds: a process with another setting judges by this one
            }
        )

    async def reap(self, peer: Peer) -> None:
        """Clear what the clients of a dead node own, and tell of it."""
        await self._bury(peer)
        await self._told()

    async def _bury(self, peer: Peer) -> None:
        with span("bury", node=peer.node):
            changes = await self.store.bury(peer)
        if changes:
            log.warning(
                "node_dead",
                "node %(node)s is dead, cleared %(entries)s of its entries",
                node=peer.node,
                entries=len(changes),
            )
        self._writer.publish(changes)
        self._sweep_in(0)  # what has a grace has a deadline now

    def _restore_soon(self) -> None:
        self.journal.again(self.id)
        self._restore_again = True
        if self._restoring is None and self._belongings is not None:
            self._restoring = asyncio.get_running_loop().create_task(self._restore())

    async def _restore(self) -> None:
        """Write back what our connections own. Spread a little: all other nodes do the same now."""
        belongings = self._belongings
        assert belongings is not None
        try:
            await asyncio.sleep(random.random() * _JITTER)
            while self._restore_again:
                self._restore_again = False
                with span("write_back", node=self.id):
                    outcomes = await self._writer.put_ahead(lambda: belongings.restores(time.monotonic() * 1000))
                    failed = any(isinstance(outcome.error, StoreUnavailable) for outcome in outcomes)
                    failed = failed or not await self._take_back(belongings)
                if failed:
                    self._restore_again = True
                    await asyncio.sleep(_RETRY)
                    continue
                log.info(
                    "written_back",
                    "wrote back %(entries)s entries, %(lacking)s of which the store lacked",
                    node=self.id,
                    entries=len(outcomes),
                    lacking=sum(bool(outcome.changes) for outcome in outcomes),
                )
        finally:
            self._restoring = None

    async def _take_back(self, belongings: Belongings) -> bool:
        """Clear what a store that went back to an earlier state has again: of clients that have left, and of those
        here what they have cleared since. False if it fails."""
        try:
            clients = await self.store.clients(self.id)
            here = {member.client_id for member in self._members}
            drops = [self.write(Drop(client, True, self.id)) for client in clients if client not in here]
            await asyncio.gather(*drops)
        except StoreUnavailable:
            return False
        staying = [client for client in clients if client in here]
        kept = await self._writer.put_ahead(lambda: belongings.keeps(staying, self.id, time.monotonic() * 1000))
        return not any(isinstance(outcome.error, StoreUnavailable) for outcome in kept)

    # Expiry

    def _sweep_in(self, seconds: float) -> None:
        """Sweep then, or earlier if an earlier sweep is due already."""
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if not self._members and due > self._graces_end:
            return
        if self._sweep_timer is not None:
            if self._sweep_due <= due:
                return
            self._sweep_timer.cancel()
        self._sweep_due = due
        self._sweep_timer = loop.call_at(due, self._start_sweep, context=Context())

    def _start_sweep(self) -> None:
        self._sweep_timer = None
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().create_task(self._sweep())
        else:  # it may have looked before what is due now was stored
            self._sweep_in(_SWEEP_SPACING)

    async def _sweep(self) -> None:
        next_in = self.settings.sweep_interval
        try:
            with housekeeping():
                sweep = await self.store.sweep()
            self._writer.publish(sweep.changes)
            if sweep.next_in_ms is not None:
                next_in = min(next_in, sweep.next_in_ms / 1000)
                if sweep.changes:
                    next_in = max(next_in, _SWEEP_SPACING if sweep.next_in_ms else 0)
        except StoreUnavailable as error:
            next_in = min(next_in, _RETRY)
            self._store_trouble.met(error)
        except Exception:
            log.exception("sweep_failed", "sweeping failed, trying again in %(seconds)s s", seconds=next_in)
        finally:
            self._sweeping = None
            self._sweep_in(next_in)
        if self._sweep_timer is None and self.idle:
            await self.store.close()


def _what(write: Set | Clear | Drop) -> tuple[object, ...]:
    return (write.client,) if isinstance(write, Drop) else (write.client, write.topic, write.key)


def wait_in(loop: asyncio.AbstractEventLoop, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine in another thread's loop and wait for it.

    Raises `RuntimeError` where waiting would block an event loop, `StoreUnavailable` after 30 s without an answer. Who
    no longer waits, also because of a signal, has cancelled it.
    """
    if _is_in_a_loop():
        raise RuntimeError(
            "called from async code, where waiting would block the event loop: use the async form, as in "
            "`await api.aset(…)` or `async with api.hold(…)`, or call it in a thread by `sync_to_async`"
        )

    async def run() -> T:
        # Called in there: what `start` looks up before its first await may need the running loop.
        return await start()

    future = asyncio.run_coroutine_threadsafe(run(), loop)
    try:
        return future.result(_ANSWER_TIMEOUT)
    except TimeoutError:
        if future.done():
            raise
        future.cancel()
        raise StoreUnavailable(
            f"no answer within {_ANSWER_TIMEOUT:g} s: the event loop that was asked is blocked, or has ended"
        ) from None
    except BaseException:  # a signal, such as Ctrl-C or a time limit: nobody takes the answer any more
        future.cancel()
        raise


def _is_in_a_loop() -> bool:
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return False
    # Under gevent, asyncio takes a loop of any greenlet of the thread for the caller's. Each has an ident of its own.
    runs_in = getattr(loop, "_thread_id", None)
    return runs_in is None or runs_in == threading.get_ident()
