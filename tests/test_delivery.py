import asyncio
import contextvars
import gc
import json

import anyio
import pytest

from ephemeral_state.delivery import Direct, Dispatched, News
from ephemeral_state.protocol import LONGEST, Event, encode_clear, encode_set, encode_welcome
from ephemeral_state.state import Entry, Revision, Topic

from .waiting import settle, until

TOPIC = Topic("", "t")


NUMBERS = {"a": 1, "b": 2}


def set_event(key, text, fresh=False):
    number = NUMBERS.get(key, 0)
    return Event(key, "c", text.encode(), None, 1000, text, Revision(0, 0), fresh, number=number)


def clear_event(key):
    return Event(key, "c", b"", "disconnect", 0, f"clear {key}", Revision(0, 0))


class View:
    def __init__(self, entries):
        self._entries = entries
        self.encoded = None

    def entries(self):
        return self._entries

    def snapshot(self, *, batch):
        if not self.encoded:
            numbers = {entry.key: n for n, entry in enumerate(self._entries, 1)} if batch else {}
            self.encoded = encode_welcome(TOPIC.name, self._entries, numbers)
        return self.encoded


class Socket:
    """A server's `send`: with the gate closed it pushes back, as a full TCP buffer does."""

    def __init__(self):
        self.texts = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error = None
        self.lost = []
        self.delivery = Direct(self.send, self.lost.append)

    async def send(self, message):
        if self.error:
            raise self.error
        self.texts.append(message["text"])
        await self.gate.wait()


async def test_a_socket_that_keeps_up_needs_no_task():
    socket = Socket()
    tasks = asyncio.all_tasks()
    socket.delivery.hear(News(TOPIC, [set_event("a", "1"), set_event("a", "2")]))
    assert socket.texts == ["1", "2"]
    assert asyncio.all_tasks() == tasks


async def test_a_socket_that_pushes_back_gets_the_newest_value_per_key_and_every_clear():
    socket = Socket()
    socket.gate.clear()
    socket.delivery.hear(News(TOPIC, [set_event("a", "1")]))
    for n in range(100):
        socket.delivery.hear(News(TOPIC, [set_event("a", f"a{n}"), set_event("b", f"b{n}")]))
    socket.delivery.hear(News(TOPIC, [clear_event("b")]))
    assert socket.texts == ["1"]
    socket.gate.set()
    await settle()
    assert socket.texts == ["1", "a99", "clear b"]
    socket.delivery.hear(News(TOPIC, [set_event("a", "direct again")]))
    assert socket.texts[-1] == "direct again"


async def test_the_rest_of_a_batch_waits_when_the_socket_blocks_in_its_middle():
    socket = Socket()
    socket.gate.clear()
    socket.delivery.hear(News(TOPIC, [set_event("a", "1"), set_event("b", "2"), set_event("c", "3")]))
    assert socket.texts == ["1"]
    socket.gate.set()
    await settle()
    assert socket.texts == ["1", "2", "3"]


async def test_a_socket_that_never_reads_costs_bounded_memory():
    socket = Socket()
    socket.gate.clear()
    for n in range(10_000):
        socket.delivery.hear(
            News(TOPIC, [set_event(f"{n}", "x", fresh=True), set_event("cursor", f"{n}"), clear_event(f"{n}")])
        )
    socket.gate.set()
    await settle()
    assert socket.texts == ["x", "9999", "clear 0"] or socket.texts == ["x", "clear 0", "9999"]
    socket.delivery.close()


async def test_a_snapshot_that_waits_is_taken_when_it_is_sent():
    socket = Socket()
    socket.gate.clear()
    socket.delivery.hear(News(Topic("", "other"), [set_event("a", "1")]))
    entries = []
    socket.delivery.welcome(TOPIC, View(entries), ref=9)
    entries.append(Entry(TOPIC, "k", "c", b"", None))
    socket.delivery.hear(News(TOPIC, [set_event("k", "in the snapshot already")]))
    socket.gate.set()
    await settle()
    snapshot = json.loads(socket.texts[1])
    assert [e["key"] for e in snapshot["entries"]] == ["k"]
    assert snapshot["ref"] == 9
    assert len(socket.texts) == 2


async def test_a_topic_that_is_forgotten_is_not_told():
    socket = Socket()
    socket.gate.clear()
    socket.delivery.hear(News(TOPIC, [set_event("a", "1"), set_event("b", "2")]))
    socket.delivery.forget(TOPIC)
    socket.gate.set()
    await settle()
    assert socket.texts == ["1"]


