"""The shortest history that still fails in the same way: delta debugging over what clients do and what goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .history import Op

__all__ = ["shrink"]

_GAP = 0.3  # seconds that are left between two things where more is not needed
_LONG_GAP = 0.8  # seconds; what is shorter stays


def shrink(ops: Sequence[Op], fails: Callable[[Sequence[Op]], bool]) -> list[Op]:
    """`ops` end with the check that fails. `fails` carries a history out, and tells whether it fails like the first."""
    ops = _last_episodes(list(ops), fails)
    before = -1
    while before != len(ops):
        before = len(ops)
        ops = _without_parts(ops, fails)
        ops = _without_waiting(ops, fails)
    return ops


def _last_episodes(ops: list[Op], fails: Callable[[Sequence[Op]], bool]) -> list[Op]:
    """As few of the last episodes as do, with the processes and clients that they need."""
    checks = [index for index, op in enumerate(ops[:-1]) if op.do == "check"]
    count = 0
    while count < len(checks):
        kept = ops[checks[len(checks) - 1 - count] + 1 :]
        candidate = [*_set_up(ops[: len(ops) - len(kept)], kept), *kept]
        candidate = _moved_to_the_beginning(candidate)
        if fails(candidate):
            return candidate
        count = max(1, 2 * count)
    return ops


def _set_up(earlier: Sequence[Op], kept: Sequence[Op]) -> list[Op]:
    """The processes, and those clients that have not left before."""
    began = kept[0].at - 2.0
    gone = {op.on for op in earlier if op.do == "leave"}
    hosts = sorted({str(op.on) for op in earlier if op.do == "start"})
    ended = {"kill", "lose_host", "terminate", "orphan"}
    last_end = {host: max((op.at for op in earlier if op.do in ended and op.on == host), default=0.0) for host in hosts}
    people = [op for op in earlier if op.do == "open" and op.on not in gone and op.at >= last_end[str(op.args[0])]]
    there = {op.on for op in people}
    found = [Op(began, "start", host) for host in hosts]
    found += [op._replace(at=began + 0.2) for op in people]
    found += [op._replace(at=began + 0.3) for op in earlier if op.do == "subscribe" and op.on in there]
    return found


def _moved_to_the_beginning(ops: Sequence[Op]) -> list[Op]:
    first = ops[0].at - 0.5
    return [op._replace(at=round(op.at - first, 3)) for op in ops]


def _without_parts(ops: list[Op], fails: Callable[[Sequence[Op]], bool]) -> list[Op]:
    """Leave out halves, quarters, … and then one after the other, as long as it fails without them."""
    size = max(1, (len(ops) - 1) // 2)
    while True:
        at = 0
        while at < len(ops) - 1:
            candidate = [*ops[:at], *ops[min(at + size, len(ops) - 1) :]]
            if len(candidate) < len(ops) and fails(candidate):
                ops = candidate
            else:
                at += size
        if size == 1:
            return ops
        size = max(1, size // 2)


def _without_waiting(ops: list[Op], fails: Callable[[Sequence[Op]], bool]) -> list[Op]:
    """Let things follow each other sooner; but for the check, which has to wait until all is settled."""
    for index in range(len(ops) - 1):
        before = ops[index - 1].at if index else 0.0
        gap = ops[index].at - before
        if gap > _LONG_GAP:
            sooner = gap - _GAP
            candidate = [*ops[:index], *(op._replace(at=round(op.at - sooner, 3)) for op in ops[index:])]
            if fails(candidate):
                ops = candidate
    return ops
