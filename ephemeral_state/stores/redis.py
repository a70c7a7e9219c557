"""The store in Redis 6.2 or newer, or in Valkey: shared by all processes, each write decided inside one script.

Topics are spread over `partitions`; all keys of a partition carry one hash tag, so that a script stays in one slot.
The scripts, and the layout of the keys, are in `lua/`, beginning with `common.lua`.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
import zlib
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from ..errors import EphemeralStateError, NotConfigured, StoreUnavailable, TopicTooLarge
from ..state import (
    Batches,
    Change,
    Clear,
    Digest,
    Drop,
    Entry,
    Keep,
    Limits,
    Outcome,
    Page,
    Peer,
    Revision,
    Roll,
    Set,
    Snapshot,
    Sweep,
    Topic,
    Write,
)
from . import redis_wire as wire
from .base import KEPT_TRANSITIONS, MINUTES, History, NodeStatus, Owner, Report, Store
from .redis_client import OPTIONS, Connection, Script, is_of_wrong_server, reaching, read_hosts, require_redis_py

__all__ = ["RedisStore"]

_HOUR_MS = 60 * 60 * 1000
_KEY_TTL_MS = 24 * _HOUR_MS
_FENCE_TTL_MS = _HOUR_MS  # far longer than TCP sends again what was not acknowledged
_CLOCK_TOLERANCE = 0.5  # seconds; the time in Redis is known as of the last answer, and clocks drift
_LAYOUT = "v2"  # of the keys: processes of another release must not take them for theirs
_BROWSE_STEP = 500  # entries looked at by one script, less than 1 ms of Redis' time
_BROWSE_BUDGET = 5000  # and by one call
_TOPICS_STEP = 200  # topics counted by one script
_HISTORY_LENGTH = 30  # transitions for people to read
_SNAPSHOT_STEP = 100_000  # bytes that one script reads: some ms of Redis' time
_SNAPSHOT_ATTEMPTS = 3
_PAYLOAD_STEP = 100  # payloads read by one script
_BURY_STEP = 200  # entries looked at by one script, and those of one client more
_SWEEP_RETRY_MS = 1000  # when to sweep again for a partition that did not answer


class RedisStore(Store):
    """Keeps everything in Redis, by Redis' own clock.

    The cap counts what a client owns in all partitions. It is exact if one client's sets come from one process, or
    with one partition. With several, each further process that sets for the same client may bring it half of the cap
    above it, and as many keys as are under way at once; and what it owns in a partition that does not answer is not
    counted.

    Every key of ours expires 24 h after it was last written. So an entry without a deadline is gone 24 h after it was
    last set, unless it is set again. Redis must not evict: with
    `maxmemory-policy noeviction` it refuses sets when it is full, and still carries out clears.
    """

    shared = True

    def __init__(
        self,
        limits: Limits,
        *,
        url: str | None = None,
        hosts: Sequence[Any] | None = None,
        prefix: str = "ephemeral",
        partitions: int = 1,
        timeout: float = 2.0,
        clock: Callable[[], int] | None = None,
    ) -> None:
        """Connects on first use. Raises `NotConfigured` for options that cannot work.

        `hosts` is what channels_redis takes: URLs, (host, port) pairs, or dicts of redis-py's arguments with
        `address`, or with `master_name` and `sentinels`. Partitions are dealt out to several hosts in turn; a
        cluster needs one host and finds the others. With another number of `partitions`, topics are elsewhere.
        `timeout`: seconds that one call may take in total.
        `clock`, for tests: returns ns. It replaces Redis' clock, except for the keys' own expiry.
        """
        super().__init__(limits)
        require_redis_py()
        self._hosts = read_hosts(url, hosts)
        if isinstance(partitions, bool) or not isinstance(partitions, int) or partitions < len(self._hosts):
            least = f"a whole number of at least that of the hosts, {len(self._hosts)}"
            raise NotConfigured(f"{OPTIONS}['partitions'] must be {least}, not {partitions!r}")
        if not isinstance(prefix, str) or not prefix or set(prefix) & set("{}"):
            raise NotConfigured(f"{OPTIONS}['prefix'] must be text without braces, not {prefix!r:.80}")
        if not 0 < timeout < math.inf:
            raise NotConfigured(f"{OPTIONS}['timeout'] must be a number of seconds above 0, not {timeout!r}")
        self._prefix = prefix
        self._roots = [f"{{{prefix}:{_LAYOUT}:{number}}}".encode() for number in range(partitions)]
        self._timeout = timeout
        self._clock = clock
        self._key_ttl = max(_KEY_TTL_MS, 2 * limits.max_ttl_ms)
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._connections: WeakKeyDictionary[asyncio.AbstractEventLoop, _Kept] = WeakKeyDictionary()
        self._inherited: list[object] = []
        self._tally = _Tally()

    @property
    def identity(self) -> str:
        # Without the hosts: one process may know by its name what another one knows by its address.
        databases = ",".join(str(host.get("db") or 0) for host in self._hosts)
        return f"{self._prefix}/{_LAYOUT}/{len(self._roots)}/{databases}"

    @property
    def moves(self) -> bool:
        with self._lock:
            has_moved = any(kept.connection.moved for kept in self._connections.values())
        return has_moved or any("master_name" in host for host in self._hosts)

    async def apply(self, writes: Sequence[Write], batches: Batches | None = None) -> list[Outcome]:
        """As the contract says. Redis is busy for about 10 µs per write and per entry that a `Drop` removes.

        A write that Redis refuses by itself (a foreign value under one of its keys, no memory left) has
        `StoreUnavailable` as its outcome, and so have the writes to a partition that does not answer while
        others do. A `Drop` spans all partitions, so it may have changes *and* an error.
        """
        until = self._until()
        outcomes = [Outcome()] * len(writes)
        rest: list[int] = []
        for index, write in enumerate(writes):
            try:
                self.limits.check(write)
            except EphemeralStateError as error:
                outcomes[index] = Outcome((), error)
            else:
                if write.client:
                    rest.append(index)
        answered = False
        while rest:
            part, elsewhere = await self._cut([(index, writes[index]) for index in rest], until)
            try:
                outcomes_of_part = await self._apply_part(part, elsewhere, until, batches)
                answered = True
            except StoreUnavailable as error:
                if not answered and len(part) == len(rest):
                    raise
                outcomes_of_part = {index: Outcome((), error) for index, _ in part}
            for index, outcome in outcomes_of_part.items():
                outcomes[index] = outcome
            rest = rest[len(part) :]
        return outcomes

    async def settle(self, batches: Batches) -> None:
        until = self._until()
        await asyncio.gather(*(self._apply_in(number, (), {}, until, batches) for number in batches.open_partitions))

    async def snapshot(self, topic: Topic, most_bytes: int | None = None) -> Snapshot:
        """In steps of some 100 kB, each within the time limit, so that other clients of Redis have their turn."""
        for _ in range(_SNAPSHOT_ATTEMPTS):
            pages = await self._read_pages(topic, most_bytes)
            if pages[-1].revision.epoch == pages[0].revision.epoch:
                return _snapshot_of(topic, pages)
        raise StoreUnavailable("the topic is emptied and used again faster than it can be read")

    async def _read_pages(self, topic: Topic, most_bytes: int | None) -> list[wire.TopicPage]:
        """All pages; or, of a topic that has begun anew meanwhile, those up to the first one of the new epoch."""
        topic_id = wire.topic_id(topic)
        pages: list[wire.TopicPage] = []
        while not pages or (pages[-1].last and pages[-1].revision.epoch == pages[0].revision.epoch):
            after = pages[-1].last if pages else b""
            data = await self._run(_SNAPSHOT, self._partition(topic_id), self._until(), topic_id, after, _SNAPSHOT_STEP)
            pages.append(wire.read_topic_page(data, topic))
            first = pages[0]
            is_single = not first.last and len(first.changed) == 1
            if most_bytes is not None and first.size > most_bytes and not is_single:
                text = f"the topic has {first.size} bytes, at most {most_bytes} can be read at once"
                raise TopicTooLarge(text, first.size)
        return pages

    async def entry(self, topic: Topic, key: str) -> Entry | None:
        topic_id = wire.topic_id(topic)
        data = await self._run(_ENTRY, self._partition(topic_id), self._until(), topic_id, wire.encoded(key))
        return wire.read_entry_value(data, topic)

    async def revisions(self, topics: Sequence[Topic]) -> Sequence[Revision | None]:
        return [digest and digest.revision for digest in await self.digests(topics)]

    async def digests(self, topics: Sequence[Topic]) -> Sequence[Digest | None]:
        """One script per partition, all at once. A topic whose key holds a foreign value is not stored."""
        until = self._until()
        ids = [wire.topic_id(topic) for topic in topics]
        places: defaultdict[int, list[int]] = defaultdict(list)
        for index, topic_id in enumerate(ids):
            places[self._partition(topic_id)].append(index)
        answers = await _answers(
            self._run(_REVISIONS, number, until, wire.pack_names(ids[index] for index in indices))
            for number, indices in places.items()
        )
        digests: list[Digest | None] = [None] * len(ids)
        for indices, data in zip(places.values(), answers, strict=True):
            if data is not None:
                for index, digest in zip(indices, wire.read_digests(data), strict=True):
                    digests[index] = digest
        return digests

    async def sweep(self, limit: int = 300) -> Sweep:
        """Several partitions share the limit, each gets at least 1: then at most max(limit, partitions) go."""
        until = self._until()
        share = max(1, limit // len(self._roots))
        answers = await _answers(
            self._run(_SWEEP, number, until, share, self._key_ttl) for number in range(len(self._roots))
        )
        sweeps = [Sweep((), _SWEEP_RETRY_MS) if data is None else wire.read_sweep(data) for data in answers]
        changes: list[Change] = [change for sweep in sweeps for change in sweep.changes]
        return Sweep(changes, min((s.next_in_ms for s in sweeps if s.next_in_ms is not None), default=None))

    async def count(self) -> int:
        until = self._until()
        numbers = range(len(self._roots))
        answers = await asyncio.gather(*(self._run(_COUNT, number, until) for number in numbers))
        return sum(sum(wire.read_numbers(data)) for data in answers)

    async def counts(self, topics: Sequence[Topic]) -> list[int]:
        """A script that has looked at enough leaves the other topics to the next one."""
        until = self._until()
        ids = [wire.topic_id(topic) for topic in topics]
        counts: dict[bytes, int] = {}
        for number in range(len(self._roots)):
            waiting = [topic_id for topic_id in ids if self._partition(topic_id) == number]
            while waiting:
                data = await self._run(_COUNTS, number, until, wire.pack_names(waiting), _BROWSE_STEP)
                some = wire.read_numbers(data)
                counts.update(zip(waiting, some, strict=False))
                waiting = waiting[len(some) :]
        return [counts[topic_id] for topic_id in ids]

    async def browse(
        self,
        *,
        cursor: str = "",
        limit: int = 100,
        namespace: str | None = None,
        topic: str | None = None,
        search: str = "",
    ) -> Page:
        """Sorted by the bytes of the names within a partition; one partition after the other."""
        until = self._until()
        number, after = wire.read_cursor(cursor, len(self._roots)) if cursor else (0, b"")
        low, high = wire.entry_range(namespace, topic)
        last = len(self._roots) - 1
        if namespace is not None and topic is not None:
            number = last = self._partition(wire.topic_id(Topic(namespace, topic)))
        wanted = _Wanted(topic, search.casefold())
        step = _BROWSE_STEP if search or (topic is not None and namespace is None) else min(limit, _BROWSE_STEP)
        found: list[tuple[int, wire.Row]] = []
        budget = _BROWSE_BUDGET
        while number <= last and budget > 0 and len(found) < limit:
            start = b"(" + after if after else low
            rows = wire.read_rows(await self._run(_BROWSE, number, until, start, high, step))
            for row in rows:
                after = row.entry
                if wanted(row):
                    found.append((number, row))
                    if len(found) == limit:
                        break
            else:
                if len(rows) < step:
                    number, after = number + 1, b""
            budget -= step
        entries = await self._with_payloads(found, until)
        return Page(entries, wire.pack_cursor(number, after) if number <= last else "")

    async def beat(self, node: str, lease_ms: int, info: str, stamp: str = "") -> Roll:
        """Two round trips. A node is linked while Redis sees it subscribed to a channel of its own: when the process
        is killed, that ends at once."""
        until = self._until()
        data = await self._run(_BEAT, 0, until, node.encode(), lease_ms, info.encode(), self._key_ttl, stamp.encode())
        roll = wire.read_roll(data, {})
        if roll.reaped:
            return roll
        async with reaching(until, self._timeout):
            names = [node, *(peer.node for peer in roll.peers)]
            linked = await self._connection().linked([self._roots[0] + b":alive:" + name.encode() for name in names])
        return wire.read_roll(data, dict(zip(names, linked, strict=True)))._replace(linked=linked[0])

    async def bury(self, peer: Peer) -> Sequence[Change]:
        until = self._until()
        node = peer.node.encode()

        async def step(number: int, verb: bytes, what: bytes = b"") -> bytes:
            return await self._run(_BURY, number, until, node, verb, what, _BURY_STEP, self._key_ttl)

        await self._connection().find_masters()
        if await step(0, b"claim", peer.stamp.encode()) == b"\0":
            return ()
        changes: list[Change] = []
        is_whole = True
        for number in range(len(self._roots)):
            more = True
            while more:
                until = self._until()
                try:
                    data = await step(number, b"clear")
                except StoreUnavailable:
                    # Those of the other partitions must be told. The node stays listed as dying, and somebody goes on.
                    is_whole = more = False
                else:
                    more, some = wire.read_buried(data)
                    changes += some
        if is_whole:
            await step(0, b"done")
        return changes

    async def resign(self, node: str, stamp: str = "") -> None:
        await self._run(_RESIGN, 0, self._until(), node.encode(), stamp.encode())

    async def nodes(self) -> Sequence[NodeStatus]:
        return wire.read_nodes(await self._run(_NODES, 0, self._until()))

    async def clients(self, node: str) -> Sequence[str]:
        until = self._until()
        numbers = range(len(self._roots))
        answers = await asyncio.gather(*(self._run(_CLIENTS, number, until, node.encode()) for number in numbers))
        names = {name for data in answers for name in wire.read_sizeds(data)}
        return [name.decode(errors="surrogatepass") for name in names]

    async def homes(self, clients: Sequence[str]) -> Mapping[str, str]:
        until = self._until()
        names = wire.pack_names(wire.encoded(client) for client in clients)
        found: dict[str, str] = {}
        for number in range(len(self._roots)):
            homes = wire.read_sizeds(await self._run(_HOMES, number, until, names))
            found |= {client: home.decode() for client, home in zip(clients, homes, strict=True) if home}
        return found

    async def owners(self, clients: Sequence[str]) -> Mapping[str, Owner]:
        homes = await self.homes(clients)
        if not homes:
            return {}
        names = wire.pack_names(wire.encoded(name) for client, node in homes.items() for name in (node, client))
        abouts = wire.read_sizeds(await self._run(_WHO, 0, self._until(), names))
        return {
            client: Owner(node, about.decode(errors="replace"))
            for (client, node), about in zip(homes.items(), abouts, strict=True)
        }

    async def topics(self, *, cursor: str = "", limit: int = 1000) -> tuple[Sequence[tuple[Topic, int]], str]:
        until = self._until()
        number, start = wire.read_cursor(cursor, len(self._roots)) if cursor else (0, b"-")
        found: list[tuple[Topic, int]] = []
        while number < len(self._roots) and len(found) < limit:
            step = min(_TOPICS_STEP, limit - len(found))
            some, past = wire.read_topics(await self._run(_TOPICS, number, until, start, step))
            found += some
            number, start = (number, past) if len(some) == step else (number + 1, b"-")
        return found, wire.pack_cursor(number, start) if number < len(self._roots) else ""

    async def report(self, report: Report) -> None:
        packed = wire.pack_report(report)
        await self._run(_REPORT, 0, self._until(), report.node.encode(), *packed, self._key_ttl, KEPT_TRANSITIONS)

    async def history(self, topic: Topic | None = None, key: str = "") -> History:
        start = b"" if topic is None else wire.pack_names((wire.topic_id(topic), wire.encoded(key)))
        data = await self._run(_HISTORY, 0, self._until(), MINUTES, start, _HISTORY_LENGTH)
        return wire.read_history(data, MINUTES)

    @property
    def roots(self) -> Sequence[bytes]:
        """What the names of all keys of each partition begin with."""
        return self._roots

    async def maintain(self, script: Script, number: int, *args: bytes | int) -> bytes:
        """Run a script of one's own in a partition. Its arguments come after those of every script of `lua/` that
        writes: the clock, and after how many ms an untouched key goes."""
        return await self._run(script, number, self._until(), self._key_ttl, *args)

    async def advice(self) -> Sequence[str]:
        async with reaching(self._until(), self._timeout):
            return await self._connection().advice(self._roots[0] + b":alive:advice")

    async def close(self) -> None:
        with self._lock:
            kept = self._connections.pop(asyncio.get_running_loop(), None)
        if kept is not None:
            await kept.close()

    async def _cut(
        self, writes: Sequence[tuple[int, Write]], until: float
    ) -> tuple[Sequence[tuple[int, Write]], Mapping[str, Sequence[int]]]:
        """How many of the writes can go at once, and what clients near their cap own in each partition.

        A script sees one partition only. So sets of a client that might reach its cap are sent one part after
        the other, each with fresh counts of the other partitions; all other writes have nothing to wait for. Who owns
        half of the cap at most, whatever became of what was sent for it, is not counted.
        """
        if len(self._roots) == 1:
            return writes, {}
        cap = self.limits.max_keys_per_client
        sets = Counter(write.client for _, write in writes if isinstance(write, Set))
        for client in self._tally.below(cap // 2, sets):
            del sets[client]
        if not sets:
            return writes, {}
        names = wire.pack_names(wire.encoded(client) for client in sets)
        # Half the time: a partition that does not answer must not keep the others from being written.
        soon = until - self._timeout / 2
        answers = await asyncio.gather(
            *(self._run(_OWNED, number, soon, names) for number in range(len(self._roots))), return_exceptions=True
        )
        owned = {client: [0] * len(self._roots) for client in sets}
        for number, answer in enumerate(answers):
            if isinstance(answer, bytes):
                for client, count in zip(sets, wire.read_numbers(answer), strict=True):
                    owned[client][number] = count
            elif not isinstance(answer, StoreUnavailable):
                raise answer
        if all(isinstance(answer, bytes) for answer in answers):
            self._tally.counted({client: sum(counts) for client, counts in owned.items()})
        near = {client: owned[client] for client in sets if sum(owned[client]) + sets[client] > cap}
        for size, (_, write) in enumerate(writes):
            if size and isinstance(write, Set) and write.client in near:
                return writes[:size], near
        return writes, near

    async def _apply_part(
        self,
        part: Sequence[tuple[int, Write]],
        elsewhere: Mapping[str, Sequence[int]],
        until: float,
        batches: Batches | None,
    ) -> dict[int, Outcome]:
        """Carry out the writes in their partitions. Raises `StoreUnavailable` only if no partition answers."""
        if len(self._roots) > 1:
            self._tally.sends(write for _, write in part)
        places: defaultdict[int, list[tuple[int, Write]]] = defaultdict(list)
        for item in part:
            write = item[1]
            if isinstance(write, Drop | Keep):
                for number in range(len(self._roots)):
                    places[number].append(item)
            else:
                places[self._partition(wire.topic_id(write.topic))].append(item)
        if len(places) == 1:  # nothing to wait for side by side, and a task costs as much as ten writes
            ((number, items),) = places.items()
            only = await self._apply_in(number, [write for _, write in items], elsewhere, until, batches)
            return {index: outcome for (index, _), outcome in zip(items, only, strict=True)}
        answers = await asyncio.gather(
            *(
                self._apply_in(number, [write for _, write in items], elsewhere, until, batches)
                for number, items in places.items()
            ),
            return_exceptions=True,
        )
        unanswered = [answer for answer in answers if isinstance(answer, BaseException)]
        outcomes: dict[int, Outcome] = {}
        for items, answer in zip(places.values(), answers, strict=True):
            if isinstance(answer, BaseException):
                if not isinstance(answer, StoreUnavailable) or len(unanswered) == len(places):
                    raise answer
                answer = [Outcome((), answer)] * len(items)
            for (index, _), outcome in zip(items, answer, strict=True):
                outcomes[index] = _joined(outcomes[index], outcome) if index in outcomes else outcome
        return outcomes

    async def _apply_in(
        self,
        number: int,
        writes: Sequence[Write],
        elsewhere: Mapping[str, Sequence[int]],
        until: float,
        batches: Batches | None,
    ) -> list[Outcome]:
        packed = wire.pack_writes(
            ((write, _elsewhere(elsewhere.get(write.client), number)) for write in writes),
            self.limits,
            lambda topic: self._partition(topic) == number,
        )
        batch, is_first_after = batches.begin(number) if batches is not None else (0, False)

        async def attempt() -> list[Outcome]:
            limits = (self.limits.max_keys_per_client, self.limits.max_topic_bytes, self._key_ttl, _FENCE_TTL_MS)
            if batches is None:
                data = await self._run(_APPLY, number, until, *limits, b"", 0, b"", b"", packed)
            else:
                given_up_at = batches.store_time(number, until + _CLOCK_TOLERANCE)
                fence = (batches.writer.encode(), batch, b"1" if is_first_after else b"", given_up_at)
                data = await self._run(_APPLY, number, until, *limits, *fence, packed)
                batches.learn_time(number, wire.read_time(data), asyncio.get_running_loop().time())
            return wire.read_outcomes(data, writes, self.limits)

        try:
            try:
                outcomes = await attempt()
            except wire.TooLate:  # Redis' clock was put forward
                outcomes = await attempt()
            except StoreUnavailable as error:
                if not is_of_wrong_server(error) or error.__cause__ is not None:  # with a cause, it was asked twice
                    raise
                self._connection().leave_server(number)  # a replica, which has carried out none of them
                outcomes = await attempt()
        except BaseException:
            if batches is not None:
                batches.give_up(number, batch)
            raise
        if batches is not None:
            batches.applied(number, batch)
        return outcomes

    async def _with_payloads(self, found: Sequence[tuple[int, wire.Row]], until: float) -> list[Entry]:
        payloads: dict[bytes, bytes] = {}
        for number in sorted({number for number, _ in found}):
            names = [row.entry for place, row in found if place == number]
            while names:
                some = wire.pack_names(names[:_PAYLOAD_STEP])
                found_here = list(wire.read_sizeds(await self._run(_PAYLOADS, number, until, some, _SNAPSHOT_STEP)))
                payloads.update(zip(names, found_here, strict=False))
                names = names[len(found_here) :]
        return [
            Entry(*wire.read_entry(row.entry), row.client, payloads[row.entry], row.expires_in_ms) for _, row in found
        ]

    def _partition(self, topic_id: bytes) -> int:
        return zlib.crc32(topic_id) % len(self._roots) if len(self._roots) > 1 else 0

    def _until(self) -> float:
        return asyncio.get_running_loop().time() + self._timeout

    async def _run(self, script: Script, number: int, until: float, *args: bytes | int) -> bytes:
        """Run a script in a partition, by the loop time `until`. Raises `StoreUnavailable` saying what happened."""
        clock = b"" if self._clock is None else repr(self._clock() / 1000).encode()
        return await self._connection().run(script, number, until, clock, *args)

    def _connection(self) -> Connection:
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._pid != os.getpid():
                # Kept, not closed: collecting them would close, or talk on, sockets that the parent still uses.
                self._inherited.append(self._connections)
                self._connections = WeakKeyDictionary()
                self._pid = os.getpid()
            kept = self._connections.get(loop)
            if kept is None:
                for ended in [each for each in self._connections if each.is_closed()]:
                    del self._connections[ended]
                kept = self._connections[loop] = _Kept(Connection(self._hosts, self._roots, self._timeout))
            return kept.connection


class _Kept:
    """A connection that is closed, at the latest, when its event loop ends: `async_to_sync` has one for each call."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._end = self._until_the_end()
        with suppress(StopIteration):  # begin, so that the loop knows of it
            self._end.__anext__().send(None)

    async def _until_the_end(self) -> AsyncGenerator[None, None]:
        # Whoever ends a loop in an orderly way closes the asynchronous generators that were begun in it.
        try:
            yield
        finally:
            await self.connection.close()

    async def close(self) -> None:
        await self._end.aclose()


