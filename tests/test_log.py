"""What operators read: each line is said when the thing happens, once, with its name and its fields."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from channels.generic.websocket import AsyncWebsocketConsumer

from ephemeral_state import hub as hub_module
from ephemeral_state import journal, log
from ephemeral_state.connection import Connection
from ephemeral_state.consumers import EphemeralStateConsumer, EphemeralStateMixin
from ephemeral_state.delivery import Direct
from ephemeral_state.errors import StoreUnavailable, TooManyKeys
from ephemeral_state.node import Node, current
from ephemeral_state.signals import entry_set
from ephemeral_state.state import Drop, Limits, Outcome, Roll, Set, Topic, Write
from ephemeral_state.stores.memory import MemoryStore
from ephemeral_state.tally import totals
from ephemeral_state.testing import fresh_store

from . import test_revocation
from .live.peer import Peer as Client
from .lossy import LossyLayer
from .test_docs import code, page, rows, section
from .test_hub import TOPIC, Rig
from .test_hub import Client as Follower
from .waiting import until

ROOM = Topic("", "room")
Said = Callable[..., list[str]]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Said:
    """The lines that were said under these names; each has its fields, which its text is made of."""
    caplog.set_level(logging.INFO, "ephemeral_state")

    def lines(*events: str) -> list[str]:
        records = [record for record in caplog.records if getattr(record, "event", "") in events]
        for record in records:
            fields = record.args if isinstance(record.args, dict) else {}
            assert {name: getattr(record, name) for name in fields} == fields
        return [record.getMessage() for record in records]

    return lines


def connection(name: str, node: Node | None = None) -> Connection:
    async def taken(message: Any) -> None:
        """A socket that takes everything."""

    return Connection(name, node or current(), Direct(taken, pytest.fail))


def test_every_event_of_the_page_has_a_test_that_makes_it_happen():
    tests = Path(__file__).parent
    source = "\n".join(file.read_text() for file in tests.rglob("test_*.py") if file.name != "test_docs.py")
    listed = {code(row[0])[0] for row in rows(section(page("deployment.md"), "What the log says"))}
    assert [event for event in sorted(listed) if not re.search(rf"\b{event}\b", source)] == []


def test_a_line_has_a_name_and_fields_says_where_it_comes_from_and_is_counted(caplog: pytest.LogCaptureFixture):
    before = totals()
    caplog.set_level(logging.INFO, "ephemeral_state")
    log.info("node_began", "node %(node)s is process %(pid)s", node="ab", pid=3)
    log.warning("lease_lost", "100 % lost")
    trouble = log.Trouble("store_trouble", "the store fails: %(error)s", "the store works again")
    for _ in range(3):
        trouble.met(ValueError("no"))
    trouble.over()
    trouble.over()
    try:
        raise KeyError
    except KeyError:
        log.exception("store_bug", "the store failed")
    lines: list[Any] = caplog.records
    assert [(line.event, line.levelname, line.getMessage()) for line in lines] == [
        ("node_began", "INFO", "node ab is process 3"),
        ("lease_lost", "WARNING", "100 % lost"),
        ("store_trouble", "WARNING", "the store fails: ValueError('no')"),
        ("store_trouble_over", "WARNING", "the store works again"),
        ("store_bug", "ERROR", "the store failed"),
    ]
    assert (lines[0].node, lines[0].pid) == ("ab", 3)
    assert lines[-1].exc_info[0] is KeyError
    assert {line.filename for line in lines} == {"test_log.py"}
    counted = totals() - before
    assert {name: n for name, n in counted.items() if name.startswith("error.")} == {
        "error.lease_lost": 1,
        "error.store_trouble": 3,
        "error.store_bug": 1,
    }


# A process


async def test_a_node_says_once_which_process_it_is_and_that_it_ends(said: Said):
    with fresh_store():
        node = current()
        for _ in range(2):
            await connection("first", node).end(abnormal=False)
        assert said("node_began") == [f"node {node.id} is process {os.getpid()} of {socket.gethostname()}"]
        connection("last", node), connection("least", node)
        await node.drain()
        assert said("node_ends") == ["the process ends, clearing what its 2 connections own"]
        assert said("node_ends_late") == []
        await until(lambda: node.idle)


class Held(MemoryStore):
    """Carries out writes when it may."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self.may = asyncio.Event()

    async def apply(self, writes: Sequence[Write], batches: object = None) -> list[Outcome]:
        await self.may.wait()
        return await super().apply(writes)


