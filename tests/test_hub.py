import asyncio
import json
import random
import time
from types import SimpleNamespace

import pytest
from channels_redis.core import RedisChannelLayer
from channels_redis.pubsub import RedisPubSubChannelLayer

from ephemeral_state import broadcast as broadcast_module
from ephemeral_state import hub as hub_module
from ephemeral_state.broadcast import group_name, publish
from ephemeral_state.delivery import Direct, Dispatched
from ephemeral_state.errors import StoreUnavailable
from ephemeral_state.hub import Hub, _Lane
from ephemeral_state.protocol import PLAIN, Event, Flow, encode_batches
from ephemeral_state.replica import Replica
from ephemeral_state.state import Clear, Limits, Revision, Set, Topic
from ephemeral_state.stores.memory import MemoryStore
from ephemeral_state.tally import totals

from .front import Front
from .lossy import LossyLayer
from .redis_server import RedisServer
from .waiting import events, settle, until

TOPIC = Topic("", "room")


class Client:
    """A socket that keeps up, and the view its frames make."""

    def __init__(self):
        self.frames = []
        self.view = {}
        self.delivery = Direct(self.send, self.gone)
        self.lost = None

    async def send(self, message):
        frame = json.loads(message["text"])
        self.frames.append(frame)
        if frame["_orama"] == "ephemeral.snapshot":
            self.view = {e["key"]: (e["client_id"], e.get("payload")) for e in frame["entries"]}
            self.keys = {e["n"]: e["key"] for e in frame["entries"] if "n" in e}
        elif frame["_orama"] == "ephemeral.set":
            self.view[frame["key"]] = (frame["client_id"], frame.get("payload"))
        elif frame["_orama"] == "ephemeral.batch":
            for name, payload, *more in frame["events"]:
                assert payload is None or isinstance(payload, str), "none here is JSON"
                if payload is None:
                    del self.view[name]
                elif more:
                    owner, number = more
                    self.keys[number] = name
                    self.view[name] = (owner, payload or None)
                else:
                    key = self.keys[name]
                    self.view[key] = (self.view[key][0], payload or None)
        else:
            del self.view[frame["key"]]

    def gone(self, error):
        self.lost = error


class Rig:
    def __init__(self, **options):
        self.layer = LossyLayer(**options)
        self.store = MemoryStore(Limits(max_keys_per_client=10_000))
        self.hub = Hub(self.store, self.layer, beacon_interval=0.05)

    async def write(self, *writes, tell=True):
        outcomes = await self.store.apply(writes)
        if tell:
            await publish(self.layer, [change for outcome in outcomes for change in outcome.changes])

    async def truth(self, topic=TOPIC):
        entries = (await self.store.snapshot(topic)).entries
        return {e.key: e.client_id for e in entries}


@pytest.fixture
async def rig():
    rig = Rig()
    yield rig
    await rig.hub.stop()


def owners(client):
    return {key: owner for key, (owner, _) in client.view.items()}


async def test_a_follower_gets_one_snapshot_and_then_the_stream(rig):
    await rig.write(Set("c", TOPIC, "before"))
    client = Client()
    await rig.hub.follow(TOPIC, client.delivery)
    await rig.write(Set("c", TOPIC, "after"))
    await until(lambda: len(client.frames) == 2)
    assert [f["_orama"] for f in client.frames] == ["ephemeral.snapshot", "ephemeral.set"]
    assert [e["key"] for e in client.frames[0]["entries"]] == ["before"]
    assert client.frames[1]["key"] == "after"


async def test_changes_of_another_store_are_ignored_and_said_once(rig, caplog):
    client = Client()
    await rig.hub.follow(TOPIC, client.delivery)
    other = MemoryStore(Limits())
    for n in range(3):
        (outcome,) = await other.apply([Set("foreign", TOPIC, f"k{n}")])
        await publish(rig.layer, outcome.changes, other.identity)
    (outcome,) = await rig.store.apply([Set("c", TOPIC, "own")])
    await publish(rig.layer, outcome.changes, rig.store.identity)
    await until(lambda: len(client.frames) == 2)
    assert owners(client) == {"own": "c"}
    assert events(caplog) == ["foreign_messages"]


async def test_a_message_of_an_earlier_release_that_names_no_store_is_believed(rig):
    client = Client()
    await rig.hub.follow(TOPIC, client.delivery)
    (outcome,) = await rig.store.apply([Set("c", TOPIC, "k")])
    (message,) = encode_batches(outcome.changes)
    del message["store"]
    await rig.layer.group_send(group_name(*TOPIC), message)
    await until(lambda: len(client.frames) == 2)
    assert owners(client) == {"k": "c"}


async def test_a_thousand_followers_read_the_store_once_and_join_the_group_once(rig):
    reads = 0
    snapshot = rig.store.snapshot

    async def counted(topic):
        nonlocal reads
        reads += 1
        await asyncio.sleep(0.01)
        return await snapshot(topic)

    rig.store.snapshot = counted
    clients = [Client() for _ in range(1000)]
    await asyncio.gather(*(rig.hub.follow(TOPIC, client.delivery) for client in clients))
    assert reads == 1
    assert len(rig.layer.groups[group_name(*TOPIC)]) == 1
    assert all(len(client.frames) == 1 for client in clients)


async def test_nothing_is_missed_or_doubled_by_clients_that_join_while_others_write(rig):
    clients = []

    async def write():
        for n in range(300):
            key = f"k{n % 7}"
            await rig.write(Set("c", TOPIC, key, str(n).encode()) if n % 3 else Clear("c", TOPIC, key))
            await asyncio.sleep(0)

    async def join():
        for _ in range(50):
            client = Client()
            clients.append(client)
            await rig.hub.follow(TOPIC, client.delivery)
            await asyncio.sleep(0.001)

    await asyncio.gather(write(), join())
    truth = await rig.truth()
    await until(lambda: all(owners(client) == truth for client in clients))
    for client in clients:
        sets = [f.get("payload") for f in client.frames if f["_orama"] == "ephemeral.set"]
        assert len(sets) == len(set(sets))
    assert len({tuple(map(str, client.frames[-5:])) for client in clients if len(client.frames) > 5}) == 1