@pytest.mark.parametrize("error", [OSError("gone"), RuntimeError("Disconnected")])
async def test_a_failing_send_says_that_the_peer_is_gone_and_nothing_more_is_sent(error):
    socket = Socket()
    socket.error = error
    socket.delivery.hear(News(TOPIC, [set_event("a", "1"), set_event("b", "2")]))
    assert socket.lost == [error]
    socket.error = None
    socket.delivery.hear(News(TOPIC, [set_event("a", "3")]))
    socket.delivery.welcome(TOPIC, View([]), None)
    assert socket.texts == []


async def test_a_send_that_fails_after_pushing_back_says_so_too():
    socket = Socket()
    socket.gate.clear()
    socket.delivery.hear(News(TOPIC, [set_event("a", "1"), set_event("b", "2")]))
    socket.error = ConnectionResetError("reset")
    socket.gate.set()
    await settle()
    assert socket.lost == [socket.error]


async def test_closing_ends_a_send_that_is_stuck():
    socket = Socket()
    socket.gate.clear()
    before = asyncio.all_tasks()
    socket.delivery.hear(News(TOPIC, [set_event("a", "1")]))
    assert asyncio.all_tasks() != before
    socket.delivery.close()
    await settle()
    assert asyncio.all_tasks() == before
    assert socket.lost == []


async def test_a_send_may_suspend_in_any_way_a_coroutine_can():
    texts = []

    async def send(message):
        await asyncio.sleep(0)
        lock = asyncio.Lock()
        async with lock:
            await asyncio.sleep(0.001)
        try:
            await asyncio.wait_for(asyncio.get_running_loop().create_future(), 0.001)
        except TimeoutError:
            texts.append(message["text"])

    delivery = Direct(send, texts.append)
    delivery.hear(News(TOPIC, [set_event("a", "1"), set_event("b", "2")]))
    await until(lambda: texts == ["1", "2"])


async def test_middleware_may_ask_for_the_current_task_and_gets_one_of_its_own():
    texts, lost = [], []

    async def send(message):
        async with asyncio.timeout(0.05):
            if message["text"] == "stuck":
                await asyncio.get_running_loop().create_future()
            texts.append(message["text"])

    delivery = Direct(send, lost.append)
    loop = asyncio.get_running_loop()
    for key in "abc":  # as the hub does it: from a callback, where there is no task
        loop.call_soon(delivery.hear, News(TOPIC, [set_event(key, f"{key}1"), set_event(key, f"{key}2")]))
    await until(lambda: texts == ["a1", "a2", "b2", "c2"])
    loop.call_soon(delivery.welcome, TOPIC, View([]), None)
    await until(lambda: len(texts) == 5)
    assert (json.loads(texts[4])["_orama"], lost) == ("ephemeral.snapshot", [])
    loop.call_soon(delivery.hear, News(TOPIC, [set_event("a", "stuck")]))
    await until(lambda: lost)
    assert type(lost[0]) is TimeoutError


async def test_a_time_limit_of_another_library_gets_its_task_too():
    texts, lost = [], []

    async def send(message):
        with anyio.fail_after(5):
            await asyncio.sleep(0)
            texts.append(message["text"])

    delivery = Direct(send, lost.append)
    asyncio.get_running_loop().call_soon(delivery.hear, News(TOPIC, [set_event("a", "1"), set_event("b", "2")]))
    await until(lambda: texts == ["1", "2"])
    assert lost == []


async def test_who_leaves_before_the_task_has_begun_leaves_nothing_behind(recwarn):
    async def send(message):
        raise RuntimeError("no task")

    delivery = Direct(send, [].append)

    def hear_and_leave():
        delivery.hear(News(TOPIC, [set_event("a", "1")]))
        delivery.close()

    asyncio.get_running_loop().call_soon(hear_and_leave)
    await settle()
    gc.collect()
    assert [str(warning.message) for warning in recwarn] == []


async def test_who_cannot_be_sent_anything_in_a_task_either_has_gone():
    lost = []

    async def send(message):
        raise RuntimeError("closed")

    delivery = Direct(send, lost.append)
    asyncio.get_running_loop().call_soon(delivery.hear, News(TOPIC, [set_event("a", "1"), set_event("b", "2")]))
    await until(lambda: lost)
    await settle()
    assert [str(error) for error in lost] == ["closed"]