async def test_an_end_that_comes_too_late_is_told(said: Said, settings: Any):
    settings.EPHEMERAL_STATE = {"BACKEND": "tests.test_log.Held", "SHUTDOWN_TIMEOUT": 0.05}
    node = current()
    connection("owner", node)
    await node.drain()
    assert said("node_ends_late") == [
        "what 1 connections own was not cleared within 0.05 s of the end (SHUTDOWN_TIMEOUT); others do it when the "
        "lease is over"
    ]
    assert isinstance(node.store, Held)
    node.store.may.set()
    await until(lambda: node.idle)


class Odd(MemoryStore):
    """A store with bugs."""

    shared = True
    beats = sweeps = 0

    async def apply(self, writes: Sequence[Write], batches: object = None) -> list[Outcome]:
        outcomes = await super().apply(writes)
        return [
            Outcome((), TooManyKeys("a drop cannot be refused")) if isinstance(write, Drop) else outcome
            for write, outcome in zip(writes, outcomes, strict=True)
        ]

    async def beat(self, node: str, lease_ms: int, info: str, stamp: str = "") -> Roll:
        self.beats += 1
        if self.beats in (2, 3):
            raise ZeroDivisionError
        return Roll(0, held=True, linked=True)

    async def sweep(self, limit: int = 1000) -> Any:
        self.sweeps += 1
        if self.sweeps == 1:
            raise ZeroDivisionError
        return await super().sweep(limit)


async def test_a_store_with_bugs_is_told_of_with_what_it_raised(
    said: Said, settings: Any, caplog: pytest.LogCaptureFixture
):
    settings.EPHEMERAL_STATE = {"BACKEND": "tests.test_log.Odd", "SWEEP_INTERVAL": 0.05}
    owner = connection("owner")
    await until(lambda: said("lease_trouble_over"))
    assert said("lease_trouble") == ["renewing the lease fails, retrying every 0.5 s: ZeroDivisionError()"]
    assert said("lease_trouble_over") == ["the lease is renewed again"]
    assert said("sweep_failed") == ["sweeping failed, trying again in 0.05 s"]
    assert caplog.text.count("Traceback") == 2
    await owner.end(abnormal=False)
    assert said("clearing_failed") == ["clearing the state of owner failed, what it owns stays until its lifetime ends"]