async def test_a_batch_names_the_owner_only_where_it_is_new(rig):
    await rig.write(Set("c", TOPIC, "k", b"1"))
    client, plain = Client(), Client()
    await rig.hub.follow(TOPIC, client.delivery, flow=Flow(batch=True))
    await rig.hub.follow(TOPIC, plain.delivery)
    await rig.write(Set("c", TOPIC, "k", b"2"), Set("d", TOPIC, "k", b"3"), Set("d", TOPIC, "k", b"4"))
    await rig.write(Clear("d", TOPIC, "k"))
    await until(lambda: not client.view)
    assert [frame["events"] for frame in client.frames[1:]] == [
        [[1, "Mg=="], ["k", "Mw==", "d", 1], [1, "NA=="]],
        [["k", None, "d", "explicit"]],
    ]
    assert [frame["_orama"] for frame in plain.frames[1:]] == ["ephemeral.set"] * 3 + ["ephemeral.clear"]


@pytest.mark.parametrize("batch", [True, False])
async def test_a_rate_is_kept_and_the_last_value_and_every_clear_arrive(rig, batch):
    await rig.write(Set("c", TOPIC, "going"))
    client, plain = Client(), Client()
    await rig.hub.follow(TOPIC, client.delivery, flow=Flow(batch, max_rate=20))
    await rig.hub.follow(TOPIC, plain.delivery)
    loop = asyncio.get_running_loop()
    began = loop.time()
    for n in range(300):
        await rig.write(Set("c", TOPIC, "moving", str(n).encode()))
        await asyncio.sleep(0.001)
    await rig.write(Clear("c", TOPIC, "going"))
    await until(lambda: client.view == plain.view == {"moving": ("c", "Mjk5")})
    assert len(client.frames) - 1 <= 1 + 20 * (loop.time() - began)
    assert sum(frame["_orama"] == "ephemeral.set" for frame in plain.frames) == 300


async def test_one_frame_is_made_for_all_who_want_the_same_rate(rig):
    clients = [Client() for _ in range(10)]
    for client in clients:
        await rig.hub.follow(TOPIC, client.delivery, flow=Flow(True, 50))
    await rig.write(Set("c", TOPIC, "first"))
    await until(lambda: all(len(client.frames) == 2 for client in clients))
    await rig.write(Set("c", TOPIC, "a"))
    await rig.write(Set("c", TOPIC, "b"))
    await until(lambda: all(len(client.frames) == 3 for client in clients))
    assert [event[0] for event in clients[0].frames[-1]["events"]] == ["a", "b"]


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("seed", range(10))
async def test_whoever_joins_or_leaves_at_a_rate_at_any_moment_ends_at_the_truth(rig, batch, seed):
    rng = random.Random(seed)
    clients = []
    for _ in range(150):
        if rng.random() < 0.2:
            clients.append(Client())
            rate = rng.choice([None, 100, 200, 1000])
            await rig.hub.follow(TOPIC, clients[-1].delivery, flow=Flow(batch, rate))
        if rng.random() < 0.05 and len(clients) > 1:
            rig.hub.unfollow(TOPIC, clients.pop(rng.randrange(len(clients))).delivery)
        key, owner = f"k{rng.randrange(6)}", rng.choice("ab")
        await rig.write(
            Set(owner, TOPIC, key, b"%d" % rng.randrange(99)) if rng.random() < 0.6 else Clear(owner, TOPIC, key)
        )
        await asyncio.sleep(rng.choice([0, 0, 0.002]))
    truth = await rig.truth()
    # A clear of a key that a view does not have raises in the client, so nothing was told twice or left out either.
    await until(lambda: all(owners(client) == truth for client in clients))
    assert [client.lost for client in clients] == [None] * len(clients)


class Busy(Client):
    """A socket that pushes back while its gate is closed; it closes by itself behind a snapshot."""

    def __init__(self):
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()

    async def send(self, message):
        await super().send(message)
        if self.frames[-1]["_orama"] == "ephemeral.snapshot":
            self.gate.clear()
        await self.gate.wait()


@pytest.mark.parametrize("batch", [True, False])
async def test_whoever_is_too_busy_for_its_snapshot_hears_only_of_what_comes_after_it(rig, batch):
    rig.hub._beacon_interval = 3600
    flow, other = Flow(batch, max_rate=1), Topic("", "other")  # the room rests for a second, in which things wait
    ready, busy = Client(), Busy()
    await rig.hub.follow(other, busy.delivery)
    await rig.hub.follow(TOPIC, ready.delivery, flow=flow)
    await rig.hub.follow(TOPIC, busy.delivery, flow=flow)  # its first snapshot is not through yet
    await rig.write(Set("c", TOPIC, "first"))
    await until(lambda: "first" in ready.view)
    await rig.write(Set("c", TOPIC, "k"))
    await until(lambda: rig.hub.others(TOPIC, "") == 2)
    busy.gate.set()
    await until(lambda: len(busy.frames) == 2)
    assert owners(busy) == {"first": "c", "k": "c"}
    await until(lambda: "k" in ready.view)
    await rig.write(Clear("c", TOPIC, "k"))
    await until(lambda: owners(ready) == {"first": "c"})
    busy.gate.set()
    await until(lambda: owners(busy) == {"first": "c"})
    assert len(busy.frames) == 3


async def test_a_handler_that_takes_its_snapshot_late_is_told_nothing_twice(rig):
    flow = Flow(max_rate=1)
    ready, late = Client(), Dispatched(lambda: None)
    await rig.hub.follow(TOPIC, ready.delivery, flow=flow)
    await rig.hub.follow(TOPIC, late, flow=flow)
    await rig.write(Set("c", TOPIC, "first"))
    await until(lambda: "first" in ready.view)
    await rig.write(Set("c", TOPIC, "k"))
    await until(lambda: rig.hub.others(TOPIC, "") == 2)
    assert [entry.key for entry in late.pop()["entries"]] == ["first", "k"]
    await until(lambda: "k" in ready.view)
    assert not late
    await rig.write(Clear("c", TOPIC, "k"))
    await until(lambda: late)
    assert late.pop()["event"] == "clear"


