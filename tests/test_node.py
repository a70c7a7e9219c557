import asyncio
import json
import logging
import time

import pytest
import uvloop

from ephemeral_state import hub as hub_module
from ephemeral_state import node as node_module
from ephemeral_state import writer as writer_module
from ephemeral_state.broadcast import group_name
from ephemeral_state.conf import Settings
from ephemeral_state.connection import Connection
from ephemeral_state.delivery import Direct
from ephemeral_state.errors import PayloadTooLarge, StoreUnavailable, TooManyKeys
from ephemeral_state.node import Node, wait_in
from ephemeral_state.protocol import Flow
from ephemeral_state.state import UNTIL_DISCONNECT, Clear, Drop, Limits, Restore, Set, Topic
from ephemeral_state.stores.memory import MemoryStore
from ephemeral_state.stores.redis import RedisStore

from .lossy import LossyLayer
from .redis_server import RedisServer
from .test_hub import Client
from .waiting import events, settle, until

TOPIC = Topic("", "t")


class Present:
    process_ends = None


MEMBER = Present()


class SlowStore(MemoryStore):
    """A store with a round trip, which can be down."""

    def __init__(self, limits):
        super().__init__(limits)
        self.batches = []
        self.down = False

    async def apply(self, writes, batches=None):
        self.batches.append(list(writes))
        await asyncio.sleep(0.002)
        if self.down:
            raise StoreUnavailable("the store is down")
        return await super().apply(writes)


@pytest.fixture
def layer(monkeypatch):
    layer = LossyLayer()
    monkeypatch.setattr(node_module, "find_layer", lambda alias: layer)
    return layer


@pytest.fixture
def node(layer):
    return Node(Settings(), SlowStore(Limits()))


async def live(node, topic=TOPIC):
    return {e.key: e.client_id for e in (await node.store.snapshot(topic)).entries}


async def listen(layer, topic=TOPIC):
    channel = await layer.new_channel()
    await layer.group_add(group_name(*topic), channel)
    return channel


async def test_what_queues_while_a_batch_is_under_way_goes_as_the_next_one(node, layer):
    await asyncio.gather(*(node.write(Set("c", TOPIC, f"{n}")) for n in range(50)))
    assert [len(batch) for batch in node.store.batches] == [50]
    node.store.batches.clear()
    first = asyncio.create_task(node.write(Set("c", TOPIC, "first")))
    await settle()
    await asyncio.gather(first, *(node.write(Set("c", TOPIC, f"{n}")) for n in range(20)))
    assert [len(batch) for batch in node.store.batches] == [1, 20]


async def test_a_batch_is_one_group_message_per_topic(node, layer):
    topics = [Topic("", "a"), Topic("", "b")]
    channels = [await listen(layer, topic) for topic in topics]
    await asyncio.gather(*(node.write(Set("c", topics[n % 2], f"{n}")) for n in range(40)))
    assert layer.sent == 2
    for channel in channels:
        message = await layer.receive(channel)
        assert message["type"] == "ephemeral.events"
        assert len(message["frames"]) == 20


async def test_what_is_stored_right_after_others_were_told_is_told_together_unless_somebody_waits(node, layer):
    node._writer._pause = 60.0
    async with asyncio.timeout(5):
        for number in range(3):  # nobody is connected: each waits until it is told
            await node.write(Set("c", TOPIC, f"{number}"))
    assert layer.sent == 3
    for number in range(3):
        await node.begin(Set("c", TOPIC, f"{number}"))
        await settle()
    assert layer.sent == 3
    async with asyncio.timeout(5):
        await node._writer.published()
    assert layer.sent == 4


def begin(node, *keys):
    """Each by the client that has its name, and can wait for company."""
    return [node.begin(Set(key, TOPIC, key), in_company=True) for key in keys]


def batches(node):
    """Who wrote in each."""
    return [[write.client for write in batch] for batch in node.store.batches]


async def test_what_many_connections_set_gathers_until_all_of_the_last_batch_have_set_again(node, monkeypatch):
    monkeypatch.setattr(writer_module, "_SPACING", 60.0)
    async with asyncio.timeout(5):
        await asyncio.gather(*begin(node, "a", "b"))
        waiting = begin(node, "c", "b")
        await asyncio.sleep(0.02)
        assert not any(done.done() for done in waiting)
        await asyncio.gather(*waiting, *begin(node, "a"))
    assert batches(node) == [["a", "b"], ["c", "b", "a"]]


