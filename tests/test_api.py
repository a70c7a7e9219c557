import asyncio
import json
import os
import signal
import threading
from contextlib import aclosing, contextmanager, suppress

import pytest
from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer
from channels.layers import get_channel_layer
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import User
from django.db import transaction

from ephemeral_state import api, background
from ephemeral_state.connection import Connection
from ephemeral_state.consumers import EphemeralStateMixin, SyncEphemeralStateMixin
from ephemeral_state.delivery import Direct
from ephemeral_state.errors import (
    ClientRequired,
    ConnectionGone,
    EphemeralStateError,
    InvalidTTL,
    NameInvalid,
    NameRequired,
    NotConfigured,
    StoreUnavailable,
)
from ephemeral_state.node import current, serving_loop
from ephemeral_state.signals import entry_cleared, entry_set
from ephemeral_state.state import UNTIL_DISCONNECT, Topic
from ephemeral_state.stores import get_store
from ephemeral_state.stores.memory import MemoryStore

from .redis_server import RedisServer, wait_for
from .waiting import until


@pytest.fixture(autouse=True)
def _own_store(settings, monkeypatch):
    settings.EPHEMERAL_STATE = {}  # a new memory store for each test
    monkeypatch.setattr(background, "_LINGER", 0.05)


class Client:
    def __init__(self, name):
        self.texts = []
        self.connection = Connection(name, current(), Direct(self.send, print))

    async def send(self, message):
        self.texts.append(message["text"])


def our_threads():
    return [thread for thread in threading.enumerate() if thread.name == "ephemeral-state"]


def test_the_sync_verbs_work_without_any_event_loop():
    api.set("t", "k", {"n": 1}, ttl=5)
    (entry,) = api.list("t")
    assert (entry.key, entry.json()) == ("k", {"n": 1})
    assert 4000 < entry.expires_in_ms <= 5000
    api.clear("t", "k")
    assert api.list("t") == []


class NoTopics(MemoryStore):
    async def snapshot(self, topic):
        raise AssertionError("a whole topic was read")


async def test_to_clear_one_key_its_topic_is_not_read(settings):
    settings.EPHEMERAL_STATE = {"BACKEND": "tests.test_api.NoTopics"}
    await api.aset("t", "a", client="ann")
    await api.aset("t", "b")
    await api.aclear("t", "a")
    assert [entry.key for entry in (await api.abrowse()).entries] == ["b"]


@pytest.mark.parametrize("broken", [{"CHANNEL_LAYERS": {}}, {"EPHEMERAL_STATE": {"BACKEND": "no.such.Store"}}])
def test_reading_goes_on_after_the_thread_has_ended_in_a_project_that_is_not_configured(settings, broken):
    for name, value in broken.items():
        setattr(settings, name, value)
    for _ in range(2):
        with suppress(NotConfigured):
            assert api.list("t") == []
        for thread in our_threads():
            thread.join(5)
            assert not thread.is_alive()


