"""Real server processes, and WebSocket clients that behave well or badly.

with Server("uvicorn") as server:
    async with Client(server, "async", tag="ann") as ann: ...
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlencode

from websockets.asyncio.client import ClientConnection, connect

__all__ = ["SERVERS", "Client", "Lean", "Server", "View", "is_a", "until"]

_HOST = "127.0.0.1"
_ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 20.0
"""Seconds: far longer than anything here takes on a slow machine. Nothing waits it out unless it fails."""

# No pings: a busy machine must not look like a gone client.
_COMMANDS = {
    "daphne": ["daphne", "-b", _HOST, "-p", "{port}", "-v", "1", "--ping-interval", "600", "--ping-timeout", "600"],
    "uvicorn": ["uvicorn", "--host", _HOST, "--port", "{port}", "--ws-ping-interval", "600", "--no-access-log"],
    "granian": ["granian", "--interface", "asgi", "--host", _HOST, "--port", "{port}", "--workers", "1"],
}
_VARIANTS = {"uvicorn-sansio": ["--ws", "websockets-sansio"], "uvicorn-wsproto": ["--ws", "wsproto"]}
SERVERS = os.environ.get("LIVE_SERVERS", "daphne,uvicorn,granian").split(",")


class Server:
    """One server process; a context manager. `args` go onto its command line."""

    def __init__(self, name: str, *args: str) -> None:
        self.name, _, self.variant = name.partition("-")
        self.args = (*_VARIANTS[name], *args) if self.variant else args
        self.port = 0
        self._nothing: dict[str, Any] = {}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        for _ in range(5):
            self.port = _free_port()
            command = [part.format(port=self.port) for part in _COMMANDS[self.name]]
            self._process = subprocess.Popen(
                [sys.executable, "-m", *command, *self.args, "tests.live.asgi:application"],
                cwd=_ROOT,
                env=os.environ | {"DJANGO_SETTINGS_MODULE": "tests.live.settings"} | self._end_with_us(),
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=subprocess.STDOUT,
            )
            if self._answers():
                return
            self.stop(keep_log=True)  # somebody else took the port, most likely
        log = self.log()
        self.stop()
        raise RuntimeError(f"{self.name} does not start:\n{log}")

    def stop(self, *, keep_log: bool = False) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdin is not None
            process.stdin.close()
        if not keep_log:
            self._log.close()

    def log(self, since: int = 0) -> str:
        """What the server printed, from that position on."""
        return os.pread(self._log.fileno(), 2**24, since).decode(errors="replace")

    def log_position(self) -> int:
        return os.fstat(self._log.fileno()).st_size

    def memory(self) -> int:
        """Bytes that the process has to itself."""
        assert self._process is not None
        rollup = Path(f"/proc/{self._process.pid}/smaps_rollup").read_text()
        return 1024 * sum(int(kib) for kib in re.findall(r"^Private_(?:Clean|Dirty): +(\d+) kB", rollup, re.MULTILINE))

    def url(self, kind: str, **query: Any) -> str:
        """Of the WebSocket that serves this kind of consumer."""
        return f"ws://{_HOST}:{self.port}{_path(kind, query)}"

    def get(self, path: str, **query: str) -> dict[str, Any]:
        """Blocks; for use outside of an event loop."""
        with urllib.request.urlopen(
            f"http://{_HOST}:{self.port}/{path}?{urlencode(query)}", timeout=DEADLINE
        ) as answer:
            return json.load(answer)

    async def debug(self, **query: str) -> dict[str, Any]:
        """What is inside the process now; see `inside` in `app.py`."""
        return await asyncio.to_thread(self.get, "debug", **query)

    async def nothing_left(self) -> None:
        """Wait until there is no task, thread, group member, entry or view more than when the server started."""
        wanted = self._nothing | {"stored": 0, "connections": 0, "feeds": [], "groups": {}}
        now: dict[str, Any] = {}

        async def as_at_the_start() -> bool:
            inside = await self.debug(collect="1")
            # Pools of threads are asyncio's, Django's and granian's, and stay.
            pools = ("ThreadPool", "asyncio", "Dummy")
            inside["threads"] = [name for name in inside["threads"] if not name.startswith(pools)]
            now.update({name: inside[name] for name in wanted})
            return now == wanted

        with contextlib.suppress(AssertionError):  # the next line says more
            await until(as_at_the_start)
        assert now == wanted

    async def release(self, tag: str) -> None:
        """Let go of the handlers of this tag that hang."""
        await asyncio.to_thread(self.get, "release", tag=tag)

    def _end_with_us(self) -> dict[str, str]:
        # granian's workers have no stdin of ours to watch.
        return {} if self.name == "granian" else {"END_WITH_STDIN": "1"}

    def _answers(self) -> bool:
        assert self._process is not None
        end = time.monotonic() + 60
        while time.monotonic() < end and self._process.poll() is None:
            try:
                inside = self.get("debug")
            except OSError:
                time.sleep(0.05)
            else:
                self._nothing = {name: inside[name] for name in ("task_names", "threads")}
                return True
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return probe.getsockname()[1]


async def until(condition: Callable[[], Any], what: str = "") -> Any:
    """The first true result of `condition`, which may be async. Fails after the deadline, saying the last one."""
    end = time.monotonic() + DEADLINE
    while True:
        result = condition()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return result
        assert time.monotonic() < end, f"still not {what or 'true'} after {DEADLINE} s: {result!r}"
        await asyncio.sleep(0.02)


def is_a(kind: str, frame: Any) -> bool:
    return isinstance(frame, dict) and frame.get("_orama") == kind


class View:
    """A topic as a client builds it from the frames that it gets."""

    def __init__(self) -> None:
        self.state: dict[str, tuple[str, str]] = {}
        self.welcomed = 0
        self.changes = 0

    def hear(self, frame: dict[str, Any]) -> None:
        kind = frame.get("_orama")
        if kind == "ephemeral.snapshot":
            self.welcomed += 1
            self.state = {e["key"]: (e["client_id"], e.get("payload", "")) for e in frame["entries"]}
        elif kind == "ephemeral.set":
            self.changes += 1
            self.state[frame["key"]] = (frame["client_id"], frame.get("payload", ""))
        elif kind == "ephemeral.clear":
            self.changes += 1
            self.state.pop(frame["key"], None)


def _path(kind: str, query: dict[str, Any]) -> str:
    encoded = {name: value if isinstance(value, str) else json.dumps(value) for name, value in query.items()}
    return f"/ws/{kind}/?{urlencode(encoded, quote_via=quote)}"


class Client:
    """A client on the `websockets` library, with the means to misbehave. `async with` connects and closes."""

    def __init__(self, server: Server, kind: str, **query: Any) -> None:
        self.server = server
        self.view = View()
        self.hello: dict[str, Any] = {}
        self._kind = kind
        self._uri = server.url(kind, **query)
        self._ws: ClientConnection | None = None
        self._receive_buffer: int | None = None

    def with_small_buffer(self) -> Self:
        """Before connecting: the kernel is to keep little for it, so that not reading is felt by the server."""
        self._receive_buffer = 4096
        return self

    async def __aenter__(self) -> Self:
        sock = socket.socket(proto=socket.IPPROTO_TCP)  # asyncio looks for that to switch Nagle's algorithm off
        if self._receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (_HOST, self.server.port))
            self._ws = await connect(
                self._uri,
                sock=sock,
                open_timeout=DEADLINE,
                close_timeout=DEADLINE,
                ping_interval=None,
                compression=None,
                max_size=None,
                max_queue=None,
                proxy=None,
            )
        except BaseException:
            sock.close()
            raise
        if self._kind == "ready":
            self.hello = await self.frame()
            assert is_a("ephemeral.hello", self.hello)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @property
    def ws(self) -> ClientConnection:
        assert self._ws is not None
        return self._ws

    async def do(self, what: str, /, **command: Any) -> None:
        """Give the consumer a command."""
        await self.send({"do": what, **command})

    async def send(self, frame: Any) -> None:
        await self.ws.send(frame if isinstance(frame, str | bytes) else json.dumps(frame))

    async def text(self) -> str:
        """The next frame as it came."""
        async with asyncio.timeout(DEADLINE):
            text = await self.ws.recv()
        assert isinstance(text, str), "a server frame that is not text"
        return text

    async def frame(self) -> Any:
        """The next frame; frames of ours change `view`."""
        frame = json.loads(await self.text())
        if isinstance(frame, dict):
            self.view.hear(frame)
        return frame

    async def frames(self, wanted: Callable[[Any], bool]) -> list[Any]:
        """All frames up to the first that is wanted."""
        got = [await self.frame()]
        while not wanted(got[-1]):
            got.append(await self.frame())
        return got

    async def settled(self) -> None:
        """Return when the consumer has handled everything that was sent so far."""
        await self.do("echo", what="settled")
        await self.frames(lambda frame: frame == "settled")

    async def name(self) -> str:
        """The consumer's channel name."""
        await self.do("whoami")
        frames = await self.frames(lambda frame: "channel_name" in frame)
        return frames[-1]["channel_name"]

    async def subscribe(self, topic: str) -> Any:
        """The snapshot."""
        await self.do("subscribe", topic=topic)
        return (await self.frames(lambda frame: is_a("ephemeral.snapshot", frame)))[-1]

    async def set(self, topic: str, key: str, payload: str = "", **more: Any) -> None:
        """Returns when it is stored."""
        await self.do("set", topic=topic, key=key, payload=payload, **more)
        await self.settled()

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def closed(self) -> int:
        """Wait until the server has closed; the code."""
        async with asyncio.timeout(DEADLINE):
            await self.ws.wait_closed()
        return self.ws.close_code or 0

    # Ways to go

    async def close(self) -> None:
        await self.ws.close()

    async def reset(self) -> None:
        """TCP RST, as a crashed client or a dropped NAT entry makes it."""
        _linger_0(self.ws.transport.get_extra_info("socket"))
        self.ws.transport.abort()

    async def hang_up(self) -> None:
        """The TCP connection ends without a WebSocket close frame."""
        self.ws.transport.close()

    async def vanish_amid_a_frame(self) -> None:
        self.ws.transport.write(b"\x81\xfe\x01\x00mask")  # a masked text frame of 256 bytes, none of which come
        self.ws.transport.close()

    def stop_reading(self) -> None:
        self.ws.transport.pause_reading()

    def read_again(self) -> None:
        self.ws.transport.resume_reading()


