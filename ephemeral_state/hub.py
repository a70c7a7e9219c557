"""The topics this process follows: one group membership and one replica each, fanned out to its sockets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextvars import Context
from typing import Any, Final, NamedTuple

from channels.layers import BaseChannelLayer

from . import log
from .broadcast import group_name, reconnect
from .delivery import Delivery, News
from .errors import InvalidFrame, StoreUnavailable
from .outbox import Log, Outbox
from .protocol import (
    PLAIN,
    Batch,
    Event,
    Flow,
    Ref,
    Rest,
    as_batches,
    decode_batch,
    encode_welcome,
    peek_batch,
    peek_store,
)
from .replica import Replica
from .state import Change, Entry, Revision, Snapshot, Topic
from .stores.base import Store
from .tally import tally
from .tracing import housekeeping, span

__all__ = ["Hub"]

_PATIENCE: Final = 0.05  # seconds that a batch may be early before a snapshot is read
_DOUBT: Final = 0.25  # seconds that a batch may be on its way before the beacon calls it lost
_REASSERTION: Final = 2.0  # seconds that all nodes have for writing back after the store lost everything
_OVERDUE: Final = 1000.0  # ms after its deadline, by which the store would have told of an entry that has expired
_REJOIN: Final = 3600.0  # seconds; layers forget a group's members after group_expiry, a day by default
_LAYER_TIMEOUT: Final = 2.0  # seconds that a channel layer may take to join or leave a group
_JOINING_PAUSES: Final = (0.02, 0.1, 0.3)  # seconds between attempts to join a group, where the layer raises
_SNAPSHOT_AGE: Final = 20.0  # ms that one encoding of a topic is good for; what changes is only the time left
_PAUSE: Final = 0.002  # seconds from telling a room of something to telling it of the next
_BATCH_PAUSE: Final = 0.01  # the same for those who take several events in one frame
_LONGEST_PAUSE: Final = 0.02  # seconds; where telling takes long, so does the pause, as long as more comes
_RETRY: Final = 1.0  # seconds between attempts to hear from a channel layer that fails; the first ones come sooner
_UNHEARD: Final = 3  # such comparisons until the layer counts as deaf
_RECONNECT: Final = 30.0  # seconds between attempts to have a layer connect anew that counts as deaf
_FIRST_RETRY: Final = 0.05


class Hub:
    """Belongs to one event loop. Runs from the first `follow` to `stop`."""

    def __init__(
        self,
        store: Store,
        layer: BaseChannelLayer,
        beacon_interval: float,
        *,
        heard: Callable[[Topic, Sequence[Event], bool], None] | None = None,
        went_back: Callable[[Collection[Topic]], None] | None = None,
    ) -> None:
        """`heard` is called with what subscribers hear, and whether the stream brought it; `went_back` with topics of
        which the store may have lost something."""
        self._store = store
        self._heard = heard
        self._went_back = went_back
        self._layer = layer
        self._beacon_interval = beacon_interval
        self._feeds: dict[Topic, _Feed] = {}
        self._discarding: dict[Topic, asyncio.Task[None]] = {}
        self._starting: asyncio.Task[str] | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        self._stopped = False
        self._own: list[Change] = []
        self._nobody = Context()
        self._tally = tally()
        self._has_heard_foreign = False
        self._rejoining: asyncio.Task[None] | None = None
        self._joining = log.Trouble(
            "joining_trouble",
            "the channel layer does not let this process join a group, clients cannot subscribe: %(error)s",
            "groups can be joined again",
        )
        self._deafness = log.Trouble(
            "layer_deaf",
            "the channel layer brings no messages though the store changes, subscribers see changes late: its listener "
            "may have ended, or other processes may use another server",
            "the channel layer brings messages again",
        )
        self._reconnect_at = 0.0
        self._hearing = log.Trouble(
            "hearing_trouble",
            f"the channel layer fails, retrying after at most {_RETRY} s: %(error)s",
            "the channel layer is back",
        )
        self._comparing = log.Trouble(
            "comparing_trouble",
            "comparing views with the store fails, they may be stale: %(error)s",
            "views are compared with the store again",
        )

    @property
    def topics(self) -> int:
        """How many are followed."""
        return len(self._feeds)

    async def follow(self, topic: Topic, delivery: Delivery, ref: Ref = None, flow: Flow = PLAIN) -> None:
        """Welcome the delivery with one snapshot, and let it hear everything after that: no gap, no overlap.

        Whoever follows already gets a new snapshot, and the new `flow`. Raises `StoreUnavailable`, also for the
        channel layer.
        """
        feed = self._feeds.get(topic)
        if feed is None:
            feed = self._feeds[topic] = _Feed(topic)
            feed.opening = asyncio.get_running_loop().create_task(self._open(feed))
        feed.waiters += 1
        try:
            # Shielded: one client that leaves while it waits must not take the topic from the others.
            await asyncio.shield(feed.opening)
            feed.add(delivery, flow)
            delivery.welcome(topic, _Seat(feed, delivery), ref, batch=flow.batch)
        finally:
            feed.waiters -= 1
            self._close_if_unused(feed)

    def unfollow(self, topic: Topic, delivery: Delivery) -> None:
        """Stop hearing of the topic, at once. Nothing happens if it was not followed."""
        feed = self._feeds.get(topic)
        if feed is not None:
            feed.remove(delivery)
            delivery.forget(topic)
            self._close_if_unused(feed)

    def changed(self, changes: Sequence[Change]) -> None:
        """This process has made these changes, in a store that no other process writes to. Their messages will come by
        the channel layer, as they come to all; here they are heard of without that way, in the next turn of the event
        loop: after those who wait for an answer, and all that came in one turn at once."""
        if not self._feeds:
            return
        if not self._own:
            asyncio.get_running_loop().call_soon(self._hear_own, context=self._nobody)
        self._own += changes

    def _hear_own(self) -> None:
        changes, self._own = self._own, []
        for batch in as_batches(changes):
            feed = self._feeds.get(batch.topic)
            try:
                if feed is not None:
                    self._apply(feed, batch)
            except Exception:
                _not_handled()

    def doubt(self) -> None:
        """The store may have gone back to an earlier state: read every topic again, once all have written back."""
        for feed in self._feeds.values():
            feed.doubt()

    def size(self, topic: Topic) -> int:
        """The characters of the topic's latest snapshot, or of the frame that begins it; 0 if nobody was sent one."""
        feed = self._feeds.get(topic)
        return feed.size if feed is not None else 0

    def others(self, topic: Topic, key: str) -> int | None:
        """How many other keys the topic has, as seen from here; `None` if it is not followed."""
        feed = self._feeds.get(topic)
        if feed is None or not feed.open:
            return None
        coming = (change.key for change in self._own if change.reason is None and change.topic == topic)
        return feed.replica.others(key, coming)

    async def stop(self) -> None:
        """Leave all groups and end all tasks."""
        for feed in list(self._feeds.values()):
            self._close(feed)
        await asyncio.gather(*self._discarding.values(), return_exceptions=True)
        self._stopped = True
        ending = [*self._tasks]
        self._tasks.clear()
        ending += [task for task in (self._starting, self._rejoining) if task is not None]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    # Opening and closing a topic

    async def _open(self, feed: _Feed) -> None:
        try:
            if feed.topic in self._discarding:
                # Or else the layer might see the old membership's end after the new one's beginning.
                await asyncio.shield(self._discarding[feed.topic])
            try:
                async with asyncio.timeout(_LAYER_TIMEOUT):
                    await self._join(feed.topic)
            except Exception as error:
                self._joining.met(error)
                # What it raised is the operator's business: it may name hosts.
                what = "does not answer" if isinstance(error, TimeoutError) else "fails"
                raise StoreUnavailable(f"the channel layer {what}") from error
            self._joining.over()
            await self._read(feed)
        except BaseException:
            self._close(feed)
            raise

    async def _join(self, topic: Topic) -> None:
        """Tried more than once: a layer may raise only because others write at the same moment."""
        for pause in _JOINING_PAUSES:
            try:
                await self._layer.group_add(group_name(*topic), await self._start())
            except TimeoutError:
                raise
            except Exception as error:
                log.debug("joining the group of %s failed, trying again: %r", topic, error)
                await asyncio.sleep(pause)
            else:
                return
        await self._layer.group_add(group_name(*topic), await self._start())

    def _close_if_unused(self, feed: _Feed) -> None:
        if feed.deserted and not feed.waiters:
            self._close(feed)

    def _close(self, feed: _Feed) -> None:
        if self._feeds.get(feed.topic) is not feed:
            return
        del self._feeds[feed.topic]
        feed.cancel()
        self._leave(feed.topic)

    def _leave(self, topic: Topic) -> None:
        discarding = self._discard(topic, self._discarding.get(topic))
        self._discarding[topic] = asyncio.get_running_loop().create_task(discarding)

    async def _discard(self, topic: Topic, earlier: asyncio.Task[None] | None) -> None:
        try:
            if earlier is not None:
                await asyncio.wait([earlier])
            if self._starting is not None:
                async with asyncio.timeout(_LAYER_TIMEOUT):
                    await self._layer.group_discard(group_name(*topic), await asyncio.shield(self._starting))
        except Exception as error:
            log.warning(
                "leaving_failed",
                "leaving the group of %(topic)s failed, the layer will expire it: %(error)s",
                namespace=topic.namespace,
                topic=topic.name,
                error=repr(error),
            )
        finally:
            if self._discarding.get(topic) is asyncio.current_task():
                del self._discarding[topic]

    async def _start(self) -> str:
        if self._starting is None:
            self._starting = asyncio.get_running_loop().create_task(self._begin())
        return await asyncio.shield(self._starting)

    async def _begin(self) -> str:
        try:
            # A time limit of its own: all who open a topic wait for it, each for as long as it may.
            async with asyncio.timeout(_LAYER_TIMEOUT):
                channel: str = await self._layer.new_channel()
        except BaseException:
            self._starting = None
            raise
        self._keep_running(self._listen, channel)
        self._keep_running(self._beacon, channel)
        return channel

    def _keep_running(self, duty: Callable[[str], Coroutine[Any, Any, None]], channel: str) -> None:
        loop = asyncio.get_running_loop()
        # In nobody's context: it outlives whoever came first, and is no part of what is traced there.
        task = loop.create_task(duty(channel), context=Context())
        self._tasks.append(task)

        def ended(task: asyncio.Task[None]) -> None:
            # A socket's `send` takes its first step inside `_listen`, and a timeout of some middleware that began
            # there may cancel the wrong task. Later, so that a loop that ends is not kept from it.
            if task in self._tasks:
                self._tasks.remove(task)
                # A loop that ends, as that of a test whose client stays connected, cancels all of its tasks at once.
                if not task.cancelled() or any(not other.cancelling() for other in self._tasks):
                    log.warning(
                        "duty_ended",
                        "the task %(duty)s of the hub was ended by other code, such as a timeout in a middleware "
                        "around a WebSocket's send, and is started again: %(error)s",
                        duty=duty.__name__.strip("_"),
                        error="cancelled" if task.cancelled() else repr(task.exception()),
                    )
                loop.call_later(_PATIENCE, self._begin_again, duty, channel)

        task.add_done_callback(ended)

    def _begin_again(self, duty: Callable[[str], Coroutine[Any, Any, None]], channel: str) -> None:
        if not self._stopped:
            self._keep_running(duty, channel)

    # Hearing

    async def _listen(self, channel: str) -> None:
        failures = 0
        while True:
            try:
                with housekeeping():
                    message = await self._layer.receive(channel)
            except Exception as error:
                self._hearing.met(error)
                failures += 1
                # It may have failed with one message only: the next must not wait for that.
                await asyncio.sleep(0 if failures == 1 else min(_RETRY, _FIRST_RETRY * 2 ** min(failures - 2, 10)))
                if failures > 1:
                    await self._rejoin(channel, self._feeds)
                elif self._rejoining is None or self._rejoining.done():
                    self._rejoining = asyncio.get_running_loop().create_task(self._rejoin(channel, self._feeds))
                continue
            failures = 0
            self._hearing.over()
            try:
                self._take(message)
            except Exception:
                _not_handled()
            # A layer with messages waiting returns without ever suspending: let the sockets have their turn.
            await asyncio.sleep(0)

    def _take(self, message: Mapping[str, Any]) -> None:
        try:
            topic, last = peek_batch(message)
            feed = self._feeds.get(topic)
            if feed is None or self._is_foreign(peek_store(message)):
                return
            feed.taken += 1
            feed.unheard = 0
            if feed.replica.has_come_to(last):
                return
            batch = decode_batch(message)
        except InvalidFrame as error:
            log.warning(
                "message_ignored",
                "ignored a message, the beacon will read what it said from the store: %(error)s",
                error=str(error),
            )
            return
        self._apply(feed, batch)

    def _is_foreign(self, store: str) -> bool:
        """Whether a message is of another store. One that does not say is of an earlier release, and believed."""
        own = self._store.identity
        if not store or not own or store == own:
            return False
        if not self._has_heard_foreign:
            self._has_heard_foreign = True
            log.warning(
                "foreign_messages",
                "the channel layer brings changes of another store, %(store)s, which are ignored: give each site a "
                "prefix of its own in CHANNEL_LAYERS",
                store=store,
            )
        return True

    def _apply(self, feed: _Feed, batch: Batch) -> None:
        before = feed.replica.revision
        self._tell(feed, feed.replica.apply(batch, _now()), is_stream=True)
        if feed.replica.revision != before:
            feed.moved_at = time.monotonic()
        if feed.replica.behind and feed.open and feed.repairing is None:
            feed.repairing = asyncio.get_running_loop().create_task(self._repair(feed, _PATIENCE))

    # Being right

    async def _read(self, feed: _Feed) -> None:
        """Read snapshots until the replica equals the store as far as anybody can know."""
        while True:
            asked_at, asked = feed.replica.asking(), _now()
            snapshot = await self._store.snapshot(feed.topic)
            if feed.must_wait_for(snapshot, asked_at):
                await asyncio.sleep(feed.patient_until - time.monotonic())
                continue
            if asked_at == feed.replica.revision:
                feed.doubted = False
            now = _now()
            self._tell(feed, feed.replica.reset(snapshot, asked_at, now, now - asked))
            if feed.has_come_to(snapshot.revision):
                return
            await asyncio.sleep(_PATIENCE)
            if feed.has_come_to(snapshot.revision):
                return

    def _tell(self, feed: _Feed, events: Sequence[Event], *, is_stream: bool = False) -> None:
        if events:
            self._tally["heard"] += len(events)
            if self._heard is not None:
                self._heard(feed.topic, events, is_stream)
            feed.tell(events)

    async def _repair(self, feed: _Feed, patience: float) -> None:
        wait = patience
        try:
            while wait > 0:
                await asyncio.sleep(wait)
                if not feed.replica.behind:
                    return
                # Where several event loops write to one store, what one does itself may be early again and again. As
                # long as what is missing comes, nothing is lost.
                wait = feed.moved_at + patience - time.monotonic()
            self._tally["gaps" if patience else "doubts"] += 1
            with span("repair", feed.topic):
                await self._read(feed)
        except StoreUnavailable as error:
            log.info(
                "repair_failed",
                "repairing %(topic)s failed, the beacon will try again: %(error)s",
                namespace=feed.topic.namespace,
                topic=feed.topic.name,
                error=repr(error),
            )
        finally:
            feed.repairing = None

    async def _beacon(self, channel: str) -> None:
        """A lost last message shows in no sequence number: only asking the store reveals it."""
        joined = time.monotonic()
        while True:
            await asyncio.sleep(self._beacon_interval)
            if time.monotonic() - joined > _REJOIN:
                joined = time.monotonic()
                await self._rejoin(channel, self._feeds)
            try:
                stale = await self._compare([feed for feed in self._feeds.values() if feed.open])
                # What should have told of it may have been lost with the membership: some layers keep that in Redis.
                await self._rejoin(channel, stale)
                await self._doubt_layer(stale)
                self._comparing.over()
            except Exception as error:  # whatever it is: without a beacon, views would stay wrong silently
                self._comparing.met(error)
                self._expire_here()

    async def _doubt_layer(self, stale: Iterable[Topic]) -> None:
        """Notice a layer that joins groups and brings nothing: its listener may have died, or its connections lead to
        a server that nobody else uses any more."""
        doubtful = [self._feeds[topic] for topic in stale if topic in self._feeds]
        for feed in doubtful:
            feed.unheard += 1
        if any(feed.unheard >= _UNHEARD for feed in doubtful):
            self._deafness.met()
            now = time.monotonic()
            if now >= self._reconnect_at:
                self._reconnect_at = now + _RECONNECT
                await reconnect(self._layer)
        elif not any(feed.unheard for feed in self._feeds.values()):
            self._deafness.over()

    async def _compare(self, feeds: Sequence[_Feed]) -> list[Topic]:
        """Have views repaired that are not what the store says. Returns the topics of which too little was heard, as
        where the layer has lost the membership: all that was changed came back to whoever has one, also one's own."""
        # Before asking: what the stream brings while the store answers may be newer than the answer.
        before = [feed.replica.revision for feed in feeds]
        with housekeeping():
            digests = await self._store.digests([feed.topic for feed in feeds]) if feeds else []
        revisions = [digest and digest.revision for digest in digests]
        for feed, digest in zip(feeds, digests, strict=True):
            if digest is not None and feed.replica.contradicts(digest) and feed.repairing is None:
                self._found_wrong(feed)
        doubtful = [
            (feed, revision, feed.replica.revision, feed.taken)
            for feed, revision in zip(feeds, revisions, strict=True)
            if revision is not None and not feed.agrees(revision)
        ]
        if doubtful:
            # Another epoch: the store has lost the topic, or it was emptied and used again and we missed it.
            suspects = {
                feed.topic
                for feed, now, then in zip(feeds, revisions, before, strict=True)
                if now is not None and then.epoch and (now < then or now.epoch != then.epoch)
            }
            if self._went_back is not None and suspects:
                self._went_back(suspects)
            await asyncio.sleep(_DOUBT)
        stale = []
        for feed, revision, then, taken in doubtful:
            if feed.agrees(revision):
                continue
            if feed.taken == taken:
                stale.append(feed.topic)
            # A replica that has moved on hears the stream, or what its own loop does. The next beacon asks again.
            if (feed.replica.revision == then or feed.doubted) and feed.repairing is None:
                feed.repairing = asyncio.get_running_loop().create_task(self._repair(feed, 0))
        if None in revisions:
            raise StoreUnavailable("a part of the store does not answer")
        return stale

    def _found_wrong(self, feed: _Feed) -> None:
        """The replica has the store's revision and something else in it. No known fault leads here."""
        self._tally["views_wrong"] += 1
        log.warning(
            "view_wrong",
            "the view of %(topic)s was not what the store has, reading it again",
            namespace=feed.topic.namespace,
            topic=feed.topic.name,
        )
        feed.repairing = asyncio.get_running_loop().create_task(self._repair(feed, 0))

    def _expire_here(self) -> None:
        """The store does not answer, and nobody tells what has expired."""
        for feed in list(self._feeds.values()):
            if feed.open:
                self._tell(feed, feed.replica.expire(_now() - _OVERDUE))

    async def _rejoin(self, channel: str, topics: Iterable[Topic]) -> None:
        for topic in list(topics):
            if topic not in self._feeds:
                continue
            try:
                with housekeeping():
                    async with asyncio.timeout(_LAYER_TIMEOUT):
                        await self._layer.group_add(group_name(*topic), channel)
            except TimeoutError:  # the others would wait as long
                return
            except Exception as error:  # the next round tries again, and the beacon keeps the views right
                log.debug("joining the group of %s again failed: %r", topic, error)
            if topic not in self._feeds:  # by now: and it may have left the group before it has joined it
                self._leave(topic)