async def test_those_who_wait_for_their_answers_do_not_wait_for_company(node, monkeypatch):
    monkeypatch.setattr(writer_module, "_SPACING", 60.0)

    async def person(key):
        for _ in range(10):
            await begin(node, key)[0]

    async with asyncio.timeout(5):
        await person("a")
        await asyncio.gather(*(person(key) for key in "abc"))
    assert batches(node) == [["a"]] * 10 + [["a", "b", "c"]] * 10


@pytest.mark.parametrize(
    ("wait_for_nobody", "together"),
    [
        (lambda node: node.write(Set("api", TOPIC, "k")), ["b", "api"]),
        (lambda node: node.finish(Clear("b", TOPIC, "b")), ["b", "b"]),
        (lambda node: node.finish(Drop("b")), ["b", "b"]),
        (lambda node: node._writer.put_ahead(lambda: [Set("ahead", TOPIC, "k")]), ["ahead", "b"]),
    ],
    ids=["api", "clear", "drop", "ahead"],
)
async def test_what_cannot_wait_takes_along_those_who_can(node, monkeypatch, wait_for_nobody, together):
    monkeypatch.setattr(writer_module, "_SPACING", 60.0)
    async with asyncio.timeout(5):
        await begin(node, "a")[0]
        (waiting,) = begin(node, "b")
        await settle()
        assert batches(node) == [["a"]]
        await wait_for_nobody(node)
        await waiting
    assert batches(node) == [["a"], together]


async def test_nobody_waits_for_those_who_have_left_or_do_not_wait_themselves(node, monkeypatch):
    monkeypatch.setattr(writer_module, "_SPACING", 60.0)
    async with asyncio.timeout(5):
        await asyncio.gather(*begin(node, "a"), node.begin(Drop("a")))
        await begin(node, "b")[0]
        await node.write(Set("api", TOPIC, "k"))
        await begin(node, "c")[0]
    assert batches(node) == [["a", "a"], ["b"], ["api"], ["c"]]


async def test_what_is_too_much_for_one_batch_waits_for_nobody(node, monkeypatch):
    monkeypatch.setattr(writer_module, "_SPACING", 60.0)
    monkeypatch.setattr(writer_module, "_MAX_BATCH", 2)
    async with asyncio.timeout(5):
        await asyncio.gather(*begin(node, *"abcde"))
        await asyncio.gather(*(node.finish(Drop(key)) for key in "abcde"))
        assert [len(batch) for batch in node.store.batches] == [2, 2, 1] * 2
        await node._writer.put_ahead(lambda: [Set("c", TOPIC, key) for key in "abcde"])


async def test_nobody_waits_longer_for_company_than_the_spacing(node, monkeypatch):
    monkeypatch.setattr(writer_module, "_SPACING", 0.05)
    since = time.monotonic()
    await begin(node, "a")[0]
    async with asyncio.timeout(5):
        await begin(node, "b")[0]
    assert time.monotonic() - since > 0.045


async def test_a_store_that_answers_at_once_gathers_nothing(layer, monkeypatch):
    monkeypatch.setattr(writer_module, "_SPACING", 60.0)
    node = Node(Settings(), MemoryStore(Limits()))
    assert all(done.done() for key in "aba" for done in begin(node, key))
    assert not node._writer._company
    await node._writer.published()


async def test_a_connection_that_ends_while_its_set_gathers_leaves_nothing(node, monkeypatch):
    monkeypatch.setattr(writer_module, "_SPACING", 60.0)
    async with asyncio.timeout(5):
        ann, bob = (Connection(name, node, Direct(None, None)) for name in ("ann", "bob"))
        await ann.begin(TOPIC, "a", b"", 0, in_company=True)
        gathering = bob.begin(TOPIC, "b", b"", 0, in_company=True)
        await settle()
        assert not gathering.done()
        await bob.end(abnormal=True)
        assert gathering.done()
        assert await live(node) == {"a": "ann"}
        await ann.end(abnormal=False)
    assert node.idle


async def test_what_gathers_while_the_store_is_down_is_refused_each_by_itself(node, monkeypatch):
    monkeypatch.setattr(writer_module, "_SPACING", 0.02)
    node.store.down = True
    outcomes = await asyncio.gather(*begin(node, "a"), *begin(node, "b"))
    outcomes += await asyncio.gather(*begin(node, "c"))
    assert [type(outcome.error) for outcome in outcomes] == [StoreUnavailable] * 3
    assert len({id(outcome.error) for outcome in outcomes}) == 3
    node.store.down = False
    assert (await begin(node, "d")[0]).error is None


