"""Ends that nobody announces: the silence of a half-open connection, and the end of the server itself."""

import asyncio
import json
import logging
import time

import pytest
from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer

from ephemeral_state import api, lifecycle
from ephemeral_state.asgi import with_lifespan
from ephemeral_state.conf import parse
from ephemeral_state.consumers import UNTIL_DISCONNECT, EphemeralStateMixin, SyncEphemeralStateMixin
from ephemeral_state.errors import InvalidTTL, NotConfigured
from ephemeral_state.protocol import decode_pong, encode_grace, encode_ping, encode_set

from .waiting import events, settle, until


class Consumer(EphemeralStateMixin, AsyncWebsocketConsumer):
    ended = None

    async def connect(self):
        await self.accept()
        await self.ephemeral_set("t", self.scope["path"], ttl=UNTIL_DISCONNECT, grace=self.scope.get("grace"))

    async def receive(self, text_data=None, bytes_data=None):
        await self.send(f"heard {text_data}")

    async def disconnect(self, code):
        type(self).ended = code


class Pinging(Consumer):
    ephemeral_ping_interval = 0.05


class Client:
    """The server's side of a socket, by hand."""

    def __init__(self, application, path="k", **scope):
        self.inbox = asyncio.Queue()
        self.sent = []
        self.inbox.put_nowait({"type": "websocket.connect"})
        scope = {"type": "websocket", "path": path, **scope}
        self.task = asyncio.create_task(application(scope, self.inbox.get, self.send))

    async def send(self, message):
        self.sent.append(message)

    def says(self, text):
        self.inbox.put_nowait({"type": "websocket.receive", "text": text})

    @property
    def pings(self):
        return [text for text in self.texts if text.startswith('{"_orama":"ephemeral.ping"')]

    def answers(self, ping):
        self.says(ping.replace("ping", "pong"))

    async def leaves(self, code):
        self.inbox.put_nowait({"type": "websocket.disconnect", "code": code})
        await self.task

    @property
    def texts(self):
        return [message["text"] for message in self.sent if message["type"] == "websocket.send"]


@pytest.fixture(autouse=True)
def _own_store(settings):
    settings.EPHEMERAL_STATE = {}


async def keys():
    return [entry.key for entry in await api.alist("t")]


async def test_a_silent_client_is_asked_and_one_that_does_not_answer_is_ended(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "ephemeral_state")
    monkeypatch.setattr(lifecycle, "_PING_TIMEOUT", 0.1)
    client = Client(Pinging())
    await until(lambda: client.pings)
    await until(client.task.done)
    assert await keys() == []
    assert Pinging.ended == 1006
    assert client.sent[-1] == {"type": "websocket.close", "code": lifecycle.PING_TIMED_OUT}
    assert events(caplog) == ["node_began", "client_silent"]


async def test_a_client_that_answers_stays_and_its_answers_reach_no_handler(monkeypatch):
    monkeypatch.setattr(lifecycle, "_PING_TIMEOUT", 0.2)
    client = Client(Pinging())
    for _ in range(5):
        client.sent.clear()
        await until(lambda: client.pings)
        client.answers(client.pings[0])
    client.says("hello")
    await until(lambda: "heard hello" in client.texts)
    assert not any("pong" in text for text in client.texts)
    assert await keys() == ["k"]
    await client.leaves(1000)


async def test_a_client_that_speaks_all_the_time_is_asked_too_now_and_then():
    client = Client(Pinging())
    while len(client.pings) < 3:
        client.says("I am here")
        await asyncio.sleep(0.01)
        for ping in client.pings:
            client.answers(ping)
    assert len(set(client.pings)) == len(client.pings), "nobody can know what has not been read"
    await client.leaves(1000)


class Following(Pinging):
    async def connect(self):
        await super().connect()
        await self.ephemeral_subscribe("t")


class Unasked(Following):
    ephemeral_ping_interval = 0


async def set_much(text):
    """More than is sent ahead of a client's answer, by far."""
    for n in range(200):
        await api.aset("t", "much", f"{n} {text}")


