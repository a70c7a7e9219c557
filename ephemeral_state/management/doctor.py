"""`doctor`: whether everything in Redis fits together, and making it fit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from ..broadcast import find_layer, publish
from ..conf import get_settings
from ..errors import NotConfigured
from ..node import current
from ..stores import get_store
from ..stores.redis import RedisStore
from .checkup import KINDS, Checkup, Fault
from .terminal import json_line, shown

__all__ = ["examine"]

_LOOKS: Final = 2  # more, after the first
_PAUSE: Final = 0.5  # seconds between looks, together longer than a process that has just begun takes to say so
_ROUNDS: Final = 3  # of repairing: what was hidden behind one fault shows when that is gone
_EXAMPLES: Final = 5


async def examine(
    write: Callable[[str], None], warn: Callable[[str], None], *, fix: bool = False, as_json: bool = False
) -> bool:
    """Write what is wrong; with `fix`, repair it first. True if nothing is, or all of it was repaired.

    Raises `NotConfigured` where there is nothing to examine, `StoreUnavailable` when Redis stops answering.
    """
    store, layer = get_store(), find_layer(get_settings().channel_layer)
    if not isinstance(store, RedisStore):
        raise NotConfigured(f"{type(store).__name__} cannot be examined: the doctor knows Redis only")
    checkup, journal = Checkup(store), current().journal
    found = dict.fromkeys(await _confirmed(checkup))
    left, untold = list(found), False
    for _ in range(_ROUNDS if fix else 0):
        if not left:
            break
        async for changes in checkup.repair(left):
            journal.note(changes)
            untold |= bool(await publish(layer, changes, store.identity))
        left = await _confirmed(checkup)
        found |= dict.fromkeys(left)
    if untold:
        warn("not all clears could be published: subscribers see them when they compare with the store")
    advice = await store.advice()
    for text in advice:
        warn(text)
    report = _Report(found, left, checkup.keys, advice, fix=fix)
    for line in [json_line(report.as_dict())] if as_json else report.lines():
        write(line)
    return not left


async def _confirmed(checkup: Checkup) -> list[Fault]:
    """What is wrong and stays so. The store is in use: one look may fall into the middle of something."""
    checkup.keys = 0
    seen: dict[Fault, None] = {}
    async for faults in checkup.look():
        seen |= dict.fromkeys(faults)
    still = list(seen)
    for _ in range(_LOOKS):
        if still:
            await asyncio.sleep(_PAUSE)
            still = await checkup.judge(still)
    return still


class _Report:
    """Per kind of fault: how many there were, how many are left, and some of them."""

    def __init__(
        self, found: Mapping[Fault, None], left: Sequence[Fault], keys: int, advice: Sequence[str], *, fix: bool
    ) -> None:
        self._found = found
        self._left = set(left)
        self._keys = keys
        self._advice = advice
        self._fix = fix

    def as_dict(self) -> dict[str, Any]:
        return {
            "clean": not self._left,
            "keys": self._keys,
            "advice": list(self._advice),
            "findings": [
                {
                    "kind": KINDS[kind].name,
                    "meaning": KINDS[kind].meaning,
                    "found": len(faults),
                    "left": len(self._left.intersection(faults)),
                    "examples": [fault.about() for fault in faults[:_EXAMPLES]],
                }
                for kind, faults in self._by_kind()
            ],
        }

    def lines(self) -> Iterator[str]:
        for kind, faults in self._by_kind():
            left = len(self._left.intersection(faults))
            became = "" if not self._fix else ", repaired" if not left else f", {left} NOT repaired"
            yield f"{len(faults)} {KINDS[kind].meaning}{became}"
            for fault in faults[:_EXAMPLES]:
                yield "    " + "  ".join(f"{name} {shown(text)}" for name, text in fault.about().items())
            if len(faults) > _EXAMPLES:
                yield f"    and {len(faults) - _EXAMPLES} more"
        verdict = "Everything fits together" if not self._left else f"{len(self._left)} findings"
        yield f"{verdict}; looked at {self._keys} keys."

    def _by_kind(self) -> Iterator[tuple[str, Sequence[Fault]]]:
        for kind in KINDS:
            faults = [fault for fault in self._found if fault.kind == kind]
            if faults:
                yield kind, faults