@pytest.mark.parametrize("flow", [Flow(), Flow(True), Flow(False, 100), Flow(True, 100)])
@pytest.mark.parametrize("seed", range(3))
async def test_sockets_that_push_back_and_subscribe_again_at_any_moment_end_at_the_truth(rig, flow, seed):
    rng = random.Random(seed)
    clients = [Busy() for _ in range(4)]
    for _ in range(150):
        client, key = rng.choice(clients), f"k{rng.randrange(6)}"
        if rng.random() < 0.2:
            await rig.hub.follow(TOPIC, client.delivery, flow=flow)
        if rng.random() < 0.3:
            client.gate.set()
        value = b"%d" % rng.randrange(99)
        await rig.write(Set("c", TOPIC, key, value) if rng.random() < 0.6 else Clear("c", TOPIC, key))
        await asyncio.sleep(rng.choice([0, 0, 0.002]))
    truth = await rig.truth()
    for client in clients:
        await until(lambda client=client: client.gate.set() or owners(client) == truth)
    assert [client.lost for client in clients] == [None] * len(clients)


async def test_a_snapshot_is_encoded_once_for_all_who_join_together_and_anew_after_a_change(rig):
    await rig.write(Set("c", TOPIC, "k"))
    texts = []

    class Raw(Client):
        async def send(self, message):
            texts.append(message["text"])

    for _ in range(3):
        await rig.hub.follow(TOPIC, Raw().delivery)
    assert len({id(text) for text in texts}) < 3
    await rig.write(Set("c", TOPIC, "another"))
    await until(lambda: len(texts) == 6)
    await rig.hub.follow(TOPIC, Raw().delivery, ref=7)
    assert [e["key"] for e in json.loads(texts[-1])["entries"]] == ["another", "k"]
    assert texts[-1].endswith(',"ref":7}')


async def test_a_lost_last_message_is_repaired_by_the_beacon(rig):
    client = Client()
    await rig.hub.follow(TOPIC, client.delivery)
    await rig.write(Set("c", TOPIC, "typing"))
    await until(lambda: "typing" in client.view)
    await rig.write(Clear("c", TOPIC, "typing"), tell=False)
    await until(lambda: not client.view)
    assert client.frames[-1]["_orama"] == "ephemeral.clear"


async def test_a_lost_message_in_the_middle_is_repaired_when_the_next_one_comes(rig):
    rig.hub._beacon_interval = 3600
    client = Client()
    await rig.hub.follow(TOPIC, client.delivery)
    await rig.write(Set("c", TOPIC, "lost"), tell=False)
    await rig.write(Set("c", TOPIC, "heard"))
    await until(lambda: owners(client) == {"lost": "c", "heard": "c"})


async def test_what_this_process_has_changed_is_heard_of_without_the_layer_and_once():
    rig = Rig(lose=1.0)
    rig.hub._beacon_interval = 3600
    client, elsewhere = Client(), Client()
    other = Topic("", "other")
    await rig.hub.follow(TOPIC, client.delivery)
    await rig.hub.follow(other, elsewhere.delivery)
    writes = [Set("c", TOPIC, "a"), Set("c", other, "b"), Set("c", TOPIC, "b"), Clear("c", TOPIC, "a")]
    changes = [change for outcome in await rig.store.apply(writes) for change in outcome.changes]
    for change in changes:
        rig.hub.changed([change])
    assert len(client.frames) == len(elsewhere.frames) == 1  # whoever has made them is answered first
    await until(lambda: len(client.frames) == 4)
    assert (owners(client), owners(elsewhere)) == ({"b": "c"}, {"b": "c"})
    rig.layer.lose = 0.0
    await publish(rig.layer, changes)  # as they come from the layer, after all
    await rig.write(Set("c", TOPIC, "last"))
    await until(lambda: "last" in client.view)
    assert (len(client.frames), len(elsewhere.frames)) == (5, 2)
    await rig.hub.stop()


async def test_as_long_as_what_is_missing_comes_nothing_is_read_anew(rig):
    rig.hub._beacon_interval = 3600
    client = Client()
    await rig.hub.follow(TOPIC, client.delivery)
    asked = 0
    snapshot = rig.store.snapshot

    async def counted(topic):
        nonlocal asked
        asked += 1
        return await snapshot(topic)

    rig.store.snapshot = counted
    late = None
    for number in range(20):  # always something is early, and for 200 ms in all
        there, here = await rig.store.apply([Set("there", TOPIC, f"{number}"), Set("here", TOPIC, f"{number}")])
        rig.hub.changed(here.changes)
        await asyncio.sleep(0.01)
        if late is not None:
            await publish(rig.layer, late.changes)
            await settle()
        late = there
    assert asked == 0
    assert rig.hub._feeds[TOPIC].replica.behind
    await until(lambda: len(client.view) == 20 and set(owners(client).values()) == {"here"})  # the last one was lost
    assert asked == 1


async def test_what_expires_while_the_store_answers_is_not_told_once_more(rig):
    client, asked = Client(), asyncio.Event()
    await rig.hub.follow(TOPIC, client.delivery)
    snapshot, ttl_ms = rig.store.snapshot, 400

    async def answers_late(topic):
        answer = await snapshot(topic)
        asked.set()
        await asyncio.sleep(ttl_ms / 1000)
        return answer

    rig.store.snapshot = answers_late
    await rig.write(Set("c", TOPIC, "typing", ttl_ms=ttl_ms))
    await rig.write(Set("c", TOPIC, "lost"), tell=False)
    await until(lambda: "lost" in client.view)
    assert asked.is_set()
    assert [f["key"] for f in client.frames if f["_orama"] == "ephemeral.set"] == ["typing", "lost"]


async def test_one_repair_serves_every_subscriber(rig):
    reads = 0
    snapshot = rig.store.snapshot

    async def counted(topic):
        nonlocal reads
        reads += 1
        return await snapshot(topic)

    clients = [Client() for _ in range(100)]
    for client in clients:
        await rig.hub.follow(TOPIC, client.delivery)
    rig.store.snapshot = counted
    await rig.write(Set("c", TOPIC, "lost"), tell=False)
    await rig.write(Set("c", TOPIC, "heard"))
    await until(lambda: all(len(client.view) == 2 for client in clients))
    assert reads == 1


@pytest.mark.parametrize("seed", range(5))
async def test_every_view_equals_the_store_however_bad_the_layer(seed):
    rig = Rig(lose=0.2, delay=0.2, repeat=0.1, seed=seed)
    rng = random.Random(seed)
    topics = [Topic("", f"t{n}") for n in range(3)]
    clients = {topic: [Client() for _ in range(3)] for topic in topics}
    for topic in topics:
        for client in clients[topic]:
            await rig.hub.follow(topic, client.delivery)
    for n in range(400):
        topic, key, owner = rng.choice(topics), rng.choice("abcdef"), rng.choice("xyz")
        await rig.write(Set(owner, topic, key, str(n).encode()) if rng.random() < 0.6 else Clear(owner, topic, key))
        await asyncio.sleep(0)
    for topic in topics:
        truth = await rig.truth(topic)
        for client in clients[topic]:
            await until(lambda client=client, truth=truth: owners(client) == truth, 5)
    await rig.hub.stop()