class _Feed:
    """One followed topic: its replica and who hears of it."""

    opening: asyncio.Task[None]

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.replica = Replica(topic)
        self._lanes: dict[Flow, _Lane] = {}
        self._encoded = {False: _NOTHING_YET, True: _NOTHING_YET}  # by whether it has the numbers of the keys
        self.waiters = 0
        self.generation = 0
        self.taken = 0  # messages that the layer has brought
        self.unheard = 0  # comparisons in a row that found a change of which the layer had brought nothing
        self.moved_at = 0.0  # by the monotonic clock, when the stream last went on
        self.patient_until = 0.0
        self.doubted = False
        self.repairing: asyncio.Task[None] | None = None

    @property
    def open(self) -> bool:
        return self.opening.done() and not self.opening.cancelled() and self.opening.exception() is None

    @property
    def deserted(self) -> bool:
        return not self._lanes

    def add(self, delivery: Delivery, flow: Flow) -> None:
        self.remove(delivery)
        lane = self._lanes.get(flow)
        if lane is None:
            lane = self._lanes[flow] = _Lane(self.topic, flow)
        lane.add(delivery)

    def remove(self, delivery: Delivery) -> None:
        for flow, lane in list(self._lanes.items()):
            if lane.remove(delivery):
                del self._lanes[flow]

    def tell(self, events: Sequence[Event]) -> None:
        for lane in list(self._lanes.values()):
            lane.tell(events)

    def has_looked(self, delivery: Delivery) -> None:
        """The subscriber takes its snapshot now: whatever waits to be told is in it."""
        for lane in self._lanes.values():
            lane.begin_anew(delivery)

    def entries(self) -> Sequence[Entry]:
        return self.replica.entries(_now())

    def snapshot(self, *, batch: bool) -> tuple[str, Rest]:
        """Encoded once for all who join within a moment, as after a deploy everybody does."""
        now, encoded = _now(), self._encoded[batch]
        if encoded.version != self.replica.version or now - encoded.at > _SNAPSHOT_AGE:
            numbers = self.replica.numbers() if batch else {}
            text, rest = encode_welcome(self.topic.name, self.replica.entries(now), numbers)
            encoded = self._encoded[batch] = _Encoded(self.replica.version, now, text, rest)
        return encoded.text, encoded.rest

    @property
    def size(self) -> int:
        return len(max(self._encoded.values(), key=lambda encoded: encoded.at).text)

    def agrees(self, revision: Revision) -> bool:
        return self.replica.agrees(revision) and not self.doubted

    def has_come_to(self, revision: Revision) -> bool:
        """Whether what was read is part of the replica. It is not where the stream went on meanwhile, so that the
        snapshot was not used: what had come early, and was dropped for it, may have been the last of all."""
        return not self.replica.behind and not self.doubted and self.replica.revision >= revision

    def doubt(self) -> None:
        """The store may have gone back to an earlier state, from where revisions are given out again. It is being
        written back to: what is not there yet has not left."""
        self.doubted = True
        self.patient_until = time.monotonic() + _REASSERTION

    def must_wait_for(self, snapshot: Snapshot, asked_at: Revision) -> bool:
        has_lost_all = self.generation and snapshot.generation != self.generation
        if has_lost_all or (snapshot.revision < asked_at and not self.doubted):
            self.doubt()
        self.generation = snapshot.generation
        return asked_at.epoch > 0 and time.monotonic() < self.patient_until

    def cancel(self) -> None:
        for task in (self.opening, self.repairing):
            # Not itself: opening closes the feed when it fails.
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        for lane in self._lanes.values():
            lane.stop()


