"""What `redis.py` and its Lua scripts say to each other, packed and unpacked. Pure; `lua/` tells the layout.

Names and payloads are any bytes, so each goes with its length before it, and a whole batch is one argument and
one reply: redis-py would spend more time on an array's many elements than Redis spends on the script.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from ..errors import StoreUnavailable, TooManyKeys, TopicTooLarge
from ..state import (
    Change,
    Clear,
    Digest,
    Drop,
    Entry,
    Keep,
    Limits,
    Outcome,
    Peer,
    Reason,
    Restore,
    Revision,
    Roll,
    Set,
    Sweep,
    Topic,
    Write,
)
from .base import KINDS, History, NodeStatus, Report, Transition

__all__ = [
    "ALL",
    "Row",
    "TooLate",
    "TopicPage",
    "encoded",
    "entry_range",
    "pack_cursor",
    "pack_names",
    "pack_report",
    "pack_writes",
    "read_buried",
    "read_cursor",
    "read_digests",
    "read_entry",
    "read_entry_value",
    "read_history",
    "read_nodes",
    "read_numbers",
    "read_outcomes",
    "read_repairs",
    "read_roll",
    "read_rows",
    "read_sizeds",
    "read_sweep",
    "read_time",
    "read_topic_page",
    "read_topics",
    "topic_id",
]

_WRITE = struct.Struct(">cdIIII")
_OWN, _FOREIGN = b"\1", b"\0"
_HOME = struct.Struct(">IdI")
_SIZE = struct.Struct(">I")
_HEADER_SIZE: Final = 56
_META_SIZE: Final = 32
_NUMBER = struct.Struct(">d")
_REVISION = struct.Struct(">dd")
_META = struct.Struct(">dddd")
_HEADER = struct.Struct(">ddddddd")
_APPLIED = struct.Struct(">Bd")
_ROLL = struct.Struct(">dB")
_NODE = struct.Struct(">dBB")

ALL: Final = (b"-", b"+")
"""The range of every entry, as ZRANGEBYLEX writes it."""


@lru_cache(maxsize=4096)  # a batch names the same few topics again and again
def topic_id(topic: Topic) -> bytes:
    """Bytes that sort as (namespace, topic) does and that no two topics share: NULs are escaped, two end a part."""
    return b"%b\0\0%b\0\0" % (_escaped(topic.namespace), _escaped(topic.name))


def read_entry(entry: bytes) -> tuple[Topic, str]:
    """Undo `topic_id(topic) + key`."""
    namespace, _, rest = entry.partition(b"\0\0")
    name, _, key = rest.partition(b"\0\0")
    return Topic(_unescaped(namespace), _unescaped(name)), key.decode()


def entry_range(namespace: str | None, topic: str | None) -> tuple[bytes, bytes]:
    """The range of the entries of one topic, of one namespace, or of all: a topic alone is no range."""
    if namespace is None:
        return ALL
    start = _escaped(namespace) + b"\0\0" if topic is None else topic_id(Topic(namespace, topic))
    return b"[" + start, b"(" + start[:-1] + b"\1"


def pack_names(names: Iterable[bytes]) -> bytes:
    return b"".join([part for name in names for part in (_SIZE.pack(len(name)), name)])


def pack_writes(
    writes: Iterable[tuple[Write, int]], limits: Limits, is_here: Callable[[bytes], bool] = lambda topic: True
) -> bytes:
    """Writes that passed `Limits.check`, each with the number of keys its client owns in other partitions. `is_here`
    tells whether a topic is in the partition that they go to."""
    parts: list[bytes] = []
    for write, elsewhere in writes:
        client = encoded(write.client)
        if isinstance(write, Drop):
            op = b"A" if write.abnormal else b"D"
            parts += (_WRITE.pack(op, 0, len(client), 0, 0, 0), client, _OWN if write.node else _FOREIGN)
            continue
        if isinstance(write, Keep):
            named = ((topic_id(topic), key) for topic, key in write.entries)
            kept = pack_names(topic + encoded(key) for topic, key in named if is_here(topic))
            parts += (_WRITE.pack(b"K", 0, len(client), 0, 0, len(kept)), client, kept, _OWN)
            continue
        topic, key = topic_id(write.topic), encoded(write.key)
        if isinstance(write, Clear):
            parts += (_WRITE.pack(b"C", 0, len(client), len(topic), len(key), 0), client, topic, key)
            parts.append(_OWN if write.node else _FOREIGN)
            continue
        lifetime = limits.lifetime_ms(write.ttl_ms)
        ttl = -1 if lifetime is None else lifetime
        payload, node = write.payload, encoded(write.node)
        op = b"S" if isinstance(write, Set) else b"R"
        parts += (_WRITE.pack(op, ttl, len(client), len(topic), len(key), len(payload)), client, topic, key, payload)
        parts += (_HOME.pack(elsewhere, limits.grace_ms(write.grace_ms), len(node)), node)
        if isinstance(write, Restore):
            parts.append(_REVISION.pack(*write.stamp))
    return b"".join(parts)


class TooLate(StoreUnavailable):
    """A later batch of the same writer was applied before, or the time has passed at which it gives this one up."""


def read_time(data: bytes) -> float:
    """The time in µs at which `apply.lua` was run."""
    _, now = _APPLIED.unpack_from(data)
    return float(now)


def read_outcomes(data: bytes, writes: Sequence[Write], limits: Limits) -> list[Outcome]:
    """The reply of `apply.lua` to these writes. Raises `StoreUnavailable` if Redis takes no writes at all, or not
    these: they came too late, or their node was reaped."""
    outcomes: list[Outcome] = []
    if data[0] == 2:
        raise StoreUnavailable("this process was taken for dead, and is about to write back what its connections own")
    if data[0] == 0:
        raise TooLate("the write arrived too late")
    at = _APPLIED.size
    for write in writes:
        status = data[at]
        at += 1
        if status == 1 and not isinstance(write, Drop | Keep):
            epoch, revision = _REVISION.unpack_from(data, at)
            at += 16
            outcomes.append(Outcome((_change(write, int(epoch), int(revision), limits),)))
        elif status == 2:
            (owned,) = _NUMBER.unpack_from(data, at)
            at += 8
            limit = limits.max_keys_per_client
            message = f"client {write.client} owns {owned:.0f} keys, the limit is {limit} (MAX_KEYS_PER_CLIENT)"
            outcomes.append(Outcome((), TooManyKeys(message)))
        elif status == 3:
            text, at = _sized(data, at)
            outcomes.append(Outcome((), _refusal(text)))
        elif status == 4:
            (count,) = _SIZE.unpack_from(data, at)
            changes, at = _read_changes(data, at + 4, count, "explicit" if isinstance(write, Keep) else "disconnect")
            outcomes.append(Outcome(changes))
        elif status == 5:
            (size,) = _NUMBER.unpack_from(data, at)
            at += 8
            message = f"the topic would have {size:.0f} bytes, the limit is {limits.max_topic_bytes} (MAX_TOPIC_BYTES)"
            outcomes.append(Outcome((), TopicTooLarge(message)))
        elif status == 6:
            outcomes.append(Outcome(taken=True))
        else:
            outcomes.append(Outcome())
    return outcomes


def read_sweep(data: bytes) -> Sweep:
    (next_in_ms,) = _NUMBER.unpack_from(data)
    changes, _ = _read_changes(data, 8, None, None)
    return Sweep(changes, None if next_in_ms < 0 else int(next_in_ms))


class TopicPage(NamedTuple):
    """Some of a topic, as `snapshot.lua` read it."""

    revision: Revision
    generation: int
    size: int
    """Bytes of the keys and payloads of the whole topic."""
    entries: Sequence[Entry]
    """The live ones."""
    changed: Mapping[str, int]
    """By key, the revision of its last change; also of entries that have expired and are not swept yet."""
    stamps: Mapping[str, Revision]
    last: bytes
    """The key to go on after; empty if there is no more."""


def read_topic_page(data: bytes, topic: Topic) -> TopicPage:
    now, generation = _REVISION.unpack_from(data)
    epoch, revision, size, _ = _META.unpack_from(data, 16)
    at = 16 + _META_SIZE
    more, parts = data[at], list(read_sizeds(data, at + 1))
    entries: list[Entry] = []
    changed: dict[str, int] = {}
    stamps: dict[str, Revision] = {}
    # UTF-8 sorts as the decoded text does; sorting what is left to sort is cheaper in bytes.
    for key, header, payload in sorted(zip(parts[::3], parts[1::3], parts[2::3], strict=True)):
        if len(header) < _HEADER_SIZE:
            continue  # no entry: only the doctor sees that
        name = key.decode()
        client, left = _read_header(header, now)
        _, its_epoch, its_revision, _, _, _, its_change = _HEADER.unpack_from(header)
        changed[name], stamps[name] = int(its_change), Revision(int(its_epoch), int(its_revision))
        if left is None or left > 0:
            entries.append(Entry(topic, name, client, payload, _ms(left)))
    last = parts[-3] if more and parts else b""
    return TopicPage(Revision(int(epoch), int(revision)), int(generation), int(size), entries, changed, stamps, last)


def read_entry_value(data: bytes, topic: Topic) -> Entry | None:
    """The reply of `entry.lua`."""
    (now,) = _NUMBER.unpack_from(data)
    parts = list(read_sizeds(data, 8))
    if len(parts) < 3 or len(parts[1]) < _HEADER_SIZE:
        return None
    client, left = _read_header(parts[1], now)
    return Entry(topic, parts[0].decode(), client, parts[2], _ms(left)) if left is None or left > 0 else None


def read_digests(data: bytes) -> list[Digest]:
    return [
        Digest(Revision(int(epoch), int(revision)), int(digest))
        for epoch, revision, _, digest in _META.iter_unpack(data)
    ]


def read_roll(data: bytes, linked: Mapping[str, bool]) -> Roll:
    """The reply of `beat.lua`. `linked`: per node, whether its channel has a subscriber; others count as linked."""
    generation, held = _ROLL.unpack_from(data)
    own, at = _sized(data, _ROLL.size)
    peers: list[Peer] = []
    while at < len(data):
        (left,) = _NUMBER.unpack_from(data, at)
        stamp, at = _sized(data, at + 8)
        node, at = _sized(data, at)
        peers.append(Peer(node.decode(), left, linked.get(node.decode(), True), stamp.decode()))
    return Roll(int(generation), held == 1, True, peers, own.decode(), held == 2)


def read_buried(data: bytes) -> tuple[bool, list[Change]]:
    changes, _ = _read_changes(data, 1, None, "disconnect")
    return bool(data[0]), changes


def read_nodes(data: bytes) -> list[NodeStatus]:
    nodes: list[NodeStatus] = []
    at = 0
    while at < len(data):
        left, linked, is_dying = _NODE.unpack_from(data, at)
        stamp, at = _sized(data, at + _NODE.size)
        node, at = _sized(data, at)
        info, at = _sized(data, at)
        nodes.append(
            NodeStatus(node.decode(), left, bool(linked), bool(is_dying), stamp.decode(), info.decode(errors="replace"))
        )
    return nodes


def read_repairs(data: bytes, count: int) -> tuple[Sequence[int], list[Change]]:
    """The reply of `doctor.lua` about so many faults: what became of each, and what was cleared for it."""
    changes, _ = _read_changes(data, count, None, "disconnect")
    return data[:count], changes


def read_numbers(data: bytes) -> list[int]:
    return [number for (number,) in _SIZE.iter_unpack(data)]


def read_topics(data: bytes) -> tuple[list[tuple[Topic, int]], bytes]:
    """Topics with their sizes, and where the next one begins."""
    found: list[tuple[Topic, int]] = []
    at, topic = 0, b""
    while at < len(data):
        topic, at = _sized(data, at)
        (count,) = _SIZE.unpack_from(data, at)
        at += 4
        found.append((read_entry(topic)[0], count))
    return found, b"[" + topic[:-1] + b"\1"


def pack_report(report: Report) -> tuple[bytes, bytes, bytes, bytes]:
    counts = (part.encode() for kind, number in report.counts.items() for part in (kind, str(number)))
    transitions: list[bytes] = []
    for age_ms, topic, key, client, reason, node in report.transitions:
        what = (topic_id(topic), encoded(key), encoded(client), (reason or "").encode(), encoded(node))
        transitions += (b"%d" % age_ms, pack_names(what))
    came = (encoded(part) for each in report.came.items() for part in each)
    return (
        pack_names(counts),
        pack_names(transitions),
        pack_names(came),
        pack_names(encoded(client) for client in report.gone),
    )


def read_history(data: bytes, minutes: int) -> History:
    width = len(KINDS)
    numbers = struct.unpack_from(f">{minutes * width}I", data)
    rows = [dict(zip(KINDS, numbers[n * width : (n + 1) * width], strict=True)) for n in range(minutes)]
    transitions: list[Transition] = []
    at = minutes * width * 4
    while at < len(data):
        (age_ms,) = _NUMBER.unpack_from(data, at)
        what, at = _sized(data, at + 8)
        topic, key, client, reason, node = read_sizeds(what)
        why: Any = reason.decode() or None
        transitions.append(Transition(age_ms, read_entry(topic)[0], key.decode(), client.decode(), why, node.decode()))
    return History(rows, transitions)


class Row(NamedTuple):
    """What `browse.lua` says of one entry."""

    entry: bytes
    client: str
    expires_in_ms: int | None
    is_live: bool


def read_rows(data: bytes) -> list[Row]:
    (now,) = _NUMBER.unpack_from(data)
    parts = list(read_sizeds(data, 8))
    rows: list[Row] = []
    for entry, header in zip(parts[::2], parts[1::2], strict=True):
        client, left = _read_header(header, now) if header else ("", 0.0)
        rows.append(Row(entry, client, _ms(left), left is None or left > 0))
    return rows


def _read_header(header: bytes, now: float) -> tuple[str, float | None]:
    """The owner, and the µs left; `None` for an entry without a deadline."""
    (deadline,) = _NUMBER.unpack_from(header)
    return header[_HEADER_SIZE:].decode(), None if deadline == math.inf else deadline - now


def read_sizeds(data: bytes, at: int = 0) -> Iterator[bytes]:
    while at < len(data):
        part, at = _sized(data, at)
        yield part


def pack_cursor(partition: int, entry: bytes) -> str:
    return base64.urlsafe_b64encode(b"r%d:%b" % (partition, entry)).decode()


def read_cursor(cursor: str, partitions: int) -> tuple[int, bytes]:
    """Where to go on, after which entry. Raises `ValueError` for a foreign cursor."""
    try:
        mark, colon, entry = base64.urlsafe_b64decode(cursor).partition(b":")
        if mark[:1] == b"r" and colon and mark[1:].isdigit() and int(mark[1:]) < partitions:
            return int(mark[1:]), entry
    except ValueError:
        pass
    raise ValueError(f"cursor {cursor[:80]!r} is none of this store's: begin again without one")


def encoded(name: str) -> bytes:
    # Nothing with a lone surrogate is ever stored, but one may ask for it, and is told that it is not there.
    return name.encode(errors="surrogatepass")


def _escaped(name: str) -> bytes:
    return encoded(name).replace(b"\0", b"\0\1")


def _unescaped(part: bytes) -> str:
    return part.replace(b"\0\1", b"\0").decode()


def _change(write: Set | Clear | Restore, epoch: int, revision: int, limits: Limits) -> Change:
    if isinstance(write, Clear):
        return Change(write.topic, write.key, write.client, b"", "explicit", 0, epoch, revision)
    lifetime = limits.lifetime_ms(write.ttl_ms)
    return Change(write.topic, write.key, write.client, bytes(write.payload), None, lifetime, epoch, revision)


def _read_changes(data: bytes, at: int, count: int | None, reason: Reason | None) -> tuple[list[Change], int]:
    """`reason`: that of all, or `None` where a byte before each tells."""
    changes: list[Change] = []
    while at < len(data) if count is None else len(changes) < count:
        why: Reason = reason or ("disconnect" if data[at] else "expired")
        at += reason is None
        epoch, revision = _REVISION.unpack_from(data, at)
        topic, at = _sized(data, at + 16)
        key, at = _sized(data, at)
        client, at = _sized(data, at)
        name, _ = read_entry(topic)
        changes.append(Change(name, key.decode(), client.decode(), b"", why, 0, int(epoch), int(revision)))
    return changes, at


def _sized(data: bytes, at: int) -> tuple[bytes, int]:
    (size,) = _SIZE.unpack_from(data, at)
    at += 4
    return data[at : at + size], at + size


def _ms(left: float | None) -> int | None:
    return None if left is None else math.floor(left / 1000)


def _refusal(text: bytes) -> StoreUnavailable:
    error = StoreUnavailable(f"Redis refused: {text.decode(errors='replace')}")
    if not text.startswith((b"WRONGTYPE", b"OOM")):
        raise error  # not about this one write: a replica, say, refuses them all
    return error