async def _answers(calls: Iterable[Coroutine[Any, Any, bytes]]) -> Sequence[bytes | None]:
    """Of several partitions; `None` of one that does not answer. Raises `StoreUnavailable` if none does."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    failures = [answer for answer in answers if isinstance(answer, BaseException)]
    for failure in failures:
        if not isinstance(failure, StoreUnavailable) or len(failures) == len(answers):
            raise failure
    return [None if isinstance(answer, BaseException) else answer for answer in answers]


class _Tally:
    """The most keys that clients can own: what was counted, and one more for each that was sent since. Forgets those
    that it has not heard of for longest."""

    _SIZE = 10_000  # clients

    def __init__(self) -> None:
        self._most: dict[str, int] = {}
        self._lock = threading.Lock()

    def below(self, limit: int, sets: Mapping[str, int]) -> list[str]:
        """The clients that own no more than `limit` keys even after so many sets."""
        with self._lock:
            return [client for client, more in sets.items() if self._most.get(client, limit) + more <= limit]

    def counted(self, totals: Mapping[str, int]) -> None:
        with self._lock:
            self._most.update(totals)
            while len(self._most) > self._SIZE:
                del self._most[next(iter(self._most))]

    def sends(self, writes: Iterable[Write]) -> None:
        with self._lock:
            for write in writes:
                if isinstance(write, Drop):
                    self._most.pop(write.client, None)
                elif not isinstance(write, Clear) and write.client in self._most:
                    self._most[write.client] = self._most.pop(write.client) + 1


def _snapshot_of(topic: Topic, pages: Sequence[wire.TopicPage]) -> Snapshot:
    first = pages[0]
    if len(pages) == 1:
        return Snapshot(topic, first.revision, first.entries, first.generation, first.changed)
    changed = {key: revision for page in pages for key, revision in page.changed.items()}
    ahead = {
        key: page.changed[key]
        for page in pages
        for key, stamp in page.stamps.items()
        # Numbers of an earlier epoch tell nothing about this one.
        if stamp.epoch == first.revision.epoch and page.changed[key] > first.revision.revision
    }
    entries = [entry for page in pages for entry in page.entries]
    return Snapshot(topic, first.revision, entries, first.generation, changed, ahead)


def _elsewhere(owned: Sequence[int] | None, number: int) -> int:
    return sum(owned) - owned[number] if owned else 0


def _joined(one: Outcome, other: Outcome) -> Outcome:
    """What became of a drop, from two partitions."""
    return Outcome([*one.changes, *other.changes], one.error or other.error)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The part of a search that Redis cannot do."""

    topic: str | None
    needle: str

    def __call__(self, row: wire.Row) -> bool:
        if not row.is_live:
            return False
        topic, key = wire.read_entry(row.entry)
        if self.topic not in (None, topic.name):
            return False
        return not self.needle or any(self.needle in text.casefold() for text in (topic.name, key, row.client))


_APPLY = Script("apply")
_BEAT = Script("beat")
_BROWSE = Script("browse")
_BURY = Script("bury")
_CLIENTS = Script("clients")
_COUNT = Script("count")
_COUNTS = Script("counts")
_ENTRY = Script("entry")
_HISTORY = Script("history")
_HOMES = Script("homes")
_NODES = Script("nodes")
_OWNED = Script("owned")
_PAYLOADS = Script("payloads")
_REPORT = Script("report")
_RESIGN = Script("resign")
_REVISIONS = Script("revisions")
_SNAPSHOT = Script("snapshot")
_SWEEP = Script("sweep")
_TOPICS = Script("topics")
_WHO = Script("who")