async def test_the_last_to_leave_leaves_the_group(rig):
    clients = [Client(), Client()]
    for client in clients:
        await rig.hub.follow(TOPIC, client.delivery)
    rig.hub.unfollow(TOPIC, clients[0].delivery)
    await settle()
    assert group_name(*TOPIC) in rig.layer.groups
    rig.hub.unfollow(TOPIC, clients[1].delivery)
    await until(lambda: group_name(*TOPIC) not in rig.layer.groups)


async def test_leaving_and_coming_back_at_once_keeps_the_membership(rig):
    client = Client()
    for n in range(50):
        await rig.hub.follow(TOPIC, client.delivery)
        rig.hub.unfollow(TOPIC, client.delivery)
        if n % 2:
            await settle()
    await rig.hub.follow(TOPIC, client.delivery)
    await rig.write(Set("c", TOPIC, "k"))
    await until(lambda: "k" in client.view)


async def test_a_follower_that_gives_up_waiting_takes_nothing_from_the_others(rig):
    gate = asyncio.Event()
    snapshot = rig.store.snapshot

    async def slow(topic):
        await gate.wait()
        return await snapshot(topic)

    rig.store.snapshot = slow
    impatient, patient = Client(), Client()
    first = asyncio.create_task(rig.hub.follow(TOPIC, impatient.delivery))
    second = asyncio.create_task(rig.hub.follow(TOPIC, patient.delivery))
    await settle()
    first.cancel()
    await asyncio.wait([first])
    gate.set()
    await second
    assert len(patient.frames) == 1
    assert impatient.frames == []


async def test_a_store_that_fails_at_the_beginning_fails_the_follower_and_leaves_nothing(rig):
    async def fails(topic):
        raise StoreUnavailable("no")

    snapshot, rig.store.snapshot = rig.store.snapshot, fails
    client = Client()
    with pytest.raises(StoreUnavailable):
        await rig.hub.follow(TOPIC, client.delivery)
    await until(lambda: group_name(*TOPIC) not in rig.layer.groups)
    rig.store.snapshot = snapshot
    await rig.hub.follow(TOPIC, client.delivery)
    assert len(client.frames) == 1


async def test_a_store_that_fails_for_a_while_is_followed_again(rig):
    client = Client()
    await rig.hub.follow(TOPIC, client.delivery)
    failures = 0
    revisions = rig.store.digests

    async def fails(topics):
        nonlocal failures
        failures += 1
        raise StoreUnavailable("no")

    rig.store.digests = fails
    await rig.write(Set("c", TOPIC, "k"), tell=False)
    await until(lambda: failures >= 3)
    rig.store.digests = revisions
    await until(lambda: "k" in client.view)


async def test_a_part_of_the_store_that_does_not_answer_harms_nothing_elsewhere_and_is_told_once(caplog):
    rig, asked, went_back = Rig(), 0, []
    rig.hub = Hub(rig.store, rig.layer, beacon_interval=0.01, went_back=lambda topics: went_back.append(topics))
    away, near, clients = TOPIC, Topic("", "near"), [Client(), Client()]
    for topic, client in zip((away, near), clients, strict=True):
        await rig.write(Set("c", topic, "k"))
        await rig.hub.follow(topic, client.delivery)
    revisions = rig.store.digests

    async def partial(topics):
        nonlocal asked
        asked += 1
        return [
            None if topic == away else revision for topic, revision in zip(topics, await revisions(topics), strict=True)
        ]

    rig.store.digests = partial
    await rig.write(Set("c", near, "lost"), Set("c", away, "lost"), tell=False)
    await until(lambda: asked > 5 and "lost" in clients[1].view)
    assert owners(clients[0]) == {"k": "c"}
    assert len(clients[0].frames) == 1
    assert not went_back
    assert [r.getMessage() for r in caplog.records if "a part of the store does not answer" in r.getMessage()] == [
        "comparing views with the store fails, they may be stale: "
        "StoreUnavailable('a part of the store does not answer')"
    ]
    rig.store.digests = revisions
    await until(lambda: "lost" in clients[0].view)
    await until(lambda: events(caplog) == ["comparing_trouble", "comparing_trouble_over"])
    await rig.hub.stop()


class Raising(LossyLayer):
    """Raises on demand, as layers on a database do when several processes write, or for one message."""

    def __init__(self):
        super().__init__()
        self.joins_to_fail = self.sends_to_fail = self.receives_to_fail = 0

    async def group_add(self, group, channel):
        if self.joins_to_fail:
            self.joins_to_fail -= 1
            raise RuntimeError("database is locked at 10.0.0.1")
        await super().group_add(group, channel)

    async def group_send(self, group, message):
        if self.sends_to_fail:
            self.sends_to_fail -= 1
            raise RuntimeError("database is locked")
        await super().group_send(group, message)

    async def receive(self, channel):
        message = await super().receive(channel)
        if self.receives_to_fail:
            self.receives_to_fail -= 1
            raise RuntimeError("too long")
        return message


@pytest.fixture
async def raising():
    rig = Rig()
    rig.layer = Raising()
    rig.hub = Hub(rig.store, rig.layer, beacon_interval=3600)
    yield rig
    await rig.hub.stop()


async def test_a_layer_that_raises_while_a_group_is_joined_is_asked_again_and_no_client_hears_of_it(raising, caplog):
    raising.layer.joins_to_fail = 3
    client = Client()
    await raising.hub.follow(TOPIC, client.delivery)
    await raising.write(Set("c", TOPIC, "k"))
    await until(lambda: owners(client) == {"k": "c"})
    assert events(caplog) == []


