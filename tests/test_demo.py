"""The demo as its user meets it: one command, a printed login, pages, sockets, and Ctrl-C."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from .browser.process import ROOT, DemoProcess, free_port
from .redis_server import RedisServer

LIMIT = 20  # seconds until a test gives up on what it waits for


@pytest.fixture(scope="module", params=["daphne", "uvicorn"])
def demo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoProcess]:
    with DemoProcess(tmp_path_factory.mktemp("demo"), "--server", request.param) as process:
        yield process


@pytest.fixture
def pages(demo: DemoProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=demo.url, follow_redirects=True, timeout=LIMIT, trust_env=False) as client:
        yield client


@asynccontextmanager
async def websocket(demo: DemoProcess, path: str) -> AsyncIterator[ClientConnection]:
    address = f"ws://127.0.0.1:{demo.port}{path}"
    async with connect(address, origin=demo.url, proxy=None, open_timeout=LIMIT) as connection:
        assert list(await read(connection)) == ["_orama", "client_id", "ping_interval_ms"]
        yield connection


async def read(connection: ClientConnection) -> dict[str, Any]:
    frame: dict[str, Any] = json.loads(await asyncio.wait_for(connection.recv(), LIMIT))
    return frame


async def read_until(connection: ClientConnection, **fields: Any) -> dict[str, Any]:
    """The next frame with these fields; others may come before it."""
    while True:
        frame = await read(connection)
        if all(frame.get(name) == value for name, value in fields.items()):
            return frame


async def say(connection: ClientConnection, **frame: Any) -> None:
    await connection.send(json.dumps(frame))


async def command(connection: ClientConnection, verb: str, **fields: Any) -> dict[str, Any]:
    await say(connection, _orama=f"ephemeral.{verb}", **fields)
    return await read(connection)


def open_room(pages: httpx.Client, name: str) -> str:
    """The address of the room's socket."""
    page = pages.get("/")
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text)
    assert token is not None
    room = pages.post("/", data={"room": name, "csrfmiddlewaretoken": token[1]}, headers={"Referer": str(page.url)})
    assert room.status_code == 200
    return room.url.raw_path.decode().replace("/room/", "/ws/chat/")


@asynccontextmanager
async def chatter(demo: DemoProcess, path: str, name: str) -> AsyncIterator[Person]:
    """Somebody in a room, who follows it."""
    async with websocket(demo, path) as connection:
        await say(connection, type="hello", name=name, color=200, secret=f"{name}'s")
        author = (await read_until(connection, type="you"))["author"]
        topic = await follow(connection, path)
        here = await command(connection, "list", topic=topic)
        (me,) = [entry for entry in here["entries"] if value(entry).get("author") == author]
        yield Person(connection, author, me["client_id"], topic)


class Person(NamedTuple):
    connection: ClientConnection
    author: str
    client_id: str
    topic: str


async def follow(connection: ClientConnection, path: str) -> str:
    """Subscribe to the room's topic, which is on its page."""
    async with httpx.AsyncClient(trust_env=False, timeout=LIMIT) as pages:
        host, port = connection.remote_address[:2]
        page = await pages.get(f"http://{host}:{port}{path.replace('/ws/chat/', '/room/')}")
    found = re.search(r'data-topic="([^"]+)"', page.text)
    assert found is not None
    await say(connection, _orama="ephemeral.subscribe", topic=found[1])
    await read_until(connection, _orama="ephemeral.snapshot")
    return found[1]


def value(frame: dict[str, Any]) -> Any:
    return json.loads(base64.b64decode(frame["payload"]))


# Pages


def test_the_rooms_the_styles_and_the_scripts_are_served(pages: httpx.Client) -> None:
    page = pages.get("/")
    assert page.status_code == 200
    assert page.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
    for name, kind in (("chat.css", "text/css"), ("chat.js", "javascript"), ("icon.svg", "image/svg+xml")):
        served = pages.get(f"/static/project/{name}")
        assert served.status_code == 200
        assert kind in served.headers["content-type"]


