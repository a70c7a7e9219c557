"""What is too much for one client of the ready-made consumer is refused unread; who does not stop is sent away."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

from . import log
from .answers import encode_refusal
from .conf import Settings
from .errors import EphemeralStateError, RateLimited
from .lifecycle import Lifecycle
from .limits import TOO_MANY_REFUSALS, Bucket, Pace, Penance
from .protocol import decode_pong, is_bye, peek_ref, require_size

__all__ = ["REFUSED_TOO_OFTEN", "Gate"]

Message = dict[str, Any]

REFUSED_TOO_OFTEN: Final = 4008
"""The close code for a client that does not slow down."""
_CLOSE_TIMEOUT: Final = 1.0  # seconds that the server may take to close; the connection is over already
_PIECES: Final = 4  # of a frame of the greatest length; each counts as a frame
_ANSWER: Final = 16_384  # characters of an answer; each time so many count as a frame
_AT_ONCE: Final = 32  # commands that are carried out as they come; the next ones at a steady pace, of
_PACE: Final = 4  # times the rate at which a client may send on and on
_AT_ONCE_ON_PROBATION: Final = 4  # the same for who was sent away a moment ago
_PACE_ON_PROBATION: Final = 2
_IN_A_ROW: Final = 64  # commands carried out before others have their turn; what they change is told at once
# Frames refused before that: on a server that is busy with reading the flood, each turn takes long, and the sooner who
# floods is sent away, the sooner that ends.
_REFUSED_IN_A_ROW: Final = 50
_penance = Penance(
    seconds=1.0,
    longest=3.0,
    gap=0.08,  # a flood is over by then
    patience=3.8,  # daphne gives up on a connection that is not let in for 4 to 5 s: it counts in whole seconds
    most=1000,
    clock=time.monotonic,
)
"""Of this process. A client that floods, is sent away and comes back at once would else have the server for itself."""


class Gate:
    """Belongs to one connection. Its `receive` takes the place of the server's."""

    def __init__(
        self,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
        settings: Settings,
        lifecycle: Callable[[], Lifecycle],
    ) -> None:
        rate, burst = settings.max_frames_per_second, settings.max_frame_burst
        self._receive = receive
        self._send = send
        self._lifecycle = lifecycle
        self._most = settings.max_frame_bytes
        self._piece = max(1, settings.max_frame_bytes // _PIECES)
        self._bucket = Bucket(rate, burst, time.monotonic)
        self._burst = burst
        self._pace = Pace(_PACE * rate, _AT_ONCE, time.monotonic)
        self._slower = Pace(_PACE_ON_PROBATION * rate, _AT_ONCE_ON_PROBATION, time.monotonic)
        self._served = 0
        self._refused = 0
        self._who: str | None = None

    async def let_in(self, who: str | None) -> None:
        """Wait, if this client was sent away a moment ago. `who`: its user, or else its address, if one is known."""
        self._who = who
        if who is not None and (wait := _penance.wait(who)):
            await self._lifecycle().doze(wait)

    async def receive(self) -> Message:
        """What is too much is refused at once, and is neither read nor kept nor handed on."""
        while True:
            message = await self._receive()
            if message["type"] != "websocket.receive":
                return message
            data: str | bytes = message.get("text") or message.get("bytes") or ""
            try:
                self._judge(data)
            except EphemeralStateError as error:
                if self._bucket.refusals >= TOO_MANY_REFUSALS:
                    return await self._send_away()
                await self._refuse(encode_refusal(error, peek_ref(data) if isinstance(data, str) else None))
                self._refused += 1
                if self._refused % _REFUSED_IN_A_ROW == 0:
                    await asyncio.sleep(0)  # a server that has read many frames gives them without ever suspending
            else:
                return message

    async def turn(self) -> None:
        """Wait until the client's next command may be carried out: one that sends many at once has not the server for
        itself, and of one that floods most are still waiting when it is sent away."""
        lifecycle = self._lifecycle()
        self._served += 1
        if not lifecycle.over and (wait := self._current_pace().take()):
            await lifecycle.doze(wait)
        elif self._served % _IN_A_ROW == 0:
            await asyncio.sleep(0)

    def charge(self, characters: int, *, waits: bool = False) -> None:
        """It got so large an answer. `waits`: what it has asked for already is put off, too."""
        cost = characters // _ANSWER
        self._bucket.charge(cost)
        if waits:
            self._current_pace().put_off(min(cost, self._burst))  # it has to pay for the rest before it may ask more

    def _current_pace(self) -> Pace:
        on_probation = self._who is not None and _penance.on_probation(self._who)
        return self._slower if on_probation else self._pace

    async def _refuse(self, text: str) -> None:
        self._lifecycle().count(text)
        await self._lifecycle().send({"type": "websocket.send", "text": text})

    def _judge(self, data: str | bytes) -> None:
        """Raises `RateLimited` or `InvalidFrame`."""
        cost = 1 + len(data) // self._piece
        if len(data) > self._most:  # it does not pass, however seldom it comes, and ends no row of refusals
            self._bucket.refuse(cost)
            require_size(data, self._most)
        wait = self._bucket.take(cost)
        if wait and (self._bucket.refusals >= TOO_MANY_REFUSALS or not _always_passes(data)):
            raise RateLimited(math.ceil(wait * 1000))

    async def _send_away(self) -> Message:
        if self._who is not None:
            _penance.add(self._who)
        lifecycle = self._lifecycle()
        lifecycle.end(abnormal=True)  # before: from now on, what cannot be sent is no fault
        lifecycle.forget_received()
        log.info(
            "client_too_fast",
            "client %(client)s goes on after %(refusals)s refused commands, ended its connection with %(code)s",
            client=lifecycle.client_id or "",  # it may be so fast that it has none yet
            refusals=TOO_MANY_REFUSALS,
            code=REFUSED_TOO_OFTEN,
        )
        with suppress(Exception):
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self._send({"type": "websocket.close", "code": REFUSED_TOO_OFTEN})
        return {"type": "websocket.disconnect", "code": REFUSED_TOO_OFTEN}


def _always_passes(data: str | bytes) -> bool:
    return isinstance(data, str) and (decode_pong(data) is not None or is_bye(data))
