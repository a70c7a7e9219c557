"""What a client is still to be told of its sets: it may send the next before the last is stored, and hears in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from .errors import EphemeralStateError
from .protocol import Ref, encode_error, encode_ok
from .state import Outcome
from .tally import tally

__all__ = ["Answers", "encode_refusal"]

_MOST: Final = 64  # sets of one client on their way; its next one waits until all of them are answered


class Answers:
    """Belongs to one event loop and one client.

    A client that sends many sets without waiting for the answers would else pay a round trip to the store for each,
    where all that wait can go as one batch.
    """

    def __init__(self, send: Callable[[str], Awaitable[None]], failed: Callable[[BaseException], None]) -> None:
        """`failed` is called when an answer cannot be sent."""
        self._send = send
        self._failed = failed
        self._open: list[tuple[asyncio.Future[Outcome], Ref]] = []  # a deque takes ten times as much when it is empty
        self._giving: asyncio.Task[None] | None = None

    @property
    def open(self) -> int:
        """How many sets are on their way."""
        return len(self._open)

    async def promise(self, outcome: asyncio.Future[Outcome], ref: Ref) -> None:
        """Tell the client what becomes of it. Returns before that, unless it is known already and the next thing to be
        told, or too many answers are open."""
        if self._giving is None and outcome.done():
            try:
                await self._tell(outcome.result(), ref)
            except Exception as error:
                self._failed(error)
            return
        self._open.append((outcome, ref))
        if self._giving is None:
            self._giving = asyncio.get_running_loop().create_task(self._give())
        if len(self._open) >= _MOST:
            await self.given()

    async def given(self) -> None:
        """Wait until the client has been told everything: what it asks next is to be answered after that, and to see
        what it has set."""
        if self._giving is not None:
            await asyncio.wait([self._giving])

    async def stop(self) -> None:
        """The client has left: nobody is told any more."""
        if self._giving is not None:
            self._giving.cancel()
            await asyncio.wait([self._giving])

    async def _give(self) -> None:
        try:
            while self._open:
                outcome, ref = self._open[0]
                what = await outcome
                del self._open[0]
                await self._tell(what, ref)
        except Exception as error:
            self._failed(error)
        finally:
            self._open.clear()
            self._giving = None

    async def _tell(self, outcome: Outcome, ref: Ref) -> None:
        await self._send(encode_ok(ref) if outcome.error is None else encode_refusal(outcome.error, ref))


def encode_refusal(error: EphemeralStateError, ref: Ref) -> str:
    """The frame that says so to a client, which is counted."""
    tally()["refused." + error.code] += 1
    return encode_error(error, ref)