def test_the_printed_login_works(demo: DemoProcess, pages: httpx.Client) -> None:
    page = pages.get("/admin/login/")
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text)
    assert token is not None
    login = {"username": demo.printed("Username"), "password": demo.printed("Password"), "next": "/admin/"}
    answer = pages.post(page.url, data=login | {"csrfmiddlewaretoken": token[1]}, headers={"Referer": str(page.url)})
    assert answer.url.path == "/admin/"
    assert "Log out" in answer.text
    for name in ("room", "message"):
        assert pages.get(f"/admin/project/{name}/").status_code == 200


@pytest.mark.parametrize(
    "name", ["Lounge", "C", "C++", "<script>alert(1)</script>", "Café Ünïcode 会議室", "!?", "ﷺ" * 60]
)
def test_a_room_may_have_any_name(pages: httpx.Client, name: str) -> None:
    path = open_room(pages, name)
    page = pages.get(path.replace("/ws/chat/", "/room/"))
    assert page.status_code == 200
    assert name not in page.text or "<" not in name
    assert open_room(pages, f"  {name} ") == path


def test_rooms_of_similar_names_are_different_rooms(pages: httpx.Client) -> None:
    assert len({open_room(pages, name) for name in ("D", "d", "D++", "D!")}) == 4


def test_a_room_that_is_not_there_is_not_found(pages: httpx.Client) -> None:
    page = pages.get(f"/room/{quote('<b>nowhere')}/")
    assert page.status_code == 404
    assert "&lt;b&gt;nowhere" in page.text


def test_a_room_without_a_name_is_refused(pages: httpx.Client) -> None:
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', pages.get("/").text)
    assert token is not None
    answer = pages.post(
        "/", data={"room": " \t ", "csrfmiddlewaretoken": token[1]}, headers={"Referer": str(pages.base_url)}
    )
    assert answer.status_code == 400
    assert "This field is required" in answer.text


# /ws/state/


async def test_topics_under_demo_are_everybodys(demo: DemoProcess) -> None:
    async with websocket(demo, "/ws/state/") as one, websocket(demo, "/ws/state/") as other:
        assert (await command(one, "subscribe", topic="demo:x"))["_orama"] == "ephemeral.snapshot"
        payload = base64.b64encode(b"1").decode()
        answer = await command(other, "set", topic="demo:x", key="k", payload=payload, ttl_ms=5000)
        assert answer == {"_orama": "ephemeral.ok"}
        seen = await read(one)
        assert (seen["_orama"], seen["key"], value(seen)) == ("ephemeral.set", "k", 1)
        await other.close()
        assert (await read(one))["reason"] == "disconnect"


@pytest.mark.parametrize("topic", ["room:1", "demo", "Demo:x", " demo:x", "x"])
@pytest.mark.parametrize("verb", ["subscribe", "list", "set", "clear"])
async def test_other_topics_are_nobodys(demo: DemoProcess, topic: str, verb: str) -> None:
    key = {"key": "k"} if verb in ("set", "clear") else {}
    async with websocket(demo, "/ws/state/") as connection:
        answer = await command(connection, verb, topic=topic, **key)
        assert (answer["_orama"], answer["code"]) == ("ephemeral.error", "forbidden")
        assert (await command(connection, "list", topic="demo:y"))["_orama"] == "ephemeral.snapshot"


async def test_only_the_chat_says_who_is_in_a_room(demo: DemoProcess, pages: httpx.Client) -> None:
    path = open_room(pages, "Watched")
    async with websocket(demo, "/ws/state/") as watcher:
        assert (await command(watcher, "subscribe", topic="demo:lobby"))["_orama"] == "ephemeral.snapshot"
        async with chatter(demo, path, "Ada") as (_, _, client_id, _):
            seen = await read_until(watcher, _orama="ephemeral.set", client_id=client_id)
            assert (value(seen)["room"], value(seen)["name"]) == ("Watched", "Ada")
        assert (await read_until(watcher, client_id=client_id))["reason"] == "disconnect"
        assert (await command(watcher, "set", topic="demo:lobby", key="ghost"))["code"] == "forbidden"