async def test_a_server_may_hand_out_any_awaitable():
    done = []

    def send(message):
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(lambda: (done.append(message["text"]), future.set_result(None)))
        return future

    delivery = Direct(send, done.append)
    delivery.hear(News(TOPIC, [set_event("a", "1"), set_event("b", "2")]))
    await settle()
    assert done == ["1", "2"]


async def test_a_consumer_with_its_own_handler_gets_messages_one_by_one():
    woken = []
    delivery = Dispatched(lambda: woken.append(1))
    delivery.welcome(TOPIC, View([Entry(TOPIC, "k", "c", b"x", None)]), None)
    delivery.hear(News(TOPIC, [set_event("k", "1")]))
    assert woken
    message = delivery.pop()
    assert (message["type"], message["topic"], len(message["entries"])) == ("ephemeral.snapshot", "t", 1)
    assert not delivery
    delivery.hear(News(TOPIC, [set_event("k", "2"), set_event("k", "3"), clear_event("j")]))
    assert delivery.pop() == {
        "type": "ephemeral.event",
        "event": "set",
        "namespace": "",
        "topic": "t",
        "key": "k",
        "client_id": "c",
        "payload": b"3",
        "reason": None,
        "text": "3",
    }
    assert (delivery.pop()["event"], bool(delivery)) == ("clear", False)
    delivery.close()
    delivery.hear(News(TOPIC, [set_event("k", "4")]))
    assert not delivery


def batches(texts):
    return [json.loads(text)["events"] for text in texts]


async def test_a_frame_is_made_once_for_all_sockets():
    sockets = [Socket(), Socket()]
    news = News(TOPIC, [set_event("a", "")._replace(payload=b"1"), clear_event("a")._replace(text="")])
    for socket in sockets:
        socket.delivery.hear(news)
    assert sockets[0].texts == [encode_set("t", "a", "c", b"1"), encode_clear("t", "a", "c", "disconnect")]
    assert all(one is other for one, other in zip(sockets[0].texts, sockets[1].texts, strict=True))


async def test_a_batch_is_one_frame_and_made_once_for_all_sockets():
    sockets = [Socket(), Socket()]
    news = News(TOPIC, [set_event("a", "1"), set_event("b", "2"), clear_event("a")])
    for socket in sockets:
        socket.delivery.welcome(TOPIC, View([]), None, batch=True)
        socket.delivery.hear(news)
    assert batches(sockets[0].texts[1:]) == [
        [["a", "MQ==", "c", 1], ["b", "Mg==", "c", 2], ["a", None, "c", "disconnect"]]
    ]
    assert sockets[0].texts[1] is sockets[1].texts[1]


async def test_a_socket_that_takes_batches_and_falls_behind_gets_the_newest_values_in_one_frame():
    socket = Socket()
    socket.delivery.welcome(TOPIC, View([]), None, batch=True)
    socket.gate.clear()
    for n in range(100):
        socket.delivery.hear(News(TOPIC, [set_event("a", f"a{n}")._replace(same_owner=n > 0), set_event("b", "b")]))
    socket.gate.set()
    await settle()
    first, rest = batches(socket.texts[1:])
    assert (first[0], first[1][0]) == (["a", "YTA=", "c", 1], "b")
    assert rest == [[1, "YTk5"], ["b", "Yg==", "c", 2]]


