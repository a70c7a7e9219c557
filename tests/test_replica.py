"""Whatever a channel layer does to messages, a replica that may ask for a snapshot ends equal to the store,
and every subscriber that applies what it is told ends equal to the replica."""

import heapq
import random
from collections import Counter
from itertools import count

import pytest

from ephemeral_state.outbox import Outbox
from ephemeral_state.protocol import Batch, Event, encode_event
from ephemeral_state.replica import Replica
from ephemeral_state.state import Entry, Revision, Snapshot, Topic

TOPIC = Topic("", "t")


def set_event(key, payload=b"", client="c", expires_in_ms=1000):
    return Event(key, client, payload, None, expires_in_ms, f"set {key}", Revision(0, 0))


def clear_event(key, reason="explicit", client="c"):
    return Event(key, client, b"", reason, 0, f"clear {key}", Revision(0, 0))


def batch(epoch, first, *events):
    return Batch(TOPIC, Revision(epoch, first), events)


def snapshot(epoch, revision, **payloads):
    entries = [Entry(TOPIC, key, "c", payload, 1000) for key, payload in payloads.items()]
    return Snapshot(TOPIC, Revision(epoch, revision), entries)


def replica(epoch=1, revision=0, **payloads):
    copy = Replica(TOPIC)
    copy.reset(snapshot(epoch, revision, **payloads), copy.asking(), now=0)
    return copy


def told(events):
    return [encode_event(TOPIC.name, event) for event in events]


def test_consecutive_batches_are_told_as_they_come():
    copy = replica()
    assert told(copy.apply(batch(1, 1, set_event("a"), set_event("b")), 0)) == ["set a", "set b"]
    assert told(copy.apply(batch(1, 3, clear_event("a")), 0)) == ["clear a"]
    assert copy.revision == Revision(1, 3)
    assert not copy.behind


def test_a_key_keeps_its_number_until_it_goes_and_nobody_has_it_after():
    copy = replica()
    copy.apply(batch(1, 1, set_event("a"), set_event("b"), set_event("a", client="other")), 0)
    assert copy.numbers() == {"a": 1, "b": 2}
    heard = copy.apply(batch(1, 4, clear_event("a"), set_event("c"), set_event("a"), set_event("b")), 0)
    assert [event.number for event in heard[1:]] == [3, 4, 2]
    heard = copy.reset(snapshot(1, 9, b=b"new", d=b""), copy.asking(), 0)
    assert {event.key: event.number for event in heard if event.reason is None} == copy.numbers() == {"b": 2, "d": 5}


def test_a_batch_that_came_before_is_told_once():
    copy = replica()
    copy.apply(batch(1, 1, set_event("a")), 0)
    assert copy.apply(batch(1, 1, set_event("a")), 0) == []


def test_the_new_half_of_an_overlapping_batch_is_told():
    copy = replica(1, 2, a=b"", b=b"")
    assert told(copy.apply(batch(1, 2, set_event("b"), set_event("c")), 0)) == ["set c"]


def test_an_early_batch_waits_for_the_missing_one():
    copy = replica()
    assert copy.apply(batch(1, 2, set_event("b")), 0) == []
    assert copy.behind
    assert told(copy.apply(batch(1, 1, set_event("a")), 0)) == ["set a", "set b"]
    assert not copy.behind


def test_of_two_early_batches_that_begin_alike_the_longer_one_waits():
    copy = replica()
    copy.apply(batch(1, 2, set_event("b"), set_event("c")), 0)
    copy.apply(batch(1, 2, set_event("b")), 0)
    assert told(copy.apply(batch(1, 1, set_event("a")), 0)) == ["set a", "set b", "set c"]


def test_before_the_first_snapshot_everything_is_early():
    copy = Replica(TOPIC)
    asked = copy.asking()
    assert copy.apply(batch(1, 1, set_event("a")), 0) == []
    assert told(copy.reset(snapshot(1, 0), asked, 0)) == ["set a"]


