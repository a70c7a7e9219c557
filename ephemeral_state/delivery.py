"""One socket's way out: at once while it takes what it is given, the newest value per key when it does not."""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections import deque
from collections.abc import Awaitable, Callable, Container, Iterable, Sequence
from itertools import chain
from types import CoroutineType
from typing import Any, Final, NamedTuple, Protocol

from . import steps
from .outbox import Outbox
from .protocol import Event, Part, Ref, Rest, add_ref, encode_event, encode_events
from .state import Entry, Topic

__all__ = ["Delivery", "Direct", "Dispatched", "News", "Send", "View"]

Send = Callable[[dict[str, Any]], Awaitable[None]]


_ASK: Final = 256 * 1024  # characters sent before the peer is asked again whether it has read them
_UNREAD: Final = 4 * _ASK  # sent before it has answered; far more than a peer that reads lets pass


class View(Protocol):
    """Reads a topic as it is at the moment of the call."""

    def entries(self) -> Sequence[Entry]: ...

    def snapshot(self, *, batch: bool) -> tuple[str, Rest]:
        """The frame that tells of all entries, and those for what does not fit into it. `batch`: what comes after it
        comes in batches, which name keys by the numbers that the snapshot gives them."""


class News:
    """Events of one topic on their way to many sockets: what they send is made once."""

    __slots__ = ("_parts", "_texts", "events", "topic")

    def __init__(self, topic: Topic, events: Sequence[Event]) -> None:
        self.topic = topic
        self.events = events
        self._texts: Sequence[str] | None = None
        self._parts: list[Part] | None = None

    def texts(self) -> Sequence[str]:
        """For those that take one event in each frame."""
        if self._texts is None:
            self._texts = [encode_event(self.topic.name, event) for event in self.events]
        return self._texts

    def parts(self) -> list[Part]:
        """For subscribers that take several events in one frame."""
        if self._parts is None:
            self._parts = encode_events(self.topic.name, self.events)
        return self._parts


class Delivery(Protocol):
    """What a hub needs of a subscriber. None of these may block, await or raise."""

    def welcome(self, topic: Topic, view: View, ref: Ref, *, batch: bool = False) -> None:
        """Send one snapshot; everything heard from now on comes after it, with `batch` several events in one frame."""

    def hear(self, news: News) -> None:
        """Send these events, or the newest of them."""

    def forget(self, topic: Topic) -> None:
        """Drop what is waiting of the topic."""

    def close(self) -> None:
        """Drop everything, now and later."""


class _Welcome(NamedTuple):
    view: View
    ref: Ref


class _Waiting:
    """What could not be sent yet, by topic. A waiting snapshot is taken only when it is sent, so it stands for
    every event of its topic until then."""

    def __init__(self) -> None:
        self._topics: dict[Topic, _Welcome | Outbox] = {}

    def __bool__(self) -> bool:
        return bool(self._topics)

    def welcome(self, topic: Topic, view: View, ref: Ref) -> None:
        self._topics[topic] = _Welcome(view, ref)

    def add(self, topic: Topic, events: Sequence[Event]) -> None:
        waiting = self._topics.get(topic)
        if waiting is None:
            waiting = self._topics[topic] = Outbox()
        if isinstance(waiting, Outbox):
            waiting.add(events)
            if not waiting:
                del self._topics[topic]

    def pop(self, batched: Container[Topic] = ()) -> tuple[Topic, _Welcome | list[Event]]:
        """What is to be sent next: one event, or of a batched topic as many as make a long frame."""
        topic, waiting = next(iter(self._topics.items()))
        if isinstance(waiting, _Welcome):
            del self._topics[topic]
            return topic, waiting
        events = waiting.pop_some(_ASK) if topic in batched else [waiting.pop()]
        if not waiting:
            del self._topics[topic]
        return topic, events

    def forget(self, topic: Topic) -> None:
        self._topics.pop(topic, None)

    def clear(self) -> None:
        self._topics.clear()