async def test_receivers_that_are_too_slow_are_told_of(said: Said, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(journal, "_UNSAID", 5)
    heard, may = [], threading.Event()

    def slow(key: str, **_: Any) -> None:
        may.wait(10)
        heard.append(key)

    entry_set.connect(slow)
    try:
        with fresh_store():
            owner = connection("owner")
            await owner.set(ROOM, "first")
            await until(lambda: not owner._node.journal._unsaid)  # it waits for the receiver
            for n in range(12):
                await owner.set(ROOM, f"{n}")
            await until(lambda: said("signals_trouble"))
            may.set()
            await until(lambda: said("signals_trouble_over"))
            await owner.set(ROOM, "last")
            await until(lambda: "last" in heard)
            monkeypatch.setattr(journal, "_UNSAID", 100)
            await owner.end(abnormal=False)
            await until(lambda: owner._node.idle)
    finally:
        entry_set.disconnect(slow)
    assert said("signals_trouble") == [
        "the receivers of signals are too slow: 5 changes wait for them, and more are not told to them"
    ]
    assert said("signals_trouble_over") == ["the receivers of signals have caught up, all changes are told to them"]
    assert heard == ["first", "0", "1", "2", "3", "4", "last"]


# The channel layer


class Deaf(LossyLayer):
    """A layer of which nothing can be heard, for some time."""

    deaf = False

    async def receive(self, channel: str) -> Any:
        while True:
            if self.deaf:
                raise ConnectionError("no layer")
            try:
                async with asyncio.timeout(0.02):
                    return await super().receive(channel)
            except TimeoutError:
                pass

    async def group_discard(self, group: str, channel: str) -> None:
        if self.deaf:
            raise ConnectionError("no layer")
        await super().group_discard(group, channel)


async def test_a_layer_that_cannot_be_heard_is_told_of_when_it_begins_and_ends(
    said: Said, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(hub_module, "_RETRY", 0.01)
    before = totals()
    rig = Rig()
    layer = rig.layer = Deaf()
    rig.hub = hub_module.Hub(rig.store, layer, beacon_interval=0.05)
    follower = Follower()
    await rig.hub.follow(TOPIC, follower.delivery)
    layer.deaf = True
    await until(lambda: (totals() - before)["error.hearing_trouble"] >= 3)
    layer.deaf = False
    await rig.write(Set("c", TOPIC, "k"))
    await until(lambda: said("hearing_trouble_over"))
    assert said("hearing_trouble") == [
        "the channel layer fails, retrying after at most 0.01 s: ConnectionError('no layer')"
    ]
    assert said("hearing_trouble_over") == ["the channel layer is back"]

    layer.deaf = True
    rig.hub.unfollow(TOPIC, follower.delivery)
    await until(lambda: said("leaving_failed"))
    assert said("leaving_failed") == [
        "leaving the group of room failed, the layer will expire it: ConnectionError('no layer')"
    ]
    await rig.hub.stop()


async def test_a_message_that_cannot_be_handled_is_told_of_and_made_good(said: Said, caplog: pytest.LogCaptureFixture):
    rig = Rig()

    def heard(*_: Any) -> None:
        if not said("message_bug"):
            raise ZeroDivisionError

    rig.hub = hub_module.Hub(rig.store, rig.layer, beacon_interval=0.05, heard=heard)
    follower = Follower()
    await rig.hub.follow(TOPIC, follower.delivery)
    await rig.write(Set("c", TOPIC, "k"))
    await until(lambda: said("message_bug"))
    assert said("message_bug") == [
        "a message was not handled, the beacon will read what it said from the store: please report it, with this "
        "traceback"
    ]
    assert "ZeroDivisionError" in caplog.text
    await rig.write(Set("c", TOPIC, "other"))
    await until(lambda: "other" in follower.view)
    await rig.hub.stop()


async def test_a_repair_that_fails_is_told_of_and_tried_again(said: Said):
    rig = Rig()
    follower = Follower()
    await rig.hub.follow(TOPIC, follower.delivery)
    snapshot = rig.store.snapshot

    async def fails(topic: Topic) -> Any:
        raise StoreUnavailable("no store")

    rig.store.snapshot = fails
    await rig.write(Set("c", TOPIC, "k"), tell=False)
    await until(lambda: said("repair_failed"))
    rig.store.snapshot = snapshot
    await until(lambda: "k" in follower.view)
    assert said("repair_failed")[0] == (
        "repairing room failed, the beacon will try again: StoreUnavailable('no store')"
    )
    await rig.hub.stop()


async def test_a_duty_that_somebody_cancels_is_told_of_and_goes_on(said: Said):
    class Cancelling(Follower):
        """Behind a middleware that cancels the task in which it is told something, once."""

        async def send(self, message: Any) -> None:
            task = asyncio.current_task()
            if task is not None and not said("duty_ended") and "ephemeral.set" in message["text"]:
                task.cancel()
            await super().send(message)

    rig = Rig()
    follower = Cancelling()
    await rig.hub.follow(TOPIC, follower.delivery)
    await rig.write(Set("c", TOPIC, "k"))
    await until(lambda: said("duty_ended"))
    assert said("duty_ended") == [
        "the task listen of the hub was ended by other code, such as a timeout in a middleware around a WebSocket's "
        "send, and is started again: cancelled"
    ]
    await rig.write(Set("c", TOPIC, "more"))
    await until(lambda: "more" in follower.view)
    await rig.hub.stop()


# Clients


async def test_a_setting_that_is_wrong_is_told_of_here_and_not_to_the_client(said: Said, settings: Any):
    async with Client(EphemeralStateConsumer.as_asgi()) as client:
        good = settings.EPHEMERAL_STATE = {}
        settings.EPHEMERAL_STATE = {"NO_SUCH": 1}
        client.arrive("websocket.receive", text='{"_orama":"ephemeral.list","topic":"t"}')
        while (frame := await client.frame())["_orama"] != "ephemeral.error":
            pass
        settings.EPHEMERAL_STATE = good
    assert frame["message"] == "the server cannot carry out commands"
    (line,) = said("not_configured")
    assert line.startswith("a command cannot be carried out: EPHEMERAL_STATE['NO_SUCH'] is unknown")


class LastWords(EphemeralStateMixin, AsyncWebsocketConsumer):
    async def disconnect(self, code: int) -> None:
        await self.ephemeral_set("room", "left", "just now")


async def test_a_set_in_disconnect_is_told_of(said: Said):
    async with Client(LastWords.as_asgi()):
        pass
    assert said("set_after_end") == [
        "LastWords's disconnect() was left at a set, since the connection has ended: set nothing there, or do it by "
        "api.set"
    ]


@pytest.mark.usefixtures("threaded_db")
async def test_rights_that_end_are_told_of(said: Said, settings: Any, monkeypatch: pytest.MonkeyPatch):
    settings.EPHEMERAL_STATE = {"POLICY": "tests.test_revocation.Moody", "RECHECK_INTERVAL": 0.05}
    monkeypatch.setattr(test_revocation.Moody, "yes", ("room",))
    user = await test_revocation.ann()
    browser = await test_revocation.login(user)
    peer = test_revocation.peer_of(browser)
    commands = (test_revocation.follow("room:1"), test_revocation.put("room:1", "mine"))
    async with test_revocation.connected(peer, *commands):
        test_revocation.Moody.yes = ()
        await until(lambda: said("rights_revoked"))
        await test_revocation.in_db(browser.logout)
        await until(lambda: said("user_gone"))
    (line,) = said("rights_revoked")
    assert line.endswith(" may not follow 1 of its topics any more, nor set 1 of its keys")
    (line,) = said("user_gone")
    assert line.endswith(" is gone, ending its connection with 4403")


class Unwilling(LossyLayer):
    """Lets nobody join the group of a user."""

    async def group_add(self, group: str, channel: str) -> None:
        if group.startswith("ephemeral.user."):
            raise ConnectionError("no layer")
        await super().group_add(group, channel)


@pytest.mark.usefixtures("threaded_db")
async def test_who_cannot_hear_of_a_revocation_is_told_of(said: Said, settings: Any):
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "tests.test_log.Unwilling"}}
    settings.EPHEMERAL_STATE = {"POLICY": "tests.test_revocation.Moody"}
    user = await test_revocation.ann()
    async with test_revocation.connected(test_revocation.peer_of(await test_revocation.login(user))):
        await until(lambda: said("revocation_deaf"))
    assert said("revocation_deaf") == [
        "a revocation will not be heard at once, the channel layer does not answer: ConnectionError('no layer')"
    ]


def test_trouble_says_the_text_of_an_error_whose_repr_has_none(said: Said):
    class Terse(Exception):
        def __repr__(self) -> str:
            return "terse"

    for error in (Terse("connecting to h:1 failed"), ConnectionError("it's \x01"), TimeoutError()):
        trouble = log.Trouble("store_trouble", "the store fails: %(error)s", "over")
        trouble.met(error)
    assert said("store_trouble") == [
        "the store fails: Terse('connecting to h:1 failed')",
        'the store fails: ConnectionError("it\'s \\x01")',
        "the store fails: TimeoutError()",
    ]