def test_a_snapshot_is_told_as_the_difference():
    copy = replica(1, 3, same=b"1", changed=b"1", gone=b"1")
    events = copy.reset(snapshot(1, 9, same=b"1", changed=b"2", new=b""), copy.asking(), 0)
    assert [(e.key, e.reason, e.fresh) for e in events] == [
        ("gone", "disconnect", False),
        ("changed", None, False),
        ("new", None, True),
    ]


def test_what_vanished_after_its_deadline_is_told_as_expired():
    copy = replica(1, 1, k=b"")
    (event,) = copy.reset(snapshot(1, 2), copy.asking(), now=1001)
    assert event.reason == "expired"


def test_a_snapshot_overtaken_by_the_stream_is_not_used():
    copy = replica(1, 1, a=b"")
    asked = copy.asking()
    copy.apply(batch(1, 2, clear_event("a")), 0)
    assert copy.reset(snapshot(1, 1, a=b""), asked, 0) == []
    assert copy.entries(0) == []


def test_a_store_that_went_back_is_believed():
    copy = replica(1, 9, a=b"", b=b"")
    assert told(copy.reset(snapshot(1, 5, a=b""), copy.asking(), 0)) == [
        '{"_orama":"ephemeral.clear","topic":"t","key":"b","client_id":"c","reason":"disconnect"}'
    ]
    assert copy.revision == Revision(1, 5)


def test_an_empty_topic_begins_a_new_epoch_without_asking():
    copy = replica(1, 4)
    assert told(copy.apply(batch(2, 1, set_event("a")), 0)) == ["set a"]
    assert not copy.behind


def test_a_new_epoch_over_held_entries_needs_a_snapshot():
    copy = replica(1, 4, a=b"")
    assert copy.apply(batch(2, 1, set_event("b")), 0) == []
    assert copy.behind


def test_an_old_epoch_is_ignored():
    copy = replica(5, 1)
    assert copy.apply(batch(4, 1, set_event("ghost")), 0) == []
    assert not copy.behind


def test_after_nothing_an_old_epoch_is_still_old():
    copy = replica(5, 1, a=b"")
    copy.reset(snapshot(0, 0), copy.asking(), 0)
    assert copy.apply(batch(4, 2, set_event("ghost")), 0) == []
    assert copy.apply(batch(5, 1, set_event("a")), 0) == []


def test_it_agrees_with_a_store_that_forgot_an_empty_topic():
    copy = replica(1, 1, a=b"")
    assert not copy.agrees(Revision(0, 0))
    copy.apply(batch(1, 2, clear_event("a")), 0)
    assert copy.agrees(Revision(0, 0))
    assert copy.agrees(Revision(1, 2))
    assert not copy.agrees(Revision(1, 3))


def test_a_clear_of_what_nobody_heard_of_is_not_told():
    copy = replica(1, 1)
    assert copy.apply(batch(1, 2, clear_event("expired before the snapshot", "expired")), 0) == []
    assert copy.revision == Revision(1, 2)


def test_entries_are_sorted_and_show_the_time_left():
    copy = replica()
    copy.apply(batch(1, 1, set_event("b", expires_in_ms=500), set_event("a", expires_in_ms=None)), now=100)
    assert [(e.key, e.expires_in_ms) for e in copy.entries(now=250.5)] == [("a", None), ("b", 349)]
    assert [e.key for e in copy.entries(now=600)] == ["a"]


def test_whoever_has_joined_between_the_deadline_and_the_sweep_is_told_the_owner():
    copy = replica()
    copy.apply(batch(1, 1, set_event("k", expires_in_ms=500)), now=0)
    (event,) = copy.apply(batch(1, 2, set_event("k", expires_in_ms=500)), now=400)
    assert event.same_owner
    assert copy.entries(now=900) == []
    (event,) = copy.apply(batch(1, 3, set_event("k")), now=901)
    assert (event.same_owner, event.fresh) == (False, False)