class Lean(asyncio.Protocol):
    """A client for crowds: no task and no queue per connection, so that 1 000 of them fit into one test."""

    def __init__(self) -> None:
        self.view = View()
        self.count = 0
        self.connected = False
        self.gone = False
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._open: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def connect(cls, server: Server, kind: str, *, parse: bool = True, **query: Any) -> Lean:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(3 * DEADLINE):
            transport, lean = await loop.create_connection(cls, _HOST, server.port)
            lean._parse = parse
            transport.write(
                f"GET {_path(kind, query)} HTTP/1.1\r\nHost: {_HOST}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\n"
                "Sec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            await lean._open
        return lean

    def do(self, what: str, /, **command: Any) -> None:
        self.send(json.dumps({"do": what, **command}))

    def send(self, text: str) -> None:
        data = text.encode()
        size = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + struct.pack("!H", len(data))
        self._write(b"\x81" + size + bytes(4) + data)  # a mask of zeros leaves the data as it is

    def close(self) -> None:
        self._write(b"\x88\x82" + bytes(4) + struct.pack("!H", 1000))

    def reset(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            _linger_0(self._transport.get_extra_info("socket"))
            self._transport.abort()

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.gone = True
        if not self._open.done():
            self._open.set_exception(ConnectionError("the server hung up in the handshake"))

    def data_received(self, data: bytes) -> None:
        if self.connected and not self._parse:
            self.count += 1
            return
        self._buffer += data
        if not self.connected and b"\r\n\r\n" in self._buffer:
            head, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 101"):
                self._open.set_exception(ConnectionError(f"refused: {head[:80]!r}"))
                return
            self.connected = True
            self._buffer = bytearray(rest)
            self._open.set_result(None)
        if self.connected:
            for opcode, payload in self._frames():
                if opcode == 1:
                    self.count += 1
                    frame = json.loads(payload)
                    if isinstance(frame, dict):
                        self.view.hear(frame)
                elif opcode == 8 and self._transport is not None:
                    self._transport.close()

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        buffer, at = self._buffer, 0
        while len(buffer) >= at + 2:
            size, start = buffer[at + 1] & 0x7F, at + 2
            if size >= 126:
                width = 2 if size == 126 else 8
                if len(buffer) < start + width:
                    break
                size, start = int.from_bytes(buffer[start : start + width]), start + width
            if len(buffer) < start + size:
                break
            yield buffer[at] & 0x0F, bytes(buffer[start : start + size])
            at = start + size
        del buffer[:at]


def _linger_0(sock: Any) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