def test_many_calls_share_one_thread_which_ends_when_it_is_not_needed(monkeypatch):
    monkeypatch.setattr(background, "_LINGER", 0.05)
    monkeypatch.setattr(background, "_own", background._OwnLoop())
    for n in range(100):
        api.set("t", "k", str(n))
    workers = [threading.Thread(target=api.set, args=("t", f"{n}")) for n in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(api.list("t")) == 9
    assert len(our_threads()) <= 2  # that of an earlier test may still be ending

    async def ended():
        await until(lambda: not our_threads())

    asyncio.run(ended())
    api.set("t", "again")
    assert len(api.list("t")) == 10


async def test_from_a_thread_it_reaches_the_sockets_of_the_serving_loop():
    client = Client("c1")
    await client.connection.subscribe(Topic("", "t"))
    await asyncio.to_thread(api.set, "t", "job", b"x")
    await until(lambda: len(client.texts) == 2)
    assert '"key":"job"' in client.texts[1]
    await asyncio.to_thread(api.clear, "t", "job")
    await until(lambda: len(client.texts) == 3)
    assert '"reason":"explicit"' in client.texts[2]
    await client.connection.end(abnormal=False)


async def test_in_async_code_the_sync_form_says_which_one_to_use():
    with pytest.raises(RuntimeError, match="async form"):
        api.set("t", "k")


async def test_what_is_set_for_a_client_goes_with_the_client():
    client = Client("c1")
    await api.aset("t", "k", client="c1")
    await client.connection.set(Topic("", "t"), "own")
    await client.connection.end(abnormal=False)
    assert await api.alist("t") == []


async def test_disconnect_clears_everything_of_a_client_in_all_namespaces():
    await api.aset("t", "a", client="c1", namespace="n")
    await api.aset("u", "b", client="c1")
    await api.aset("u", "c", client="c2")
    await api.adisconnect("c1")
    assert await api.alist("t", namespace="n") == []
    assert [entry.key for entry in await api.alist("u")] == ["c"]


async def test_clear_without_a_client_clears_whoever_owns_it_and_with_one_only_that_one():
    await api.aset("t", "k", client="c1")
    await api.aclear("t", "k", client="c2")
    assert len(await api.alist("t")) == 1
    await api.aclear("t", "k")
    assert await api.alist("t") == []
    await api.aclear("t", "k")


async def test_keys_set_without_a_client_do_not_share_a_cap():
    for n in range(300):
        await api.aset("t", f"{n}")
    assert len(await api.alist("t")) == 300


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        (("", "k"), {}, NameRequired),
        (("t", ""), {}, NameRequired),
        (("t", "", b""), {"client": "c"}, NameRequired),
        (("t", "k"), {"client": ""}, ClientRequired),
        (("t", "k"), {"ttl": float("nan")}, InvalidTTL),
        (("t", "k"), {"ttl": UNTIL_DISCONNECT}, InvalidTTL),
        (("t", 5), {}, NameInvalid),
        (("t", "\ud800"), {}, NameInvalid),
        ((None, "k"), {}, EphemeralStateError),
    ],
)
async def test_bad_input_is_refused_and_nothing_stored(arguments, options, error):
    with pytest.raises(error):
        await api.aset(*arguments, **options)
    assert (await api.abrowse()).entries == []


async def test_browse_shows_all_topics_page_by_page():
    for n in range(25):
        await api.aset(f"t{n % 3}", f"k{n:02}", namespace="n")
    keys, cursor = [], ""
    while True:
        page = await api.abrowse(cursor=cursor, limit=10)
        keys += [entry.key for entry in page.entries]
        cursor = page.cursor
        if not cursor:
            break
    assert sorted(keys) == [f"k{n:02}" for n in range(25)]


@pytest.mark.parametrize("limit", [0, -1, "10", 1.5, None])
async def test_a_page_has_room_for_one_entry_at_least(limit):
    await api.aset("t", "k")
    with pytest.raises(ValueError, match=f"limit must be a whole number of at least 1, not {limit!r}"):
        await api.abrowse(limit=limit)


async def test_a_set_after_the_end_is_refused_and_a_clear_does_nothing():
    client = Client("c1")
    await client.connection.set(Topic("", "t"), "k")
    await client.connection.end(abnormal=False)
    with pytest.raises(ConnectionGone):
        await client.connection.set(Topic("", "t"), "late")
    with pytest.raises(ConnectionGone):
        await client.connection.subscribe(Topic("", "t"))
    await client.connection.clear(Topic("", "t"), "k")
    assert await api.alist("t") == []


class Silent(EphemeralStateMixin, AsyncWebsocketConsumer):
    async def receive(self, text_data=None, bytes_data=None):
        await self.send(self.channel_name)


async def test_what_is_set_for_a_consumer_that_never_used_its_state_goes_with_it_too():
    communicator = WebsocketCommunicator(Silent(), "/")
    await communicator.connect()
    await communicator.send_to("who are you?")
    await api.aset("t", "k", client=await communicator.receive_from())
    assert len(await api.alist("t")) == 1
    await communicator.disconnect()
    assert await api.alist("t") == []


async def test_one_key_name_in_many_topics_meets_no_cap():
    for n in range(300):
        await api.aset(f"order:{n}", "status")
    await api.aclear("order:299", "status")
    assert await api.alist("order:299") == []


def test_a_fork_does_not_wait_for_its_parents_loop():
    async def with_a_connection():
        client = Client("c1")
        child = os.fork()
        if child == 0:
            os._exit(0 if serving_loop() is None else 1)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        await client.connection.end(abnormal=False)
        return os.waitstatus_to_exitcode(status)

    assert asyncio.run(with_a_connection()) == 0


