"""`processes`: who holds a lease, and how they are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from ..conf import get_settings
from ..errors import NotConfigured
from ..lease import BEAT
from ..printing import json_object
from ..stores import get_store
from ..stores.base import NodeStatus
from .terminal import columns, json_line, shown, time_left

__all__ = ["show"]

_LATE: Final = 3 * BEAT  # seconds without a renewal that make a process frozen
_HEAD: Final = ("NODE", "HOST", "PID", "AGE", "CONNECTIONS", "ENTRIES", "LEASE", "LINKED", "STATE")


async def show(write: Callable[[str], None], *, as_json: bool) -> None:
    """Raises `NotConfigured` for a store without leases."""
    store = get_store()
    if not store.shared:
        raise NotConfigured(f"{type(store).__name__} ends with its process: there are no leases")
    nodes = await store.nodes()
    lease_ms = get_settings().lease * 1000
    late: set[tuple[str, str]] = set()
    if any(not lease_ms - _LATE * 1000 < node.remaining_ms <= lease_ms for node in nodes):
        # By our own setting of the lease somebody is late, but theirs may be another: who renews now is not.
        late = {(node.node, node.stamp) for node in nodes}
        await asyncio.sleep(_LATE)
        nodes = await store.nodes()
        late &= {(node.node, node.stamp) for node in nodes}
    leased = {node.node for node in nodes if not node.is_dying}
    rows = [_row(node, late) for node in nodes if not node.is_dying or node.node not in leased]
    if as_json:
        for row in rows:
            write(json_line(row))
    elif rows:
        for line in columns(_HEAD, [_cells(row) for row in rows]):
            write(line)
    else:
        write("No process holds a lease: none has a connection.")


def _row(node: NodeStatus, late: set[tuple[str, str]]) -> dict[str, Any]:
    state = "frozen" if (node.node, node.stamp) in late else "alive"
    if node.is_dying or not node.linked:
        state = "dying"
    info = json_object(node.info)
    started = info.get("started")
    return {
        "node": node.node,
        "host": info.get("host"),
        "pid": info.get("pid"),
        "age": round(max(0.0, time.time() - started), 1) if isinstance(started, int | float) else None,
        "connections": info.get("connections"),
        "entries": info.get("entries"),
        "lease_remaining_ms": None if node.is_dying else round(node.remaining_ms),
        "linked": node.linked,
        "state": state,
    }


def _cells(row: dict[str, Any]) -> Sequence[str]:
    remaining = row["lease_remaining_ms"]
    lease = "gone" if remaining is None else time_left(remaining) if remaining > 0 else "over"
    return (
        shown(row["node"]),
        *(shown("" if row[name] is None else str(row[name])) for name in ("host", "pid")),
        "-" if row["age"] is None else time_left(row["age"] * 1000),
        *(shown("" if row[name] is None else str(row[name])) for name in ("connections", "entries")),
        lease,
        "yes" if row["linked"] else "no",
        row["state"],
    )