def large(size, count, payload="x"):
    """So many entries, with about as many bytes on the wire each."""
    return [Entry(TOPIC, f"k{n}", "c", payload.encode() * (size * 3 // 4), None) for n in range(count)]


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("behind", [True, False])
@pytest.mark.parametrize("payload", ["x", "é"])
async def test_what_does_not_fit_into_a_snapshot_is_told_after_it(batch, behind, payload):
    socket = Socket()
    if behind:
        socket.gate.clear()
        socket.delivery.hear(News(Topic("", "other"), [set_event("a", "1")]))
    entries = large(10_000, 250, payload)
    socket.delivery.welcome(TOPIC, View(entries), ref=7, batch=batch)
    socket.gate.set()
    await settle()
    socket.delivery.hear(News(TOPIC, [set_event("last", "{}")]))
    snapshot, *more, last = socket.texts[behind:]
    begun = json.loads(snapshot)
    if batch:
        rest = [(key, number) for text in more for key, _, _, number in json.loads(text)["events"]]
        assert [entry["n"] for entry in begun["entries"]] + [number for _, number in rest] == list(range(1, 251))
    else:
        rest = [(json.loads(text)["key"], None) for text in more]
    assert (begun["ref"], begun["more"]) == (7, len(rest))
    heard = [entry["key"] for entry in begun["entries"]] + [key for key, _ in rest]
    assert heard == [f"k{n}" for n in range(250)]
    assert "last" in last or last == "{}"
    assert max(len(text.encode()) for text in socket.texts) <= LONGEST


@pytest.mark.parametrize("batch", [True, False])
async def test_what_a_peer_does_not_take_of_a_topic_is_not_even_made(batch):
    class Watched(bytes):
        def __new__(cls, data):
            made = super().__new__(cls, data)
            made.used = False
            return made

        def __bool__(self):  # asked by what makes a set or an entry of it
            self.used = True
            return True

        def __getitem__(self, part):  # and by what makes an event of it
            self.used = True
            return super().__getitem__(part)

    payloads = [Watched(b"x" * 12_000) for _ in range(1_000)]
    entries = [Entry(TOPIC, f"k{n:03}", "c", payload, None) for n, payload in enumerate(payloads)]
    peer, other = Unread(), Socket()
    view = View(entries)
    peer.delivery.welcome(TOPIC, view, None, batch=batch)
    assert peer.delivery.held
    assert sum(payload.used for payload in payloads) * 16_000 < 2_500_000
    other.delivery.welcome(TOPIC, view, None, batch=batch)
    for _ in range(40):
        peer.answers()
        await settle()
    assert len(peer.texts) == len(other.texts) > 60
    assert all(one is the_other for one, the_other in zip(peer.texts, other.texts, strict=True))


async def test_what_belongs_to_a_snapshot_comes_before_all_else_however_slowly_it_is_read():
    peer = Unread()
    entries = large(10_000, 250, "x")
    peer.delivery.welcome(TOPIC, View(entries), None)
    assert peer.delivery.held
    sent = len(peer.texts)
    assert sent < 150
    peer.delivery.hear(News(TOPIC, [set_event("k249", "newer"), clear_event("k248")]))
    peer.delivery.welcome(Topic("", "other"), View([]), "other")
    for _ in range(3):
        peer.answers()
        await settle()
    snapshot, *more = map(json.loads, peer.texts[: 1 + json.loads(peer.texts[0])["more"]])
    assert [e["key"] for e in (*snapshot["entries"], *more)] == [f"k{n}" for n in range(250)]
    assert peer.texts[1 + len(more) : 3 + len(more)] == ["newer", "clear k248"]
    assert json.loads(peer.texts[-1])["ref"] == "other"


async def test_what_belongs_to_a_snapshot_of_a_topic_that_is_left_is_not_sent():
    peer = Unread()
    peer.delivery.welcome(TOPIC, View(large(10_000, 250, "x")), None)
    peer.delivery.welcome(Topic("", "other"), View([]), "other")
    sent = len(peer.texts)
    peer.delivery.forget(TOPIC)
    peer.answers()
    await settle()
    assert [json.loads(text).get("ref") for text in peer.texts[sent:]] == ["other"]


async def test_of_what_waits_for_a_peer_no_more_is_sent_at_once_than_it_may_have_unread():
    peer = Unread()
    peer.delivery.welcome(TOPIC, View([]), None, batch=True)
    peer.delivery.count("x" * 1_100_000)
    for n in range(600):
        peer.delivery.hear(News(TOPIC, [set_event(f"k{n}", "x" * 16_000)]))
    assert len(peer.texts) == 1
    peer.answers()
    await until(lambda: peer.delivery.held)
    assert sum(map(len, peer.texts)) < 1_500_000


async def test_a_batch_that_would_be_too_long_comes_in_several_frames_and_the_rest_waits_for_the_socket():
    socket = Socket()
    socket.delivery.welcome(TOPIC, View([]), None, batch=True)
    socket.gate.clear()
    events = [set_event(f"k{n}", "x" * 90_000) for n in range(40)]
    socket.delivery.hear(News(TOPIC, events))
    assert len(socket.texts) == 2
    socket.delivery.hear(News(TOPIC, [clear_event("k39")]))
    socket.gate.set()
    await settle()
    heard = [tuple(event[:2]) for text in socket.texts[1:] for event in json.loads(text)["events"]]
    assert [key for key, _ in heard] == [f"k{n}" for n in range(40)]
    assert heard[-1] == ("k39", None)
    assert all(payload is not None for _, payload in heard[:-1])
    assert max(map(len, socket.texts)) <= LONGEST


async def test_subscribing_again_without_batches_ends_them():
    socket = Socket()
    for batch in (True, False):
        socket.delivery.welcome(TOPIC, View([]), None, batch=batch)
        socket.delivery.hear(News(TOPIC, [set_event("a", "1")]))
    assert (len(batches(socket.texts[1:2])), socket.texts[3]) == (1, "1")


async def test_a_send_begins_and_ends_in_one_context():
    # As tracing middleware does it: reset raises in any other context than the one of its set.
    variable = contextvars.ContextVar("span")
    gate, texts, lost = asyncio.Event(), [], []

    async def send(message):
        token = variable.set(message["text"])
        try:
            await gate.wait()
            texts.append(message["text"])
        finally:
            variable.reset(token)

    delivery = Direct(send, lost.append)
    delivery.hear(News(TOPIC, [set_event("a", "1"), set_event("b", "2")]))
    gate.set()
    await settle()
    assert (texts, lost) == (["1", "2"], [])


class Unread:
    """A server that takes everything and says nothing, as daphne does."""

    def __init__(self):
        self.texts = []
        self.asked = []
        self.delivery = Direct(self.send, self.texts.append, self.ask)

    async def send(self, message):
        self.texts.append(message["text"])

    def ask(self, sent):
        self.asked.append(sent)

    def answers(self):
        """It has read all that came before the last question."""
        self.delivery.answered(self.asked[-1])


async def test_what_is_sent_ahead_of_a_peer_that_does_not_read_is_bounded_and_ends_at_the_newest():
    peer = Unread()
    kilobyte = "x" * 1000
    for n in range(5000):
        peer.delivery.hear(News(TOPIC, [set_event("a", f"{n} {kilobyte}")]))
    assert len(peer.asked) == 3
    assert 1000 < len(peer.texts) < 1100
    assert peer.delivery.held
    peer.answers()
    await until(lambda: peer.texts[-1].startswith("4999 "))
    assert not peer.delivery.held
    peer.delivery.hear(News(TOPIC, [set_event("a", "next")]))
    assert peer.texts[-1] == "next"


async def test_a_peer_that_answers_in_time_is_never_held():
    peer = Unread()
    for n in range(5000):
        peer.delivery.hear(News(TOPIC, [set_event("a", f"{n} " + "x" * 1000)]))
        if peer.asked and n % 100 == 0:
            peer.answers()
    assert len(peer.texts) == 5000
    assert 10 < len(peer.asked) < 30


async def test_a_peer_that_cannot_be_asked_is_not_held():
    socket = Socket()
    for n in range(2000):
        socket.delivery.hear(News(TOPIC, [set_event("a", f"{n} " + "x" * 1000)]))
    assert len(socket.texts) == 2000


async def test_a_snapshot_waits_for_a_held_peer_and_closing_forgets_all():
    peer = Unread()
    peer.delivery.hear(News(TOPIC, [set_event(f"{n}", "x" * 1000) for n in range(1100)]))
    sent = len(peer.texts)
    peer.delivery.welcome(TOPIC, View([]), 3)
    assert len(peer.texts) == sent
    peer.answers()
    await until(lambda: len(peer.texts) == sent + 1)
    assert json.loads(peer.texts[-1])["ref"] == 3
    peer.delivery.close()
    peer.answers()
    peer.delivery.hear(News(TOPIC, [set_event("a", "1")]))
    assert len(peer.texts) == sent + 1


async def test_what_is_sent_beside_the_stream_counts_and_waits_until_the_peer_has_read():
    peer = Unread()
    await peer.delivery.until_read()
    peer.delivery.count("x" * 1_100_000)
    assert (len(peer.asked), peer.delivery.held) == (1, True)
    waiting = [asyncio.create_task(peer.delivery.until_read())]
    await settle()
    assert not waiting[0].done()
    peer.answers()
    await waiting[0]
    peer.delivery.count("x" * 1_100_000)
    gone = asyncio.create_task(peer.delivery.until_read())
    await settle()
    assert not gone.done()
    peer.delivery.close()
    await gone