@pytest.mark.parametrize("kind", [MemoryStore, SlowStore])
async def test_fifty_that_leave_at_once_are_a_few_messages_and_a_few_frames(layer, kind):
    node, texts = Node(Settings(), kind(Limits())), []

    async def send(message):
        texts.append(message["text"])

    somebody = Connection("somebody", node, Direct(send, texts.append))
    owners = [Connection(f"owner {n}", node, Direct(None, None)) for n in range(50)]
    for owner in owners:
        for key in range(5):
            await owner.set(TOPIC, f"{owner.client_id} {key}")
    await somebody.subscribe(TOPIC, flow=Flow(batch=True))
    await node._writer.published()
    sent, told = layer.sent, len(texts)
    await asyncio.gather(*(owner.end(abnormal=True) for owner in owners))
    frames = await until(lambda: sum(text.count('"disconnect"') for text in texts[told:]) == 250 and texts[told:])
    await node._writer.published()
    assert layer.sent - sent <= 3
    assert len(frames) <= 3
    await somebody.end(abnormal=False)


@pytest.mark.parametrize("shared", [False, True])
async def test_what_is_set_here_is_heard_without_the_layer_unless_others_write_to_the_store_too(layer, shared):
    class Store(MemoryStore):
        pass

    Store.shared = shared
    layer.lose = 1.0
    node, texts = Node(Settings(beacon_interval=3600), Store(Limits())), []
    somebody = Quiet(node)

    async def send(message):
        texts.append(message["text"])

    await node.hub.follow(TOPIC, Direct(send, texts.append))
    await node.write(Set("c", TOPIC, "k"))
    await node._writer.published()
    await settle()
    assert len(texts) == (1 if shared else 2)
    await node.leave(somebody)


@pytest.mark.parametrize("kind", [MemoryStore, SlowStore])
async def test_whoever_waits_for_a_write_is_woken_before_subscribers_hear_of_it(layer, kind):
    node, order = Node(Settings(), kind(Limits())), []
    somebody = Quiet(node)

    async def send(message):
        order.append(json.loads(message["text"])["_orama"])

    await node.hub.follow(TOPIC, Direct(send, order.append))
    for sets in (1, 2):
        outcome = node.begin(Set("c", TOPIC, f"{sets}"))
        if outcome.done():
            order.append("answer")
        else:
            outcome.add_done_callback(lambda _: order.append("answer"))
        await until(lambda sets=sets: order.count("ephemeral.set") == sets)
    assert order == ["ephemeral.snapshot", *["answer", "ephemeral.set"] * 2]
    await node.leave(somebody)


async def test_who_writes_on_and_on_to_a_store_that_answers_at_once_lets_others_have_their_turn(layer):
    node = Node(Settings(), MemoryStore(Limits()))
    owner = Connection("owner", node, Direct(None, None))
    turns = 0

    async def others():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    for write in (
        lambda: owner.set(TOPIC, "k"),
        lambda: owner.clear(TOPIC, "none"),
        lambda: node.write(Clear("nobody", TOPIC, "none")),
    ):
        before = turns
        for _ in range(320):
            await write()
        assert turns - before >= 9
    task.cancel()
    await owner.end(abnormal=False)


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_something_may_be_set_in_the_turn_in_which_the_first_connection_came(layer, loop_factory):
    async def come_and_set():
        node = Node(Settings(), MemoryStore(Limits()))
        owner = Connection("owner", node, Direct(None, None))
        await owner.set(TOPIC, "k", ttl=60)
        assert await live(node) == {"k": "owner"}
        await owner.end(abnormal=False)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(come_and_set())


def test_a_store_that_carries_out_writes_in_a_way_of_its_own_is_not_taken_to_answer_at_once():
    class AtOnce(SlowStore):
        at_once = True

    class Named(MemoryStore):
        pass

    assert [kind.at_once for kind in (MemoryStore, Named, SlowStore, AtOnce)] == [True, True, False, True]