@pytest.mark.parametrize("path", ["/ws/state/", "/ws/chat/lounge/"])
async def test_another_sites_page_cannot_connect(demo: DemoProcess, path: str) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        async with connect(f"ws://127.0.0.1:{demo.port}{path}", origin="https://example.com", proxy=None):
            pass
    assert refusal.value.response.status_code == 403


# /ws/chat/


async def test_a_message_reaches_everybody_and_is_kept(demo: DemoProcess, pages: httpx.Client) -> None:
    path = open_room(pages, "Kept")
    async with chatter(demo, path, "Ada") as (ada, *_), chatter(demo, path, "Grace") as (grace, *_):
        await say(ada, type="message", text="  Hello <b>Grace</b> ")
        for connection in (ada, grace):
            message = (await read_until(connection, type="message"))["message"]
            assert (message["name"], message["text"]) == ("Ada", "Hello <b>Grace</b>")
    async with websocket(demo, path) as later:
        history = await read_until(later, type="history")
        assert [m["text"] for m in history["messages"]] == ["Hello <b>Grace</b>"]


async def test_presence_typing_and_cursor_are_seen_and_go_with_their_owner(
    demo: DemoProcess, pages: httpx.Client
) -> None:
    path = open_room(pages, "Busy")
    async with websocket(demo, path) as watcher:
        topic = await follow(watcher, path)
        async with chatter(demo, path, "Ada") as (ada, author, client_id, _):
            here = await read_until(watcher, key=f"here:{client_id}")
            assert value(here)["name"] == "Ada"
            assert value(here)["color"] == 200
            await say(ada, _orama="ephemeral.set", topic=topic, key=f"typing:{author}", ttl_ms=5000)
            await read_until(watcher, key=f"typing:{author}")
            cursor = {"_orama": "ephemeral.set", "topic": topic, "key": f"cursor:{author}", "ttl_ms": None}
            await say(ada, **cursor, payload=base64.b64encode(b'{"x":0.25,"y":1}').decode())
            assert value(await read_until(watcher, key=f"cursor:{author}")) == {"x": 0.25, "y": 1}
            await say(ada, _orama="ephemeral.clear", topic=topic, key=f"cursor:{author}")
            assert (await read_until(watcher, key=f"cursor:{author}"))["reason"] == "explicit"
            await say(ada, **cursor)
            await read_until(watcher, key=f"cursor:{author}")
            ada.transport.abort()
        gone = [await read_until(watcher, _orama="ephemeral.clear") for _ in range(3)]
        assert {frame["key"].partition(":")[0] for frame in gone} == {"here", "typing", "cursor"}
        assert {frame["reason"] for frame in gone} == {"disconnect"}


async def test_a_message_ends_the_typing(demo: DemoProcess, pages: httpx.Client) -> None:
    path = open_room(pages, "Ends")
    async with chatter(demo, path, "Ada") as (ada, author, _, topic):
        await say(ada, _orama="ephemeral.set", topic=topic, key=f"typing:{author}", ttl_ms=5000)
        await read_until(ada, _orama="ephemeral.set", key=f"typing:{author}")
        await say(ada, type="message", text="there")
        assert (await read_until(ada, key=f"typing:{author}"))["reason"] == "explicit"