# Many topics in one call


async def test_many_topics_are_listed_and_counted_in_one_call():
    for n in range(40):
        for key in range(n % 3):
            await api.aset(f"t{n}", f"{key}", namespace="n")
    topics = [f"t{n}" for n in range(40)]
    listed = await api.alist_many(topics, namespace="n")
    assert [*listed] == topics
    assert {topic: len(entries) for topic, entries in listed.items()} == await api.acount(topics, namespace="n")
    assert listed["t5"][1].key == "1"
    assert await api.acount(["t5", "t5", "t0"], namespace="n") == {"t5": 2, "t0": 0}
    assert await api.acount(["t5"]) == {"t5": 0}
    assert await api.acount([]) == {}


def test_sync_code_counts_and_lists_too_and_one_topic_is_not_many():
    api.set("t", "k")
    assert api.count({"t"}) == {"t": 1}
    assert [entry.key for entry in api.list_many(["t"])["t"]] == ["k"]
    for ask in (api.count, api.list_many):
        with pytest.raises(TypeError, match="give them as a list"):
            ask("topic")


# Held


def test_what_is_held_lives_as_long_as_the_block():
    with api.hold("t", "k", {"n": 1}, namespace="n") as held:
        (entry,) = api.list("t", namespace="n")
        assert (entry.key, entry.json(), entry.client_id) == ("k", {"n": 1}, held.client_id)
        assert entry.expires_in_ms is None
        held.set({"n": 2})
        assert api.list("t", namespace="n")[0].json() == {"n": 2}
    assert api.list("t", namespace="n") == []
    with pytest.raises(ConnectionGone):
        held.set(3)
    with held:
        assert len(api.list("t", namespace="n")) == 1


def test_what_is_held_goes_when_the_block_fails_and_is_one_at_a_time():
    held = api.hold("t", "k")

    def work():
        with held:
            with pytest.raises(RuntimeError, match="held already"):
                held.__enter__()
            assert len(api.list("t")) == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert api.list("t") == []


async def test_async_code_holds_too_and_cancellation_ends_it():
    async def work():
        async with api.hold("t", "k") as held:
            await held.aset("further")
            begun.set()
            await asyncio.sleep(60)

    begun = asyncio.Event()
    task = asyncio.create_task(work())
    await begun.wait()
    assert (await api.alist("t"))[0].payload == b"further"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await api.alist("t") == []


async def test_a_thread_holds_in_the_loop_that_serves():
    client = Client("c1")
    await client.connection.subscribe(Topic("", "t"))

    def work():
        with api.hold("t", "k"):
            pass

    await asyncio.to_thread(work)
    await until(lambda: len(client.texts) == 3)
    assert '"reason":"disconnect"' in client.texts[2]
    await client.connection.end(abnormal=False)


def test_what_a_successor_has_set_is_not_cleared_by_who_held_it_before():
    with api.hold("t", "k", "old"):
        api.set("t", "k", "new")
    assert api.list("t")[0].payload == b"new"


def test_a_hold_that_is_refused_leaves_nothing_behind():
    with pytest.raises(NameRequired), api.hold("t", ""):
        pytest.fail("it was held")
    with pytest.raises(NameRequired):
        api.hold("", "k")
    assert serving_loop() is None


class TimeLimit(Exception):
    """As a task queue raises it in the middle of a task."""


@pytest.mark.redis
@pytest.mark.parametrize("moment", ["before it is stored", "after it is stored"])
def test_what_is_interrupted_while_it_begins_to_hold_holds_nothing(settings, moment):
    def interrupt(*_):
        if moment == "after it is stored":
            server.cont()
            wait_for(lambda: api.list("t"))
            api.list("t")  # by now the loop has nothing left to do for the hold
        raise TimeLimit

    with RedisServer() as server:
        settings.EPHEMERAL_STATE = {"BACKEND": "ephemeral_state.stores.redis.RedisStore"}
        settings.EPHEMERAL_STATE["OPTIONS"] = {"url": server.url, "timeout": 20}
        assert api.list("t") == []
        server.stop()
        try:
            with alarm(interrupt), pytest.raises(TimeLimit), api.hold("t", "k"):
                pytest.fail("it was held")
        finally:
            server.cont()
        wait_for(lambda: not our_threads())  # whose loop would serve for as long as something is held
        assert api.list("t") == []


