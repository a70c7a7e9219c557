"""Nodes whose lease is over, as seen by a process that holds no connections: views, tasks, commands.

Such a process has no lease, and so no failure detector of its own. Where every other process is gone, it is the only
one that can notice. It looks at the leases at most once a second, when it uses the store anyway: it tells no entries of
a node whose lease is over, and reaps the node if it sees the same lease again later.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakKeyDictionary

from .errors import StoreUnavailable
from .node import current, serving_loop
from .state import Entry, Peer
from .stores import Store, get_store

__all__ = ["live", "look"]

_EVERY: Final = 1.0  # seconds between readings of the leases
_SETTLE: Final = 1.5  # seconds that a node has to renew its lease: the store may have been away, and be back just now


@dataclass
class _Readings:
    at: float = 0.0
    over: frozenset[str] = frozenset()
    since: dict[tuple[str, str], float] = field(default_factory=dict)
    """When a lease was first seen to be over, by node and stamp."""


_readings: WeakKeyDictionary[Store, _Readings] = WeakKeyDictionary()


async def look() -> frozenset[str]:
    """The nodes whose lease is over. Reaps those that were over before. Never raises `StoreUnavailable`."""
    store = get_store()
    if not store.shared or serving_loop() is not None:  # those with connections have a failure detector
        return frozenset()
    readings, now = _readings.setdefault(store, _Readings()), time.monotonic()
    if readings.at and now - readings.at < _EVERY:
        return readings.over
    readings.at = now
    try:
        nodes = [node for node in await store.nodes() if node.remaining_ms < 0]
        readings.over = frozenset(node.node for node in nodes)
        readings.since = {(node.node, node.stamp): readings.since.get((node.node, node.stamp), now) for node in nodes}
        for node in nodes:
            if now - readings.since[node.node, node.stamp] >= _SETTLE:
                await current().reap(Peer(node.node, node.remaining_ms, node.linked, node.stamp))
    except StoreUnavailable:  # the caller meets it too
        pass
    return readings.over


async def live(entries: Sequence[Entry], over: frozenset[str]) -> Sequence[Entry]:
    """Those whose owner is not connected to one of these nodes."""
    if not over or not entries:
        return entries
    nodes = await get_store().homes([*{entry.client_id for entry in entries}])
    return [entry for entry in entries if nodes.get(entry.client_id) not in over]