async def test_one_may_type_and_point_as_oneself_and_nothing_else(demo: DemoProcess, pages: httpx.Client) -> None:
    path = open_room(pages, "Rights")
    async with chatter(demo, path, "Ada") as (ada, author, _, topic), chatter(demo, path, "Eve") as (eve, _, _, _):
        for key in (f"typing:{author}", f"cursor:{author}", f"here:{author}", "here:x", "typing:", "x"):
            await say(eve, _orama="ephemeral.set", topic=topic, key=key, ref=key)
            assert (await read_until(eve, ref=key))["code"] == "forbidden"
        for verb in ("subscribe", "list"):
            await say(eve, _orama=f"ephemeral.{verb}", topic="room:999", ref=verb)
            assert (await read_until(eve, ref=verb))["code"] == "forbidden"
        await say(ada, _orama="ephemeral.set", topic=topic, key=f"typing:{author}", ref="own")
        assert (await read_until(ada, ref="own"))["_orama"] == "ephemeral.ok"
    async with websocket(demo, path) as stranger:  # who has not said hello has no keys
        await say(stranger, _orama="ephemeral.set", topic=topic, key="typing:", ref=1)
        assert (await read_until(stranger, ref=1))["code"] == "forbidden"


HELLO = {"type": "hello", "name": "Ada", "color": 1, "secret": "s"}
BAD = [
    "",
    "{",
    "[" * 60_000,
    "1" * 10_000,
    "null",
    "[]",
    '"hello"',
    '{"type": ["hello"]}',
    '{"type": "nonsense"}',
    '{"type": "chat.message", "message": "forged"}',
    '{"type": "hello"}',
    json.dumps(HELLO | {"name": ""}),
    json.dumps(HELLO | {"name": " "}),
    json.dumps(HELLO | {"name": "x" * 41}),
    json.dumps(HELLO | {"name": "\ud800"}),
    json.dumps(HELLO | {"name": 1}),
    json.dumps(HELLO | {"color": 360}),
    json.dumps(HELLO | {"color": "red; }"}),
    json.dumps(HELLO | {"secret": "\udfff"}),
    '{"type": "message"}',
    '{"type": "message", "text": ""}',
    '{"type": "message", "text": "\\ud800"}',
    json.dumps({"type": "message", "text": "x" * 2001}),
    '{"type": "typing", "on": true}',
    '["_orama"]',
    b"\x00",
]


@pytest.mark.parametrize("introduced", [False, True], ids=["before hello", "after hello"])
async def test_bad_frames_are_answered_and_the_socket_lives(
    demo: DemoProcess, pages: httpx.Client, introduced: bool
) -> None:
    async with websocket(demo, open_room(pages, "Bad frames")) as connection:
        if introduced:
            await connection.send(json.dumps(HELLO))
            await read_until(connection, type="you")
        for frame in BAD:
            await connection.send(frame)
            assert (await read_until(connection, type="error"))["message"], frame
        # One that is too large never reaches the chat: the package refuses it unread.
        await connection.send("[" * 100_000)
        refusal = await read_until(connection, _orama="ephemeral.error")
        assert (refusal["code"], "100000 bytes" in refusal["message"]) == ("bad_frame", True)
        await connection.send(json.dumps(HELLO))
        await read_until(connection, type="you")


async def test_there_is_no_socket_where_there_is_no_room(demo: DemoProcess) -> None:
    with pytest.raises(InvalidStatus):
        async with websocket(demo, "/ws/chat/nowhere/"):
            pass


# Two processes


@pytest.mark.redis
async def test_on_redis_two_processes_share_the_rooms(tmp_path: Path) -> None:
    with RedisServer() as redis:
        shared = {"REDIS_URL": redis.url, "EPHEMERAL_DEMO_DB": str(tmp_path / "shared.sqlite3")}
        (tmp_path / "other").mkdir()
        with DemoProcess(tmp_path, **shared) as one, DemoProcess(tmp_path / "other", **shared) as other:
            with httpx.Client(base_url=one.url, follow_redirects=True, timeout=LIMIT, trust_env=False) as pages:
                path = open_room(pages, "Shared")
            async with (
                chatter(one, path, "Ada") as (ada, *_),
                chatter(other, path, "Grace") as (grace, _, client_id, _),
            ):
                assert value(await read_until(ada, key=f"here:{client_id}"))["name"] == "Grace"
                await say(grace, type="message", text="Hello from next door")
                assert (await read_until(ada, type="message"))["message"]["text"] == "Hello from next door"
                await asyncio.to_thread(other.stop, signal.SIGKILL)
                assert (await read_until(ada, key=f"here:{client_id}"))["reason"] == "disconnect"


