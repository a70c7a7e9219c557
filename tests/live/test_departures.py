"""Whatever way an owner goes, every subscriber sees its state go, and the app's own clean-up still runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress

import pytest
from websockets.exceptions import InvalidHandshake

from .server import SERVERS, Client, Server, is_a, until

ASYNC = ["async", "async-json", "async-raw"]
SYNC = ["sync", "sync-json", "sync-raw"]
RAISES = {"do": "raise"}
ACCEPTS = {"do": "accept"}


@pytest.fixture
async def watcher(server: Server, tag: str) -> AsyncIterator[Client]:
    """Has subscribed to the topic named by `tag`."""
    async with Client(server, "async") as watcher:
        await watcher.subscribe(tag)
        yield watcher


def setting(tag: str, **more: object) -> dict[str, object]:
    return {"do": "set", "topic": tag, "key": "k", "payload": "here", **more}


async def sees_it_come_and_go(watcher: Client, tag: str) -> None:
    came = await watcher.frame()
    assert list(came) == ["_orama", "topic", "key", "client_id", "payload"]
    assert (came["_orama"], came["topic"], came["key"]) == ("ephemeral.set", tag, "k")
    await sees_it_go(watcher, tag, came["client_id"])


async def sees_it_go(watcher: Client, tag: str, client_id: str) -> None:
    assert list((await watcher.frame()).items()) == [
        ("_orama", "ephemeral.clear"),
        ("topic", tag),
        ("key", "k"),
        ("client_id", client_id),
        ("reason", "disconnect"),
    ]
    assert not (await watcher.server.debug(topic=tag))["entries"]


async def was_hung_up(owner: Client) -> None:
    """As the server closes after an exception. uvicorn ends the TCP connection without a close frame."""
    assert await owner.closed() == (1006 if owner.server.name == "uvicorn" else 1011)


async def ran_once(server: Server, tag: str) -> None:
    """The app's own disconnect()."""
    counted = await until(lambda: disconnects(server, tag), "counted")
    assert counted == 1


async def disconnects(server: Server, tag: str) -> int:
    return (await server.debug(tag=tag))["disconnects"].get(tag, 0)


async def noted(server: Server, tag: str, word: str) -> bool:
    return word in (await server.debug(tag=tag))["notes"].get(tag, [])


@pytest.mark.parametrize("way", ["close", "reset", "hang_up", "vanish_amid_a_frame"])
@pytest.mark.parametrize("ttl", [None, "until disconnect"])
@pytest.mark.parametrize("kind", ASYNC + SYNC)
async def test_a_client_that_leaves_is_cleared(
    server: Server, watcher: Client, tag: str, kind: str, ttl: str | None, way: str
) -> None:
    async with Client(server, kind, tag=tag) as owner:
        await owner.set(tag, "k", "here", ttl=ttl)
        await getattr(owner, way)()
        await sees_it_come_and_go(watcher, tag)
        await ran_once(server, tag)


@pytest.mark.parametrize("kind", ASYNC + SYNC)
async def test_a_handler_that_raises_is_cleared(server: Server, watcher: Client, tag: str, kind: str) -> None:
    async with Client(server, kind, tag=tag) as owner:
        await owner.set(tag, "k", "here")
        await owner.do("raise")
        await sees_it_come_and_go(watcher, tag)
        await was_hung_up(owner)


@pytest.mark.parametrize("kind", ASYNC + SYNC)
@pytest.mark.parametrize(
    ("server", "end"),
    # daphne leaves the socket of an application that returns without a close open, without the mixin too.
    [(server, end) for server in SERVERS for end in ("raise", "stop") if (server, end) != ("daphne", "stop")],
    indirect=["server"],
)
async def test_a_consumer_that_ends_by_itself_does_not_leave_its_socket_open(
    server: Server, tag: str, kind: str, end: str
) -> None:
    # Many at once: whether a server closes may depend on what its threads do at that moment.
    async def connect_and_wait(script: list[dict[str, object]]) -> None:
        async with Client(server, kind, tag=tag, connect=script) as client:
            if len(script) == 1:
                await client.do(end)
            await client.closed()

    in_connect = [connect_and_wait([ACCEPTS, {"do": end}]) for _ in range(10)]
    await asyncio.gather(*in_connect, *(connect_and_wait([ACCEPTS]) for _ in range(10)))
    await server.nothing_left()


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_consumer_that_raises_while_its_client_does_not_read_closes_the_socket(
    server: Server, tag: str, kind: str
) -> None:
    async with Client(server, "async") as speaker:
        owner = await Client(server, kind, tag=tag).with_small_buffer().__aenter__()
        await owner.subscribe(f"{tag} loud")
        owner.stop_reading()
        for number in range(300):
            await speaker.set(f"{tag} loud", f"k{number % 100}", "x" * 16_000)
        await owner.do("raise")
        await until(lambda: connections(server, 1))
        owner.read_again()
        await owner.closed()


