"""The nouns: topics, entries, writes and what became of them. Pure values, no I/O and no clock.

The hot ones are named tuples rather than dataclasses: they are made once per write and event, and
a tuple is made and hashed in C.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, TypeAlias, final

from .errors import (
    ClientRequired,
    EphemeralStateError,
    NameInvalid,
    NameRequired,
    PayloadTooLarge,
)

__all__ = [
    "UNTIL_DISCONNECT",
    "Batches",
    "Change",
    "Clear",
    "Digest",
    "Drop",
    "Entry",
    "Keep",
    "Limits",
    "Notice",
    "Outcome",
    "Page",
    "Peer",
    "Reason",
    "Restore",
    "Revision",
    "Roll",
    "Set",
    "Snapshot",
    "Sweep",
    "Topic",
    "UntilDisconnect",
    "Write",
    "mixed",
]

Reason: TypeAlias = Literal["explicit", "disconnect", "expired"]


@final
class UntilDisconnect:
    """The type of `UNTIL_DISCONNECT`: a lifetime without a deadline, ended only by its owner's end."""

    def __repr__(self) -> str:
        return "UNTIL_DISCONNECT"


UNTIL_DISCONNECT: Final = UntilDisconnect()


class Topic(NamedTuple):
    """What one subscribes to. The pair is the identity: `("a", "b:c")` and `("a:b", "c")` are two topics."""

    namespace: str
    name: str

    def require(self) -> Topic:
        """Itself, if it may be used. Raises `NameRequired` or `NameInvalid`."""
        if self.name == "":
            raise NameRequired("topic is empty")
        _require_utf8("namespace", self.namespace)
        _require_utf8("topic", self.name)
        return self


class Entry(NamedTuple):
    """One live value as a reader sees it."""

    topic: Topic
    key: str
    client_id: str
    """The owner: the channel name of the consumer that set it."""
    payload: bytes
    expires_in_ms: int | None
    """Remaining time in ms, rounded down; `None` for `UNTIL_DISCONNECT`."""

    def json(self) -> Any:
        """The payload decoded as JSON; `None` for an empty payload. Raises `ValueError` if it is not JSON."""
        return json.loads(self.payload) if self.payload else None


class Notice(NamedTuple):
    """What a watcher of a topic is told."""

    kind: Literal["snapshot", "set", "clear"]
    """First comes one snapshot, then a set or a clear per change."""
    topic: Topic
    entries: Sequence[Entry]
    """Of a snapshot: what is live, sorted by key."""
    key: str
    client_id: str
    """The owner; after a clear, the last one."""
    payload: bytes
    reason: Reason | None
    """Of a clear."""
    text: str
    """The same as a frame of the client protocol: compact JSON, ready to be sent."""

    def json(self) -> Any:
        """The payload decoded as JSON; `None` for an empty payload. Raises `ValueError` if it is not JSON."""
        return json.loads(self.payload) if self.payload else None


class Set(NamedTuple):
    """Store `payload` under the key and make `client` its owner."""

    client: str
    topic: Topic
    key: str
    payload: bytes = b""
    ttl_ms: int | None = 0
    """ms; 0 or less means the default, `None` means `UNTIL_DISCONNECT`."""
    node: str = ""
    """Whose death ends the client: the node that holds its connection; empty for a client without one."""
    grace_ms: int = 0
    """ms that the entry stays when its client ends abnormally, for a new connection to take it over unnoticed."""


class Clear(NamedTuple):
    """Remove the key if `client` owns it; otherwise do nothing."""

    client: str
    topic: Topic
    key: str
    node: str = ""
    """The node that holds the client's connection, if it asks for it. Otherwise that node has to be told of it before
    it writes anything back."""


class Drop(NamedTuple):
    """The client is gone: remove everything it owns, in all namespaces."""

    client: str
    abnormal: bool = False
    """It did not say goodbye, and may be back at once: what has a grace lingers that long."""
    node: str = ""
    """The node that held the client's connection, if it asks for it; empty: the connection may be there still."""


