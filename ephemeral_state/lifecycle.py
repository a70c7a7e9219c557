"""One WebSocket's comings and goings: whatever way it ends, it is noticed at once and ends once.

A wrapper around `receive` and `send` of an ASGI application. It exists because servers and Channels do not
always tell a consumer that its client is gone: a frame on its way to the client kills the consumer before the
disconnect event is dispatched, a handler that never returns never hears of it, exceptions and cancellation
skip it (django/channels #1466).
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from . import log
from .connection import Connection, drop
from .delivery import Delivery, Direct, Dispatched, Send
from .errors import ConnectionGone, NotAccepted, NotConfigured
from .node import current
from .pause import Pause
from .protocol import FRAME_PREFIX, decode_pong, encode_ping, is_bye

__all__ = ["Lifecycle"]

Message = dict[str, Any]

_GOODBYES: Final = frozenset((1000, 1001))  # normal closure, going away; servers report resets as 1005 or 1006
_GOODBYE_WAIT: Final = 1.0  # seconds
PING_TIMED_OUT: Final = 4000
"""The close code for a client that did not answer; it hears it only if it was there after all."""
_PING_TIMEOUT: Final = 10.0  # seconds
_FAILED: Final = 1011  # the close code for a consumer that raised, as daphne sends it
_HANG_UP_TIMEOUT: Final = 2.0  # seconds
_FIRST_PING_SECONDS: Final = 2.0
"""How soon a client is asked that need not answer: before its first answer nobody misses it, and a page may be left
early."""
_OPTIONAL_PINGS: Final = 3
"""How many pings a client may leave unanswered until it counts as one that knows nothing of them."""
_RESTARTS: Final = 1012  # the close code for a process that ends, as uvicorn sends it
_SERVER_TELLS: Final = 0.3  # seconds after a signal; uvicorn takes up to 0.1
READ_AHEAD: Final = 256  # messages; beyond that the client is slowed down as it would be without us


class Lifecycle:
    """Belongs to one event loop and one connection; `receive` and `send` are what the consumer gets instead."""

    def __init__(
        self,
        receive: Callable[[], Awaitable[Message]],
        send: Send,
        *,
        client_id: Callable[[], str | None],
        dispatched: bool,
        ping_interval: float = 0,
        must_answer: bool = True,
        read_ahead: int = READ_AHEAD,
        about: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """`client_id` tells the consumer's channel name, once it has one. `dispatched`: the consumer wants to
        handle events itself, as messages out of `receive`. `ping_interval`: seconds of silence after which the client
        is asked whether it is there; 0: it is not asked. `must_answer`: the client is asked from the beginning, and
        ended if it does not answer. Otherwise this begins with its first answer. `about` tells what people may want to
        know of it."""
        self.loop = asyncio.get_running_loop()
        self._receive = receive
        self._send = send
        self._client_id = client_id
        self._about = about
        self._most_ahead = read_ahead
        self._accepted = False
        self._over = False
        self._is_closed = False  # the server knows: it told of the end, or was told to close
        self._connection: Connection | None = None
        self._dropping: asyncio.Task[None] | None = None
        self._dispatched = Dispatched(self._wake) if dispatched else None
        self._inbox: list[Message] = []  # a deque takes ten times as much when it is empty, as it nearly always is
        self._events_turn = False
        self._waiter: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._dozing: Pause | None = None  # made when it is wanted: few connections ever wait
        self._failure: BaseException | None = None
        self._ping_interval = ping_interval
        self._must_answer = must_answer
        self._optional_pings = 0  # sent while it need not answer
        self._heard_at = self.loop.time()
        self._ping_timer: asyncio.TimerHandle | None = None
        self._pinging: asyncio.Task[None] | None = None
        self._unsent_code: int | None = None  # with which the socket is about to be closed, from here
        self._direct: Direct | None = None
        self._pinged_at = self._heard_at
        self._questions: dict[int, tuple[int, asyncio.Task[None]]] = {}  # open pings amid text: it and what is sent
        self._read_at = self._heard_at  # when it last said that it has read something
        self._pump = self.loop.create_task(self._read_ahead())

    def connection(self) -> Connection:
        """The connection, made on first use. Raises `NotConfigured`."""
        if self._connection is None:
            client_id = self._client_id()
            if client_id is None:
                raise NotConfigured(
                    "the consumer has no channel name: add its channel_layer_alias, 'default' if it names none, to "
                    "CHANNEL_LAYERS"
                )
            delivery: Delivery | None = self._dispatched
            if delivery is None:
                ask = self._ask_whether_read if self._ping_interval and self._must_answer else None
                delivery = self._direct = Direct(self._send, self.peer_gone, ask)
            self._connection = Connection(client_id, current(), delivery, self._about(), self._process_ends)
            if self._over:
                self._connection.end(abnormal=True)
        return self._connection

    @property
    def client_id(self) -> str | None:
        """`None` until the consumer has a channel."""
        return self._client_id()

    def require_accepted(self) -> None:
        """Raise `NotAccepted` if nothing can be sent to the client yet, `ConnectionGone` if never again."""
        if not self._accepted and self._over:
            raise ConnectionGone("the connection has ended before it was accepted")
        if not self._accepted:
            raise NotAccepted("accept the connection before subscribing: the snapshot could not be sent")

    def end(self, *, abnormal: bool) -> asyncio.Task[None] | None:
        """The connection is over. Clearing begins now, and is done when the task is. The first call says how it
        ended: `abnormal` is anything but a goodbye, from either side."""
        self._over = True
        if self._dozing is not None:
            self._dozing.end()
        if self._connection is not None:
            return self._connection.end(abnormal=abnormal)
        client_id = self._client_id()
        if self._dropping is None and client_id is not None:
            # It never used its state, but a view may have set some in its name.
            self._dropping = self.loop.create_task(drop(client_id, abnormal=abnormal))
        return self._dropping

    @property
    def over(self) -> bool:
        """The client has left, or was sent away."""
        return self._over

    async def finish(self, *, abnormal: bool) -> None:
        """The consumer has ended: wait until everything is cleared. Servers cancel again and again when they are in
        a hurry: that is kept until clearing is done."""
        cancelled = False
        if self._ping_timer is not None:
            self._ping_timer.cancel()
        if self._pinging is not None:
            self._pinging.cancel()
        self._ask_no_more()
        self._pump.cancel()
        ending = self.end(abnormal=abnormal)
        code = self._unsent_code or (_FAILED if abnormal else 1000)
        closing = self.loop.create_task(self._hang_up(code)) if self._is_left_open() else None
        for task in (self._pump, closing, ending):
            while task is not None and not task.done():
                try:
                    await asyncio.wait([task])
                except asyncio.CancelledError:
                    cancelled = True
        if not self._pump.cancelled():
            self._pump.exception()  # the consumer has had it from `receive`, if it asked
        if cancelled:
            raise asyncio.CancelledError

    def _is_left_open(self) -> bool:
        """Whether the socket would stay open if the consumer just ended. Other servers close it then. granian does so
        only if no `receive` is under way, and one that is cancelled stays under way for a moment."""
        is_closed = self._is_closed and self._unsent_code is None
        return self._accepted and not is_closed and "granian" in sys.modules

    async def _hang_up(self, code: int) -> None:
        await asyncio.wait([self._pump])
        with suppress(OSError, RuntimeError, TimeoutError):
            async with asyncio.timeout(_HANG_UP_TIMEOUT):
                await self._send({"type": "websocket.close", "code": code})  # waits until `receive` has ended

    async def doze(self, seconds: float) -> None:
        """Sleep, but not on when the connection is over. For one task at a time."""
        if self._over:
            return
        self._dozing = Pause()
        self._dozing.begin(seconds)
        await self._dozing.over()
        self._dozing = None

    def forget_received(self) -> None:
        """Drop what the consumer has not taken yet: nobody is there any more who wants to have it done."""
        self._inbox.clear()

    def hand_in(self, message: Message) -> None:
        """Let the consumer handle a message of our own, after what has arrived."""
        self._inbox.append(message)
        self._wake()

    # What the consumer receives

    async def receive(self) -> Message:
        """The client's next message, or the next of our events for a consumer that handles them itself."""
        while True:
            events = self._dispatched
            if events and (self._events_turn or not self._inbox):
                self._events_turn = False
                return events.pop()
            if self._inbox:
                self._events_turn = True
                if self._room is not None and not self._room.done():
                    self._room.set_result(None)
                return self._inbox.pop(0)
            if self._failure is not None:
                raise self._failure
            if self._pump.done() and not self._pump.cancelled():
                self._pump.result()  # what the server's receive raised
            self._waiter = self.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _read_ahead(self) -> None:
        """Read before the consumer asks, so that a departure is seen while a handler is busy, or stuck."""
        try:
            while True:
                message = await self._receive()
                self._heard_at = self.loop.time()
                if self._ping_interval and (number := decode_pong(message.get("text") or "")) is not None:
                    self._answered(number)
                    continue
                if is_bye(message.get("text") or ""):
                    self._said_goodbye()
                    continue
                self._inbox.append(message)
                self._wake()
                if message["type"] == "websocket.disconnect":
                    self._is_closed = True
                    self.end(abnormal=message.get("code") not in _GOODBYES)
                    return
                while len(self._inbox) >= self._most_ahead:
                    self._room = self.loop.create_future()
                    await self._room
        finally:
            self._wake()

    # What the consumer sends

    async def send(self, message: Message) -> None:
        """Pass it on. What cannot be sent because the client has left is dropped: the disconnect follows, and
        the consumer shall live to see it."""
        kind = message["type"]
        try:
            if kind == "websocket.close":
                await self._close(message)
            else:
                await self._send(message)
                if kind == "websocket.accept":
                    self._accepted = True
                    if self._must_answer:
                        self._ping_in(self._ping_interval)
                elif not self._must_answer and (message.get("text") or "").startswith(FRAME_PREFIX):
                    self._begin_asking()
        except OSError as error:
            self.peer_gone(error)
        except RuntimeError as error:
            # daphne says it so, and after a close others do. Anything else is the app's own mistake.
            if kind not in ("websocket.send", "websocket.close") or not (self._over or _is_departure(error)):
                raise
            self.peer_gone(error)

    async def until_read(self) -> None:
        """Return when the client has read enough of what it was sent to get a long answer."""
        if self._direct is not None:
            await self._direct.until_read()

    def count(self, text: str) -> None:
        """The client is to be asked for whether it has read this, too."""
        if self._direct is not None:
            self._direct.count(text)

    async def _close(self, message: Message) -> None:
        self._is_closed = True
        self.end(abnormal=False)
        reading = not self._pump.done()
        if reading:
            # granian's receive holds a lock that its close waits for.
            self._pump.cancel()
            await asyncio.wait([self._pump])
        try:
            await self._send(message)
        finally:
            if reading:
                self._pump = self.loop.create_task(self._read_ahead())

    # Half-open connections: the client's host is gone, and nothing says so

    def subscribed(self) -> None:
        """The client has been sent a snapshot, unless the consumer handles events itself."""
        if self._dispatched is None:
            self._begin_asking()

    def _begin_asking(self) -> None:
        """A frame of ours was sent: the client takes such frames, and can be asked. A client that is sent none may
        speak another protocol, in which a ping is an error."""
        if not self._must_answer and not self._optional_pings and self._ping_timer is None:
            self._ping_in(min(self._ping_interval, _FIRST_PING_SECONDS))

    def _ping_in(self, seconds: float) -> None:
        if self._ping_interval:
            self._ping_timer = self.loop.call_later(seconds, self._ping_or_give_up)

    def _answered(self, number: int) -> None:
        """The client has sent a pong. From the first on it must answer."""
        if not self._must_answer:
            self._must_answer = True
            if self._ping_timer is None:
                self._ping_in(self._ping_interval)
            if self._direct is not None and number:  # without a number it cannot say what it has read
                self._direct.ask_from_now_on(self._ask_whether_read)
        if number in self._questions:
            self._has_read(number)

    def _ping_or_give_up(self) -> None:
        now, timer = self.loop.time(), self._ping_timer
        self._ping_timer = None
        is_held_up = timer is not None and now - timer.when() >= _PING_TIMEOUT / 2
        if is_held_up or len(self._inbox) >= self._most_ahead:
            self._heard_at = now  # we do not listen, so it cannot be blamed for its silence
        silent = now - self._heard_at
        if self._over:
            return
        if not self._must_answer:
            if self._optional_pings < _OPTIONAL_PINGS:
                self._optional_pings += 1
                if self._pinging is None or self._pinging.done():
                    self._pinging = self._ping(_any_number())
                self._ping_in(self._ping_interval)
            return
        if silent >= self._ping_interval + _PING_TIMEOUT:
            log.info(
                "client_silent",
                "client %(client)s did not answer for %(seconds).0f s, ending its connection",
                client=self._client_id() or "",
                seconds=silent,
            )
            self._pinging = self.loop.create_task(self._give_up())
            return
        # One that speaks is asked now and then, too: it may hear nothing else of us, and think that we are gone.
        is_due = silent >= self._ping_interval or self.loop.time() - self._pinged_at >= 2 * self._ping_interval
        if is_due and (self._pinging is None or self._pinging.done()):
            self._pinging = self._ping(_any_number())
        # To the point: whoever vanishes is ended so long after what was last heard, and not up to a period later.
        wait = self._ping_interval - silent
        if wait <= 0:
            wait = min(_PING_TIMEOUT / 2, wait + _PING_TIMEOUT)
        self._ping_in(wait)

    def _ping(self, number: int) -> asyncio.Task[None]:
        self._pinged_at = self.loop.time()
        return self.loop.create_task(
            self.send({"type": "websocket.send", "text": encode_ping(number, self._ping_interval)})
        )

    def _ask_whether_read(self, sent: int) -> None:
        # Not to be guessed: one that says so without reading would have us send on and on.
        number = _any_number()
        self._questions[number] = sent, self._ping(number)
        self.loop.call_later(_PING_TIMEOUT, self._give_up_if_held, number)

    def _has_read(self, number: int) -> None:
        """Up to the ping with this number, one of those that are open."""
        assert self._direct is not None
        read, _ = self._questions[number]
        self._questions = {other: what for other, what in self._questions.items() if what[0] > read}
        self._read_at = self.loop.time()
        self._direct.answered(read)

    def _ask_no_more(self) -> None:
        for _, asking in self._questions.values():
            asking.cancel()
        self._questions.clear()

    def _give_up_if_held(self, number: int) -> None:
        if self._over or number not in self._questions or self._direct is None:
            return
        # However far behind it is: one that goes on reading stays.
        left = self._read_at + _PING_TIMEOUT - self.loop.time()
        if not self._direct.held or left > 0:
            self.loop.call_later(left if left > 0 else _PING_TIMEOUT, self._give_up_if_held, number)
        else:
            # Whatever else it says: it does not read, or does not tell, and would never hear of anything again.
            log.info(
                "client_stuck",
                "client %(client)s has not read what was sent for %(seconds).0f s, ending its connection",
                client=self._client_id() or "",
                seconds=_PING_TIMEOUT,
            )
            self._ask_no_more()
            self._pinging = self.loop.create_task(self._give_up())

    def _said_goodbye(self) -> None:
        """The client leaves on purpose. Whatever close code the server makes of it does not count any more."""
        if self._over:
            return
        self.end(abnormal=False)
        if self._ping_timer is not None:
            self._ping_timer.cancel()
        # It closes next. If it does not, nobody would ask any more whether it is there.
        self._ping_timer = self.loop.call_later(_PING_TIMEOUT, self._close_for, 1000)

    def _close_for(self, code: int) -> None:
        if self._accepted and not self._is_closed and not self._pump.done():
            self._pinging = self.loop.create_task(self._give_up(code))

    async def _give_up(self, code: int = PING_TIMED_OUT) -> None:
        """Close with this code."""
        self._is_closed, self._unsent_code = True, code
        self.end(abnormal=True)
        self._pump.cancel()
        await asyncio.wait([self._pump])
        # The consumer shall end as with any other departure, before the server may hang in closing.
        told = code if code in (1000, _RESTARTS) else 1006
        self._inbox.append({"type": "websocket.disconnect", "code": told})
        self._wake()
        with suppress(OSError, RuntimeError, TimeoutError):
            async with asyncio.timeout(_PING_TIMEOUT):
                await self._send({"type": "websocket.close", "code": code})
                self._unsent_code = None

    # The end of the process: some servers tell nobody, or only after a time in which clients seem to be connected

    def _process_ends(self) -> None:
        """A signal says so. What the client owns is cleared by the caller, and it must not stay without it."""
        self.loop.call_later(_SERVER_TELLS, self._close_for, _RESTARTS)

    def peer_gone(self, error: BaseException) -> None:
        """Sending failed with this error."""
        if self._over:
            return
        if not _is_departure(error):
            self._failure = error  # of something between us and the server: the consumer's, as with its own sends
            self._wake()
            return
        # The disconnect event follows, and tells whether the client said goodbye. If the pump is held up, by a
        # handler that does not take its messages, this must do without it.
        log.debug("the client has left: %r", error)
        self.loop.call_later(_GOODBYE_WAIT, lambda: self.end(abnormal=True))


def _any_number() -> int:
    return secrets.randbelow(2**31) + 1  # what every client's JSON writes as it was


def _is_departure(error: BaseException) -> bool:
    """Whether a server says so that the client is not there any more."""
    if isinstance(error, OSError | asyncio.CancelledError):
        return True
    if isinstance(error, RuntimeError) and "after sending 'websocket.close'" in str(error):
        return True  # uvicorn, which has closed by itself, as it does when a client breaks the protocol
    return type(error).__name__ == "Disconnected" and type(error).__module__.startswith("autobahn")