@pytest.mark.parametrize("kind", ASYNC + SYNC)
async def test_a_consumer_that_dies_of_a_message_without_a_handler_is_cleared(
    server: Server, watcher: Client, tag: str, kind: str
) -> None:
    async with Client(server, kind, tag=tag) as owner:
        await owner.set(tag, "k", "here")
        await owner.do("unhandled")
        await sees_it_come_and_go(watcher, tag)
        await was_hung_up(owner)


@pytest.mark.parametrize("kind", ASYNC + SYNC)
async def test_a_connection_that_the_server_closes_is_cleared(
    server: Server, watcher: Client, tag: str, kind: str
) -> None:
    async with Client(server, kind, tag=tag) as owner:
        await owner.set(tag, "k", "here")
        await owner.do("close", code=4001)
        await sees_it_come_and_go(watcher, tag)
        assert await owner.closed() == 4001
        await ran_once(server, tag)


@pytest.mark.parametrize("kind", ASYNC + SYNC)
@pytest.mark.parametrize("accepted", [False, True])
async def test_an_exception_in_connect_is_cleared(
    server: Server, watcher: Client, tag: str, kind: str, accepted: bool
) -> None:
    script = [ACCEPTS] * accepted + [setting(tag), RAISES]
    with suppress(InvalidHandshake):
        async with Client(server, kind, tag=tag, connect=script) as owner:
            assert accepted
            await was_hung_up(owner)
    await sees_it_come_and_go(watcher, tag)


@pytest.mark.parametrize(
    ("kind", "refusal"), [(kind, "close") for kind in ASYNC + SYNC] + [("async", "deny"), ("sync", "deny")]
)
async def test_a_refused_connection_is_cleared(
    server: Server, watcher: Client, tag: str, kind: str, refusal: str
) -> None:
    with pytest.raises(InvalidHandshake):
        async with Client(server, kind, tag=tag, connect=[setting(tag), {"do": refusal}]):
            pass
    await sees_it_come_and_go(watcher, tag)
    await ran_once(server, tag)


@pytest.mark.parametrize("kind", ASYNC + SYNC)
async def test_a_client_that_leaves_while_connect_waits_is_cleared(
    server: Server, watcher: Client, tag: str, kind: str
) -> None:
    script = [setting(tag), {"do": "hang"}, ACCEPTS, {"do": "subscribe", "topic": tag}]
    connecting = asyncio.create_task(Client(server, kind, tag=tag, connect=script).__aenter__())
    assert is_a("ephemeral.set", await watcher.frame())
    connecting.cancel()
    await asyncio.gather(connecting, return_exceptions=True)
    if server.name == "granian":  # it tells of a departure during the handshake once the consumer has accepted
        await server.release(tag)
    assert (await watcher.frame())["reason"] == "disconnect"
    await server.release(tag)
    await ran_once(server, tag)


@pytest.mark.parametrize("way", ["close", "reset"])
@pytest.mark.parametrize("kind", ASYNC + SYNC)
async def test_a_client_that_leaves_a_handler_that_never_returns_is_cleared(
    server: Server, watcher: Client, tag: str, kind: str, way: str
) -> None:
    async with Client(server, kind, tag=tag) as owner:
        await owner.set(tag, "k", "here")
        await owner.do("hang")
        await until(lambda: noted(server, tag, "hangs"))
        leaving = asyncio.create_task(getattr(owner, way)())
        await sees_it_come_and_go(watcher, tag)
        await server.release(tag)
        await leaving
        await ran_once(server, tag)