class Direct:
    """Hands ready-made text to the socket: no dispatch, no queue, and no task while the socket keeps up.

    Each `send` is stepped once, right here. A server that takes the text finishes it in that step; for one that
    pushes back a task waits for the rest, and the other sockets of the room never notice.
    """

    def __init__(
        self, send: Send, gone: Callable[[BaseException], None], ask: Callable[[int], None] | None = None
    ) -> None:
        """`gone` is called when sending shows that the peer is not there any more. `ask`, where the peer can be asked
        whether it has read what was sent, is called with how much that is: `answered` is to be called with it when
        the peer says so. Some servers take whatever they are given and keep it in memory, so what is sent ahead of an
        answer is bounded here."""
        self._send = send
        self._gone = gone
        self._ask = ask
        self._sent = 0  # characters, up to now
        self._read_to = 0  # how many of them the peer has read, as it says
        self._ask_at = math.inf if ask is None else _ASK  # how many there are when it is asked the next time
        self._read: asyncio.Future[None] | None = None
        # Middleware may set and reset context variables around a send, which must begin and end in one context.
        self._context = contextvars.copy_context()
        # An empty set or deque takes hundreds of bytes, of each of thousands of sockets, and most need neither.
        self._batched: set[Topic] | None = None
        self._waiting = _Waiting()
        self._rest: deque[tuple[Topic, Rest, int]] | None = None  # of a snapshot of which the beginning was sent
        self._sending: asyncio.Task[None] | None = None
        self._needs_task = False
        self._closed = False

    def ask_from_now_on(self, ask: Callable[[int], None]) -> None:
        """The peer can be asked, as it turned out. What was sent before counts as read."""
        self._ask = ask
        self._read_to = self._sent
        self._ask_at = self._sent + _ASK

    @property
    def held(self) -> bool:
        """Nothing is sent before the peer has answered."""
        return self._ask is not None and self._sent - self._read_to >= _UNREAD

    def answered(self, read: int) -> None:
        """The peer has read everything that was sent before the question which `ask` was called with this."""
        self._read_to = max(self._read_to, read)
        self._no_longer_held()
        if (self._rest or self._waiting) and self._sending is None and not self._closed and not self.held:
            self._drain_in_task()

    async def until_read(self) -> None:
        """Return when the peer has read enough to be sent something long that is none of the stream."""
        while self.held and not self._closed:
            self._read = asyncio.get_running_loop().create_future()
            await self._read

    def count(self, text: str) -> None:
        """This is sent beside the stream, and is to be read too."""
        self._sent += len(text)
        if self._sent >= self._ask_at:
            self._ask_again()

    def welcome(self, topic: Topic, view: View, ref: Ref, *, batch: bool = False) -> None:
        if self._closed:
            return
        if batch:
            self._batched = self._batched or set()
            self._batched.add(topic)
        elif self._batched:
            self._batched.discard(topic)
        if self._is_behind():
            self._waiting.welcome(topic, view, ref)
            self._drain_if_it_needs_a_task()
        else:
            text, rest = view.snapshot(batch=batch)
            taken = self._push(chain([add_ref(text, ref)], rest)) - 1
            if not self._closed:
                self._keep(topic, rest, taken)

    def hear(self, news: News) -> None:
        events = news.events
        if events and not self._closed and not self._is_behind():
            if self._batched and news.topic in self._batched:
                parts = news.parts()
                parts = parts[self._push([part.text for part in parts]) :]
                events = [event for part in parts for event in part.events]
            else:
                events = events[self._push(news.texts()) :]
        if events and not self._closed:
            self._waiting.add(news.topic, events)
            self._drain_if_it_needs_a_task()

    def forget(self, topic: Topic) -> None:
        if self._batched:
            self._batched.discard(topic)
        self._waiting.forget(topic)
        if self._rest:
            self._rest = deque(each for each in self._rest if each[0] != topic)

    def close(self) -> None:
        self._drop()
        self._no_longer_held()
        if self._sending is not None:
            self._sending.cancel()

    def _keep(self, topic: Topic, rest: Rest, begin: int) -> None:
        """Of a snapshot, what is still to be sent."""
        if begin < len(rest):
            self._rest = self._rest or deque()
            self._rest.extend((topic, rest, at) for at in range(begin, len(rest)))

    def _is_behind(self) -> bool:
        # What is left of a snapshot is sent, or held.
        return self._sending is not None or bool(self._waiting) or self.held or self._needs_task

    def _drain_if_it_needs_a_task(self) -> None:
        if self._needs_task and self._sending is None and not self.held:
            self._drain_in_task()

    def _drain_in_task(self, rest: Awaitable[None] | None = None, text: str | None = None) -> None:
        """`rest`: of a send that has begun; or the `text` of one that is to begin again."""
        draining = self._drain(rest, text)
        self._sending = asyncio.get_running_loop().create_task(draining, context=self._context)

    def _no_longer_held(self) -> None:
        if self._read is not None and not self._read.done():
            self._read.set_result(None)

    def _ask_again(self) -> bool:
        """Ask the peer whether it has read what was sent. True if it is to read first."""
        if self._ask is not None:
            self._ask_at = self._sent + _ASK
            self._ask(self._sent)
        return self.held

    def _push(self, texts: Iterable[str]) -> int:
        """How many of them were given to the socket, which may have taken only a part of the last."""
        # One change of context for all of them, and no call of ours for each: this is done for every socket of a room.
        return self._context.run(self._step_through, texts)

    def _step_through(self, texts: Iterable[str]) -> int:
        send, taken = self._send, 0
        for text in texts:
            taken += 1
            self._sent += len(text)
            try:
                coroutine: Any = send({"type": "websocket.send", "text": text})
                if type(coroutine) is not CoroutineType:
                    # What granian's send returns can be awaited, but not stepped.
                    coroutine = steps.awaited(coroutine)
                waits_for = coroutine.send(None)
            except StopIteration:
                if self._sent >= self._ask_at and self._ask_again():
                    break
                continue
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, Exception) and asyncio.current_task() is None:
                    # Perhaps because there is no task: the time limits of asyncio and anyio want one, and cancel it. If
                    # it is for another reason, the next attempt will show.
                    self._needs_task = True
                    self._sent -= len(text)
                    self._drain_in_task(text=text)
                    break
                # Cancelled is what the socket waited for; nobody can cancel us within a step.
                self._lost(error)
                break
            self._drain_in_task(steps.Rest(coroutine, waits_for))
            break
        return taken

    async def _send_text(self, text: str) -> None:
        self.count(text)
        await self._send({"type": "websocket.send", "text": text})

    async def _drain(self, rest: Awaitable[None] | None, text: str | None) -> None:
        try:
            if rest is not None:
                await rest
            if text is not None:
                await self._send_text(text)
            while (self._rest or self._waiting) and not self.held:
                if self._rest:
                    _, rest_of_it, at = self._rest.popleft()
                    await self._send_text(rest_of_it[at])
                    continue
                topic, what = self._waiting.pop(self._batched or ())
                in_batches = self._batched is not None and topic in self._batched
                if isinstance(what, _Welcome):
                    text, rest_of_it = what.view.snapshot(batch=in_batches)
                    self._keep(topic, rest_of_it, 0)
                    await self._send_text(add_ref(text, what.ref))
                elif in_batches:
                    for part in encode_events(topic.name, what):
                        await self._send_text(part.text)
                else:
                    await self._send_text(encode_event(topic.name, what[0]))
        except Exception as error:
            self._lost(error)
        finally:
            self._sending = None

    def _drop(self) -> None:
        self._closed = True
        self._waiting.clear()
        self._rest = None

    def _lost(self, error: BaseException) -> None:
        self._drop()
        self._no_longer_held()
        self._gone(error)