@pytest.mark.parametrize(
    "says", ["", "I am here", '{"_orama":"ephemeral.pong"}', encode_ping(0).replace("ping", "pong"), "the first ping's"]
)
async def test_a_client_that_does_not_say_that_it_has_read_much_text_is_ended_though_it_is_there(
    monkeypatch, caplog, says
):
    caplog.set_level(logging.INFO, "ephemeral_state")
    monkeypatch.setattr(lifecycle, "_PING_TIMEOUT", 0.5)
    monkeypatch.setattr(Following, "ephemeral_ping_interval", 600)
    client = Client(Following())
    await until(lambda: client.texts)
    await set_much("x" * 12_000)
    while not client.task.done():
        if says == "the first ping's":  # again and again, while more comes
            client.answers(client.pings[0])
            await set_much("x" * 12_000)
        elif says:
            client.says(says)
        await asyncio.sleep(0.02)
    assert sum(map(len, client.texts)) < 2_000_000
    # What it had said by then is answered all the same.
    closed = [message for message in client.sent if message["type"] == "websocket.close"]
    assert closed == [{"type": "websocket.close", "code": lifecycle.PING_TIMED_OUT}]
    assert events(caplog) == ["node_began", "client_stuck"]
    assert "k" not in await keys()
    await api.aclear("t", "much")


async def test_a_client_that_was_asked_long_before_it_had_too_much_unread_is_ended_all_the_same(monkeypatch):
    monkeypatch.setattr(lifecycle, "_PING_TIMEOUT", 0.2)
    monkeypatch.setattr(Following, "ephemeral_ping_interval", 600)
    client = Client(Following())
    await until(lambda: client.texts)
    for n in range(40):
        await api.aset("t", "much", f"{n} {'x' * 12_000}")
    await until(lambda: client.pings)
    await asyncio.sleep(0.5)
    assert not client.task.done(), "it has not too much yet"
    await set_much("x" * 12_000)
    await until(client.task.done)
    assert client.sent[-1] == {"type": "websocket.close", "code": lifecycle.PING_TIMED_OUT}
    await api.aclear("t", "much")


async def test_a_client_that_reads_slowly_stays_however_far_behind_it_is(monkeypatch):
    monkeypatch.setattr(lifecycle, "_PING_TIMEOUT", 0.5)
    monkeypatch.setattr(Following, "ephemeral_ping_interval", 600)
    client = Client(Following())
    await until(lambda: client.texts)
    begin, answered = time.monotonic(), 0
    while time.monotonic() - begin < 3 and not client.task.done():
        for n in range(100):
            await api.aset("t", "much", f"{n} {'x' * 12_000}")
        if len(client.pings) > answered:  # it reads a fourth of what it may have unread, and then the next
            client.answers(client.pings[answered])
            answered += 1
        await asyncio.sleep(0.3)
    assert not client.task.done()
    assert answered >= 5
    # That took each of them more than the time in which something is to be read.
    assert len(client.pings) - answered >= 2
    await client.leaves(1000)
    await api.aclear("t", "much")


async def test_a_client_that_says_so_hears_of_the_newest_and_stays(monkeypatch):
    monkeypatch.setattr(lifecycle, "_PING_TIMEOUT", 3)
    monkeypatch.setattr(Following, "ephemeral_ping_interval", 600)
    client, other = Client(Following()), Client(Unasked(), "other")
    await until(lambda: client.texts and other.texts)
    await set_much("x" * 12_000)
    last = encode_set("t", "much", (await api.alist("t"))[1].client_id, f"199 {'x' * 12_000}".encode())
    await until(lambda: last in other.texts)  # both hear in one step, as far as they hear
    held = len(client.texts)
    assert last not in client.texts
    client.answers(client.pings[0])
    await until(lambda: last in client.texts)
    assert len(client.texts) <= held + 2  # the newest, and another question
    if len(client.pings) == 2:
        client.answers(client.pings[1])
    await asyncio.sleep(3.2)
    assert not client.task.done()
    await client.leaves(1000)
    await other.leaves(1000)
    await api.aclear("t", "much")


# By default: each client that is sent frames of ours is asked, and must answer once it has answered


class Chat(EphemeralStateMixin, AsyncWebsocketConsumer):
    grace = None

    async def connect(self):
        await self.accept()
        await self.ephemeral_subscribe("t")
        await self.ephemeral_set("t", self.scope["path"], ttl=UNTIL_DISCONNECT, grace=self.grace)

    async def receive(self, text_data=None, bytes_data=None):
        await self.send(f"heard {text_data}")

    async def disconnect(self, code):
        self.scope["ended"].append(code)


