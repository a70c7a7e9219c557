"""The interface between this package and a place that keeps state.

    writes ──► apply ──► outcomes: per write, the numbered changes it made or the error that refused it
               sweep ──► the changes of what has expired, and when to come again
    nodes  ──► beat, bury, resign: who is alive, and the changes of clearing what a dead node's clients own
    topic  ──► snapshot, entry, revisions: what is there now, and how to notice that something was missed
    people ──► browse, count, counts, topics, nodes, homes, owners, report, history

A new store needs nothing else. It never publishes and never looks at a channel layer: whoever calls
`apply` or `sweep` publishes the changes. `tests/stores/` holds the contract that every store passes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, NamedTuple

from ..state import (
    Batches,
    Change,
    Digest,
    Entry,
    Limits,
    Outcome,
    Page,
    Peer,
    Reason,
    Revision,
    Roll,
    Snapshot,
    Sweep,
    Topic,
    Write,
)

__all__ = ["KINDS", "History", "NodeStatus", "Owner", "Report", "Store", "Transition"]

KINDS = ("set", "explicit", "disconnect", "expired")
"""What is counted: sets, and clears by reason."""
MINUTES = 60
KEPT_TRANSITIONS = 1000


class Transition(NamedTuple):
    """A key was set by an owner who had not set it before, or cleared."""

    age_ms: float
    topic: Topic
    key: str
    client: str
    reason: Reason | None
    """`None`: it was set."""
    node: str
    """Who carried it out."""


class Report(NamedTuple):
    """What a node says from time to time, for people: counts by kind, transitions, and its clients as JSON."""

    node: str
    counts: Mapping[str, int]
    transitions: Sequence[Transition] = ()
    came: Mapping[str, str] = MappingProxyType({})
    gone: Sequence[str] = ()


class History(NamedTuple):
    """What all nodes have reported."""

    minutes: Sequence[Mapping[str, int]]
    """Counts by kind of each of the last minutes, the oldest first; the last one has only begun."""
    transitions: Sequence[Transition]
    """The latest, the last one first."""


class Owner(NamedTuple):
    """Where a client is at home, and what is known of it."""

    node: str
    about: str
    """JSON; empty if nothing is known."""


class NodeStatus(NamedTuple):
    """A node as people may want to see it. While it is being buried and has come back, there are two of it."""

    node: str
    remaining_ms: float
    """Until its lease ends; of one that is being buried, since when, as a number below 0."""
    linked: bool
    """See `Peer`."""
    is_dying: bool
    """Its lease was taken away, and what its clients own is being cleared."""
    stamp: str
    """Changes with every renewal of the lease."""
    info: str
    """What the node says of itself, JSON; empty if nothing is known."""


class Store(ABC):
    """Keeps entries by (namespace, topic, key), fenced by owner.

    One instance serves a whole process: every method may be called from any thread and any event
    loop. Every method raises `StoreUnavailable`, within its time limit, when the store cannot answer. A store may be
    spread over several servers: while one is away, `apply`, `revisions`, `sweep` and `bury` do what the others allow.
    """

    shared: ClassVar[bool] = False
    """Other processes use it too, and may outlive this one: then nodes need leases."""

    at_once: ClassVar[bool] = False
    """`apply` waits for nothing: it may be run in place, within somebody else's task, or in none."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits

    @property
    def identity(self) -> str:
        """Names the data that it keeps: the same in all processes that share it, another for all others. Changes say
        which store they are of, since sites that do not share a store may share a channel layer. Empty: it cannot
        tell, and changes that say nothing are believed."""
        return ""

    @property
    def moves(self) -> bool:
        """Whether another server may take its place while others still use the one before."""
        return False

    @property
    def held(self) -> int:
        """How many entries it keeps in the memory of this process. For any thread."""
        return 0

    @abstractmethod
    async def apply(self, writes: Sequence[Write], batches: Batches | None = None) -> list[Outcome]:
        """Carry out the writes in order, each atomically, and say what became of each.

        A refused write changes nothing and does not stop the others. The changes of one topic within
        one call have contiguous revisions.

        `batches` is the writer's own, whose calls come one after another. With it, a call that has raised
        `StoreUnavailable` changes nothing once a later one has returned, however late its request arrives. A writer
        named like a node that was reaped is refused.
        """

    async def settle(self, batches: Batches) -> None:  # noqa: B027 - a store in memory is never reached late
        """Forbid that what the writer has given up is applied when it arrives late."""

    @abstractmethod
    async def snapshot(self, topic: Topic, most_bytes: int | None = None) -> Snapshot:
        """The entries with `now < deadline` and the revision they are the result of. Removes nothing. Raises
        `TopicTooLarge` if the topic has several entries, and their keys and payloads more than `most_bytes`."""

    async def entry(self, topic: Topic, key: str) -> Entry | None:
        """One of those entries, or `None`. A store can read it without the rest of the topic."""
        return next((entry for entry in (await self.snapshot(topic)).entries if entry.key == key), None)

    @abstractmethod
    async def revisions(self, topics: Sequence[Topic]) -> Sequence[Revision | None]:
        """The revision of each topic, in one round trip; `(0, 0)` for a topic that is not stored.

        `None`: the part of the store that has the topic does not answer while others do, and nothing is known.
        """

    async def digests(self, topics: Sequence[Topic]) -> Sequence[Digest | None]:
        """The revision of each topic and what it holds then, as one number, in one round trip; `None` as above. A store
        that keeps no such numbers, as this default has it, has its topics compared by their revisions alone."""
        return [revision and Digest(revision, None) for revision in await self.revisions(topics)]

    @abstractmethod
    async def sweep(self, limit: int = 300) -> Sweep:
        """Remove at most `limit` entries with `now > deadline`, as clears with reason `expired`.

        What is in a part of the store that does not answer while others do is left for a later sweep, soon.
        """

    @abstractmethod
    async def count(self) -> int:
        """How many entries are stored, expired and unswept ones included."""

    async def counts(self, topics: Sequence[Topic]) -> list[int]:
        """How many entries of each topic are live. A store may count expired ones along that are not swept yet, in
        topics of more than 1 000 entries."""
        return [len((await self.snapshot(topic)).entries) for topic in topics]

    @abstractmethod
    async def browse(
        self,
        *,
        cursor: str = "",
        limit: int = 100,
        namespace: str | None = None,
        topic: str | None = None,
        search: str = "",
    ) -> Page:
        """Live entries for people, at most `limit`, in an order that is stable from page to page.

        `namespace` and `topic` match exactly; `search` is a case-insensitive part of the topic, key or client.
        A page may be short, even empty, and still have a cursor. Raises `ValueError` for a foreign cursor.
        """

    async def beat(self, node: str, lease_ms: int, info: str, stamp: str = "") -> Roll:
        """Renew the node's lease for `lease_ms` and read those of all others. `info` is JSON, for people; `stamp` is
        that of the last beat that was answered.

        A store of one process, as this default has it, knows of no others.
        """
        return Roll(0, held=True, linked=True)

    async def bury(self, peer: Peer) -> Sequence[Change]:
        """Clear what the clients of a dead node own, with reason `disconnect`; nothing if it has renewed its lease
        since that reading, or another node was faster.

        While a part of the store does not answer, the node stays listed as dying, for a later funeral to finish.
        """
        return ()

    async def resign(self, node: str, stamp: str = "") -> None:  # noqa: B027 - see `beat`
        """Give back the lease: the node has no clients any more. With the `stamp` of the last beat, not if it was
        renewed since."""

    async def nodes(self) -> Sequence[NodeStatus]:
        """All nodes that hold a lease or are being buried, as they are: nothing is renewed."""
        return ()

    async def clients(self, node: str) -> Sequence[str]:
        """The clients whose connections the node holds, as far as the store knows."""
        return ()

    async def homes(self, clients: Sequence[str]) -> Mapping[str, str]:
        """The node that holds the connection of each of these clients, as far as it is known."""
        return {}

    async def owners(self, clients: Sequence[str]) -> Mapping[str, Owner]:
        """Of those clients of which anything is known."""
        return {}

    async def topics(self, *, cursor: str = "", limit: int = 1000) -> tuple[Sequence[tuple[Topic, int]], str]:
        """Topics and how many entries they have, not yet swept ones included, and the cursor for more."""
        return (), ""

    async def report(self, report: Report) -> None:  # noqa: B027 - for people only
        """Add to what `history` and `owners` tell."""

    async def history(self, topic: Topic | None = None, key: str = "") -> History:
        """Of all entries, or the transitions of one of them."""
        return History([{}] * MINUTES, ())

    async def advice(self) -> Sequence[str]:
        """What of its server will do harm though everything works by now: each a sentence for the operator."""
        return ()

    async def close(self) -> None:  # noqa: B027 - most stores hold nothing that needs it
        """Let go of connections that belong to the running event loop."""