async def test_a_layer_that_goes_on_raising_is_logged_with_the_cause_once_and_clients_are_not_told_it(raising, caplog):
    raising.layer.joins_to_fail = 8
    for _ in range(2):
        with pytest.raises(StoreUnavailable) as caught:
            await raising.hub.follow(TOPIC, Client().delivery)
        assert str(caught.value) == "the channel layer fails"
    assert events(caplog) == ["joining_trouble"]
    assert "database is locked at 10.0.0.1" in caplog.text
    await raising.hub.follow(TOPIC, Client().delivery)
    assert events(caplog) == ["joining_trouble", "joining_trouble_over"]


async def test_a_message_that_the_layer_takes_at_the_second_attempt_is_not_lost(raising, caplog):
    client = Client()
    await raising.hub.follow(TOPIC, client.delivery)
    raising.layer.sends_to_fail = 1
    (outcome,) = await raising.store.apply([Set("c", TOPIC, "k")])
    assert await publish(raising.layer, outcome.changes) == []
    await until(lambda: owners(client) == {"k": "c"})


async def test_one_message_that_cannot_be_received_does_not_hold_up_the_next(raising, monkeypatch, caplog):
    monkeypatch.setattr(hub_module, "_RETRY", 3600)
    monkeypatch.setattr(hub_module, "_FIRST_RETRY", 3600)
    client = Client()
    await raising.hub.follow(TOPIC, client.delivery)
    for n in range(3):
        raising.layer.receives_to_fail = 1
        await raising.write(Set("c", TOPIC, f"bad {n}"))
        await raising.write(Set("c", TOPIC, f"good {n}"))
        await until(lambda n=n: f"bad {n}" in client.view and f"good {n}" in client.view)  # a gap, so it was read
    assert events(caplog) == ["hearing_trouble", "hearing_trouble_over"] * 3


class Deaf(LossyLayer):
    """Joins groups and brings nothing, as a layer whose listener has died."""

    dead = False

    async def group_send(self, group, message):
        if not self.dead:
            await super().group_send(group, message)


async def test_a_layer_that_brings_nothing_is_noticed_and_when_it_does_again(rig, monkeypatch, caplog):
    monkeypatch.setattr(hub_module, "_DOUBT", 0.01)
    rig.layer = Deaf()
    rig.hub = Hub(rig.store, rig.layer, beacon_interval=0.01)
    client = Client()
    await rig.hub.follow(TOPIC, client.delivery)
    await rig.write(Set("c", TOPIC, "heard"))
    await until(lambda: "heard" in client.view)
    rig.layer.dead = True
    for n in range(hub_module._UNHEARD):
        assert events(caplog) == []
        await rig.write(Set("c", TOPIC, f"unheard {n}"))
        await until(lambda n=n: f"unheard {n}" in client.view)  # by the beacon
    await until(lambda: events(caplog) == ["layer_deaf"])
    rig.layer.dead = False
    await rig.write(Set("c", TOPIC, "again"))
    await until(lambda: events(caplog) == ["layer_deaf", "layer_deaf_over"])
    await rig.hub.stop()


@pytest.mark.redis
async def test_a_pubsub_layer_that_stayed_with_a_server_that_nobody_else_uses_connects_anew(monkeypatch, caplog):
    monkeypatch.setattr(hub_module, "_DOUBT", 0.05)
    with RedisServer() as old, RedisServer() as new:
        async with Front(old) as front:
            layer, elsewhere = RedisPubSubChannelLayer(hosts=[front.url]), RedisPubSubChannelLayer(hosts=[new.url])
            store = MemoryStore(Limits())
            hub = Hub(store, layer, beacon_interval=0.05)
            await hub.follow(TOPIC, Client().delivery)
            front.move(new)
            for n in range(1000):
                (outcome,) = await store.apply([Set("c", TOPIC, f"{n}")])
                await publish(elsewhere, outcome.changes)
                await asyncio.sleep(0.1)
                if "layer_deaf_over" in events(caplog):
                    break
            assert [event for event in events(caplog) if event.startswith("layer")] == ["layer_deaf", "layer_deaf_over"]
            await hub.stop()
            await layer.flush()
            await elsewhere.flush()


async def test_a_slow_layer_has_its_time_for_each_message_and_not_for_all(monkeypatch):
    monkeypatch.setattr(broadcast_module, "_SEND_TIMEOUT", 0.2)

    class Slow(LossyLayer):
        async def group_send(self, group, message):
            await asyncio.sleep(0.05)
            await super().group_send(group, message)

    rig = Rig()
    topics = [Topic("", f"{n}") for n in range(100)]  # 16 at once: seven rounds, of which four had time
    outcomes = await rig.store.apply([Set("c", topic, key) for topic in topics for key in ("a", "b")])
    layer = Slow()
    assert await publish(layer, [change for outcome in outcomes for change in outcome.changes]) == []
    assert layer.sent == 100


async def test_a_layer_that_hangs_is_given_up_after_the_time_of_one_message(monkeypatch):
    monkeypatch.setattr(broadcast_module, "_SEND_TIMEOUT", 0.05)
    asked = 0

    class Hanging(LossyLayer):
        async def group_send(self, group, message):
            nonlocal asked
            asked += 1
            await asyncio.Event().wait()

    rig = Rig()
    outcomes = await rig.store.apply([Set("c", Topic("", f"{n}"), "k") for n in range(1000)])
    failures = await publish(Hanging(), [change for outcome in outcomes for change in outcome.changes])
    assert {type(failure) for failure in failures} == {TimeoutError}
    assert asked <= broadcast_module._AT_ONCE


@pytest.mark.redis
async def test_a_layer_that_hangs_fails_who_joins_within_two_seconds_and_lets_in_who_comes_later():
    with RedisServer() as server:
        store, layer = MemoryStore(Limits()), RedisChannelLayer(hosts=[server.url])
        hub = Hub(store, layer, beacon_interval=3600)
        await hub.follow(Topic("", "first"), Client().delivery)
        server.stop()
        try:
            began = time.monotonic()
            results = await asyncio.gather(
                *(hub.follow(Topic("", f"{n}"), Client().delivery) for n in range(5)), return_exceptions=True
            )
            assert time.monotonic() - began < 4
            assert {str(result) for result in results} == {"the channel layer does not answer"}
        finally:
            server.cont()
        client = Client()
        await hub.follow(Topic("", "0"), client.delivery)
        assert len(client.frames) == 1
        await hub.stop()
        await layer.close_pools()