def test_whoever_has_joined_since_the_deadline_is_told_of_what_lives_on():
    copy = replica(1, 1, k=b"")
    assert copy.reset(snapshot(1, 2, k=b""), copy.asking(), now=999) == []
    assert copy.entries(now=1999) == []
    (event,) = copy.reset(snapshot(1, 3, k=b""), copy.asking(), now=2000)
    assert (event.key, event.reason, event.same_owner, event.fresh) == ("k", None, False, False)


def test_what_has_expired_while_the_store_answered_is_not_told_once_more():
    copy = replica(1, 1, k=b"")
    assert copy.reset(snapshot(1, 2, k=b""), copy.asking(), now=1500, took=1500) == []
    assert copy.entries(now=1500) == []
    (event,) = copy.apply(batch(1, 3, clear_event("k", "expired")), now=1501)
    assert event.reason == "expired"


def test_what_was_set_again_is_told_however_long_the_store_took_to_answer():
    copy = replica(1, 1, same=b"1", changed=b"1")
    events = copy.reset(snapshot(1, 3, same=b"1", changed=b"2"), copy.asking(), now=1500, took=400)
    assert [(e.key, e.payload, e.fresh) for e in events] == [("same", b"1", False), ("changed", b"2", False)]
    (event,) = copy.reset(snapshot(1, 4, same=b"1", changed=b"3"), copy.asking(), now=9000, took=8000)
    assert event.payload == b"3"


class _Subscriber:
    """A client that applies what it is told and is strict about it."""

    def __init__(self):
        self.view = {}

    def hear(self, event):
        if event.reason is None:
            self.view[event.key] = (event.client_id, event.payload)
        else:
            assert event.key in self.view
            del self.view[event.key]


def _history(rng):
    """Batches as a store numbers them, the snapshot after each, and the state after the last."""
    epoch, revision, state = 1, 0, {}
    for _ in range(rng.randint(1, 40)):
        if not state and revision and rng.random() < 0.5:
            epoch, revision = epoch + 1, 0
        first, events = revision + 1, []
        for _ in range(rng.randint(1, 3)):
            revision += 1
            key = rng.choice("abc")
            if key in state and rng.random() < 0.5:
                events.append(clear_event(key, client=state.pop(key)[0]))
            else:
                state[key] = (rng.choice("xyz"), rng.randbytes(1))
                events.append(set_event(key, state[key][1], state[key][0]))
        forgotten = not state and rng.random() < 0.5
        entries = [Entry(TOPIC, key, *value, 1000) for key, value in sorted(state.items())]
        yield (
            Batch(TOPIC, Revision(epoch, first), events),
            Snapshot(TOPIC, Revision(0, 0) if forgotten else Revision(epoch, revision), entries),
        )


@pytest.mark.parametrize("chunk", range(10))
def test_every_view_ends_equal_after_loss_reordering_and_duplication(chunk):
    for seed in range(chunk * 300, chunk * 300 + 300):
        rng = random.Random(seed)
        history = list(_history(rng))
        truth = {e.key: (e.client_id, e.payload) for e in history[-1][1].entries}
        delayed = sorted(range(len(history)), key=lambda n: n + rng.choice([0, 0, 0, 2.5, 5]))
        arriving = [n for n in delayed if rng.random() > 0.1 for _ in range(1 + (rng.random() < 0.1))]
        copy, quick, slow, outbox = Replica(TOPIC), _Subscriber(), _Subscriber(), Outbox()

        def tell(events, quick=quick, slow=slow, outbox=outbox, rng=rng):
            for event in events:
                if event.reason is None:
                    assert event.fresh == (event.key not in quick.view)
                quick.hear(event)
            outbox.add(events)
            while outbox and rng.random() < 0.5:
                slow.hear(outbox.pop())

        asked = copy.asking()
        joins = rng.randrange(len(arriving) + 1)
        for n in arriving[:joins]:
            tell(copy.apply(history[n][0], 0))
        tell(copy.reset(rng.choice(history)[1], asked, 0))
        for n in arriving[joins:]:
            tell(copy.apply(history[n][0], 0))
        tell(copy.reset(history[-1][1], copy.asking(), 0))
        while outbox:
            slow.hear(outbox.pop())
        assert not copy.behind
        assert copy.agrees(history[-1][1].revision)
        assert {e.key: (e.client_id, e.payload) for e in copy.entries(0)} == truth, f"seed {seed}"
        assert quick.view == truth, f"seed {seed}"
        assert slow.view == truth, f"seed {seed}"


