"""What the store tests share: a store on a clock that stands still until it is told, and a loop to run it in."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ClassVar

from ephemeral_state.state import Change, Clear, Drop, Entry, Outcome, Set, Topic, Write
from ephemeral_state.stores.base import Store
from tests.conformance import ManualClock

__all__ = ["ROOM", "World", "runs"]

ROOM = Topic("acme", "room")


class World:
    """One store, its clock, and shorthands that fail the test when a write is refused."""

    made: ClassVar[list[World]] = []

    def __init__(self, store: Store, clock: ManualClock) -> None:
        self.store = store
        self.clock = clock
        self.made.append(self)

    def advance(self, ms: float) -> None:
        self.clock.now += round(ms * 1_000_000)

    async def apply(self, *writes: Write) -> list[Outcome]:
        return await self.store.apply(writes)

    async def changes(self, *writes: Write) -> list[Change]:
        outcomes = await self.store.apply(writes)
        for outcome in outcomes:
            if outcome.error is not None:
                raise outcome.error
        return [change for outcome in outcomes for change in outcome.changes]

    async def set(
        self, client: str, key: str, payload: bytes = b"", ttl_ms: int | None = 0, topic: Topic = ROOM
    ) -> Change:
        (change,) = await self.changes(Set(client, topic, key, payload, ttl_ms))
        return change

    async def clear(self, client: str, key: str, topic: Topic = ROOM) -> list[Change]:
        return await self.changes(Clear(client, topic, key))

    async def drop(self, client: str) -> list[Change]:
        return await self.changes(Drop(client))

    async def entries(self, topic: Topic = ROOM) -> Sequence[Entry]:
        return (await self.store.snapshot(topic)).entries

    async def keys(self, topic: Topic = ROOM) -> list[str]:
        return [entry.key for entry in await self.entries(topic)]

    async def everything(self, *topics: Topic) -> object:
        """All that a refused write must leave as it was."""
        snapshots = [await self.store.snapshot(topic) for topic in topics]
        return snapshots, await self.store.revisions(topics), await self.store.count()


def runs(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Let a coroutine be a plain test, in a loop of its own, and close the stores of its worlds there."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def main() -> None:
            try:
                await test(*args, **kwargs)
            finally:
                while World.made:
                    await World.made.pop().store.close()

        asyncio.run(main())

    return run
