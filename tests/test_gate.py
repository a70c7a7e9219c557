"""What is too much for one client, and that it costs the others nothing."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from channels.layers import get_channel_layer

from ephemeral_state import api, gate, lifecycle
from ephemeral_state.conf import get_settings
from ephemeral_state.consumers import EphemeralStateConsumer
from ephemeral_state.limits import Penance
from ephemeral_state.node import current
from ephemeral_state.policy import Policy

from .live.peer import Peer
from .waiting import settle, until

TOPIC = "t"


@pytest.fixture
def connect(settings: Any) -> Callable[..., Peer]:
    def make(address: str = "192.0.2.1", **limits: int) -> Peer:
        settings.EPHEMERAL_STATE = {"POLICY": "tests.test_consumers.Yes", **limits}
        peer = Peer(EphemeralStateConsumer.as_asgi())
        peer.scope["client"] = (address, 4000)
        return peer

    return make


@pytest.fixture(autouse=True)
def penance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "_penance", Penance(0.3, 0.3, 0.0, 1.0, 10, time.monotonic))


def say(peer: Peer, verb: str, **fields: Any) -> None:
    frame = {"_orama": f"ephemeral.{verb}", "topic": TOPIC, **fields}
    peer.arrive("websocket.receive", text=json.dumps(frame))


def frames(peer: Peer) -> list[dict[str, Any]]:
    return [json.loads(message["text"]) for message in peer.sent if message["type"] == "websocket.send"]


async def answer(peer: Peer, ref: int) -> dict[str, Any]:
    while (frame := await peer.frame()).get("ref") != ref:
        pass
    return frame


async def flooded(peer: Peer) -> None:
    """Sent away."""
    async with peer:
        for number in range(1000):
            say(peer, "set", key=f"{number}", ref=number)
        await peer.ended()
    assert [message["code"] for message in peer.sent if message["type"] == "websocket.close"] == [4008]


async def test_of_one_that_floods_little_is_done_before_it_is_sent_away(connect: Any) -> None:
    peer = connect()
    await flooded(peer)
    kinds = [frame.get("code", frame["_orama"]) for frame in frames(peer)]
    assert kinds.count("rate_limited") == 99
    assert kinds.count("ephemeral.ok") < 100
    assert await api.alist(TOPIC) == []


async def test_one_that_floods_is_noticed_though_nothing_is_done_of_what_it_asks_for(connect: Any) -> None:
    class Stuck(EphemeralStateConsumer):
        async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            await asyncio.Event().wait()

    peer = connect()
    stuck = Peer(Stuck.as_asgi())
    stuck.scope["client"] = peer.scope["client"]
    async with stuck:
        for number in range(1000):
            if number == 500:
                await asyncio.sleep(0.1)  # in which some more may be let in than at once
            say(stuck, "set", key=f"{number}", ref=number)
        await until(lambda: [message for message in stuck.sent if message["type"] == "websocket.close"])
        stuck.task.cancel()
        with suppress(asyncio.CancelledError):
            await stuck.ended()
    assert [frame["code"] for frame in frames(stuck) if "code" in frame] == ["rate_limited"] * 99


async def test_one_that_sends_many_at_once_does_not_keep_the_others_waiting(connect: Any) -> None:
    async with connect() as greedy, connect("192.0.2.2") as modest:
        for number in range(400):
            say(greedy, "set", key=f"{number % 200}", ref=number)
        say(modest, "list", ref=1)
        await answer(modest, 1)
        assert len(frames(greedy)) < 100
        await answer(greedy, 399)  # in the end all of it is done


async def test_others_have_their_turn_where_a_project_lets_clients_send_as_much_as_they_like(connect: Any) -> None:
    limits = {"MAX_FRAMES_PER_SECOND": 10**6, "MAX_FRAME_BURST": 10**6}
    async with connect(**limits) as greedy, connect("192.0.2.2", **limits) as modest:
        for number in range(400):
            say(greedy, "set", key=f"{number % 200}", ref=number)
        say(modest, "list", ref=1)
        await answer(modest, 1)
        assert len(frames(greedy)) < 200
        await answer(greedy, 399)


async def test_a_goodbye_counts_also_of_a_client_that_has_sent_too_much(connect: Any) -> None:
    async with connect(MAX_FRAMES_PER_SECOND=1, MAX_FRAME_BURST=3) as peer:
        for number in range(9):
            say(peer, "set", key=f"{number}", grace_ms=60_000, ttl_ms=None, ref=number)
        assert (await answer(peer, 8))["code"] == "rate_limited"
        assert len(await api.alist(TOPIC)) == 3
        peer.arrive("websocket.receive", text='{"_orama":"ephemeral.bye"}')
        peer.arrive("websocket.disconnect", code=1006)
        await peer.ended()
    assert await api.alist(TOPIC) == []


async def test_who_was_sent_away_waits_before_it_is_let_in_again_and_nobody_else_does(connect: Any) -> None:
    await flooded(connect("192.0.2.1"))
    async with asyncio.TaskGroup() as both:
        again, other = connect("192.0.2.1"), connect("192.0.2.2")
        back = both.create_task(again.__aenter__())
        async with other:
            assert frames(other)
            assert again.sent == []
        await back
    say(again, "set", key="k", ref=1)
    assert (await answer(again, 1))["_orama"] == "ephemeral.ok"
    await again.__aexit__(None)


async def test_those_who_wait_are_let_in_one_after_another(connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "_penance", Penance(0.3, 0.3, 0.5, 2.0, 10, time.monotonic))
    began, times = time.monotonic(), []

    async def come(peer: Peer) -> None:
        async with peer:
            times.append(time.monotonic() - began)

    await flooded(connect())
    async with asyncio.TaskGroup() as coming:
        for _ in range(3):
            coming.create_task(come(connect()))
    assert all(came >= least for came, least in zip(times, [0.3, 0.8, 1.3], strict=True)), times


async def test_who_was_sent_away_is_served_one_command_after_another_and_nobody_else_is(connect: Any) -> None:
    limits = {"MAX_FRAMES_PER_SECOND": 5}
    await flooded(connect("192.0.2.1", **limits))
    async with connect("192.0.2.1", **limits) as again, connect("192.0.2.2", **limits) as other:
        for peer in (again, other):
            for number in range(20):
                say(peer, "list", ref=number)
        await answer(other, 19)
        assert len(frames(again)) < 10
        await answer(again, 5)  # it is served, though


async def test_who_gives_up_waiting_is_gone(connect: Any) -> None:
    await flooded(connect())
    again = connect()
    back = asyncio.create_task(again.__aenter__())
    again.leave()
    await back
    await again.ended()


async def test_nobody_knows_where_a_client_without_an_address_comes_from(connect: Any) -> None:
    for _ in range(2):
        peer = connect()
        del peer.scope["client"]
        await flooded(peer)


@pytest.mark.parametrize("frame", [4000, 65_536])
async def test_a_long_answer_counts_as_several_frames(connect: Any, frame: int) -> None:
    async with connect(MAX_FRAME_BYTES=frame, MAX_FRAME_BURST=25, MAX_FRAMES_PER_SECOND=1) as peer:
        for number in range(10):
            await api.aset(TOPIC, f"{number}", b"x" * 12_000)
        for ref in range(4):
            say(peer, "list", ref=ref)
            assert (await answer(peer, ref)).get("code", "ok") == ("ok" if ref < 3 else "rate_limited")


@pytest.mark.parametrize(("entries", "burst"), [(60, 50), (150, 100)])
async def test_a_list_that_is_too_long_costs_what_was_read_for_it(connect: Any, entries: int, burst: int) -> None:
    async with connect(MAX_FRAME_BURST=burst, MAX_FRAMES_PER_SECOND=1) as peer:
        for number in range(entries):
            await api.aset(TOPIC, f"{number}", b"x" * 16_000)
        say(peer, "list", ref=1)
        assert (await answer(peer, 1))["code"] == "too_many_entries"
        say(peer, "list", ref=2)
        assert (await answer(peer, 2))["code"] == "rate_limited"


async def test_however_much_a_list_costs_the_next_command_waits_no_longer_than_after_a_burst(connect: Any) -> None:
    async with connect(MAX_FRAME_BURST=8, MAX_FRAMES_PER_SECOND=1) as peer:
        for number in range(150):
            await api.aset(TOPIC, f"{number}", b"x" * 16_000)
        for ref in range(2):
            say(peer, "list", ref=ref)
        assert (await answer(peer, 1))["code"] == "too_many_entries"  # and not half a minute later


@pytest.mark.parametrize("size", [900_000, 1_100_000])
async def test_a_single_entry_is_listed_however_long_a_project_lets_it_be(connect: Any, size: int) -> None:
    async with connect(MAX_PAYLOAD_BYTES=2_000_000) as peer:
        await api.aset(TOPIC, "k", b"x" * size)
        say(peer, "list", ref=1)
        assert len((await answer(peer, 1))["entries"]) == 1


async def test_long_answers_are_given_one_after_another_though_they_were_asked_for_at_once(connect: Any) -> None:
    async with connect(MAX_FRAME_BURST=100, MAX_FRAMES_PER_SECOND=2) as peer:
        for number in range(5):
            await api.aset(TOPIC, f"{number}", b"x" * 12_000)
        began = time.monotonic()
        for ref in range(11):  # not as much as a client may have unread
            say(peer, "list", ref=ref)
        await answer(peer, 10)
        # Each counts as 5, of which 8 a second are carried out; the first 32 are free.
        assert time.monotonic() - began > 1


async def test_what_a_client_asked_for_before_it_left_holds_up_nothing(connect: Any) -> None:
    peer = connect(MAX_FRAMES_PER_SECOND=1)
    async with peer:
        for number in range(500):
            say(peer, "set", key=f"{number}", ref=number)
        await answer(peer, 0)
        peer.leave()
        began = time.monotonic()
        await peer.ended()
    assert time.monotonic() - began < 5  # and not two minutes


class Holding(Policy):
    asked = 0
    answer: asyncio.Event

    async def can_subscribe(self, scope: Any, namespace: str, topic: str) -> bool:
        Holding.asked += 1
        await Holding.answer.wait()
        return True


async def test_what_a_client_asked_for_before_it_left_is_dropped(
    connect: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Holding, "asked", 0)
    monkeypatch.setattr(Holding, "answer", asyncio.Event(), raising=False)
    peer = connect()
    settings.EPHEMERAL_STATE = {"POLICY": "tests.test_gate.Holding"}
    async with peer:
        for number in range(300):
            say(peer, "list", ref=number)
        await until(lambda: Holding.asked)
        peer.leave()
        await settle()
        Holding.answer.set()
        await peer.ended()
    assert Holding.asked == 1


class Receives(EphemeralStateConsumer):
    heard: list[Any]

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        self.heard.append(text_data)


class WebsocketReceives(EphemeralStateConsumer):
    heard: list[Any]

    async def websocket_receive(self, message: Any) -> None:
        self.heard.append(message["text"])


class Dispatches(EphemeralStateConsumer):
    heard: list[Any]

    async def dispatch(self, message: Any) -> None:
        if message["type"] == "websocket.receive":
            self.heard.append(message["text"])
        await super().dispatch(message)


@pytest.mark.parametrize("kind", [Receives, WebsocketReceives, Dispatches])
async def test_a_consumer_that_reads_frames_itself_gets_those_that_came_before_the_client_left(
    connect: Any, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, "heard", [], raising=False)
    connect()
    peer = Peer(kind.as_asgi())
    async with peer:
        for number in range(100):
            peer.arrive("websocket.receive", text=f"{number}")
        peer.leave()
        await peer.ended()
    assert kind.heard == [f"{number}" for number in range(100)]


async def test_one_that_waits_for_its_turn_hears_at_once_what_the_server_has_to_say(connect: Any) -> None:
    async with connect(MAX_FRAMES_PER_SECOND=1) as peer:
        for number in range(150):
            await api.aset(TOPIC, f"{number}", b"x" * 16_000)
        for ref in range(40):
            say(peer, "list", ref=ref)
        await answer(peer, 0)  # as good as 146 of them, so that those that do not go at once wait for half a minute
        await api.adisconnect(frames(peer)[0]["client_id"], close=4000)
        await until(lambda: [message for message in peer.sent if message["type"] == "websocket.close"])
        peer.leave()
        await peer.ended()  # and not when its turn would have come


async def test_a_client_that_reads_none_of_its_answers_is_ended(connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "_PING_TIMEOUT", 0.2)
    peer = connect(MAX_FRAMES_PER_SECOND=10_000, MAX_FRAME_BURST=10_000)
    async with peer:
        for number in range(9000):
            say(peer, "unsubscribe", ref=f"{number:0>120}")
        await peer.ended()
    assert [message["code"] for message in peer.sent if message["type"] == "websocket.close"] == [4000]


async def test_a_snapshot_counts_as_several_frames_too(connect: Any) -> None:
    async with connect(MAX_FRAME_BURST=25, MAX_FRAMES_PER_SECOND=1) as peer:
        for number in range(10):
            await api.aset(TOPIC, f"{number}", b"x" * 12_000)
        for ref in range(4):
            say(peer, "subscribe", ref=ref)
            assert (await answer(peer, ref)).get("code", "ok") == ("ok" if ref < 3 else "rate_limited")


async def test_refused_frames_of_great_length_end_the_connection_sooner(connect: Any) -> None:
    peer = connect(MAX_FRAME_BYTES=4000, MAX_FRAME_BURST=50, MAX_FRAMES_PER_SECOND=1)
    async with peer:
        for _ in range(4):
            peer.arrive("websocket.receive", text="x" * 30_000)
        await peer.ended()
    assert [frame.get("code") for frame in frames(peer)] == [None, "bad_frame", "bad_frame", "bad_frame"]


async def test_a_hundred_thousand_names_leave_nothing_but_what_a_client_may_have(connect: Any) -> None:
    many, step = 100_000, 500
    groups = len(get_channel_layer().groups)
    verbs = itertools.cycle(("subscribe", "set", "list"))
    async with connect(MAX_FRAMES_PER_SECOND=1_000_000, MAX_FRAME_BURST=1_000_000) as peer:
        peer.sent.clear()
        for begin in range(0, many, step):
            for ref in range(begin, begin + step):
                name = f"name {ref} ".ljust(1000 if ref % 10 == 0 else 20, ".")
                verb = next(verbs)
                say(peer, verb, topic=name, ref=ref, **({"key": name, "ttl_ms": None} if verb == "set" else {}))
            last = asyncio.create_task(answer(peer, begin + step - 1))
            while not last.done():  # it reads what it is sent, and says so
                for message in peer.sent:
                    assert message["type"] == "websocket.send", message
                    if message["text"].startswith('{"_orama":"ephemeral.ping"'):
                        peer.arrive("websocket.receive", text=message["text"].replace("ping", "pong"))
                peer.sent.clear()
                await asyncio.wait([last], timeout=0.05)
            await last
            if begin == many // 5:
                gc.collect()
                before = sys.getallocatedblocks()  # caches are full by now
        gc.collect()
        assert sys.getallocatedblocks() - before < many // 20
        settings = get_settings()
        assert current().hub.topics == settings.max_topics_per_client
        assert len(get_channel_layer().groups) - groups <= settings.max_topics_per_client
        assert len((await api.abrowse(limit=1000)).entries) == settings.max_keys_per_client
    assert (await api.abrowse()).entries == []