class SyncChat(SyncEphemeralStateMixin, WebsocketConsumer):
    def connect(self):
        self.accept()
        self.ephemeral_subscribe("t")
        self.ephemeral_set("t", self.scope["path"], ttl=UNTIL_DISCONNECT)

    def receive(self, text_data=None, bytes_data=None):
        self.send(f"heard {text_data}")

    def disconnect(self, code):
        self.scope["ended"].append(code)


both = pytest.mark.parametrize("chat", [Chat, SyncChat])


@pytest.fixture
def quick(settings, monkeypatch):
    """Pings after 0.05 s, and clients that must answer are missed 0.3 s later."""
    settings.EPHEMERAL_STATE = {"PING_INTERVAL": 0.05}
    monkeypatch.setattr(lifecycle, "_PING_TIMEOUT", 0.3)


@both
async def test_a_client_that_has_answered_once_is_ended_when_it_does_not_answer(quick, chat):
    client = Client(chat(), ended=(ended := []))
    for n in range(5):
        await until(lambda n=n: len(client.pings) > n)
        client.answers(client.pings[n])
    assert await keys() == ["k"]
    await until(client.task.done)
    assert await keys() == []
    assert ended == [1006]
    assert client.sent[-1] == {"type": "websocket.close", "code": lifecycle.PING_TIMED_OUT}


@both
async def test_a_client_that_never_answers_is_left_alone(quick, chat):
    client = Client(chat(), ended=(ended := []))
    await until(lambda: len(client.pings) == lifecycle._OPTIONAL_PINGS)
    await asyncio.sleep(1)  # three times what ends a client that must answer
    assert len(client.pings) == lifecycle._OPTIONAL_PINGS
    client.says("hello")
    await until(lambda: "heard hello" in client.texts)
    assert await keys() == ["k"]
    await client.leaves(1000)
    assert ended == [1000]


@both
async def test_a_client_that_answers_late_must_answer_from_then_on(quick, chat):
    client = Client(chat(), ended=(ended := []))
    await until(lambda: len(client.pings) == lifecycle._OPTIONAL_PINGS)
    await asyncio.sleep(0.2)
    assert len(client.pings) == lifecycle._OPTIONAL_PINGS
    client.answers(client.pings[0])
    await until(client.task.done)
    assert ended == [1006]


async def test_no_client_is_blamed_for_a_silence_in_which_the_server_itself_was_held_up(quick):
    client = Client(Chat(), ended=[])
    await until(lambda: client.pings)
    client.answers(client.pings[0])
    await until(lambda: len(client.pings) > 1)
    time.sleep(0.6)  # noqa: ASYNC251 - a handler that blocks the loop; meanwhile the client answers
    await asyncio.sleep(0)  # sockets are read after timers that are due
    client.answers(client.pings[1])
    await until(lambda: len(client.pings) > 2)
    client.says("hello")
    await until(lambda: "heard hello" in client.texts)
    await client.leaves(1000)


@both
async def test_a_client_that_speaks_all_the_time_is_asked_by_default_too(quick, chat):
    """Before it falls silent: after that it would be too late to find out that it answers."""
    client = Client(chat(), ended=(ended := []))
    while not client.pings:
        client.says("I am here")
        await asyncio.sleep(0.01)
    client.answers(client.pings[0])
    await until(client.task.done)
    assert ended == [1006]


@both
async def test_no_answer_reaches_the_app(quick, chat):
    client = Client(chat(), ended=[])
    await until(lambda: client.pings)
    client.answers(client.pings[0])
    client.says('{"_orama":"ephemeral.pong"}')
    client.says('{"pong":true}')
    await until(lambda: [text for text in client.texts if text.startswith("heard")])
    assert [text for text in client.texts if text.startswith("heard")] == ['heard {"pong":true}']
    await client.leaves(1000)


class Silent(Chat):
    async def connect(self):
        await self.accept()
        await self.ephemeral_set("t", self.scope["path"], ttl=UNTIL_DISCONNECT)


