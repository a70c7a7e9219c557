"""From the writes of one event loop to the store and the layer: whatever is waiting goes as one batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from channels.layers import BaseChannelLayer

from . import log, steps
from .broadcast import publish
from .errors import EphemeralStateError, StoreUnavailable
from .pause import Pause
from .state import Batches, Change, Drop, Keep, Outcome, Restore, Set, Write
from .stores import Store
from .tally import tally

__all__ = ["Writer"]

_MAX_BATCH: Final = 500  # sets of one batch, or what takes the store as long: some ms
_BYTES_A_SET: Final = 400  # of payload, which take Redis about as long as the rest of a set
_MAX_UNTOLD: Final = 2000  # changes; writers wait for a channel layer that is slower than the store
_SPACING: Final = 0.008  # seconds between batches of those who can wait for company: half a frame of a screen
_PAUSE: Final = 0.001  # seconds from one publishing to the next, in which more may come
_LONG_PAUSE: Final = 0.01  # the same where all who hear of it have most likely heard of it without that


class Writer:
    """While one batch is on its way to the store, new writes queue; when it returns, all that queued goes as the
    next one. So many writers share one round trip. Where they do not wait for each other's answers, they rarely meet
    by themselves: a batch of those who can wait for company begins no sooner than `_SPACING` after the last of theirs,
    unless all of that one have come again. So a lone writer, or a crowd that waits for its answers, goes on at once.

    What the batches changed is published the same way, beside the next batch and not before it: all changes that
    are waiting go at once, in the order in which they were stored. A change that comes right after others were
    published waits for a moment, in which more may come.
    """

    def __init__(
        self,
        store: Store,
        layer: BaseChannelLayer,
        trouble: log.Trouble,
        carried_out: Callable[[Sequence[Write], Sequence[Outcome]], None],
        told: Callable[[Sequence[Change]], None],
        owned: Callable[[str], int] = lambda client: 0,
    ) -> None:
        """`carried_out` is called after each batch that the store has answered, before anybody else hears of it;
        `told` with all changes, in their order. `owned` tells how many keys a client owns."""
        self._store = store
        self._layer = layer
        self._store_trouble = trouble
        self._layer_trouble = log.Trouble(
            "publishing_trouble",
            "the channel layer takes no messages, changes are seen some seconds late: %(error)s",
            "the channel layer takes messages again",
        )
        self._tally = tally()
        self._carried_out = carried_out
        self._told = told
        self._owned = owned
        self._queue: list[tuple[Write, asyncio.Future[Outcome]]] = []
        self._ahead: list[tuple[Callable[[], Sequence[Write]], asyncio.Future[list[asyncio.Future[Outcome]]]]] = []
        self._flushing = False
        self._flushes: asyncio.Task[None] | None = None
        self._gathering = Pause()
        self._company: set[str] = set()  # who can wait for others, and has something in the queue
        self._not_again: set[str] = set()  # of the company of the last batch, who has written nothing since
        self._untold: list[Change] = []
        self._awaiting: list[asyncio.Future[None]] = []
        self._telling: asyncio.Task[None] | None = None
        self._pause = _PAUSE if store.shared else _LONG_PAUSE
        self._pausing = Pause()
        self._batches = Batches("")

    @property
    def name(self) -> str:
        """By which the store tells this writer's batches from those of others: that of its node."""
        return self._batches.writer

    @name.setter
    def name(self, name: str) -> None:
        self._batches = Batches(name)

    @property
    def unsettled(self) -> bool:
        """Something was given up, and the store may yet carry it out."""
        return bool(self._batches.open_partitions)

    async def settle(self) -> None:
        """Forbid that, if the store answers."""
        with suppress(EphemeralStateError):
            await self._store.settle(self._batches)

    @property
    def busy(self) -> bool:
        """Something is on its way."""
        return self._flushing or self._telling is not None

    def put(self, write: Write, *, in_company: bool = False) -> asyncio.Future[Outcome]:
        """Store and publish, in order with all others. Done when it is stored: by a store that answers at once, on
        return. `in_company`: where many write, it can wait a moment for others."""
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._queue.append((write, done))
        if in_company and not self._store.at_once:
            self._company.add(write.client)
            self._not_again.discard(write.client)
        elif isinstance(write, Drop):
            self._company.discard(write.client)
        if not (in_company and self._not_again):
            self._gathering.end()
        self._flush_soon()
        return done

    async def put_ahead(self, make: Callable[[], Sequence[Write]]) -> list[Outcome]:
        """Carry out the writes that `make` returns, before all that are waiting. It is called when no batch is under
        way: then it knows of every write that was carried out, and no other overtakes its own."""
        asked: asyncio.Future[list[asyncio.Future[Outcome]]] = asyncio.get_running_loop().create_future()
        self._ahead.append((make, asked))
        self._gathering.end()
        self._flush_soon()
        return await asyncio.gather(*await asked)

    def publish(self, changes: Sequence[Change]) -> None:
        """Tell subscribers of changes that are stored. What cannot be sent, the beacon of each process will find."""
        self._told(changes)
        self._untold += changes
        if self._telling is None and self._untold:
            self._telling = asyncio.get_running_loop().create_task(self._tell())

    async def published(self) -> None:
        """Wait until all changes that are stored by now have been handed to the channel layer."""
        if self._telling is not None:
            told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._awaiting.append(told)
            self._pausing.end()
            await told

    async def _tell(self) -> None:
        try:
            while self._untold or self._awaiting:
                if not self._awaiting:
                    await self._pausing.over()
                changes, self._untold = self._untold, []
                awaiting, self._awaiting = self._awaiting, []
                failures = await publish(self._layer, changes, self._store.identity)
                if failures:
                    self._layer_trouble.met(failures[0])
                elif changes:
                    self._layer_trouble.over()
                for told in awaiting:
                    if not told.done():
                        told.set_result(None)
                self._pausing.begin(self._pause)
        finally:
            self._telling = None

    def _flush_soon(self) -> None:
        if self._flushing:
            return
        self._flushing = True
        flush = self._flush()
        if not self._store.at_once:
            self._flushes = asyncio.get_running_loop().create_task(flush)
        elif (rest := steps.begin(flush)) is not None:
            self._flushes = asyncio.get_running_loop().create_task(steps.awaited(rest))

    async def _flush(self) -> None:
        try:
            while self._queue or self._ahead:
                await self._gathering.over()
                if self._ahead:
                    self._let_ahead()
                batch = self._queue[: self._fitting()]
                del self._queue[: len(batch)]
                if not batch:
                    continue
                self._gather_anew()
                try:
                    outcomes = await self._apply([write for write, _ in batch])
                except EphemeralStateError as error:
                    # Those too that queued meanwhile: they have waited as long, and another attempt as long again.
                    batch += self._queue
                    self._queue.clear()
                    outcomes = [Outcome((), _again(error)) for _ in batch]
                for (_, done), outcome in zip(batch, outcomes, strict=True):
                    if not done.done():
                        done.set_result(outcome)
                # Who waits for an outcome is woken before those who hear of it.
                self.publish([change for outcome in outcomes for change in outcome.changes])
                if len(self._untold) > _MAX_UNTOLD:
                    await self.published()
        finally:
            self._flushing = False

    def _fitting(self) -> int:
        """How many of the writes that wait can go at once: nobody else gets anything from Redis meanwhile."""
        if self._store.at_once:
            return len(self._queue)
        cost = 0
        for number, (write, _) in enumerate(self._queue):
            cost += self._cost(write)
            if cost > _MAX_BATCH and number:
                return number
        return len(self._queue)

    def _cost(self, write: Write) -> int:
        if isinstance(write, Set | Restore):
            return 1 + len(write.payload) // _BYTES_A_SET
        return 1 + self._owned(write.client) if isinstance(write, Drop | Keep) else 1

    def _gather_anew(self) -> None:
        if self._queue or not self._company:  # those have waited; or nobody was there who might come again
            return
        self._gathering.begin(_SPACING)
        self._not_again, self._company = self._company, set()

    def _let_ahead(self) -> None:
        loop = asyncio.get_running_loop()
        ahead, self._ahead = self._ahead, []
        for make, asked in ahead:
            if not asked.done():
                writes = [(write, loop.create_future()) for write in make()]
                self._queue[:0] = writes
                asked.set_result([done for _, done in writes])

    async def _apply(self, writes: Sequence[Write]) -> Sequence[Outcome]:
        """Raises an `EphemeralStateError` if none of them was carried out."""
        writes = [self._in_my_name(write) for write in writes]
        try:
            outcomes = await self._store.apply(writes, self._batches)
        except EphemeralStateError as error:
            self._store_trouble.met(error)
            self._carried_out(writes, [Outcome((), error)] * len(writes))
            raise
        except Exception as error:
            log.exception("store_bug", "the store failed in a way it should not: please report it, with this traceback")
            raise StoreUnavailable("the store failed in a way it should not: the log of the server has more") from error
        self._store_trouble.over()
        self._tally["batches"] += 1
        self._tally["writes"] += len(writes)
        self._carried_out(writes, outcomes)
        return outcomes

    def _in_my_name(self, write: Write) -> Write:
        # The node may have got another name since the write was made.
        return write if write.node in ("", self.name) else write._replace(node=self.name)


def _again(error: EphemeralStateError) -> EphemeralStateError:
    """An error of its own for each caller: they raise it, each with its own traceback."""
    mine = type(error)(*error.args)
    mine.__cause__ = error.__cause__
    return mine