class Dispatched:
    """Hands events to the consumer's own dispatch, one at a time, so that its handlers never run side by side.
    While a handler is busy, the newest value per key waits. `batch` has no meaning here."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """`wake` is called when `pop` has something to give."""
        self._wake = wake
        self._waiting = _Waiting()
        self._closed = False

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def pop(self) -> dict[str, Any]:
        """The next message for the consumer's `ephemeral_event` or `ephemeral_snapshot`."""
        topic, what = self._waiting.pop()
        common = {"namespace": topic.namespace, "topic": topic.name}
        if isinstance(what, _Welcome):
            entries = what.view.entries()
            return {"type": "ephemeral.snapshot", **common, "entries": entries, "ref": what.ref}
        (event,) = what
        return {
            "type": "ephemeral.event",
            **common,
            "event": "set" if event.reason is None else "clear",
            "key": event.key,
            "client_id": event.client_id,
            "payload": event.payload,
            "reason": event.reason,
            "text": encode_event(topic.name, event),
        }

    def welcome(self, topic: Topic, view: View, ref: Ref, *, batch: bool = False) -> None:
        if not self._closed:
            self._waiting.welcome(topic, view, ref)
            self._wake()

    def hear(self, news: News) -> None:
        if not self._closed:
            self._waiting.add(news.topic, news.events)
            self._wake()

    def forget(self, topic: Topic) -> None:
        self._waiting.forget(topic)

    def close(self) -> None:
        self._closed = True
        self._waiting.clear()