@pytest.mark.redis
async def test_a_layer_that_hangs_over_its_first_channel_cancels_nobody():
    with RedisServer() as server:
        layer = RedisPubSubChannelLayer(hosts=[server.url])
        hub = Hub(MemoryStore(Limits()), layer, beacon_interval=3600)

        async def come(after):
            await asyncio.sleep(after)
            await hub.follow(Topic("", f"{after}"), Client().delivery)

        server.stop()
        try:
            # The first one gives up after 2 s, and has left after 2 s more; the last ones are waiting then.
            results = await asyncio.gather(*(come(n * 0.5) for n in range(9)), return_exceptions=True)
        finally:
            server.cont()
        assert {str(result) for result in results} == {"the channel layer does not answer"}
        client = Client()
        await hub.follow(TOPIC, client.delivery)
        assert len(client.frames) == 1
        await hub.stop()
        await layer.flush()


@pytest.mark.redis
async def test_a_membership_that_the_layer_has_lost_is_taken_up_again():
    with RedisServer() as server:
        rig = Rig()
        rig.layer = RedisChannelLayer(hosts=[server.url])
        rig.hub = Hub(rig.store, rig.layer, beacon_interval=0.05)
        client = Client()
        await rig.hub.follow(TOPIC, client.delivery)
        members = f"asgi:group:{group_name(*TOPIC)}"
        assert server.command("ZCARD", members) == 1
        server.command("FLUSHALL")
        await rig.write(Set("c", TOPIC, "k"))
        await until(lambda: "k" in client.view)
        await until(lambda: server.command("ZCARD", members) == 1)
        await rig.hub.stop()
        await rig.layer.close_pools()


async def test_a_lost_membership_is_noticed_though_this_process_goes_on_by_itself(rig, monkeypatch):
    monkeypatch.setattr(hub_module, "_DOUBT", 0.05)
    client = Client()
    await rig.hub.follow(TOPIC, client.delivery)
    group = group_name(*TOPIC)
    rig.layer.groups.pop(group)
    async with asyncio.timeout(5):
        number = 0
        while group not in rig.layer.groups:
            number += 1
            # Others write, too: what this process does itself shows gaps, and their repair brings the replica on.
            there, here = await rig.store.apply([Set("there", TOPIC, f"{number}"), Set("here", TOPIC, f"{number}")])
            rig.hub.changed(here.changes)
            await publish(rig.layer, [*there.changes, *here.changes])
            await asyncio.sleep(0.01)
    await rig.write(Set("c", TOPIC, "last"))
    await until(lambda: "last" in client.view)


async def test_of_several_topics_changed_at_once_one_that_fails_takes_nothing_from_the_others(rig, caplog):
    client, other = Client(), Topic("", "other")
    await rig.hub.follow(TOPIC, client.delivery)
    await rig.hub.follow(other, Client().delivery)

    def fails(batch, now):
        raise ZeroDivisionError

    rig.hub._feeds[other].replica = SimpleNamespace(apply=fails, revision=Revision(0, 0))
    outcomes = await rig.store.apply([Set("c", other, "k"), Set("c", TOPIC, "k")])
    rig.hub.changed([change for outcome in outcomes for change in outcome.changes])
    await until(lambda: "k" in client.view)
    assert events(caplog) == ["message_bug"]
    rig.hub._feeds[other].replica = Replica(other)


async def test_what_is_about_to_be_heard_of_counts_as_there(rig):
    await rig.hub.follow(TOPIC, Client().delivery)
    await rig.write(Set("c", TOPIC, "a"))
    await until(lambda: rig.hub.others(TOPIC, "new") == 1)
    keys = ("a", "b", "b", "c")
    outcomes = await rig.store.apply([*(Set("c", TOPIC, key) for key in keys), Set("c", Topic("", "other"), "d")])
    rig.hub.changed([change for outcome in outcomes for change in outcome.changes])
    assert [rig.hub.others(TOPIC, key) for key in ("new", "a", "b")] == [3, 2, 2]


async def test_whoever_leaves_while_the_group_is_joined_again_has_left(rig):
    client, joining, may = Client(), asyncio.Event(), asyncio.Event()
    await rig.hub.follow(TOPIC, client.delivery)
    group_add = rig.layer.group_add

    async def slow(group, channel):
        joining.set()
        await may.wait()
        await group_add(group, channel)

    rig.layer.group_add = slow
    await rig.write(Set("c", TOPIC, "lost"), tell=False)
    await joining.wait()
    rig.hub.unfollow(TOPIC, client.delivery)
    await until(lambda: group_name(*TOPIC) not in rig.layer.groups)
    may.set()
    await settle()
    await until(lambda: group_name(*TOPIC) not in rig.layer.groups)


async def test_messages_that_cannot_be_read_are_ignored_and_what_they_said_is_repaired(rig, caplog):
    client = Client()
    await rig.hub.follow(TOPIC, client.delivery)
    await rig.write(Set("c", TOPIC, "k"), tell=False)
    await rig.layer.group_send(group_name(*TOPIC), {"type": "ephemeral.events", "version": 99})
    await until(lambda: "k" in client.view)
    assert "version 99" in caplog.text
    assert events(caplog) == ["message_ignored"]


async def test_stopping_leaves_no_task_and_no_group():
    rig = Rig()
    before = asyncio.all_tasks()
    for n in range(10):
        await rig.hub.follow(Topic("", f"{n}"), Client().delivery)
    await rig.hub.stop()
    assert asyncio.all_tasks() == before
    assert rig.layer.groups == {}


def test_group_names_are_valid_for_every_layer_and_never_collide():
    layer = LossyLayer()
    topics = [("", "t"), ("t", ""), ("a", "b:c"), ("a:b", "c"), ("", "é\0" * 5000), ("1", "1:x"), ("11", ":x")]
    names = [group_name(*topic) for topic in topics]
    assert len(set(names)) == len(topics)
    for name in names:
        layer.require_valid_group_name(name)


async def test_what_the_stream_brings_while_the_beacon_asks_is_no_sign_that_the_store_went_back():
    rig = Rig()
    went_back = 0

    def count():
        nonlocal went_back
        went_back += 1

    rig.hub = Hub(rig.store, rig.layer, beacon_interval=0.01, went_back=count)
    client = Client()
    await rig.hub.follow(TOPIC, client.delivery)
    await rig.write(Set("c", TOPIC, "k"))
    revisions, asked = rig.store.digests, 0

    async def slow(topics):
        nonlocal asked
        answer = await revisions(topics)
        heard = len(client.frames)
        await rig.write(Set("c", TOPIC, "k"))
        await until(lambda: len(client.frames) > heard)
        asked += 1
        return answer

    rig.store.digests = slow
    await until(lambda: asked == 3)
    await rig.hub.stop()
    assert went_back == 0