async def test_one_refused_write_in_a_batch_fails_alone(node):
    results = await asyncio.gather(
        node.write(Set("c", TOPIC, "a")),
        node.write(Set("c", TOPIC, "b", b"x" * 20_000)),
        *(node.write(Set("greedy", TOPIC, f"g{n}")) for n in range(257)),
        node.write(Set("c", TOPIC, "z")),
        return_exceptions=True,
    )
    errors = [result for result in results if isinstance(result, Exception)]
    assert [type(error) for error in errors] == [PayloadTooLarge, TooManyKeys]
    assert len(await live(node)) == 258


async def test_a_write_is_not_acknowledged_before_it_is_stored(node):
    await node.write(Set("c", TOPIC, "k"))
    assert await live(node) == {"k": "c"}


async def test_a_set_that_was_under_way_when_its_owner_left_is_cleared(node):
    setting = asyncio.create_task(node.write(Set("c", TOPIC, "k")))
    await settle()
    setting.cancel()
    await node.write(Drop("c"))
    assert await live(node) == {}


async def test_a_cancelled_caller_gives_up_the_answer_and_not_the_others_writes(node):
    writes = [asyncio.create_task(node.write(Set("c", TOPIC, f"{n}"))) for n in range(5)]
    await settle()
    writes[2].cancel()
    await asyncio.wait(writes)
    assert len(await live(node)) == 5


async def test_nothing_runs_when_nothing_is_to_be_done(node):
    before = asyncio.all_tasks()
    node.join(MEMBER)
    await node.write(Set("c", TOPIC, "k", ttl_ms=50))
    await node.leave(MEMBER)
    await settle()
    assert asyncio.all_tasks() == before
    assert node.idle


async def test_a_deadline_is_published_within_250_ms(node, layer):
    channel = await listen(layer)
    node.join(MEMBER)
    await node.write(Set("c", TOPIC, "k", ttl_ms=300))
    deadline = time.monotonic() + 0.3
    await layer.receive(channel)
    async with asyncio.timeout(5):
        message = await layer.receive(channel)
    assert json.loads(message["frames"][0])["reason"] == "expired"
    assert -0.02 < time.monotonic() - deadline < 0.25
    await node.leave(MEMBER)


async def test_a_deadline_that_is_moved_back_is_kept(node, layer):
    channel = await listen(layer)
    node.join(MEMBER)
    await node.write(Set("c", TOPIC, "k", ttl_ms=100))
    await node.write(Set("c", TOPIC, "k", ttl_ms=400))
    deadline = time.monotonic() + 0.4
    await layer.receive(channel)
    await layer.receive(channel)
    async with asyncio.timeout(5):
        await layer.receive(channel)
    assert time.monotonic() > deadline - 0.02
    await node.leave(MEMBER)


async def test_a_store_that_is_down_fails_sets_with_an_error_of_their_own(node, caplog):
    node.store.down = True
    results = await asyncio.gather(*(node.write(Set("c", TOPIC, f"{n}")) for n in range(5)), return_exceptions=True)
    assert all(isinstance(result, StoreUnavailable) for result in results)
    assert len({id(result) for result in results}) == 5


async def test_what_queues_behind_a_store_that_does_not_answer_waits_no_second_time(node):
    calls = 0

    async def hangs(writes, batches):
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.05)
        raise StoreUnavailable("no answer")

    node.store.apply = hangs
    writes = [asyncio.create_task(node.write(Set("c", TOPIC, f"{n}"))) for n in range(3)]
    await until(lambda: calls)
    writes += [asyncio.create_task(node.write(Set("c", TOPIC, f"late {n}"))) for n in range(1000)]
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert all(isinstance(result, StoreUnavailable) for result in results)
    assert calls == 1


async def test_what_must_be_done_is_done_when_the_store_is_back_and_the_log_says_it_once(node, caplog, monkeypatch):
    monkeypatch.setattr(node_module, "_RETRY", 0.01)
    caplog.set_level(logging.WARNING, "ephemeral_state")
    for client in "abc":
        await node.write(Set(client, TOPIC, client))
    node.store.down = True
    await asyncio.gather(node.finish(Drop("a")), node.finish(Clear("b", TOPIC, "b")))
    for _ in range(20):
        with pytest.raises(StoreUnavailable):
            await node.write(Set("c", TOPIC, "c"))
    node.store.down = False
    await until(lambda: node.idle)
    assert await live(node) == {"c": "c"}
    assert [record.getMessage() for record in caplog.records] == [
        "the store fails, sets are refused and clears wait for it: StoreUnavailable('the store is down')",
        "the store works again",
    ]
    assert events(caplog) == ["store_trouble", "store_trouble_over"]