@contextmanager
def alarm(handler):
    """Call it soon in the main thread, whatever that is waiting for."""
    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_what_nobody_waits_for_any_more_is_cancelled():
    def interrupt(*_):
        raise TimeLimit

    async def begin():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    cancelled = threading.Event()
    with alarm(interrupt), pytest.raises(TimeLimit):
        background.wait(begin)
    assert cancelled.wait(10)


def test_a_child_leaves_the_block_of_its_parent_and_holds_what_is_its_own():
    with api.hold("t", "k") as held:
        child = os.fork()
        if child == 0:
            code = 1
            with suppress(BaseException):
                held.__exit__(None, None, None)
                with suppress(ConnectionGone):
                    held.set("from the child")
                    code = 2
                with api.hold("t", "mine"):
                    code = code if [entry.key for entry in api.list("t")] != ["mine"] else 0
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert [entry.key for entry in api.list("t")] == ["k"]


# Watched


async def test_a_watcher_gets_a_snapshot_and_then_every_change():
    await api.aset("t", "a", {"n": 1})
    seen = []
    async with aclosing(api.watch("t")) as notices:
        async for notice in notices:
            seen.append(notice)
            assert json.loads(notice.text)["_orama"] == f"ephemeral.{notice.kind}"
            if len(seen) == 1:
                await api.aset("t", "b", {"n": 2}, client="ann")
                await api.aclear("t", "a")
            if len(seen) == 3:
                break
    first, second, third = seen
    assert (first.kind, [entry.key for entry in first.entries]) == ("snapshot", ["a"])
    assert (second.kind, second.key, second.client_id, second.json()) == ("set", "b", "ann", {"n": 2})
    assert (third.kind, third.key, third.reason) == ("clear", "a", "explicit")
    assert current().idle


async def test_a_slow_watcher_gets_the_newest_and_the_end_of_the_process_ends_it():
    async with aclosing(api.watch("t")) as notices:
        assert (await anext(notices)).entries == []
        for n in range(50):
            await api.aset("t", "k", f"{n}")
        await asyncio.sleep(0)
        await until(lambda: len(current().hub._feeds) == 1)
        values = []
        while not values or values[-1] != b"49":
            values.append((await anext(notices)).payload)
        assert len(values) < 25, values
        draining = asyncio.create_task(current().drain())
        with pytest.raises(StopAsyncIteration):
            await anext(notices)
        await draining


async def test_watching_what_cannot_be_watched_is_an_error_at_once():
    with pytest.raises(NameRequired):
        await anext(api.watch(""))
    assert current().idle


# Sent away


class Chatty(EphemeralStateMixin, AsyncWebsocketConsumer):
    async def connect(self):
        await self.accept()
        await self.ephemeral_set("t", "here", "x")
        await self.send(self.channel_name)


class SyncChatty(SyncEphemeralStateMixin, WebsocketConsumer):
    def connect(self):
        self.accept()
        self.ephemeral_set("t", "here", "x")
        self.send(self.channel_name)


@pytest.mark.parametrize("consumer", [Chatty, SyncChatty])
async def test_disconnecting_with_a_code_closes_the_socket(consumer):
    communicator = WebsocketCommunicator(consumer.as_asgi(), "/")
    await communicator.connect()
    name = await communicator.receive_from()
    await api.adisconnect(name)
    assert await api.alist("t") == []
    assert await communicator.receive_nothing(0.05)
    await api.aset("t", "there", client=name)
    await api.adisconnect(name, close=4001)
    assert (await communicator.receive_output(5)) == {"type": "websocket.close", "code": 4001}
    assert await api.alist("t") == []
    await communicator.disconnect()


@pytest.mark.parametrize("code", [0, 999, 1001, 2999, 5000])
async def test_close_codes_that_are_not_the_applications_are_refused(code):
    await api.aset("t", "k", client="ann")
    with pytest.raises(ValueError, match="close code"):
        await api.adisconnect("ann", close=code)
    assert len(await api.alist("t")) == 1


@pytest.mark.parametrize("code", ["x", "4000", 4000.0, True, [4000]])
async def test_a_close_code_that_is_no_whole_number_is_refused_before_anything_is_cleared(code):
    await api.aset("t", "k", client="ann")
    with pytest.raises(TypeError, match=r"close must be a whole number, 1000 or 3000 to 4999, not"):
        await api.adisconnect("ann", close=code)
    assert len(await api.alist("t")) == 1