async def test_a_timeout_of_some_middleware_does_not_make_the_hub_deaf(rig):
    rig.hub._beacon_interval = 3600
    stuck = asyncio.Event()

    async def send(message):
        if "ephemeral.snapshot" in message["text"]:
            return
        async with asyncio.timeout(0.02):  # it takes the task that steps it for its own
            await stuck.wait()

    hearing = Client()
    await rig.hub.follow(TOPIC, hearing.delivery)
    slow = Direct(send, lambda error: None)
    await rig.hub.follow(TOPIC, slow)
    await rig.write(Set("c", TOPIC, "first"))
    await until(lambda: "first" in hearing.view)
    await asyncio.sleep(0.1)
    await rig.write(Set("c", TOPIC, "second"))
    await until(lambda: "second" in hearing.view)
    slow.close()


async def test_the_time_left_in_a_snapshot_is_not_that_of_an_old_one(rig):
    await rig.write(Set("c", TOPIC, "k", ttl_ms=60_000))
    clients = [Client(), Client()]
    await rig.hub.follow(TOPIC, clients[0].delivery)
    await asyncio.sleep(0.1)
    await rig.hub.follow(TOPIC, clients[1].delivery)
    before, after = (client.frames[0]["entries"][0]["expires_in_ms"] for client in clients)
    assert before - after >= 90


async def test_nothing_is_told_after_the_end(rig):
    client = Client()
    await rig.hub.follow(TOPIC, client.delivery, flow=Flow(True, max_rate=20))
    await rig.write(Set("c", TOPIC, "told"))
    await until(lambda: len(client.frames) == 2)
    await rig.write(Set("c", TOPIC, "waits"))
    await settle()
    await rig.hub.stop()
    await asyncio.sleep(0.1)
    assert len(client.frames) == 2