# The process


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
def test_it_ends_cleanly_with_somebody_connected(tmp_path: Path, server: str, how: signal.Signals) -> None:
    with DemoProcess(tmp_path, "--server", server) as demo:

        async def stop() -> int:
            async with websocket(demo, "/ws/state/") as connection:
                await command(connection, "subscribe", topic="demo:x")
                await command(connection, "set", topic="demo:x", key="k")
                return await asyncio.to_thread(demo.stop, how)

        code = asyncio.run(stop())
        assert code == 0 or (server, how, code) == ("uvicorn", signal.SIGTERM, -signal.SIGTERM)
        assert "Traceback" not in demo.output


def test_what_it_prints_is_true_the_second_time_too(tmp_path: Path) -> None:
    with DemoProcess(tmp_path) as demo:
        first = demo.printed("Password")
        demo.restart()
        assert demo.printed("Password") != first
        with httpx.Client(base_url=demo.url, follow_redirects=True, trust_env=False, timeout=LIMIT) as pages:
            test_the_printed_login_works(demo, pages)


def test_a_redis_that_does_not_answer_is_said_and_the_pages_are_there(tmp_path: Path) -> None:
    with DemoProcess(tmp_path, REDIS_URL=f"redis://127.0.0.1:{free_port()}") as demo:
        assert "W004) the store does not work: Redis refused the connection" in demo.output
        demo.printed("Password")
    with DemoProcess(tmp_path) as demo:
        assert "System check" not in demo.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("manage.py", "runserver", "--noreload", "{port}"),
        ("-m", "uvicorn", "project.asgi:application", "--port", "{port}"),
        ("-m", "daphne", "-p", "{port}", "project.asgi:application"),
    ],
    ids=["runserver", "uvicorn", "daphne"],
)
async def test_the_project_can_be_served_like_any_other(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    process = DemoProcess(tmp_path)
    process.arguments = arguments
    migrate(process)
    with process, httpx.Client(base_url=process.url, follow_redirects=True, trust_env=False, timeout=LIMIT) as pages:
        test_the_rooms_the_styles_and_the_scripts_are_served(pages)
        await test_presence_typing_and_cursor_are_seen_and_go_with_their_owner(process, pages)


def test_a_port_in_use_is_one_line_and_an_exit_code(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run_demo(tmp_path, "--port", str(port))
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.strip().splitlines() == [
        f"CommandError: cannot listen on 127.0.0.1:{port}: Address already in use (--port takes another)"
    ]


@pytest.mark.parametrize(("option", "wrong"), [("--host", "256.1.1.1"), ("--port", "65536"), ("--port", "-1")])
def test_an_address_that_cannot_be_is_one_line_too(tmp_path: Path, option: str, wrong: str) -> None:
    result = run_demo(tmp_path, f"{option}={wrong}")
    assert result.returncode == 1
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_server_that_is_not_installed_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    without = "import sys; sys.modules['uvicorn'] = None; sys.argv[0] = 'manage.py'; import runpy; "
    command = [sys.executable, "-c", without + "runpy.run_path('manage.py', run_name='__main__')"]
    result = subprocess.run(
        [*command, "demo", "--server", "uvicorn"],
        cwd=ROOT,
        env=DemoProcess(tmp_path).environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "CommandError: uvicorn is not installed: pip install 'uvicorn[standard]'\n"


def migrate(process: DemoProcess) -> None:
    command = [sys.executable, "manage.py", "migrate", "--verbosity=0"]
    subprocess.run(command, cwd=ROOT, env=process.environment, check=True, timeout=60)


def run_demo(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = DemoProcess(folder).environment
    command = [sys.executable, "manage.py", "demo", *options]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
