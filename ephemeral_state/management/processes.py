"""`processes`: the processes that hold a lease, and the state of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from ..errors import NotConfigured
from ..inspection.processes import Process, processes
from ..inspection.times import time_left
from ..stores import get_store
from .terminal import columns, json_line, shown

__all__ = ["show"]

_HEAD: Final = ("NODE", "HOST", "PID", "AGE", "CONNECTIONS", "ENTRIES", "LEASE", "LINKED", "STATE")


async def show(write: Callable[[str], None], *, as_json: bool) -> None:
    """Raises `NotConfigured` for a store without leases."""
    store = get_store()
    if not store.shared:
        raise NotConfigured(f"{type(store).__name__} ends with its process: there are no leases")
    found = await processes(store)
    if as_json:
        for process in found:
            write(json_line(_as_dict(process)))
    elif found:
        for line in columns(_HEAD, [_cells(process) for process in found]):
            write(line)
    else:
        write("No process holds a lease: none has a connection.")


def _as_dict(process: Process) -> dict[str, Any]:
    return {
        "node": process.node,
        "host": process.host,
        "pid": process.pid,
        "age": None if process.age is None else round(process.age, 1),
        "connections": process.connections,
        "entries": process.entries,
        "lease_remaining_ms": None if process.state == "being cleared" else round(process.remaining * 1000),
        "linked": process.linked,
        "state": process.state,
    }


def _cells(process: Process) -> Sequence[str]:
    lease = time_left(process.remaining * 1000) if process.remaining > 0 else "over"
    return (
        shown(process.node),
        *(shown("" if each is None else str(each)) for each in (process.host, process.pid)),
        "-" if process.age is None else time_left(process.age * 1000),
        *(shown("" if each is None else str(each)) for each in (process.connections, process.entries)),
        "gone" if process.state == "being cleared" else lease,
        "yes" if process.linked else "no",
        process.state,
    )
