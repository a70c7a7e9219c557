"""One WebSocket's rights and duties: what it may set while it lives, and that nothing of it stays when it ends."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from . import log
from .delivery import Delivery
from .errors import ConnectionGone, NotConfigured, TooManyEntries
from .node import Node, current
from .protocol import PLAIN, Flow, Ref, encode_grace, encode_payload, encode_ttl
from .state import Clear, Drop, Entry, Outcome, Set, Topic, UntilDisconnect

__all__ = ["Connection", "drop"]


class Connection:
    """Belongs to one event loop. `client_id` is the consumer's channel name and owns what is set here."""

    def __init__(
        self,
        client_id: str,
        node: Node,
        delivery: Delivery,
        about: Mapping[str, str] | None = None,
        process_ends: Callable[[], None] | None = None,
    ) -> None:
        """`about`: what people may want to know of it, beside the time it began. `process_ends` is called when a
        signal says so, and what it owns is cleared then; without it, that is up to its own code."""
        self.client_id = client_id
        self.process_ends = process_ends
        self._node = node
        self._delivery = delivery
        self._topics: set[Topic] = set()
        self._subscribing = asyncio.Lock()
        self._ending: asyncio.Task[None] | None = None
        node.join(self)
        node.journal.came(client_id, json.dumps({"since": round(time.time(), 3), **(about or {})}))

    @property
    def ended(self) -> bool:
        """It has ended, or is ending: nothing may be set in its name."""
        return self._ending is not None

    async def set(
        self,
        topic: Topic,
        key: str,
        payload: object = b"",
        ttl: float | UntilDisconnect | None = None,
        grace: float | None = None,
        *,
        in_company: bool = False,
    ) -> None:
        """Store and publish. `in_company`: it can wait a few ms for what others write. Raises `ConnectionGone`,
        `InvalidPayload`, `InvalidTTL`, what `Limits` refuses, `TooManyKeys` or `StoreUnavailable`; then nothing was
        stored."""
        what = encode_payload(payload), encode_ttl(ttl), encode_grace(grace)
        begun = self.begin(topic, key, *what, in_company=in_company)
        outcome = await self._node.outcome(begun)
        if outcome.error is not None:
            raise outcome.error

    def begin(
        self,
        topic: Topic,
        key: str,
        payload: bytes,
        ttl_ms: int | None,
        grace_ms: int = 0,
        *,
        in_company: bool = False,
    ) -> asyncio.Future[Outcome]:
        """`set` for values that are encoded already, and for callers that do something else meanwhile. Raises what is
        wrong with it on its face; the outcome has the error that refused it later."""
        write = Set(self.client_id, topic, key, payload, ttl_ms, self._node.id, grace_ms)
        if self.ended:
            raise ConnectionGone("the connection has ended, nothing can be set in its name")
        self._node.store.limits.check(write)
        return self._node.begin(write, in_company=in_company)

    async def clear(self, topic: Topic, key: str) -> None:
        """Clear one's own key. After the end, when nothing is owned any more, it does nothing."""
        write = Clear(self.client_id, topic, key, self._node.id)
        self._node.store.limits.check(write)
        if not self.ended:
            await self._node.finish(write)

    async def require_room(self, topic: Topic, key: str, max_entries: int) -> None:
        """Raise `TooManyEntries` if another key would be more than the topic may have. Cheap rather than exact: sets
        that are under way are not counted."""
        others = self._node.hub.others(topic, key)
        if others is None:
            (others,) = await self._node.store.counts([topic])
        if others >= max_entries:
            raise TooManyEntries(f"the topic has {others} entries, the limit is {max_entries} (MAX_ENTRIES_PER_TOPIC)")

    async def list(self, topic: Topic, most_bytes: int | None = None) -> Sequence[Entry]:
        """Live entries, sorted by key. Raises `StoreUnavailable`, or `TopicTooLarge` if several entries
        would be more than `most_bytes`."""
        return (await self._node.store.snapshot(topic.require(), most_bytes)).entries

    async def subscribe(self, topic: Topic, ref: Ref = None, flow: Flow = PLAIN) -> int:
        """One snapshot, of so many characters, then every change. Raises `ConnectionGone`, `NameInvalid` or
        `StoreUnavailable`."""
        if self.ended:
            raise ConnectionGone("the connection has ended, it cannot subscribe")
        topic.require()
        # One at a time: of two for the same topic, one that fails must not undo the other.
        async with self._subscribing:
            await self._follow(topic, ref, flow)
        return self._node.hub.size(topic)

    async def _follow(self, topic: Topic, ref: Ref, flow: Flow) -> None:
        self._topics.add(topic)
        hub = self._node.hub
        try:
            await hub.follow(topic, self._delivery, ref, flow)
        except BaseException as error:
            self._topics.discard(topic)
            if self.ended and not _cancelling():
                raise ConnectionGone("the connection has ended while it was subscribing") from error
            raise
        finally:
            if self.ended or topic not in self._topics:
                hub.unfollow(topic, self._delivery)

    def unsubscribe(self, topic: Topic) -> None:
        """Hear no more of the topic. Does nothing if it was not subscribed."""
        self._topics.discard(topic)
        self._node.hub.unfollow(topic, self._delivery)

    def end(self, *, abnormal: bool) -> asyncio.Task[None]:
        """Refuse new sets from now on, then clear what this connection owns and stop listening. However often
        and from wherever it is called it happens once, and the first call says how; the task ends when it is done."""
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._end(abnormal))
        return self._ending

    async def _end(self, abnormal: bool) -> None:
        self._delivery.close()
        for topic in self._topics:
            self._node.hub.unfollow(topic, self._delivery)
        self._topics.clear()
        try:
            await _drop(self._node, self.client_id, abnormal)
        finally:
            self._node.journal.went(self.client_id)
            await self._node.leave(self)


async def drop(client_id: str, *, abnormal: bool) -> None:
    """Clear what was set in the name of a client that never had a `Connection`. Never raises."""
    with suppress(NotConfigured):  # then nothing was set, either
        await _drop(current(), client_id, abnormal)


async def _drop(node: Node, client_id: str, abnormal: bool) -> None:
    try:
        await node.finish(Drop(client_id, abnormal, node.id))
    except Exception:
        log.exception(
            "clearing_failed",
            "clearing the state of %(client)s failed, what it owns stays until its lifetime ends",
            client=client_id,
        )


def _cancelling() -> bool:
    """Whether it is the running task that is cancelled, and not what it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
