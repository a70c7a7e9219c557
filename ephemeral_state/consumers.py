"""The mixins for the consumer a project already has, and a consumer for projects that have none."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

from channels.consumer import AsyncConsumer, SyncConsumer
from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncWebsocketConsumer

from . import log
from .answers import Answers, encode_refusal
from .conf import MAX_SECONDS, get_settings
from .connection import Connection
from .errors import (
    ConnectionGone,
    EphemeralStateError,
    InvalidFrame,
    NotConfigured,
    StoreUnavailable,
    TooManyEntries,
    TooManyTopics,
    TopicTooLarge,
)
from .gate import Gate
from .lifecycle import READ_AHEAD, Lifecycle
from .limits import Claims
from .node import wait_in
from .policy import allows, get_policy, require
from .protocol import (
    LONGEST,
    Command,
    Flow,
    Ref,
    add_ref,
    decode_command,
    encode_hello,
    encode_ok,
    encode_revoked,
    encode_set,
    encode_snapshot,
    encode_welcome,
    flow,
)
from .revocation import REVOKE_MESSAGE_TYPE, find_user_group, join, leave, refresh_user, session_digest
from .state import UNTIL_DISCONNECT, Entry, Topic, UntilDisconnect

__all__ = [
    "UNTIL_DISCONNECT",
    "EphemeralStateConsumer",
    "EphemeralStateMixin",
    "SyncEphemeralStateMixin",
]

T = TypeVar("T")

REVOKED: Final = 4403
"""The close code for a user who is gone: logged out, deactivated or deleted."""

_LONGEST_ABOUT: Final = 255  # characters of a user's name or id that the admin is told

# Of the process: all its connections meet it, and one line is enough.
_no_users: Final = log.Trouble(
    "users_trouble",
    "users cannot be looked up again, which is tried every RECHECK_INTERVAL: %(error)s",
    "users are looked up again",
)
_no_answer: Final = log.Trouble(
    "recheck_trouble",
    "the policy fails when asked again, which is a no after a revocation and otherwise changes nothing: %(error)s",
    "the policy answers again when asked again",
    traceback=True,
)


class _Base(AsyncConsumer):
    """What both mixins share: the life of the connection. It is asynchronous for sync consumers too."""

    ephemeral_namespace: str = ""
    """The tenant that topics belong to; an attribute or a property."""

    @property
    def ephemeral_ping_interval(self) -> float | None:
        """Seconds of silence after which the client gets an `ephemeral.ping` frame, to be answered with an
        `ephemeral.pong` that repeats its `n`. 0 or `None`: never ask, and trust the server's own pings.

        By default the interval is that of the settings. The client is asked from the first frame of ours on, and one
        that has never answered is left alone: its page may know nothing of pings. Where the consumer overrides this,
        by an attribute or a property, all its clients are asked from the beginning, and must answer. A client that
        must, or has answered once, is ended when it is silent for 10 s after it was asked. It is asked amid much text,
        too, and then sent no more than 1 MB ahead of the answer."""
        return get_settings().ping_interval

    _ephemeral: Lifecycle | None = None
    _ephemeral_read_ahead: int = READ_AHEAD

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "websocket":
            await super().__call__(scope, receive, send)
            return
        self._ephemeral = Lifecycle(
            receive,
            send,
            client_id=lambda: getattr(self, "channel_name", None),
            dispatched=self._overrides("ephemeral_event", "ephemeral_snapshot"),
            ping_interval=self._ephemeral_ping_interval(),
            must_answer=type(self).ephemeral_ping_interval is not _Base.ephemeral_ping_interval,
            read_ahead=self._ephemeral_read_ahead,
            about=lambda: _about(scope),
        )
        try:
            # Any: what servers send and take is typed by the ASGI type stubs, and ours passes through unread.
            receive, send = self._ephemeral_receive, self._ephemeral.send
            await super().__call__(scope, receive, send)
        except BaseException:
            # Handlers that raise and tasks that are cancelled never reach websocket_disconnect.
            await self._ephemeral.finish(abnormal=True)
            raise
        await self._ephemeral.finish(abnormal=False)

    def _ephemeral_ping_interval(self) -> float:
        interval = self.ephemeral_ping_interval or 0
        if isinstance(interval, bool) or not isinstance(interval, int | float) or not 0 <= interval <= MAX_SECONDS:
            raise NotConfigured(
                f"{type(self).__name__}.ephemeral_ping_interval must be seconds, or 0 or None for no pings, "
                f"not {interval!r:.80}"
            )
        return interval

    async def _ephemeral_receive(self) -> Any:
        return await self._ephemeral_lifecycle().receive()

    async def dispatch(self, message: Any) -> None:
        try:
            await self._ephemeral_dispatch(message)
        except ConnectionGone:
            # The client left while a handler was at work. That is no fault of the handler's, and the consumer
            # shall live to see its disconnect.
            if self._ephemeral is None or not self._ephemeral.over:
                raise
            if message["type"] == "websocket.disconnect":
                log.warning(
                    "set_after_end",
                    "%(consumer)s's disconnect() was left at a set, since the connection has ended: set nothing there, "
                    "or do it by api.set",
                    consumer=type(self).__name__,
                )
                raise StopConsumer from None  # as the handler would have done, or else the consumer waits for ever
            log.debug("the client left while %s was handled", message["type"])

    async def _ephemeral_dispatch(self, message: Any) -> None:
        await super().dispatch(message)

    @classmethod
    def _overrides(cls, *hooks: str) -> bool:
        mixin = SyncEphemeralStateMixin if issubclass(cls, SyncEphemeralStateMixin) else EphemeralStateMixin
        return any(getattr(cls, hook) is not getattr(mixin, hook) for hook in hooks)

    def _ephemeral_lifecycle(self) -> Lifecycle:
        if self._ephemeral is None:
            raise NotConfigured(
                f"{type(self).__name__} is not serving a WebSocket: ephemeral_… methods work from its connect() to its "
                "disconnect(), and elsewhere there is ephemeral_state.api"
            )
        return self._ephemeral

    def _ephemeral_connection(self) -> Connection:
        return self._ephemeral_lifecycle().connection()

    def _ephemeral_topic(self, topic: str) -> Topic:
        return Topic(self.ephemeral_namespace, topic)

    async def _ephemeral_subscribe(self, topic: Topic, batch: bool, max_rate: float | None) -> None:
        how = self._ephemeral_flow(flow(batch, max_rate))
        self._ephemeral_lifecycle().require_accepted()
        await self._ephemeral_connection().subscribe(topic, flow=how)
        self._ephemeral_lifecycle().subscribed()

    def _ephemeral_flow(self, wanted: Flow) -> Flow:
        # A handler is called for one event at a time: of a batch, all at once would be more than the rate.
        handles = self._overrides("ephemeral_event", "ephemeral_snapshot")
        return wanted._replace(batch=False) if handles else wanted

    async def _ephemeral_end(self) -> None:
        if self._ephemeral is None:
            return
        ending = self._ephemeral.end(abnormal=False)
        if ending is not None:
            await asyncio.shield(ending)

    @classmethod
    def _ephemeral_welcome(cls, event: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
        """A snapshot as the frame to send and the events to handle after it."""
        entries: Sequence[Entry] = event["entries"]
        if not cls._overrides("ephemeral_event"):
            text, rest = encode_welcome(event["topic"], entries)
            return add_ref(text, event["ref"]), [_set_event(entry) for entry in entries[len(entries) - rest.sets :]]
        return encode_snapshot(event["topic"], [], event["ref"]), [_set_event(entry) for entry in entries]


class EphemeralStateMixin(_Base):
    """State that is cleared when this connection ends, whatever way it ends.

    Put it to the left of the consumer: `class Chat(EphemeralStateMixin, AsyncJsonWebsocketConsumer)`.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if issubclass(cls, SyncConsumer):
            raise TypeError(f"{cls.__name__} is a sync consumer: use SyncEphemeralStateMixin")

    async def ephemeral_set(
        self,
        topic: str,
        key: str,
        payload: object = b"",
        *,
        ttl: float | UntilDisconnect | None = None,
        grace: float | None = None,
    ) -> None:
        """Set the key, own it, and tell every subscriber of the topic. On return it is stored.

        `payload`: bytes as they are, text as UTF-8, anything else as JSON. `ttl`: seconds, `UNTIL_DISCONNECT`, or
        `None` for `DEFAULT_TTL`. `grace`: seconds that the entry stays when this connection ends without a goodbye (a
        close frame with 1000 or 1001): if a new connection sets the key meanwhile, nobody hears of a clear. Raises an
        `EphemeralStateError`, and then nothing was stored or told.
        """
        connection = self._ephemeral_connection()
        await connection.set(self._ephemeral_topic(topic), key, payload, ttl, grace, in_company=True)

    async def ephemeral_clear(self, topic: str, key: str) -> None:
        """Clear the key if this connection owns it."""
        await self._ephemeral_connection().clear(self._ephemeral_topic(topic), key)

    async def ephemeral_list(self, topic: str) -> Sequence[Entry]:
        """What is live in the topic, sorted by key."""
        return await self._ephemeral_connection().list(self._ephemeral_topic(topic))

    async def ephemeral_subscribe(self, topic: str, *, batch: bool = False, max_rate: float | None = None) -> None:
        """Send the client one `ephemeral.snapshot` frame, then a frame per change: no gap, no overlap.

        `batch`: several changes in one `ephemeral.batch` frame. `max_rate`: at most so many frames a second, up to
        1000, and of what changes faster the newest value per key; a clear is never left out. Where `ephemeral_event`
        is overridden, it is called for one event at a time, whatever `batch` is.

        Raises `NotAccepted`, `ConnectionGone`, `NameInvalid`, `StoreUnavailable`, or `ValueError` for a wrong rate.
        """
        await self._ephemeral_subscribe(self._ephemeral_topic(topic), batch, max_rate)

    async def ephemeral_unsubscribe(self, topic: str) -> None:
        """Send no more of the topic."""
        self._ephemeral_connection().unsubscribe(self._ephemeral_topic(topic))

    async def ephemeral_event(self, event: dict[str, Any]) -> None:
        """One change of a subscribed topic. Override it to filter or reshape what this client gets.

        `event` has `event` ("set" or "clear"), `namespace`, `topic`, `key`, `client_id`, `payload` (bytes), `reason`
        and `text`, the frame that is sent if nobody overrides this.
        """
        await self.base_send(_frame(event["text"]))

    async def ephemeral_snapshot(self, event: dict[str, Any]) -> None:
        """The state of a topic just subscribed: `entries` is a list of `Entry`.

        Where `ephemeral_event` is overridden, the client gets an empty snapshot and each entry goes through
        `ephemeral_event` as a set, so that a filter there need not be written twice.
        """
        text, events = self._ephemeral_welcome(event)
        await self.base_send(_frame(text))
        for one in events:
            await self.ephemeral_event(one)

    async def ephemeral_close(self, message: dict[str, Any]) -> None:
        """`api.disconnect` asks for the end of this connection. Override it to say goodbye first."""
        await self.base_send({"type": "websocket.close", "code": message["code"]})  # type: ignore[arg-type]

    async def websocket_disconnect(self, message: Any) -> None:
        await self._ephemeral_end()
        parent = getattr(super(), "websocket_disconnect", None)
        if parent is not None:
            await parent(message)
        elif type(self).websocket_disconnect is EphemeralStateMixin.websocket_disconnect:
            raise StopConsumer  # nobody else would, and Channels' generic consumers do