async def test_a_clear_that_is_owed_never_removes_a_later_set(node, monkeypatch):
    monkeypatch.setattr(node_module, "_RETRY", 0.01)
    await node.write(Set("a", TOPIC, "k", b"old"))
    node.store.down = True
    await node.finish(Clear("a", TOPIC, "k"))
    node.store.down = False
    await node.write(Set("a", TOPIC, "k", b"new"))
    await until(lambda: node.idle)
    assert await live(node) == {"k": "a"}


async def test_a_set_at_any_moment_of_paying_is_never_removed(node, monkeypatch):
    monkeypatch.setattr(node_module, "_RETRY", 0.01)
    for n in range(60):
        node.store.down = True
        await node.finish(Clear("a", TOPIC, "k"))
        node.store.down = False
        await asyncio.sleep(n * 0.0003)
        await node.write(Set("a", TOPIC, "k", b"%d" % n))
        await until(lambda: node.idle)
        assert await live(node) == {"k": "a"}


async def test_a_clear_that_is_owed_is_not_forgotten_over_a_set_that_fails_too(node, monkeypatch):
    monkeypatch.setattr(node_module, "_RETRY", 0.01)
    await node.write(Set("a", TOPIC, "k", b"old"))
    node.store.down = True
    await node.finish(Clear("a", TOPIC, "k"))
    with pytest.raises(StoreUnavailable):
        await node.write(Set("a", TOPIC, "k", b"new"))
    node.store.down = False
    await until(lambda: node.idle)
    assert await live(node) == {}


async def test_a_layer_that_fails_does_not_fail_the_write_and_the_log_says_it_once(node, layer, caplog):
    layer.failing = True
    for n in range(5):
        await node.write(Set("c", TOPIC, f"{n}"))
    layer.failing = False
    await node.write(Set("c", TOPIC, "last"))
    assert len(await live(node)) == 6
    assert [record.getMessage() for record in caplog.records] == [
        "the channel layer takes no messages, changes are seen some seconds late: ConnectionError('the layer is down')",
        "the channel layer takes messages again",
    ]
    assert events(caplog) == ["publishing_trouble", "publishing_trouble_over"]


class SlowLayer(LossyLayer):
    """Takes each message only when it may."""

    def __init__(self):
        super().__init__()
        self.may = asyncio.Event()
        self.taken = 0

    async def group_send(self, group, message):
        await self.may.wait()
        self.taken += len(message["frames"])
        await super().group_send(group, message)


@pytest.fixture
def slow_layer(monkeypatch):
    layer = SlowLayer()
    monkeypatch.setattr(node_module, "find_layer", lambda alias: layer)
    return layer


class Quiet:
    """A connection that only is there."""

    client_id = "quiet"
    process_ends = None
    ended = False

    def __init__(self, node):
        self._node = node
        node.join(self)

    def end(self, *, abnormal):
        return asyncio.create_task(self._end())

    async def _end(self):
        await self._node.write(Drop("owner", abnormal=True))
        await self._node.leave(self)


async def test_sets_are_acknowledged_while_the_layer_is_slow_and_wait_for_it_only_after_many(slow_layer, monkeypatch):
    monkeypatch.setattr(writer_module, "_MAX_UNTOLD", 20)
    node = Node(Settings(), SlowStore(Limits()))
    somebody = Quiet(node)
    for n in range(10):
        await node.write(Set("c", TOPIC, f"{n}"))
    assert slow_layer.taken == 0
    await asyncio.gather(*(node.write(Set("c", TOPIC, f"more {n}")) for n in range(30)))
    waits = asyncio.create_task(node.write(Set("c", TOPIC, "one too many")))
    await asyncio.sleep(0.05)
    assert not waits.done()
    slow_layer.may.set()
    await waits
    await node.leave(somebody)
    assert slow_layer.taken == 41


async def test_a_store_that_answers_at_once_makes_writers_wait_for_a_slow_layer_as_soon(slow_layer, monkeypatch):
    monkeypatch.setattr(writer_module, "_MAX_UNTOLD", 20)
    node = Node(Settings(), MemoryStore(Limits()))
    somebody = Quiet(node)
    for n in range(21):
        assert node.begin(Set("c", TOPIC, f"{n}")).done()
    waits = node.begin(Set("c", TOPIC, "one too many"))
    await settle()
    assert (slow_layer.taken, waits.done()) == (0, False)
    slow_layer.may.set()
    await waits
    await node.leave(somebody)
    assert slow_layer.taken == 22