class Reshaping(Chat):
    async def ephemeral_snapshot(self, event):
        await self.send(f"there: {len(event['entries'])}")

    async def ephemeral_event(self, event):
        await self.send(f"{event['event']} {event['key']}")


class Filtering(Chat):
    async def ephemeral_event(self, event):
        if event["key"] == "shown":
            await super().ephemeral_event(event)


class SyncFiltering(SyncChat):
    def ephemeral_event(self, event):
        if event["key"] == "shown":
            super().ephemeral_event(event)


@pytest.mark.parametrize("chat", [Silent, Reshaping])
async def test_a_client_that_is_sent_no_frame_of_ours_is_not_asked(quick, chat):
    """It may speak GraphQL or something of its own, in which a ping is an error."""
    client = Client(chat(), ended=[])
    await until(lambda: client.sent)
    await asyncio.sleep(0.5)
    assert client.pings == []
    await client.leaves(1000)


@pytest.mark.parametrize("chat", [Filtering, SyncFiltering])
async def test_a_client_whose_consumer_filters_is_asked(quick, chat):
    client = Client(chat(), ended=(ended := []))
    await until(lambda: client.pings)
    client.answers(client.pings[0])
    await until(client.task.done)
    assert ended == [1006]


class Never(Chat):
    ephemeral_ping_interval = None


class NeverToo(Chat):
    ephemeral_ping_interval = 0


@pytest.mark.parametrize("chat", [Never, NeverToo, Chat])
async def test_pings_can_be_switched_off(quick, settings, chat):
    if chat is Chat:
        settings.EPHEMERAL_STATE = {"PING_INTERVAL": 0}
    client = Client(chat(), ended=[])
    await until(lambda: client.sent)
    client.says('{"_orama":"ephemeral.pong"}')  # none of our business then
    await until(lambda: 'heard {"_orama":"ephemeral.pong"}' in client.texts)
    await asyncio.sleep(0.5)
    assert client.pings == []
    await client.leaves(1000)


@pytest.mark.parametrize("interval", [-1, float("nan"), float("inf"), "8", True, [8]], ids=repr)
async def test_an_interval_that_cannot_be_is_refused_by_name(monkeypatch, interval):
    monkeypatch.setattr(Never, "ephemeral_ping_interval", interval)
    client = Client(Never(), ended=[])
    with pytest.raises(NotConfigured) as caught:
        await client.task
    wanted = "must be seconds, or 0 or None for no pings"
    assert str(caught.value) == f"Never.ephemeral_ping_interval {wanted}, not {interval!r}"


async def test_the_interval_of_a_consumer_counts_for_it_whatever_the_settings_say(quick, settings, monkeypatch):
    settings.EPHEMERAL_STATE = {"PING_INTERVAL": 0}
    monkeypatch.setattr(Chat, "ephemeral_ping_interval", property(lambda self: 0.05))
    client = Client(Chat(), ended=(ended := []))
    await until(client.task.done)  # and its clients must answer from the beginning
    assert ended == [1006]


async def test_what_has_a_grace_lingers_when_a_client_does_not_answer(quick, settings, monkeypatch):
    monkeypatch.setattr(Chat, "grace", 0.5)
    watcher = Client(Chat(), "watcher", ended=[])
    client = Client(Chat(), ended=[])
    await until(lambda: client.pings)
    client.answers(client.pings[0])
    await until(client.task.done)
    assert sorted(await keys()) == ["k", "watcher"]
    await until(lambda: [text for text in watcher.texts if '"ephemeral.clear"' in text])
    (gone,) = [json.loads(text) for text in watcher.texts if '"ephemeral.clear"' in text]
    assert (gone["key"], gone["reason"]) == ("k", "disconnect")
    await watcher.leaves(1000)


@pytest.mark.parametrize(("interval", "said"), [(0.05, None), (600, 600_000)])
async def test_the_pings_of_a_consumer_that_asks_seldom_say_how_seldom(monkeypatch, interval, said):
    monkeypatch.setattr(Following, "ephemeral_ping_interval", interval)
    client = Client(Following())
    await until(lambda: client.texts)
    await set_much("x" * 12_000)
    await until(lambda: client.pings)
    assert json.loads(client.pings[0]).get("interval_ms") == said
    await client.leaves(1000)
    await api.aclear("t", "much")