class Restore(NamedTuple):
    """Write back what the store has lost, or has cleared while its node was taken for dead. If another client has owned
    the key later than `stamp`, the write is refused as `taken`. The cap is not asked again."""

    client: str
    topic: Topic
    key: str
    payload: bytes
    ttl_ms: int | None
    node: str
    stamp: Revision
    """That of the set which gave the key this payload."""
    grace_ms: int = 0


class Keep(NamedTuple):
    """The client owns nothing but these entries, as its node knows: remove what else the store has of it, because the
    store has gone back to an earlier state. What other writers have set for the client stays."""

    client: str
    node: str
    entries: Sequence[tuple[Topic, str]]


Write: TypeAlias = Set | Clear | Drop | Restore | Keep


class Batches:
    """Numbers the batches of one writer, in each partition of a store, so that one that was given up can be refused
    when it arrives late: a missing answer leaves it open whether a batch was applied or is still under way."""

    __slots__ = ("_ahead", "_given_up", "_last", "writer")

    def __init__(self, writer: str) -> None:
        self.writer = writer
        self._ahead: dict[int, float] = {}  # the time of each partition, before that of the event loop, in µs
        self._last: dict[int, int] = {}
        self._given_up: dict[int, int] = {}  # the latest

    @property
    def open_partitions(self) -> Sequence[int]:
        """Where a batch that was given up may still be applied."""
        return [*self._given_up]

    def begin(self, partition: int) -> tuple[int, bool]:
        """The number of the next batch, and whether an earlier one was given up there."""
        number = self._last[partition] = self._last.get(partition, 0) + 1
        return number, partition in self._given_up

    def learn_time(self, partition: int, store_us: float, loop_time: float) -> None:
        """The partition has just told its time."""
        self._ahead[partition] = store_us - loop_time * 1e6

    def store_time(self, partition: int, loop_time: float) -> bytes:
        """What the time in the partition will be, in µs, as text; empty if nothing is known of it."""
        ahead = self._ahead.get(partition)
        return b"" if ahead is None else b"%d" % (ahead + loop_time * 1e6)

    def give_up(self, partition: int, number: int) -> None:
        """The batch has no answer."""
        self._given_up[partition] = max(number, self._given_up.get(partition, 0))

    def applied(self, partition: int, number: int) -> None:
        """The batch was applied, and no earlier one can be any more."""
        if self._given_up.get(partition, number) < number:
            del self._given_up[partition]


class Change(NamedTuple):
    """One numbered transition of one key, as the store made it."""

    topic: Topic
    key: str
    client_id: str
    payload: bytes
    reason: Reason | None
    """`None`: the key was set. Otherwise why it was cleared."""
    expires_in_ms: int | None
    epoch: int
    revision: int


class Outcome(NamedTuple):
    """What became of one write: the changes it made, or why it was refused and changed nothing."""

    changes: Sequence[Change] = ()
    error: EphemeralStateError | None = None
    taken: bool = False
    """Of a `Restore`: the client has lost the key to somebody else."""


class Revision(NamedTuple):
    """How far a topic has come. Revisions are contiguous within an epoch and start at 1; a topic that
    was empty and forgotten starts again with a larger epoch. `(0, 0)`: the store knows nothing of it."""

    epoch: int
    revision: int