class _Late:
    """A store whose entries expire, a replica, and subscribers, with time between question, look and answer."""

    def __init__(self, rng):
        self.rng = rng
        self.copy = Replica(TOPIC)
        self.stored = {}
        self.revision = 0
        self.sets = Counter()
        self.subscribers = []
        self.numbers = count()
        self.agenda = []
        self.asking = False

    def at(self, when, what, *arguments):
        heapq.heappush(self.agenda, (when, next(self.numbers), what, arguments))

    def run(self, until):
        while self.agenda and self.agenda[0][0] < until:
            now, _, what, arguments = heapq.heappop(self.agenda)
            what(now, *arguments)

    def soon(self, now):
        return now + self.rng.choice((0, 1, 5, 50, 500)) * self.rng.random()

    def set(self, now):
        key, ttl = self.rng.choice("ab"), self.rng.choice((20, 100, 400))
        payload = b"%d" % next(self.numbers)
        if key in self.stored and self.rng.random() < 0.3:
            payload = self.stored[key][0]  # the same once more, for longer
        self.sets[payload] += 1
        self.stored[key] = payload, now + ttl
        self.change(now, set_event(key, payload, expires_in_ms=ttl))

    def sweep(self, now):
        for key in [key for key, (_, deadline) in self.stored.items() if deadline <= now]:
            del self.stored[key]
            self.change(now, clear_event(key, "expired"))

    def change(self, now, event):
        self.revision += 1
        if self.rng.random() < 0.7:
            self.at(self.soon(now), self.arrive, batch(1, self.revision, event))

    def arrive(self, now, batch):
        self.tell(self.copy.apply(batch, now))

    def ask(self, now):
        if self.asking:  # as a hub does, one after the other
            return
        self.asking = True
        self.at(self.soon(now), self.look, self.copy.asking(), now)

    def look(self, now, asked_at, asked):
        self.at(self.soon(now), self.answer, self.snapshot(now), asked_at, asked)

    def snapshot(self, now):
        live = [(key, *held) for key, held in sorted(self.stored.items()) if now < held[1]]
        entries = [Entry(TOPIC, key, "c", payload, int(deadline - now)) for key, payload, deadline in live]
        return Snapshot(TOPIC, Revision(1, self.revision), entries)

    def answer(self, now, answer, asked_at, asked):
        self.asking = False
        self.tell(self.copy.reset(answer, asked_at, now, now - asked))

    def join(self, now):
        view = {entry.key: entry.payload for entry in self.copy.entries(now)}
        self.subscribers.append((view, Counter(view.values())))

    def tell(self, events):
        for event in events:
            for view, heard in self.subscribers:
                if event.reason is None:
                    view[event.key] = event.payload
                    heard[event.payload] += 1
                else:
                    view.pop(event.key, None)


@pytest.mark.parametrize("chunk", range(10))
def test_nothing_is_told_more_often_than_it_was_set_however_late_the_store_answers(chunk):
    for seed in range(chunk * 100, chunk * 100 + 100):
        rng = random.Random(seed)
        late = _Late(rng)
        late.ask(0)
        for _ in range(60):
            late.at(rng.random() * 3000, rng.choice((late.set, late.set, late.sweep, late.ask, late.join)))
        late.run(until=3000)
        live = late.snapshot(3000)
        late.tell(late.copy.reset(live, late.copy.asking(), 3000))
        for view, heard in late.subscribers:
            assert heard <= late.sets, f"seed {seed}"
            assert view == {entry.key: entry.payload for entry in live.entries}, f"seed {seed}"