async def test_only_a_client_that_answers_is_asked_whether_it_has_read_much(quick, settings, monkeypatch):
    settings.EPHEMERAL_STATE = {"PING_INTERVAL": 600}
    monkeypatch.setattr(lifecycle, "_FIRST_PING_SECONDS", 0.05)
    answers, other = Client(Chat(), ended=(ended := [])), Client(Chat(), "other", ended=[])
    await until(lambda: answers.pings and other.pings)
    answers.answers(answers.pings[0])
    await until(answers.inbox.empty)
    await set_much("x" * 12_000)
    # Everything goes to the one that cannot say what it has read, and no more than 1 MB ahead to the other.
    await until(lambda: sum(map(len, other.texts)) > 2_400_000)
    assert sum(map(len, answers.texts)) < 2_000_000
    await until(answers.task.done)
    assert ended == [1006]
    assert len(other.pings) == 1
    await other.leaves(1000)
    await api.aclear("t", "much")


async def test_a_client_that_does_not_read_and_is_gone_is_ended_though_sending_hangs(monkeypatch):
    monkeypatch.setattr(lifecycle, "_PING_TIMEOUT", 0.1)
    full = asyncio.Event()

    class Stuck(Client):
        async def send(self, message):
            self.sent.append(message)
            if message["type"] != "websocket.accept":
                await full.wait()

    stuck = Stuck(Pinging())
    await until(stuck.task.done)
    assert await keys() == []


@pytest.mark.parametrize(
    ("frame", "number"),
    [
        ('{"_orama":"ephemeral.pong"}', 0),
        (' { "_orama" : "ephemeral.pong" } ', 0),
        ('{"_orama":"ephemeral.pong","n":7}', 7),
        ('{"_orama":"ephemeral.pong","n":7.0}', 7),
        ('{ "n": 281474976710656, "_orama": "ephemeral.pong" }', 2**48),
    ],
)
def test_a_pong_is_recognised_however_it_is_written(frame, number):
    assert decode_pong(frame) == number


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "ephemeral.pong",
        '{"_orama":"ephemeral.pong","x":1}',
        '["ephemeral.pong"]',
        '{"_orama":"ephemeral.pong","n":"7"}',
        '{"_orama":"ephemeral.pong","n":true}',
        '{"_orama":"ephemeral.pong","n":7.5}',
        '{"_orama":"ephemeral.pong","n":NaN}',
        '{"_orama":"ephemeral.pong","n":[[[[',
        '{"_orama":"ephemeral.ping","n":7,"x":"ephemeral.pong"}',
    ],
)
def test_nothing_else_is_taken_for_a_pong(frame):
    assert decode_pong(frame) is None


@pytest.mark.parametrize(("code", "left"), [(1000, []), (1001, []), (1005, ["k"]), (1006, ["k"]), (1012, ["k"])])
async def test_only_an_end_without_a_goodbye_has_a_grace(code, left):
    client = Client(Consumer(), grace=30)
    await until(lambda: client.sent)
    await until(lambda: client.sent[0]["type"] == "websocket.accept")
    await settle()
    assert await keys() == ["k"]
    await client.leaves(code)
    assert await keys() == left


BYE = '{"_orama":"ephemeral.bye"}'


class SyncConsumer(SyncEphemeralStateMixin, WebsocketConsumer):
    def connect(self):
        self.accept()
        self.ephemeral_set("t", self.scope["path"], ttl=UNTIL_DISCONNECT, grace=self.scope.get("grace"))

    def receive(self, text_data=None, bytes_data=None):
        self.send(f"heard {text_data}")


@pytest.mark.parametrize("kind", [Consumer, SyncConsumer])
@pytest.mark.parametrize("code", [1000, 1005, 1006])
async def test_a_goodbye_frame_ends_at_once_whatever_the_server_makes_of_the_close(kind, code):
    client = Client(kind(), grace=30)
    await until_keys(["k"])
    client.says(BYE)
    await until_keys([])
    assert not client.task.done()
    await client.leaves(code)
    assert await keys() == []
    assert not client.texts  # no handler has seen it