class SyncEphemeralStateMixin(_Base):
    """`EphemeralStateMixin` for consumers whose handlers are `def`: the same names, called without `await`.

    They may be called from any thread but the event loop's, and wait for the answer.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if issubclass(cls, AsyncWebsocketConsumer):
            raise TypeError(f"{cls.__name__} is an async consumer: use EphemeralStateMixin")

    def ephemeral_set(
        self,
        topic: str,
        key: str,
        payload: object = b"",
        *,
        ttl: float | UntilDisconnect | None = None,
        grace: float | None = None,
    ) -> None:
        """See `EphemeralStateMixin.ephemeral_set`."""
        where = self._ephemeral_topic(topic)
        # Not in company: whoever waits here keeps the thread from all other sync code of the process.
        self._ephemeral_wait(lambda: self._ephemeral_connection().set(where, key, payload, ttl, grace))

    def ephemeral_clear(self, topic: str, key: str) -> None:
        """See `EphemeralStateMixin.ephemeral_clear`."""
        where = self._ephemeral_topic(topic)
        self._ephemeral_wait(lambda: self._ephemeral_connection().clear(where, key))

    def ephemeral_list(self, topic: str) -> Sequence[Entry]:
        """See `EphemeralStateMixin.ephemeral_list`."""
        where = self._ephemeral_topic(topic)
        return self._ephemeral_wait(lambda: self._ephemeral_connection().list(where))

    def ephemeral_subscribe(self, topic: str, *, batch: bool = False, max_rate: float | None = None) -> None:
        """See `EphemeralStateMixin.ephemeral_subscribe`."""
        where = self._ephemeral_topic(topic)
        self._ephemeral_wait(lambda: self._ephemeral_subscribe(where, batch, max_rate))

    def ephemeral_unsubscribe(self, topic: str) -> None:
        """See `EphemeralStateMixin.ephemeral_unsubscribe`."""
        where = self._ephemeral_topic(topic)

        async def unsubscribe() -> None:
            self._ephemeral_connection().unsubscribe(where)

        self._ephemeral_wait(unsubscribe)

    def ephemeral_event(self, event: dict[str, Any]) -> None:
        """See `EphemeralStateMixin.ephemeral_event`."""
        self.base_send(_frame(event["text"]))

    def ephemeral_snapshot(self, event: dict[str, Any]) -> None:
        """See `EphemeralStateMixin.ephemeral_snapshot`."""
        text, events = self._ephemeral_welcome(event)
        self.base_send(_frame(text))
        for one in events:
            self.ephemeral_event(one)

    def ephemeral_close(self, message: dict[str, Any]) -> None:
        """See `EphemeralStateMixin.ephemeral_close`."""
        self.base_send({"type": "websocket.close", "code": message["code"]})  # type: ignore[arg-type]

    def websocket_disconnect(self, message: Any) -> None:
        if self._ephemeral is not None:
            self._ephemeral_wait(self._ephemeral_end)
        parent = getattr(super(), "websocket_disconnect", None)
        if parent is not None:
            parent(message)
        elif type(self).websocket_disconnect is SyncEphemeralStateMixin.websocket_disconnect:
            raise StopConsumer

    def _ephemeral_wait(self, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return wait_in(self._ephemeral_lifecycle().loop, start)


class EphemeralStateConsumer(EphemeralStateMixin, AsyncWebsocketConsumer):
    """Speaks the client protocol of `docs/protocol.md`. `EPHEMERAL_STATE["POLICY"]` decides who may do what; the
    default denies everything. It decides again when rights are revoked, and every `RECHECK_INTERVAL`.

    Nothing that a client sends closes the connection, but too much of it: after a hundred refusals in a row.
    """

    ephemeral_ping_interval = 8.0

    _recheck: asyncio.TimerHandle | None = None
    _group: str | None = None
    _gate: Gate
    _answers: Answers

    @property
    def channel_layer_alias(self) -> str:  # type: ignore[override] # where `revoke` looks for it
        return get_settings().channel_layer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        settings = get_settings()
        self._ephemeral_turn = asyncio.Lock()
        self._ephemeral_at_work: asyncio.Task[Any] | None = None
        self._gate = Gate(receive, send, settings, self._ephemeral_lifecycle)
        # More than the gate lets in at once: who floods is to be noticed, however long it takes to do what was asked.
        # Read no sooner than there is room, a flood looks like somebody who is as slow as we are.
        self._ephemeral_read_ahead = READ_AHEAD + settings.max_frame_burst
        self._answers = Answers(self.send, lambda error: self._ephemeral_lifecycle().peer_gone(error))
        try:
            await super().__call__(scope, self._gate.receive, send)
        finally:
            await self._answers.stop()
            if self._recheck is not None:
                self._recheck.cancel()
            if self._group is not None:
                await leave(self.channel_layer, self._group, self.channel_name)

    async def connect(self) -> None:
        settings = get_settings()
        self._policy = get_policy()
        self._followed: set[Topic] = set()
        self._claims = Claims(settings.max_keys_per_client, time.monotonic)
        self._ephemeral_connection()  # a project without a channel layer is to fail here, in the log
        group = await find_user_group(self.scope)
        host, _ = self.scope.get("client") or (None, None)
        await self._gate.let_in(group or host)
        await self.accept()
        await self.send(encode_hello(self.channel_name, self._ephemeral_ping_interval()))
        self._group = group
        await self._expect_recheck()

    async def _ephemeral_receive(self) -> Any:
        # Channels would make a task for each message of each client, and wait for it beside that for the channel layer.
        # What a client says is handled where it is received, and Channels gets to see the rest. It sees all of it where
        # a project handles frames itself: its handlers may expect to share their context variables.
        receive, ours = self._ephemeral_lifecycle().receive, type(self).receive is EphemeralStateConsumer.receive
        while (message := await receive())["type"] == "websocket.receive":
            await self._gate.turn()  # here, where what the server has to say to it need not wait as well
            if not ours:
                break
            await self.dispatch(message)
        return message

    async def dispatch(self, message: Any) -> None:
        task = asyncio.current_task()
        if self._ephemeral_at_work is task:  # a handler hands on a message
            await super().dispatch(message)
            return
        async with self._ephemeral_turn:  # as Channels has it: one message at a time, wherever it comes from
            self._ephemeral_at_work = task
            try:
                await super().dispatch(message)
            finally:
                self._ephemeral_at_work = None

    async def _ephemeral_dispatch(self, message: Any) -> None:
        if message["type"] == "websocket.receive" and type(self).receive is EphemeralStateConsumer.receive:
            # Channels would close old database connections first, by a hop to a thread for each frame. Here only the
            # policy may use the database, and it is asked in a way that closes them.
            await self.websocket_receive(message)
        else:
            await super()._ephemeral_dispatch(message)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        if self._ephemeral_lifecycle().over:
            return  # it would be refused, and nobody hear of it; one that reads nothing leaves hundreds of commands
        ref: Ref = None
        try:
            command = self._read(text_data, bytes_data)
            ref = command.ref
            answer = await self._obey(command)
        except NotConfigured as error:
            # The client can do nothing about it and shall not learn of it.
            log.error("not_configured", "a command cannot be carried out: %(error)s", error=str(error))
            answer = encode_refusal(StoreUnavailable("the server cannot carry out commands"), ref)
        except EphemeralStateError as error:
            answer = encode_refusal(error, error.ref if ref is None else ref)
        if answer is not None:
            await self._answers.given()
            await self.send(answer)

    async def send(  # type: ignore[override] # as in Channels itself
        self, text_data: str | None = None, bytes_data: bytes | None = None, close: Any = False
    ) -> None:
        """As Channels has it. Whether the client reads its answers is to be known, as with what is streamed to it."""
        if text_data is not None:
            self._ephemeral_lifecycle().count(text_data)
        await super().send(text_data, bytes_data, close)

    def _read(self, text: str | None, binary: bytes | None) -> Command:
        if text is None:
            raise InvalidFrame(f"binary frame of {len(binary or b'')} bytes: commands are text frames")
        settings = get_settings()
        return decode_command(text, max_frame_bytes=settings.max_frame_bytes, max_name_bytes=settings.max_name_bytes)

    async def _obey(self, command: Command) -> str | None:
        """The answer; `None` where the snapshot is the answer, or it follows."""
        connection = self._ephemeral_connection()
        topic = self._ephemeral_topic(command.topic)
        if command.verb == "set":
            await require(self._policy.can_set, self.scope, *topic, command.key)
            await self._set(connection, topic, command)
            return None
        await self._answers.given()
        if command.verb == "unsubscribe":
            self._followed.discard(topic)
            connection.unsubscribe(topic)
            return encode_ok(command.ref)
        if command.verb == "subscribe":
            await require(self._policy.can_subscribe, self.scope, *topic)
            await self._follow(connection, topic, command)
            return None
        if command.verb == "list":
            await require(self._policy.can_list, self.scope, *topic)
            await self._list(connection, topic, command.ref)
            return None
        await require(self._policy.can_clear, self.scope, *topic, command.key)
        await connection.clear(topic, command.key)
        self._claims.discard(topic, command.key)
        return encode_ok(command.ref)

    async def _follow(self, connection: Connection, topic: Topic, command: Command) -> None:
        most = get_settings().max_topics_per_client
        if topic not in self._followed and len(self._followed) >= most:
            raise TooManyTopics(
                f"{len(self._followed)} topics are followed, the limit is {most} (MAX_TOPICS_PER_CLIENT): "
                "unsubscribe from one"
            )
        self._gate.charge(await connection.subscribe(topic, command.ref, self._ephemeral_flow(command.flow)))
        self._followed.add(topic)

    async def _list(self, connection: Connection, topic: Topic, ref: Ref) -> None:
        await self._ephemeral_lifecycle().until_read()
        try:
            entries = await connection.list(topic, LONGEST)
        except TopicTooLarge as error:
            self._gate.charge(error.size, waits=True)
            raise TooManyEntries(f"{error}: subscribe to the topic") from error
        read = sum(len(entry.payload) for entry in entries)
        told = entries if read <= LONGEST else entries[:1]  # in a frame they are a third longer
        text, rest = encode_welcome(topic.name, told)
        self._gate.charge(max(len(text), read), waits=True)  # what was read for it costs as much if it is not told
        if rest or len(told) < len(entries):
            raise TooManyEntries(f"{len(entries)} entries are too much for one answer: subscribe to the topic")
        await self.send(add_ref(text, ref))

    async def _set(self, connection: Connection, topic: Topic, command: Command) -> None:
        settings = get_settings()
        if (topic, command.key) not in self._claims:
            most = settings.max_entries_per_topic
            try:
                await connection.require_room(topic, command.key, most - self._answers.open)
            except TooManyEntries:
                await self._answers.given()  # for all that is known yet, what is on its way may be refused
                await connection.require_room(topic, command.key, most)
        lifetime = settings.limits.lifetime_ms(command.ttl_ms)
        # Before it is stored: if this is cancelled meanwhile, it is stored all the same.
        self._claims.add(topic, command.key, None if lifetime is None else lifetime / 1000)
        what = command.payload, command.ttl_ms, min(command.grace_ms, round(settings.max_grace * 1000))
        outcome = connection.begin(topic, command.key, *what, in_company=True)
        await self._answers.promise(outcome, command.ref)

    # Revocation

    async def ephemeral_revoke(self, message: dict[str, Any]) -> None:
        """Somebody's rights may have changed, or it is time to ask: the policy decides again."""
        try:
            if "session" not in message:
                await self._ask_again(message.get("topic"), scheduled=message.get("scheduled", False))
            elif message["session"] == session_digest(self.scope.get("session")):
                await self._send_away()
        finally:
            if message.get("scheduled"):
                await self._expect_recheck()

    async def _expect_recheck(self) -> None:
        if self._ephemeral_lifecycle().over:
            return
        if self._group is not None:
            # Again and again: it may have failed, and some layers forget members.
            await join(self.channel_layer, self._group, self.channel_name)
        # Somewhat earlier than promised, by chance: those who came together are not to ask together.
        delay = get_settings().recheck_interval * (0.5 + random.random() / 2)
        message = {"type": REVOKE_MESSAGE_TYPE, "scheduled": True}
        self._recheck = asyncio.get_running_loop().call_later(delay, self._ephemeral_lifecycle().hand_in, message)

    async def _ask_again(self, only: str | None, *, scheduled: bool) -> None:
        connection = self._ephemeral_connection()
        if connection.ended:
            return
        try:
            there = await refresh_user(self.scope)
        except Exception as error:
            _no_users.met(error)
            if scheduled:
                return
        else:
            _no_users.over()
            if not there:
                await self._send_away()
                return
        topics = keys = 0
        for topic in [topic for topic in self._followed if only in (None, topic.name)]:
            if not await self._still(self._policy.can_subscribe, *topic, scheduled=scheduled):
                topics += 1
                self._followed.discard(topic)
                connection.unsubscribe(topic)
                await self.send(encode_revoked(topic.name))
        for topic, key in [place for place in self._claims.live() if only in (None, place[0].name)]:
            if not await self._still(self._policy.can_set, *topic, key, scheduled=scheduled):
                keys += 1
                self._claims.discard(topic, key)
                await connection.clear(topic, key)
        if topics or keys:
            log.info(
                "rights_revoked",
                "client %(client)s may not follow %(topics)s of its topics any more, nor set %(keys)s of its keys",
                client=self.channel_name,
                topics=topics,
                keys=keys,
            )

    async def _still(self, decide: Callable[..., Any], *what: str, scheduled: bool) -> bool:
        try:
            still = await allows(decide, self.scope, *what)
        except Exception as error:
            # A database that is away for a moment is no reason to take everything from everybody.
            _no_answer.met(error)
            return scheduled
        _no_answer.over()
        return still

    async def _send_away(self) -> None:
        """The user is gone."""
        if self._ephemeral_connection().ended:
            return  # sent away already, or away by itself
        log.info(
            "user_gone",
            "the user of client %(client)s is gone, ending its connection with %(code)s",
            client=self.channel_name,
            code=REVOKED,
        )
        await self._ephemeral_end()
        await self.close(code=REVOKED)


def _about(scope: Any) -> dict[str, str]:
    """Names the user, for the admin; nobody, if the database would have to be asked for it."""
    try:
        user = scope["user"]
        if not user.is_authenticated:
            return {}
    except Exception:
        return {}
    name = _shown(lambda: user.get_username()) or _shown(lambda: user)
    return {"user": name, "user_id": _shown(lambda: user.pk)}


def _shown(read: Callable[[], object]) -> str:
    """As text that any store and page can take. What only people read must not end a connection: whatever it is, and
    whatever the project's own code raises."""
    try:
        return str(read())[:_LONGEST_ABOUT].encode(errors="replace").decode()
    except Exception:
        return ""


def _frame(text: str) -> Any:
    return {"type": "websocket.send", "text": text}


def _set_event(entry: Entry) -> dict[str, Any]:
    """An entry of a snapshot in the shape of the event that would have made it."""
    return {
        "type": "ephemeral.event",
        "namespace": entry.topic.namespace,
        "topic": entry.topic.name,
        "event": "set",
        "key": entry.key,
        "client_id": entry.client_id,
        "payload": entry.payload,
        "reason": None,
        "text": encode_set(entry.topic.name, entry.key, entry.client_id, entry.payload),
    }
