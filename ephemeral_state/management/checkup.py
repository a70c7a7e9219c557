"""What can be wrong in Redis, looked for and repaired in steps of a few ms: `lua/doctor.lua` knows each kind."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from ..state import Change, Peer
from ..stores import redis_wire as wire
from ..stores.base import NodeStatus
from ..stores.redis import RedisStore
from ..stores.redis_client import Script

__all__ = ["KINDS", "Checkup", "Fault"]

_SCAN_STEP: Final = 500  # keys of the server looked at by one script, ours and others'
_LOOK_STEP: Final = 150  # elements, each of which asks up to six questions
_READ_BYTES: Final = 1_000_000  # of payloads that one script may read to see their entries' names
_FAULT_STEP: Final = 100  # faults judged or repaired by one script
_REMOVE_STEP: Final = 100  # entries of dead clients looked at by one script, and those of one client more
_NOT_REACHED: Final = 3
_OVERDUE_MS: Final = 3000  # peers bury within two beats, or after 2 s if they had lost sight of the store


class Kind(NamedTuple):
    name: str
    meaning: str


KINDS: Final[Mapping[str, Kind]] = {
    "f": Kind("foreign-key", "keys that are none of ours: another type, or another name"),
    "t": Kind("no-expiry", "keys of ours that never expire"),
    "v": Kind("no-revision", "topics without a revision"),
    "b": Kind("broken-entry", "entries without a header or a payload"),
    "i": Kind("not-in-index", "entries that the index does not have"),
    "d": Kind("not-in-deadlines", "entries that the deadlines do not have, or with another deadline"),
    "c": Kind("not-owned", "entries that the set of their owner does not have"),
    "h": Kind("not-in-node", "clients that the set of their node does not have"),
    "n": Kind("not-at-home", "clients in the set of a node that is not their home"),
    "Y": Kind("unfinished-burial", "dying nodes that nobody buries"),
    "L": Kind("unburied", "nodes whose lease is over, and nobody buries them"),
    "H": Kind("homeless", "clients whose node has no lease"),
    "o": Kind("orphan", "entries without a deadline whose owner no living process holds"),
    "I": Kind("stale-index", "members of the index that are not there"),
    "D": Kind("stale-deadline", "members of the deadlines that are not there"),
    "C": Kind("stale-owned", "members of an owner's set that are not there, or another's"),
    "N": Kind("stale-node", "descriptions of nodes without a lease"),
}
"""In the order in which they are repaired: what an entry or client is needs to be known before it is buried."""

_ENTRIES: Final = frozenset("idcoID")


class Fault(NamedTuple):
    """Something that contradicts something else. Whether it still does is judged anew each time."""

    kind: str
    partition: int
    place: bytes
    member: bytes

    def about(self) -> Mapping[str, str]:
        """Where it is, in words."""
        if self.kind in _ENTRIES:
            return _entry(self.place)
        if self.kind in "bv":
            return _entry(self.place + self.member)
        if self.kind == "C":
            return {"client": _text(self.place), **_entry(self.member)}
        if self.kind in "hH":
            return {"client": _text(self.place), "node": _text(self.member)}
        if self.kind == "n":
            return {"client": _text(self.member), "node": _text(self.place)}
        return {"node" if self.kind in "NLY" else "key": _text(self.place)}


class Checkup:
    """Looks over one store. Every step is one script, and all other clients of Redis have their turn in between."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self.keys = 0
        """How many keys were looked at."""

    async def look(self) -> AsyncIterator[Sequence[Fault]]:
        """What looks wrong, step by step. What it finds may be on its way to being right: judge it again."""
        yield _overdue(await self._store.nodes())
        scanned: set[bytes] = set()
        for server in range(len(self._store.roots)):
            cursor = b"0"
            while True:
                cursor, keys = await self._scan(server, cursor, scanned)
                living = _living(await self._store.nodes())
                for partition, names in self._sorted(keys).items():
                    self.keys += len(names)
                    waiting = [(b"0", name) for name in names]
                    while waiting:
                        faults, waiting = await self._look(partition, living, waiting)
                        yield faults
                if cursor == b"0":
                    break

    async def judge(self, faults: Iterable[Fault]) -> list[Fault]:
        """Those that are still there."""
        overdue = set(_overdue(await self._store.nodes()))
        still: list[Fault] = []
        for partition, some in _portions(faults):
            if some[0].kind in "LY":
                still += [fault for fault in some if fault in overdue]
            else:
                data = await self._run(partition, b"again", some)
                still += [fault for fault, status in zip(some, data, strict=True) if status]
        return still

    async def repair(self, faults: Iterable[Fault]) -> AsyncIterator[Sequence[Change]]:
        """Repair those that are still there, step by step; what is to be published comes out."""
        for partition, some in _portions(faults):
            if some[0].kind in "LY":
                for node in await self._store.nodes():
                    if any(fault in some for fault in _overdue([node])):
                        yield await self._store.bury(Peer(node.node, node.remaining_ms, node.linked, node.stamp))
            else:
                while some:
                    data = await self._run(partition, b"repair", some)
                    statuses, changes = wire.read_repairs(data, len(some))
                    yield changes
                    some = [fault for fault, status in zip(some, statuses, strict=True) if status == _NOT_REACHED]

    async def _scan(self, server: int, cursor: bytes, scanned: set[bytes]) -> tuple[bytes, Sequence[bytes]]:
        """The next keys of the server that has the partition of that number. Nothing of one scanned already."""
        # All partitions are looked for on every server: several share one, and only the server knows which.
        prefix = self._store.roots[0].rpartition(b":")[0]
        pattern = re.sub(rb"([\\*?\[\]])", rb"\\\1", prefix) + b":*"
        data = await self._store.maintain(_KEYS, server, cursor, pattern, _SCAN_STEP)
        identity, cursor, *keys = wire.read_sizeds(data)
        if identity in scanned:
            return b"0", ()
        if identity:
            scanned.add(identity)
        return cursor, keys

    def _sorted(self, keys: Iterable[bytes]) -> Mapping[int, Sequence[bytes]]:
        partitions = {root: number for number, root in enumerate(self._store.roots)}
        places: defaultdict[int, list[bytes]] = defaultdict(list)
        for key in keys:
            root, brace, rest = key.partition(b"}")
            if rest[:1] == b":" and root + brace in partitions:
                places[partitions[root + brace]].append(key)
        return places

    async def _look(
        self, partition: int, living: bytes, waiting: Sequence[tuple[bytes, bytes]]
    ) -> tuple[Sequence[Fault], list[tuple[bytes, bytes]]]:
        where = wire.pack_names(part for each in waiting for part in each)
        page = max(1, min(_LOOK_STEP, _READ_BYTES // self._store.limits.max_payload_bytes))
        data = await self._store.maintain(_DOCTOR, partition, b"look", living, where, _LOOK_STEP, page)
        parts = list(wire.read_sizeds(data))
        found = list(zip(parts[::3], parts[1::3], parts[2::3], strict=True))
        faults = [Fault(kind.decode(), partition, place, member) for kind, place, member in found if kind]
        return faults, [(cursor, key) for kind, cursor, key in found if not kind]

    async def _run(self, partition: int, verb: bytes, faults: Sequence[Fault]) -> bytes:
        # Asked for at the last moment: who has just come alive must not be taken for dead.
        living = _living(await self._store.nodes())
        packed = wire.pack_names(part for fault in faults for part in (fault.kind.encode(), fault.place, fault.member))
        return await self._store.maintain(_DOCTOR, partition, verb, living, packed, _REMOVE_STEP)


def _overdue(nodes: Sequence[NodeStatus]) -> Sequence[Fault]:
    late = [node for node in nodes if node.remaining_ms < -_OVERDUE_MS]
    return [Fault("Y" if node.is_dying else "L", 0, node.node.encode(), b"") for node in late]


def _living(nodes: Sequence[NodeStatus]) -> bytes:
    """Packed: also who is late or dying, for their burial is another matter."""
    return wire.pack_names(node.node.encode() for node in nodes)


def _portions(faults: Iterable[Fault]) -> Iterable[tuple[int, Sequence[Fault]]]:
    """Faults that one script can deal with, in the order of repair; those of leases by themselves."""
    places: defaultdict[tuple[int, int], list[Fault]] = defaultdict(list)
    order = list(KINDS)
    for fault in faults:
        places[order.index(fault.kind), fault.partition].append(fault)
    for (_, partition), some in sorted(places.items()):
        for first in range(0, len(some), _FAULT_STEP):
            yield partition, some[first : first + _FAULT_STEP]


def _entry(entry: bytes) -> Mapping[str, str]:
    try:
        topic, key = wire.read_entry(entry)
    except ValueError:
        return {"entry": _text(entry)}
    names = {"namespace": topic.namespace, "topic": topic.name, "key": key}
    return {name: text for name, text in names.items() if text or name == "namespace"}


def _text(name: bytes) -> str:
    return name.decode(errors="backslashreplace")


_DOCTOR = Script("doctor")
_KEYS = Script("keys")
