"""The processes that hold a lease, and the one rule for the state of each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from ..lease import BEAT
from ..printing import json_object
from ..stores.base import NodeStatus, Store

__all__ = ["Process", "State", "judged", "processes"]

State = Literal["alive", "frozen", "gone", "being cleared"]

_UNLINKED: Final = 2 * BEAT  # seconds without a renewal after which a process without a connection to the store is gone
_FROZEN: Final = 6 * BEAT  # seconds without a renewal after which a process is frozen, if its lease lasts that long


class Process(NamedTuple):
    """A process as it told the store of itself. What it did not tell is `None`."""

    node: str
    host: str | None
    pid: int | None
    age: float | None
    """Seconds since it started."""
    connections: int | None
    entries: int | None
    remaining: float
    """Seconds until its lease ends; below 0 once it has ended."""
    silent: float | None
    """Seconds since it renewed its lease."""
    linked: bool
    """Whether it holds its connection to the store."""
    state: State
    """`alive`. `frozen`: connected to the store, and its lease is not renewed. `gone`: neither connected nor renewed.
    `being cleared`: its lease was taken away, and the entries of its connections are being cleared."""

    @property
    def name(self) -> str:
        """Host and process number."""
        host, pid = ("?" if each is None else each for each in (self.host, self.pid))
        return f"{host}:{pid}"


async def processes(store: Store) -> Sequence[Process]:
    """Raises `StoreUnavailable`."""
    return judged(await store.nodes(), time.time())


def judged(statuses: Sequence[NodeStatus], now: float) -> Sequence[Process]:
    """One `Process` per node. `now` is the wall clock in seconds.

    The store knows when a lease ends. When it was renewed follows from its length, which may differ from process to
    process while `LEASE` is being changed: each process tells its own. A node that came back while its former lease is
    being cleared is what its new lease says.
    """
    leased = {status.node for status in statuses if not status.is_dying}
    return [_process(status, now) for status in statuses if not status.is_dying or status.node not in leased]


def _process(status: NodeStatus, now: float) -> Process:
    info = json_object(status.info)
    host = info.get("host")
    started, lease = _number(info.get("started")), _number(info.get("lease"))
    remaining = status.remaining_ms / 1000
    silent = None if lease is None or status.is_dying else max(0.0, lease - remaining)
    return Process(
        status.node,
        host if isinstance(host, str) else None,
        _count(info.get("pid")),
        None if started is None else max(0.0, now - started),
        _count(info.get("connections")),
        _count(info.get("entries")),
        remaining,
        silent,
        status.linked,
        _state(status, remaining, silent),
    )


def _state(status: NodeStatus, remaining: float, silent: float | None) -> State:
    if status.is_dying:
        return "being cleared"
    is_over = remaining <= 0
    if not status.linked and (is_over or silent is None or silent > _UNLINKED):
        return "gone"
    return "frozen" if is_over or (silent is not None and silent > _FROZEN) else "alive"


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