def mixed(revision: int) -> int:
    """What one entry adds to the digest of its topic: the revision of its last change, mixed, so that their sum tells
    which changes are there. The scripts of the Redis store compute the same, in doubles."""
    return (revision % 2097152 * 2654435761 + revision // 2097152) % 4294967296


class Digest(NamedTuple):
    """How far a topic has come, and what it holds then: two views of one revision with different sums differ."""

    revision: Revision
    sum: int | None
    """Of `mixed` over all stored entries, modulo 2**32; `None` if the store keeps none."""


class Snapshot(NamedTuple):
    """All live entries of a topic, sorted by the UTF-8 bytes of the key, as of one revision. A large topic is read in
    several steps: then single entries may be as of a later one."""

    topic: Topic
    revision: Revision
    entries: Sequence[Entry]
    generation: int = 0
    """Which life of the store this is: another one after it has lost everything; 0 until something is written."""
    changed: Mapping[str, int] = MappingProxyType({})
    """By key, the revision of its last change; also of entries that have expired and are not swept yet."""
    ahead: Mapping[str, int] = MappingProxyType({})
    """Of entries as of a later revision: which one."""


class Sweep(NamedTuple):
    """What a sweep removed, and when the next one is worth while."""

    changes: Sequence[Change]
    next_in_ms: int | None
    """ms until the earliest deadline still stored; 0: call again now; `None`: no deadline is stored."""


class Peer(NamedTuple):
    """Another node, as one reading found it."""

    node: str
    remaining_ms: float
    """Until its lease ends; 0 or less: it has."""
    linked: bool
    """It holds a connection to the store open, as the store's own operating system sees it."""
    stamp: str
    """Changes with every renewal of the lease."""


class Roll(NamedTuple):
    """What renewing one's lease tells."""

    generation: int
    held: bool
    """The lease was there, and as this node left it. If not, the store has lost everything, or has gone back to an
    earlier state."""
    linked: bool
    """This node's own connection was seen open. If not, neither may those of peers that are alive, and another server
    may have taken the place of the one that knew it."""
    peers: Sequence[Peer] = ()
    stamp: str = ""
    """Of this node's own lease, for the next beat."""
    reaped: bool = False
    """The node was taken for dead, and what its clients own was cleared. It can renew and write nothing any more, and
    comes back under another name."""


class Page(NamedTuple):
    """Some entries of many, for people."""

    entries: Sequence[Entry]
    cursor: str
    """Hand it back for the next page; empty when there is none."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a store refuses, and how long things live. Times in ms, sizes in bytes."""

    max_keys_per_client: int = 256
    max_payload_bytes: int = 16_384
    default_ttl_ms: int = 60_000
    max_ttl_ms: int = 30 * 60_000
    max_topic_bytes: int = 16 * 1024 * 1024

    def check(self, write: Write) -> None:
        """Raise what is wrong with the write on its face, in the order of the contract; the cap is the store's."""
        if not write.client:
            if isinstance(write, Drop):
                return
            raise ClientRequired("client is empty: a set or clear needs an owner, the consumer's channel name")
        if isinstance(write, Drop | Keep):
            return
        if not _are_plain(*write.topic, write.client, write.key):
            write.topic.require()
            if write.key == "":
                raise NameRequired("key is empty")
            _require_utf8("client", write.client)
            _require_utf8("key", write.key)
        if isinstance(write, Set | Restore) and len(write.payload) > self.max_payload_bytes:
            raise PayloadTooLarge(
                f"payload of {len(write.payload)} bytes exceeds the limit of {self.max_payload_bytes} "
                "(MAX_PAYLOAD_BYTES)"
            )

    def lifetime_ms(self, ttl_ms: int | None) -> int | None:
        """The lifetime that is stored for the one asked for: default for 0 or less, cut to the maximum."""
        if ttl_ms is None:
            return None
        return min(ttl_ms if ttl_ms > 0 else self.default_ttl_ms, self.max_ttl_ms)

    def grace_ms(self, grace_ms: int) -> int:
        """The grace that is stored for the one asked for: never longer than anything may live unattended."""
        return min(max(grace_ms, 0), self.max_ttl_ms)


def _are_plain(namespace: str, topic: str, client: str, key: str) -> bool:
    """The usual case, asked once for all names: nothing to complain of."""
    try:
        return bool(topic and key) and "".join((namespace, topic, client, key)).isascii()
    except TypeError:
        return False


def _require_utf8(what: str, name: str) -> None:
    if not isinstance(name, str):
        raise NameInvalid(f"{what} is of type {type(name).__name__}, not str")
    if not name.isascii():
        try:
            name.encode()
        except UnicodeEncodeError as error:
            # A lone surrogate passes json.loads and then fails in the server's send, or in msgpack.
            raise NameInvalid(f"{what} has a lone surrogate at position {error.start}") from None