class _Seat:
    """One subscriber's view of a feed. A busy socket looks later than it was welcomed, and what was told to all others
    in a moment, it must not hear once more then: it would take what comes and goes for news."""

    __slots__ = ("_delivery", "_feed")

    def __init__(self, feed: _Feed, delivery: Delivery) -> None:
        self._feed = feed
        self._delivery = delivery

    def entries(self) -> Sequence[Entry]:
        self._feed.has_looked(self._delivery)
        return self._feed.entries()

    def snapshot(self, *, batch: bool) -> tuple[str, Rest]:
        self._feed.has_looked(self._delivery)
        return self._feed.snapshot(batch=batch)


class _Encoded(NamedTuple):
    version: int
    at: float
    text: str
    rest: Rest


_NOTHING_YET: Final = _Encoded(-1, 0.0, "", Rest("", (), {}))


class _Lane:
    """Subscribers of one topic who hear of it in one way, all in step: what waits is gathered once, and what is sent is
    made once.

    Whatever comes to a lane at rest is told at once. After that there is a pause, in which more may gather: a room
    that is told of every single change while many are under way has time for nothing else.
    """

    def __init__(self, topic: Topic, flow: Flow) -> None:
        self._topic = topic
        self._flow = flow
        if flow.max_rate is not None:
            self._pause = 1 / flow.max_rate
        else:
            self._pause = _BATCH_PAUSE if flow.batch else _PAUSE
        self._waiting = self._nothing()
        self._members: dict[Delivery, None] = {}
        # Never changed, only replaced: others come and leave while it is iterated.
        self._audience: tuple[Delivery, ...] | None = None
        # Who joins while something waits has heard of it by its snapshot. What it has to hear is kept for itself until
        # it has heard no less and no more than the others.
        self._late: dict[Delivery, Outbox | Log] = {}
        self._began = 0.0
        self._rests_until = 0.0
        self._rests_at_most_until = 0.0
        self._came = False  # something, since it was last looked
        self._timer: asyncio.Handle | None = None
        self._tally = tally()

    def add(self, delivery: Delivery) -> None:
        if self._waiting:
            self._late[delivery] = self._nothing()
        else:
            self._join(delivery)

    def begin_anew(self, delivery: Delivery) -> None:
        if self._leave(delivery):
            self.add(delivery)

    def remove(self, delivery: Delivery) -> bool:
        """Whether nobody is left."""
        self._leave(delivery)
        if self._members or self._late:
            return False
        self.stop()
        return True

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def tell(self, events: Sequence[Event]) -> None:
        self._waiting.add(events)
        for own in self._late.values():
            own.add(events)
        self._came = True
        if self._timer is None:
            loop = asyncio.get_running_loop()
            if loop.time() >= self._rests_until:
                self._send()
            else:
                self._timer = loop.call_at(self._rests_until, self._send_or_wait)

    def _send_or_wait(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._came and now < self._rests_at_most_until:
            self._came = False
            self._timer = loop.call_at(min(now + _PAUSE, self._rests_at_most_until), self._send_or_wait)
        else:
            self._send()

    def _send(self) -> None:
        self._timer = None
        self._began = asyncio.get_running_loop().time()
        if self._waiting:
            if self._audience is None:
                self._audience = tuple(self._members)
            news = self._take(self._waiting)
            self._tally["handed"] += len(news.events) * len(self._audience)
            for delivery in self._audience:
                delivery.hear(news)
        for delivery, own in list(self._late.items()):
            if own:
                news = self._take(own)
                self._tally["handed"] += len(news.events)
                delivery.hear(news)
            if not own and not self._waiting and self._late.pop(delivery, None) is not None:
                self._join(delivery)
        self._timer = asyncio.get_running_loop().call_soon(self._let_it_out)

    def _let_it_out(self) -> None:
        # Some servers write to their sockets in the next turn of the loop, which then takes longer than the pause.
        self._timer = asyncio.get_running_loop().call_soon(self._rest)

    def _rest(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        now = loop.time()
        self._rests_until = now + self._pause
        # What has come meanwhile, a loop that is busy with this room has yet to take in. Told at once, it goes out with
        # fewer system calls. When no more comes, a longer rest would be for nothing.
        self._rests_at_most_until = now + max(self._pause, min((now - self._began) / 2, _LONGEST_PAUSE))
        self._came = False
        if self._waiting or any(self._late.values()):
            self._timer = loop.call_at(self._rests_until, self._send_or_wait)

    def _join(self, delivery: Delivery) -> None:
        self._members[delivery] = None
        self._audience = None

    def _leave(self, delivery: Delivery) -> bool:
        """Whether it was there."""
        if delivery in self._members:
            del self._members[delivery]
            self._audience = None
            return True
        return self._late.pop(delivery, None) is not None

    def _nothing(self) -> Outbox | Log:
        return Log() if self._flow.max_rate is None else Outbox()

    def _take(self, waiting: Outbox | Log) -> News:
        if isinstance(waiting, Outbox) and not self._flow.batch:
            return News(self._topic, [waiting.pop()])
        return News(self._topic, waiting.pop_all())


def _not_handled() -> None:
    log.exception(
        "message_bug",
        "a message was not handled, the beacon will read what it said from the store: please report it, with this "
        "traceback",
    )


def _now() -> float:
    return time.monotonic() * 1000