async def test_a_goodbye_frame_ends_a_connection_whose_handler_hangs(monkeypatch):
    class Hanging(Consumer):
        async def receive(self, text_data=None, bytes_data=None):
            await asyncio.Event().wait()

    client = Client(Hanging(), grace=30)
    await until_keys(["k"])
    client.says("x")
    client.says(BYE)
    await until_keys([])
    client.inbox.put_nowait({"type": "websocket.disconnect", "code": 1006})
    await settle()
    assert await keys() == []
    client.task.cancel()
    await asyncio.wait([client.task])


async def test_a_client_that_says_goodbye_and_does_not_close_is_closed(monkeypatch):
    monkeypatch.setattr(lifecycle, "_PING_TIMEOUT", 0.1)
    client = Client(Pinging(), grace=30)
    await until_keys(["k"])
    client.says(BYE)
    client.says(BYE)
    await until(client.task.done)
    assert client.sent[-1] == {"type": "websocket.close", "code": 1000}
    assert Pinging.ended == 1000
    assert await keys() == []


async def test_a_goodbye_that_is_followed_by_a_close_says_nothing_more(monkeypatch):
    monkeypatch.setattr(lifecycle, "_PING_TIMEOUT", 0.05)
    client = Client(Consumer(), grace=30)
    await until_keys(["k"])
    client.says(BYE)
    await client.leaves(1006)
    sent = list(client.sent)
    await asyncio.sleep(0.15)
    assert client.sent == sent
    assert Consumer.ended == 1006


@pytest.mark.parametrize(
    "frame", ['{"_orama":"ephemeral.bye","ref":1}', '["ephemeral.bye"]', "ephemeral.bye", BYE + " " * 64]
)
async def test_nothing_else_is_taken_for_a_goodbye(frame):
    client = Client(Consumer(), grace=30)
    await until_keys(["k"])
    client.says(frame)
    await until(lambda: client.texts)
    assert client.texts == [f"heard {frame}"]
    assert await keys() == ["k"]
    await client.leaves(1000)


async def until_keys(wanted):
    for _ in range(2000):
        if await keys() == wanted:
            return
        await asyncio.sleep(0.005)
    pytest.fail(f"there are {await keys()}, not {wanted}")


async def test_a_handler_that_raises_is_an_end_without_a_goodbye():
    class Raising(Consumer):
        async def receive(self, text_data=None, bytes_data=None):
            raise ZeroDivisionError

    client = Client(Raising(), grace=30)
    await settle()
    client.says("x")
    await asyncio.wait([client.task])
    assert isinstance(client.task.exception(), ZeroDivisionError)
    assert await keys() == ["k"]


@pytest.mark.parametrize("grace", [-1, float("nan"), float("inf"), "5", True])
def test_a_grace_that_is_no_number_of_seconds_is_refused(grace):
    with pytest.raises(InvalidTTL, match="grace"):
        encode_grace(grace)


@pytest.mark.parametrize("lease", [0, -1, 1.4, "12", float("nan")])
def test_a_lease_shorter_than_three_beats_is_refused(lease):
    with pytest.raises(NotConfigured, match="LEASE"):
        parse({"LEASE": lease})


async def test_when_the_server_stops_everything_is_cleared_before_it_says_so():
    application = with_lifespan(Consumer.as_asgi())
    clients = [Client(application, path=f"k{n}") for n in range(20)]
    await until(lambda: all(client.sent for client in clients))
    await settle()
    assert len(await keys()) == 20
    said = []
    inbox = asyncio.Queue()

    async def send(message):
        said.append((message["type"], len(await keys())))

    lifespan = asyncio.create_task(application({"type": "lifespan"}, inbox.get, send))
    inbox.put_nowait({"type": "lifespan.startup"})
    await until(lambda: said)
    inbox.put_nowait({"type": "lifespan.shutdown"})
    await lifespan
    assert said == [("lifespan.startup.complete", 20), ("lifespan.shutdown.complete", 0)]
    for client in clients:
        await client.leaves(1012)


async def test_a_server_that_stops_with_nobody_connected_just_stops():
    said = []

    async def send(message):
        said.append(json.dumps(message))

    inbox = asyncio.Queue()
    for event in ("startup", "shutdown"):
        inbox.put_nowait({"type": f"lifespan.{event}"})
    await with_lifespan(Consumer.as_asgi())({"type": "lifespan"}, inbox.get, send)
    assert len(said) == 2