class Slow:
    """A subscriber that takes so many seconds to be told."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.heard = []

    def hear(self, news):
        time.sleep(self.seconds)
        self.heard.append(news)


@pytest.mark.parametrize(("took", "rests"), [(0.02, 0.01), (0.2, 0.02)])
async def test_a_room_rests_for_half_of_the_time_that_telling_took_but_not_for_long(took, rests):
    lane = _Lane(TOPIC, PLAIN)
    lane.add(Slow(took))
    lane.tell([Event("k", "c", b"", None, None, "text", Revision(1, 1))])
    await until(lambda: lane._rests_until)
    rest = lane._rests_at_most_until - lane._began
    assert rest >= took + rests
    assert rest <= (time.monotonic() - lane._began) + rests + 0.01


@pytest.mark.parametrize("goes_on", [False, True])
async def test_a_room_rests_no_longer_than_more_comes(monkeypatch, goes_on):
    monkeypatch.setattr(hub_module, "_LONGEST_PAUSE", 10.0)
    monkeypatch.setattr(hub_module, "_PAUSE", 0.1)
    lane, subscriber = _Lane(TOPIC, PLAIN), Slow(1.0)
    lane.add(subscriber)
    event = Event("k", "c", b"", None, None, "text", Revision(1, 1))
    lane.tell([event])
    subscriber.seconds = 0
    began, told = time.monotonic(), 1
    lane.tell([event])
    while len(subscriber.heard) == 1:
        await asyncio.sleep(0.01)
        if goes_on:
            lane.tell([event])
            told += 1
    took = time.monotonic() - began
    assert (took >= 0.5) is goes_on, "half of what telling took, or as soon as nothing comes"
    assert len(subscriber.heard[1].events) >= told - 1
    lane.stop()


def counting(rig):
    """How often the store is read, as a list that grows."""
    reads, snapshot = [], rig.store.snapshot

    async def counted(topic):
        reads.append(topic)
        return await snapshot(topic)

    rig.store.snapshot = counted
    return reads


async def test_a_message_that_comes_late_costs_no_read(rig):
    rig.hub._beacon_interval = 3600
    client = Client()
    await rig.hub.follow(TOPIC, client.delivery)
    reads = counting(rig)
    outcomes = await rig.store.apply([Set("c", TOPIC, key) for key in "ab"])
    for outcome in reversed(outcomes):
        await publish(rig.layer, outcome.changes)
    await until(lambda: len(client.view) == 2)
    await asyncio.sleep(2 * hub_module._PATIENCE)
    assert reads == []


async def test_what_came_early_is_not_lost_when_what_was_missing_comes_while_the_store_is_read(rig):
    rig.hub._beacon_interval = 3600
    client = Client()
    await rig.hub.follow(TOPIC, client.delivery)
    reading, may, snapshot = asyncio.Event(), asyncio.Event(), rig.store.snapshot

    async def slow(topic):
        taken = await snapshot(topic)
        reading.set()
        await may.wait()
        return taken

    rig.store.snapshot = slow
    first, last = await rig.store.apply([Set("c", TOPIC, key) for key in "ab"])
    await publish(rig.layer, last.changes)
    await reading.wait()
    await publish(rig.layer, first.changes)
    await until(lambda: "a" in client.view)
    may.set()
    await until(lambda: "b" in client.view)


async def test_a_message_that_is_on_its_way_when_the_beacon_asks_costs_no_read(rig):
    client = Client()
    await rig.hub.follow(TOPIC, client.delivery)
    reads, asked, revisions = counting(rig), asyncio.Event(), rig.store.digests

    async def seen(topics):
        answer = await revisions(topics)
        asked.set()
        return answer

    (outcome,) = await rig.store.apply([Set("c", TOPIC, "k")])
    rig.store.digests = seen
    await asked.wait()
    await publish(rig.layer, outcome.changes)
    await until(lambda: "k" in client.view)
    await asyncio.sleep(hub_module._DOUBT + 0.1)
    assert reads == []


async def is_in_the_group(rig, client):
    await until(lambda: not rig.hub._discarding)
    await rig.write(Set("c", TOPIC, "k"))
    await until(lambda: "k" in client.view)


def hold_up_the_first(rig):
    """The first time that a group is left takes until the event is set."""
    may, group_discard = asyncio.Event(), rig.layer.group_discard

    async def slow(group, channel):
        rig.layer.group_discard = group_discard
        await may.wait()
        await group_discard(group, channel)

    rig.layer.group_discard = slow
    return may


async def test_whoever_comes_back_while_the_group_is_still_being_left_is_in_it(rig):
    rig.hub._beacon_interval = 3600
    client, may = Client(), hold_up_the_first(rig)
    await rig.hub.follow(TOPIC, client.delivery)
    rig.hub.unfollow(TOPIC, client.delivery)
    coming = asyncio.create_task(rig.hub.follow(TOPIC, client.delivery))
    await settle()
    may.set()
    await coming
    await is_in_the_group(rig, client)


async def test_whoever_comes_and_goes_and_comes_while_the_group_is_still_being_left_is_in_it(rig):
    rig.hub._beacon_interval = 3600
    client, may = Client(), hold_up_the_first(rig)
    await rig.hub.follow(TOPIC, client.delivery)
    rig.hub.unfollow(TOPIC, client.delivery)
    gives_up = asyncio.create_task(rig.hub.follow(TOPIC, client.delivery))
    await settle()
    gives_up.cancel()
    await asyncio.wait([gives_up])
    coming = asyncio.create_task(rig.hub.follow(TOPIC, client.delivery))
    await settle()
    may.set()
    await coming
    await settle()
    await is_in_the_group(rig, client)


async def test_a_store_that_has_lost_a_topic_has_gone_back():
    rig, went_back = Rig(), []
    rig.hub = Hub(rig.store, rig.layer, beacon_interval=0.01, went_back=lambda topics: went_back.append(topics))
    client = Client()
    await rig.hub.follow(TOPIC, client.delivery)
    await rig.write(Set("c", TOPIC, "k"))
    await until(lambda: "k" in client.view)
    assert not went_back
    rig.store._topics.clear()
    await until(lambda: went_back)
    await rig.hub.stop()


async def test_after_a_doubt_the_same_revision_is_no_proof(rig, monkeypatch):
    monkeypatch.setattr(hub_module, "_REASSERTION", 0.05)
    client = Client()
    await rig.hub.follow(TOPIC, client.delivery)
    await rig.write(Set("c", TOPIC, "k", b"1"))
    await until(lambda: "k" in client.view)
    rig.store._topics[TOPIC].records["k"].payload = b"2"  # went back, and has come as far again in another way
    await asyncio.sleep(0.2)
    assert client.view["k"][1] == "MQ=="
    rig.hub.doubt()
    await until(lambda: client.view["k"][1] == "Mg==")


async def test_what_is_missing_in_a_store_that_went_back_has_time_to_come_back(rig, monkeypatch):
    monkeypatch.setattr(hub_module, "_REASSERTION", 0.5)
    client = Client()
    await rig.hub.follow(TOPIC, client.delivery)
    await rig.write(Set("c", TOPIC, "a"), Set("c", TOPIC, "b"))
    await until(lambda: len(client.view) == 2)
    topic = rig.store._topics[TOPIC]
    record = topic.records.pop("b")
    topic.revision = 1
    reads = counting(rig)
    await until(lambda: reads)
    topic.records["b"] = record
    topic.revision = 2
    await asyncio.sleep(0.7)
    assert [frame["_orama"] for frame in client.frames] == ["ephemeral.snapshot"] + ["ephemeral.set"] * 2


async def test_the_groups_are_joined_again_from_time_to_time_and_after_the_layer_has_failed(rig, monkeypatch):
    monkeypatch.setattr(hub_module, "_RETRY", 0.01)
    client, joined, group_add, receive = Client(), [], rig.layer.group_add, rig.layer.receive
    await rig.hub.follow(TOPIC, client.delivery)

    async def counted(group, channel):
        joined.append(group)
        await group_add(group, channel)

    async def fails(channel):
        rig.layer.receive = receive
        raise ConnectionError("the layer was away")

    rig.layer.group_add = counted
    rig.layer.receive = fails
    await rig.write(Set("c", TOPIC, "k"))  # lets the hub ask for the next message
    await until(lambda: joined == [group_name(*TOPIC)])
    monkeypatch.setattr(hub_module, "_REJOIN", 0.1)
    await until(lambda: len(joined) >= 3)


async def test_a_layer_that_gives_message_after_message_leaves_others_their_turn(rig):
    await rig.hub.follow(TOPIC, Client().delivery)
    (outcome,) = await rig.store.apply([Set("c", TOPIC, "k")])
    (message,) = encode_batches(outcome.changes)
    messages, turns = [message] * 1000, 0
    receive = rig.layer.receive

    async def at_once(channel):
        if not messages:
            rig.layer.receive = receive
        return messages.pop() if messages else await receive(channel)

    rig.layer.receive = at_once
    await publish(rig.layer, outcome.changes)
    while messages:
        await asyncio.sleep(0)
        turns += 1
    assert turns > 500


async def test_what_expires_while_the_store_is_away_is_told_all_the_same(rig, monkeypatch):
    monkeypatch.setattr(hub_module, "_OVERDUE", 50.0)
    await rig.write(Set("c", TOPIC, "passing", b"", 100), Set("c", TOPIC, "staying", b"", None))
    client = Client()
    await rig.hub.follow(TOPIC, client.delivery)
    digests = rig.store.digests

    async def away(topics):
        raise StoreUnavailable("no answer")

    rig.store.digests = away
    await until(lambda: set(client.view) == {"staying"})
    newcomer = Client()
    await rig.hub.follow(TOPIC, newcomer.delivery)
    assert set(newcomer.view) == {"staying"}
    rig.store.digests = digests
    await rig.write(Set("c", TOPIC, "passing", b"again", None))
    await until(lambda: set(client.view) == set(newcomer.view) == {"passing", "staying"})


async def test_a_view_that_is_wrong_though_no_revision_shows_it_is_read_again(rig, caplog):
    await rig.write(Set("c", TOPIC, "a"), Set("c", TOPIC, "b"))
    client = Client()
    await rig.hub.follow(TOPIC, client.delivery)
    before = totals()["views_wrong"]
    replica = rig.hub._feeds[TOPIC].replica
    replica._forget("b")
    client.view.pop("b")
    await until(lambda: set(client.view) == {"a", "b"})
    assert totals()["views_wrong"] == before + 1
    assert [record.event for record in caplog.records] == ["view_wrong"]