@pytest.mark.parametrize("way", ["drain", "leave"])
async def test_what_was_cleared_at_the_end_is_with_the_layer_before_the_end(slow_layer, way):
    node = Node(Settings(), MemoryStore(Limits()))
    somebody = Quiet(node)
    await node.write(Set("owner", TOPIC, "k"))
    another = Quiet(node) if way == "drain" else None
    ending = asyncio.create_task(node.drain()) if way == "drain" else somebody.end(abnormal=True)
    await settle()
    assert not ending.done()
    slow_layer.may.set()
    await ending
    if another is None:
        await until(lambda: slow_layer.taken == 2)
    assert slow_layer.taken == 2


async def test_a_store_with_a_bug_answers_with_unavailable_and_stays_usable(node, caplog):
    apply = node.store.apply

    async def broken(writes, batches):
        raise ZeroDivisionError

    node.store.apply = broken
    with pytest.raises(StoreUnavailable):
        await node.write(Set("c", TOPIC, "k"))
    node.store.apply = apply
    await node.write(Set("c", TOPIC, "k"))
    assert "ZeroDivisionError" in caplog.text
    assert events(caplog) == ["store_bug"]


async def test_waiting_for_a_loop_inside_a_loop_is_refused_at_once():
    async def nothing():
        return None

    with pytest.raises(RuntimeError, match="async form"):
        wait_in(asyncio.get_running_loop(), nothing)


def test_until_disconnect_has_no_deadline():
    assert repr(UNTIL_DISCONNECT) == "UNTIL_DISCONNECT"
    assert Limits().lifetime_ms(None) is None


@pytest.mark.redis
@pytest.mark.parametrize("is_frozen", [False, True])
async def test_a_lease_is_given_back_only_by_a_node_that_owes_nothing(is_frozen, layer, monkeypatch):
    monkeypatch.setattr(node_module, "_RETRY", 0.05)
    with RedisServer() as server:
        node = Node(Settings(), RedisStore(Limits(), url=server.url, prefix="p", timeout=0.5))

        def leases():
            return server.command("ZRANGE", "{p:v2:0}:leases", 0, -1)

        connection = Connection("ann", node, Direct(None, None))
        await until(leases)
        async with asyncio.timeout(10):
            while True:  # Redis has only just started
                try:
                    await connection.set(TOPIC, "k", ttl=UNTIL_DISCONNECT)
                    break
                except StoreUnavailable:
                    pass
        if is_frozen:
            server.stop()
        try:
            await connection.end(abnormal=False)
        finally:
            server.cont()
        assert leases() == ([node.id.encode()] if is_frozen else [])
        await until(lambda: node.idle)
        # Whoever dies while it owes something is buried by the others: its lease runs out.
        assert leases() == ([node.id.encode()] if is_frozen else [])
        assert await live(node) == {}
        await node.store.close()


@pytest.mark.redis
async def test_a_node_that_was_taken_for_dead_goes_on_by_another_name_with_what_it_owns(layer, caplog):
    caplog.set_level(logging.INFO, "ephemeral_state")
    with RedisServer() as server:
        node = Node(Settings(), RedisStore(Limits(), url=server.url, prefix="p", timeout=20))
        other = RedisStore(Limits(), url=server.url, prefix="p", timeout=20)
        connection, name = Connection("ann", node, Direct(None, None)), node.id
        await connection.set(TOPIC, "k", ttl=UNTIL_DISCONNECT)
        cleared = ()
        async with asyncio.timeout(20):
            while not cleared:  # its lease is renewed all the time: only as it was read can it be taken
                peers = (await other.beat("other", 12_000, "{}")).peers
                cleared = [change for peer in peers if peer.node == name for change in await other.bury(peer)]
        assert [change.key for change in cleared] == ["k"]
        await until(lambda: node.id != name)
        await until(lambda: "written_back" in events(caplog))
        assert events(caplog).count("node_reaped") == 1
        assert set(await live(node)) == {"k"}
        await connection.set(TOPIC, "l", ttl=UNTIL_DISCONNECT)
        assert node.id in [peer.node for peer in (await other.beat("other", 12_000, "{}")).peers]
        await connection.end(abnormal=False)
        assert await live(node) == {}
        await other.close()