class Elsewhere(Chatty):
    channel_layer_alias = "chat"


class SyncElsewhere(SyncChatty):
    channel_layer_alias = "chat"


IN_MEMORY = {"BACKEND": "channels.layers.InMemoryChannelLayer"}


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.redis)])
def two_layers(request, settings):
    settings.EPHEMERAL_STATE = {}
    if request.param == "memory":
        settings.CHANNEL_LAYERS = {"default": IN_MEMORY, "chat": IN_MEMORY}
        yield
        return
    with RedisServer() as server:
        settings.CHANNEL_LAYERS = {
            "default": {
                "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
                "CONFIG": {"hosts": [server.url]},
            },
            "chat": {"BACKEND": "channels_redis.core.RedisChannelLayer", "CONFIG": {"hosts": [server.url]}},
        }
        yield


@pytest.mark.usefixtures("two_layers")
@pytest.mark.parametrize("consumer", [Elsewhere, SyncElsewhere, Chatty])
async def test_a_consumer_on_a_channel_layer_of_its_own_is_closed_too(consumer):
    communicator = WebsocketCommunicator(consumer.as_asgi(), "/")
    await communicator.connect()
    name = await communicator.receive_from()
    await api.adisconnect(name, close=4001)
    assert (await communicator.receive_output(5)) == {"type": "websocket.close", "code": 4001}
    await communicator.disconnect()


async def test_a_layer_that_fails_is_named_and_the_others_are_told(settings):
    settings.CHANNEL_LAYERS = {"default": IN_MEMORY, "broken": {"BACKEND": "tests.no.such.Layer"}}
    settings.EPHEMERAL_STATE = {}
    communicator = WebsocketCommunicator(Chatty.as_asgi(), "/")
    await communicator.connect()
    name = await communicator.receive_from()
    with pytest.raises(StoreUnavailable, match=r"not taken by the channel layer 'broken' \(InvalidChannelLayerError\)"):
        await api.adisconnect(name, close=4001)
    assert (await communicator.receive_output(5)) == {"type": "websocket.close", "code": 4001}
    await communicator.disconnect()


async def test_a_name_that_no_channel_can_have_has_no_socket():
    await api.aset("t", "k", client="Zoé of the call center")
    await api.adisconnect("Zoé of the call center", close=4000)
    assert await api.alist("t") == []


async def test_a_layer_that_is_full_leaves_the_socket_open_and_everything_cleared(settings):
    layer = {"BACKEND": "channels.layers.InMemoryChannelLayer", "CONFIG": {"capacity": 1}}
    settings.CHANNEL_LAYERS = {"default": layer}
    settings.EPHEMERAL_STATE = {}
    await api.aset("t", "k", client="specific.ann!1")
    await get_channel_layer().send("specific.ann!1", {"type": "first"})
    with pytest.raises(StoreUnavailable, match="channel layer"):
        await api.adisconnect("specific.ann!1", close=4000)
    assert await api.alist("t") == []


async def test_what_has_no_socket_is_cleared_all_the_same():
    async with api.hold("t", "k") as held:
        await api.adisconnect(held.client_id, close=4000)
        assert await api.alist("t") == []


# Transactions


@pytest.mark.django_db(transaction=True)
def test_on_commit_waits_for_the_transaction_and_forgets_what_is_rolled_back():
    api.set("t", "typing", ttl=60)
    with suppress(ZeroDivisionError), transaction.atomic():
        api.set("t", "k", on_commit=True)
        api.clear("t", "typing", on_commit=True)
        raise ZeroDivisionError
    assert [entry.key for entry in api.list("t")] == ["typing"]
    payload = {"n": 1}
    with transaction.atomic():
        User.objects.create(username="ann")
        api.set("t", "k", payload, on_commit=True)
        api.clear("t", "typing", on_commit="default")
        payload["n"] = 2
        assert [entry.key for entry in api.list("t")] == ["typing"]
    assert [(entry.key, entry.json()) for entry in api.list("t")] == [("k", {"n": 1})]
    api.clear("t", "k", on_commit=True)  # without a transaction: now
    assert api.list("t") == []