@pytest.mark.parametrize("kind", ASYNC + SYNC)
async def test_a_set_after_the_end_is_refused_and_stores_nothing(
    server: Server, watcher: Client, tag: str, kind: str
) -> None:
    async with Client(server, kind, tag=tag) as owner:
        await owner.set(tag, "k", "here")
        await owner.do("hang")
        await owner.do("set or note", topic=tag, key="late")
        await owner.do("set or note", topic=tag, key="late", ttl="until disconnect")
        await until(lambda: noted(server, tag, "hangs"))
        await owner.reset()
        await sees_it_come_and_go(watcher, tag)
        await server.release(tag)
        await ran_once(server, tag)
    inside = await server.debug(tag=tag, topic=tag)
    assert inside["notes"][tag] == ["hangs", "gone", "gone"]
    assert not inside["entries"]
    await watcher.settled()
    assert not watcher.view.state


@pytest.mark.parametrize("kind", ASYNC + SYNC)
async def test_a_refused_set_of_a_client_gone_does_not_keep_the_app_from_its_own_disconnect(
    server: Server, watcher: Client, tag: str, kind: str
) -> None:
    async with Client(server, kind, tag=tag) as owner:
        await owner.set(tag, "k", "here")
        await owner.do("hang")
        await owner.do("set", topic=tag, key="late")
        await owner.do("subscribe", topic=tag)
        await until(lambda: noted(server, tag, "hangs"))
        await owner.reset()
        await sees_it_come_and_go(watcher, tag)
        await server.release(tag)
        await ran_once(server, tag)


@pytest.mark.parametrize("kind", ASYNC + SYNC)
async def test_a_set_in_the_apps_own_disconnect_is_refused_and_the_consumer_ends_all_the_same(
    server: Server, tag: str, kind: str
) -> None:
    last_words = [setting(tag, key="last seen")]
    async with Client(server, kind, tag=tag, disconnect=last_words) as owner:
        await owner.set(tag, "k", "here")
        await (owner.reset() if kind in ASYNC else owner.close())
    await ran_once(server, tag)
    await server.nothing_left()


@pytest.mark.parametrize("kind", ASYNC + SYNC)
async def test_sets_that_a_client_sends_and_does_not_wait_for_leave_nothing(
    server: Server, watcher: Client, tag: str, kind: str
) -> None:
    for number in range(20):
        async with Client(server, kind, tag=f"{tag}-{number}") as owner:
            for key in range(10):
                await owner.do("set", topic=tag, key=f"{number}.{key}", ttl="until disconnect")
            await (owner.reset() if number % 2 else owner.close())
    for number in range(20):
        await ran_once(server, f"{tag}-{number}")
    await watcher.set(tag, "last")
    assert list(watcher.view.state) == ["last"]
    assert [entry["key"] for entry in (await server.debug(topic=tag))["entries"]] == ["last"]


@pytest.mark.parametrize("way", ["close", "reset"])
@pytest.mark.parametrize("kind", ASYNC + SYNC)
async def test_a_client_that_leaves_while_frames_are_sent_to_it_is_cleared(
    server: Server, watcher: Client, tag: str, kind: str, way: str
) -> None:
    async with Client(server, kind, tag=tag) as owner, Client(server, "async") as speaker:
        await owner.set(tag, "k", "here")
        await owner.subscribe(f"{tag} loud")
        await owner.do("join", group=tag)
        await owner.settled()
        stop = asyncio.Event()

        async def speak() -> None:
            while not stop.is_set():
                await speaker.do("shout", group=tag, what="x" * 20_000)
                await speaker.set(f"{tag} loud", "k", "x" * 10_000)

        speaking = asyncio.create_task(speak())
        await until(lambda: owner.frame())
        await getattr(owner, way)()
        await sees_it_come_and_go(watcher, tag)
        stop.set()
        await speaking
        await ran_once(server, tag)


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_client_that_leaves_while_the_server_waits_for_it_to_read_is_cleared(
    server: Server, watcher: Client, tag: str, kind: str
) -> None:
    async with Client(server, "async") as speaker:
        owner = await Client(server, kind, tag=tag).with_small_buffer().__aenter__()
        await owner.set(tag, "k", "here")
        await owner.subscribe(f"{tag} loud")
        owner.stop_reading()
        for number in range(300):
            await speaker.set(f"{tag} loud", f"k{number % 100}", "x" * 16_000)
        if server.name == "uvicorn":  # daphne takes everything
            assert "Direct._drain" in (await server.debug())["task_names"]
        await owner.reset()
        await sees_it_come_and_go(watcher, tag)
        await ran_once(server, tag)