@pytest.mark.redis
async def test_a_lease_is_not_given_back_for_whoever_has_joined_meanwhile(layer):
    with RedisServer() as server:
        node = Node(Settings(), RedisStore(Limits(), url=server.url, prefix="p"))
        resign, joined = node.store.resign, []

        def lease():
            return server.command("ZSCORE", "{p:v2:0}:leases", node.id)

        async def late(*args):
            before = lease()
            joined.append(Connection("bob", node, Direct(None, None)))
            await until(lambda: lease() not in (None, before))
            await resign(*args)

        ann = Connection("ann", node, Direct(None, None))
        # It is given back by whoever owes nothing, and knows that it has one.
        await until(lambda: lease() and node._lease._before is not None and node._restoring is None)
        node.store.resign = late
        await ann.end(abnormal=False)
        assert lease() is not None
        node.store.resign = resign
        await joined[0].end(abnormal=False)
        assert lease() is None


@pytest.mark.redis
async def test_who_is_being_buried_is_told_though_the_last_connection_leaves(layer):
    with RedisServer() as server:
        node = Node(Settings(), RedisStore(Limits(), url=server.url, prefix="p"))
        channel, bury, burying = await listen(layer), node.store.bury, asyncio.Event()

        async def slow(peer):
            burying.set()
            await asyncio.sleep(0.1)
            return await bury(peer)

        node.store.bury = slow
        while True:  # Redis has only just started
            try:
                await node.store.beat("dead", 1, "{}")
                break
            except StoreUnavailable:
                pass
        await node.store.apply([Set("its client", TOPIC, "k", b"", None, "dead")])
        ann = Connection("ann", node, Direct(None, None))
        await burying.wait()
        await ann.end(abnormal=False)
        async with asyncio.timeout(5):
            message = await layer.receive(channel)
        assert json.loads(message["frames"][0])["reason"] == "disconnect"
        assert node.idle


async def test_whoever_is_leaving_when_things_are_written_back_does_not_come_back(layer, monkeypatch):
    monkeypatch.setattr(node_module, "_JITTER", 0)

    dropping, may = asyncio.Event(), asyncio.Event()

    class Shared(SlowStore):
        shared = True

        async def apply(self, writes, batches=None):
            if any(isinstance(write, Drop) for write in writes):
                dropping.set()
                await may.wait()
            return await super().apply(writes)

    node = Node(Settings(), Shared(Limits()))
    await node.write(Set("leaver", TOPIC, "k", b"", None, node.id))
    leaving = asyncio.create_task(node.write(Drop("leaver")))
    await dropping.wait()
    node._restore_soon()  # while the store is at it
    await settle()
    may.set()
    await leaving
    await until(lambda: node._restoring is None)
    assert not [write for batch in node.store.batches for write in batch if isinstance(write, Restore)]


async def test_whoever_left_while_the_store_was_away_is_not_written_back(layer, monkeypatch):
    monkeypatch.setattr(node_module, "_JITTER", 0)
    monkeypatch.setattr(node_module, "_RETRY", 0.01)

    class Shared(SlowStore):
        shared = True

    node = Node(Settings(), Shared(Limits()))
    for client in ("leaver", "stayer"):
        await node.write(Set(client, TOPIC, client, b"", None, node.id))
    node.store.down = True
    await node.finish(Drop("leaver"))
    node._restore_soon()
    await until(lambda: node._restoring is not None)
    node.store.down = False
    await until(lambda: node.idle and node._restoring is None)
    restored = {w.client for batch in node.store.batches for w in batch if isinstance(w, Restore)}
    assert restored == {"stayer"}


async def test_when_the_lease_was_lost_every_view_is_read_again(layer, monkeypatch):
    monkeypatch.setattr(hub_module, "_REASSERTION", 0.05)
    node = Node(Settings(beacon_interval=0.05), SlowStore(Limits()))
    client = Client()
    connection = Connection("c", node, client.delivery)
    await connection.set(TOPIC, "k", b"1")
    await connection.subscribe(TOPIC)
    node.store._topics[TOPIC].records["k"].payload = b"2"  # the same revision once more, after going back
    node._lost()
    await until(lambda: client.view["k"] == ("c", "Mg=="))
    await connection.end(abnormal=False)