@pytest.mark.django_db(transaction=True)
def test_on_commit_says_at_once_what_is_wrong_with_the_arguments():
    with transaction.atomic():
        for ask, arguments in ((api.set, ("t", "")), (api.clear, ("", "k")), (api.set, ("t", "k", object()))):
            with pytest.raises(EphemeralStateError):
                ask(*arguments, on_commit=True)


# Signals


async def test_signals_are_sent_once_for_each_change_in_order_and_a_receiver_may_use_the_api():
    heard = []

    def on_set(topic, key, client_id, payload, **_):
        heard.append(("set", topic, key, client_id, payload))
        raise ZeroDivisionError  # is logged, and harms nobody

    def on_cleared(topic, key, client_id, reason, **_):
        api.set("last seen", client_id, reason)
        heard.append((reason, topic, key, client_id))

    entry_set.connect(on_set)
    entry_cleared.connect(on_cleared)
    try:
        client = Client("ann")
        await client.connection.set(Topic("", "t"), "k", "v")
        await client.connection.end(abnormal=True)
        await until(lambda: len(heard) == 3 and current().idle)
    finally:
        entry_set.disconnect(on_set)
        entry_cleared.disconnect(on_cleared)
    assert heard[:2] == [("set", "t", "k", "ann", b"v"), ("disconnect", "t", "k", "ann")]
    assert heard[2][1:3] == ("last seen", "ann")


# What people may want to know


async def test_the_journal_knows_who_is_here_and_what_has_happened():
    store = get_store()
    client = Client("ann")
    await client.connection.set(Topic("n", "t"), "k", "1")
    await client.connection.set(Topic("n", "t"), "k", "2")
    await api.aset("t", "k", namespace="n")
    await current().journal.stop()
    current().journal.start()
    owner = (await store.owners(["ann", "bob"]))["ann"]
    assert owner.node == current().id
    assert json.loads(owner.about)["since"] > 0
    history = await store.history(Topic("n", "t"), "k")
    assert [each.client[:4] for each in history.transitions] == ["api:", "ann"]
    assert history.minutes[-1]["set"] + history.minutes[-2].get("set", 0) == 3
    await client.connection.set(Topic("n", "t"), "other")
    await client.connection.end(abnormal=False)
    assert await store.owners(["ann"]) == {}
    (last, *_) = (await store.history()).transitions
    assert (last.key, last.client, last.reason) == ("other", "ann", "disconnect")
    assert (await store.history(Topic("", "t"), "k")).transitions == []


# Bad input


BAD_INPUT = {
    "no topic": (lambda: api.alist(None), NameInvalid, "topic is of type NoneType, not str"),
    "no key": (lambda: api.aset("t", None), NameInvalid, "key is of type NoneType, not str"),
    "a client that is no name": (lambda: api.adisconnect(7), NameInvalid, "client is of type int, not str: give the"),
    "topics that are none": (lambda: api.acount(5), TypeError, "topics must be a list of topics, not 5"),
    "topics in a topic": (lambda: api.alist_many([[]]), NameInvalid, "topic is of type list, not str"),
    "a cursor that is no text": (lambda: api.abrowse(cursor=5), TypeError, "cursor is of type int, not str"),
    "a cursor of somebody else": (lambda: api.abrowse(cursor="x"), ValueError, "begin again without one"),
    "a search for nothing": (lambda: api.abrowse(search=None), TypeError, "search is of type NoneType, not str"),
    "a namespace that is no text": (lambda: api.abrowse(namespace=5), TypeError, "namespace is of type int, not str"),
    "a limit that is no number": (lambda: api.abrowse(limit=True), ValueError, "limit must be a whole number"),
}


@pytest.mark.parametrize(("call", "error", "text"), BAD_INPUT.values(), ids=BAD_INPUT)
async def test_bad_input_is_refused_with_what_is_wrong(call, error, text):
    with pytest.raises(error, match=text):
        await call()


@pytest.mark.parametrize("value", [None, 5, []])
def test_on_commit_is_yes_or_no_or_a_database(value):
    with pytest.raises(TypeError, match="on_commit must be True, False or the alias of a database, not"):
        api.set("t", "k", on_commit=value)
    with pytest.raises(TypeError, match="on_commit must be"):
        api.clear("t", "k", on_commit=value)
    assert api.list("t") == []