async def test_a_task_that_the_server_cancels_is_cleared(tag: str) -> None:
    with Server("daphne", "--application-close-timeout", "1") as server:
        for kind in ("async", "sync"):
            its = f"{tag}-{kind}"
            async with Client(server, "async") as watcher, Client(server, kind, tag=its) as owner:
                await watcher.subscribe(its)
                await owner.set(its, "k", "here")
                await owner.do("hang")
                await until(lambda its=its: noted(server, its, "hangs"))
                await owner.reset()
                await sees_it_come_and_go(watcher, its)
                if kind == "async":
                    await until(lambda its=its: noted(server, its, "cancelled"))
                await until(lambda: connections(server, 1))
                await server.release(its)
            await until(lambda: connections(server, 0))


async def connections(server: Server, wanted: int) -> bool:
    return (await server.debug())["connections"] == wanted


async def test_the_app_sees_its_exceptions_in_the_log_unchanged(server: Server, tag: str) -> None:
    since = server.log_position()
    for kind in ASYNC + SYNC:
        async with Client(server, kind, tag=tag) as owner:
            await owner.do("raise")
            await was_hung_up(owner)
    await until(lambda: server.log(since).count("Boom: the app's own fault") >= len(ASYNC + SYNC))


async def test_nothing_is_left_of_many_comings_and_goings(server: Server, tag: str) -> None:
    for number in range(30):
        script = [ACCEPTS, setting(tag, key=str(number)), {"do": "subscribe", "topic": f"{tag} {number}"}]
        async with Client(server, (ASYNC + SYNC)[number % 6], tag=tag, connect=script) as owner:
            if number % 3:
                await owner.subscribe(tag)
            if number % 5 == 0:
                await owner.do("raise")
            elif number % 2:
                await owner.reset()
    await server.nothing_left()


class Page:
    """A client that answers pings, or knows nothing of them."""

    def __init__(self, server: Server, kind: str, topic: str) -> None:
        script = [ACCEPTS, {"do": "subscribe", "topic": topic}, setting(topic, key=kind, ttl="until disconnect")]
        self.client = Client(server, kind, tag=f"{topic}-{kind}", connect=script)
        self.pings = 0
        self.answers = True

    async def read(self) -> None:
        async for text in self.client.ws:
            if is_a("ephemeral.ping", json.loads(text)):
                self.pings += 1
                if self.answers:
                    await self.client.send(str(text).replace("ping", "pong"))


async def test_a_page_that_has_answered_a_ping_is_missed_and_one_that_never_has_is_not(
    server: Server, tag: str
) -> None:
    """With the defaults: asked after 2 s and then after 8 s of silence, and missed 10 s later."""
    answering = [Page(server, kind, tag) for kind in ("async", "sync")]
    ignorant = [Page(server, kind, tag) for kind in ("async-json", "sync-json")]
    for page in ignorant:
        page.answers = False
    async with AsyncExitStack() as stack:
        for page in [*answering, *ignorant]:
            await stack.enter_async_context(page.client)
        reading = [asyncio.create_task(page.read()) for page in [*answering, *ignorant]]
        await until(lambda: min(page.pings for page in answering) > 1)
        for page in answering:
            page.answers = False
        begin = asyncio.get_running_loop().time()
        async with asyncio.timeout(30):
            await asyncio.wait(reading[:2])
        assert asyncio.get_running_loop().time() - begin >= 10
        assert [page.client.ws.close_code for page in answering] == [4000, 4000]
        for page in answering:
            await ran_once(server, f"{tag}-{page.client._kind}")
        assert [page.pings for page in ignorant] == [3, 3]
        keys = [entry["key"] for entry in (await server.debug(topic=tag))["entries"]]
        assert sorted(keys) == ["async-json", "sync-json"]
        assert not [task for task in reading[2:] if task.done()]
    await asyncio.wait(reading)
    # A pong would have been a command that no consumer of these knows, and ended it.
    await server.nothing_left()
