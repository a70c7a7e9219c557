import asyncio
import os
import threading
from contextlib import suppress

import pytest
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.testing import WebsocketCommunicator

from ephemeral_state import api
from ephemeral_state.connection import Connection
from ephemeral_state.consumers import EphemeralStateMixin
from ephemeral_state.delivery import Direct
from ephemeral_state.errors import (
    ClientRequired,
    ConnectionGone,
    EphemeralStateError,
    InvalidTTL,
    NameInvalid,
    NameRequired,
    NotConfigured,
)
from ephemeral_state.node import current, serving_loop
from ephemeral_state.state import UNTIL_DISCONNECT, Topic

from .waiting import until


@pytest.fixture(autouse=True)
def _own_store(settings, monkeypatch):
    settings.EPHEMERAL_STATE = {}  # a new memory store for each test
    monkeypatch.setattr(api, "_LINGER", 0.05)


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
    monkeypatch.setattr(api, "_LINGER", 0.05)
    monkeypatch.setattr(api, "_own", api._OwnLoop())
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
