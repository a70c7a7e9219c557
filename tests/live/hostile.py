"""A client that means harm, as a process of its own:

    python -m tests.live.hostile SECONDS --url URL --denied URL --room TOPIC

It does at once what `ATTACKS` lists, each on connections of its own, and comes back at once when it is sent away. It
prints a line when it begins, and as JSON what it has done when it ends, after so many seconds or by SIGTERM; SIGUSR1
makes it hold off, and go on. At `--url` it may use topics that begin with
"hostile", and read `--room`, where others are at home; at `--denied` nothing is allowed.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import json
import os
import random
import signal
import socket
import struct
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

__all__ = ["ATTACKS", "BEGINS"]

BEGINS = "attacking"
FLOOD = 10_000  # commands a second
NAMES = 100_000 / 60  # a second, and never the same
LARGE = 20  # frames of 1 MB a second: 160 Mbit/s
RANDOM = 1_000  # frames a second, of
FRAMES = 500  # different ones
TICK = 0.002  # seconds
CONTINUATION, TEXT, BINARY, PING = 0, 1, 2, 9


def encode(data: bytes, opcode: int = TEXT, *, fin: bool = True) -> bytes:
    """One frame as it is on the wire. A mask of zeros leaves the data as it is."""
    size = len(data)
    if size < 126:
        head = bytes([0x80 | size])
    elif size < 2**16:
        head = b"\xfe" + struct.pack("!H", size)
    else:
        head = b"\xff" + struct.pack("!Q", size)
    return bytes([fin << 7 | opcode]) + head + bytes(4) + data


def command(verb: str, **fields: Any) -> bytes:
    return encode(json.dumps({"_orama": f"ephemeral.{verb}", **fields}).encode())


class Link(asyncio.Protocol):
    """A connection that takes any bytes. What it hears, it counts and forgets."""

    def __init__(self, done: Counter[str]) -> None:
        self._done = done
        self._writable = asyncio.Event()
        self._writable.set()
        self.gone = asyncio.Event()
        self._answer = bytearray()
        self._open = asyncio.Event()

    @classmethod
    async def to(cls, url: str, done: Counter[str], *, small: bool = False) -> Link:
        """Raises `OSError`. `small`: the kernel keeps little for it, so that not reading is felt soon."""
        parts = urlsplit(url)
        sock = socket.socket()
        try:
            if small:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, (parts.hostname, parts.port))
            transport, link = await loop.create_connection(lambda: cls(done), sock=sock)
        except BaseException:
            sock.close()
            raise
        link.transport = transport
        link.handshake = (
            f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\n\r\n"
        ).encode()
        return link

    async def opened(self) -> Link:
        self.transport.write(self.handshake)
        gone, opened = asyncio.create_task(self.gone.wait()), asyncio.create_task(self._open.wait())
        await asyncio.wait((gone, opened), timeout=10, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        opened.cancel()
        if not self._open.is_set():
            self.reset()
            raise ConnectionError("not let in")
        self._done["connections"] += 1
        return self

    async def write(self, data: bytes) -> None:
        """Waits while the server does not take it. Raises `ConnectionError` when it is gone."""
        await self._writable.wait()
        if self.gone.is_set():
            raise ConnectionError("sent away")
        self.transport.write(data)

    def reset(self) -> None:
        self.transport.abort()

    transport: asyncio.Transport
    handshake: bytes

    def data_received(self, data: bytes) -> None:
        self._done["bytes heard"] += len(data)
        if not self._open.is_set():
            self._answer += data
            if b"\r\n\r\n" in self._answer:
                if self._answer.startswith(b"HTTP/1.1 101"):
                    self._open.set()
                else:
                    self.transport.abort()
        elif data[:1] == b"\x88" or b"\x88\x02\x0f\xa8" in data:
            self._done["sent away"] += 1
            self.transport.abort()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.gone.set()
        self._writable.set()


class Hostile:
    def __init__(self, url: str, denied: str, room: str, seconds: float, frames: list[bytes]) -> None:
        self.url = url
        self.denied = denied
        self.room = room
        self.seconds = seconds
        self.frames = frames
        self.done: Counter[str] = Counter()
        self.random = random.Random(1)
        self.on = asyncio.Event()
        self.numbers = itertools.count()

    async def link(self, url: str | None = None, **how: Any) -> Link:
        return await (await Link.to(url or self.url, self.done, **how)).opened()

    def switch(self) -> None:
        """Hold off, or go on."""
        if self.on.is_set():
            self.on.clear()
        else:
            self.on.set()

    async def paced(self, link: Link, what: str, rate: float, frames: Iterator[bytes]) -> None:
        """So many frames a second, for as long as it is let."""
        loop = asyncio.get_running_loop()
        begin, sent = loop.time(), 0
        while not link.gone.is_set():
            await self.on.wait()
            due = int((loop.time() - begin) * rate) + 1 - sent
            if due > rate:  # the server did not take them: they are not made up for
                begin, sent, due = loop.time(), 0, 1
            await link.write(b"".join(itertools.islice(frames, due)))
            sent += due
            self.done[what] += due
            await asyncio.sleep(max(TICK, 1 / rate))

    # Each is begun again and again, until the time is over

    async def many_commands(self) -> None:
        sets = [command("set", topic="hostile", key=f"k{n}", payload="aGVsbG8=", ref=n) for n in range(300)]
        await self.paced(await self.link(), "commands", FLOOD, itertools.cycle(sets))

    async def many_names(self) -> None:
        verbs = itertools.cycle(("subscribe", "set", "list"))

        def names() -> Iterator[bytes]:
            for number, verb in zip(self.numbers, verbs, strict=False):
                topic = f"hostile {number} ".ljust(1024 if number % 10 == 0 else 20, ".")
                yield command(verb, topic=topic, **({"key": topic} if verb == "set" else {}))

        await self.paced(await self.link(), "names", NAMES, names())

    async def large_frames(self) -> None:
        filler = b"x" * 1_000_000
        payload = base64.b64encode(bytes(700_000)).decode()
        parts = [filler[at : at + 50_000] for at in range(0, len(filler), 50_000)]
        frames = (
            encode(filler),
            encode(filler, BINARY),
            command("set", topic="hostile", key="large", payload=payload),
            encode(parts[0], fin=False)
            + b"".join(encode(part, CONTINUATION, fin=False) for part in parts[1:])
            + encode(b"", CONTINUATION),
        )
        await self.paced(await self.link(), "large frames", LARGE, itertools.cycle(frames))

    async def random_frames(self) -> None:
        frames = iter(lambda: self.random.choice(self.frames), None)
        await self.paced(await self.link(), "random frames", RANDOM, frames)

    async def forbidden(self) -> None:
        frames = [
            command(verb, topic=topic, **({"key": "stolen"} if verb in ("set", "clear") else {}))
            for verb in ("subscribe", "set", "list", "clear", "unsubscribe")
            for topic in (self.room, "hostile", "not there")
        ]
        await self.paced(await self.link(self.denied), "forbidden", RANDOM / 10, itertools.cycle(frames))

    async def half_written(self) -> None:
        """Half of a handshake, of a head, of a frame, of a message: then it waits, and goes without a word."""
        link = await Link.to(self.url, self.done)
        halves = (None, b"\x81", b"\x81\xfe\x01", encode(b"{" * 60_000)[:30_000], encode(b'{"_or', fin=False))
        half = self.random.choice(halves)
        if half is None:
            link.transport.write(link.handshake[:100])
        else:
            await link.opened()
            await link.write(half)
        self.done["half-written"] += 1
        with suppress(TimeoutError):
            await asyncio.wait_for(link.gone.wait(), self.random.choice((0.0, 0.5, 3.0)))
        if self.random.random() < 0.5:
            link.reset()
        else:
            link.transport.close()

    async def slow_reading(self) -> None:
        """Asks for much, and takes nothing of it."""
        link = await self.link(small=True)
        link.transport.pause_reading()
        self.done["slow readers"] += 1
        await link.write(command("subscribe", topic=self.room))
        claims = command("pong", n=1)  # that it has read
        frames = itertools.cycle([command("list", topic=self.room), command("subscribe", topic=self.room), claims])
        watch = asyncio.create_task(self.paced(link, "asked without reading", 50, frames))
        try:
            await asyncio.wait([watch], timeout=25)  # who never reads does not see that it was sent away
        finally:
            watch.cancel()
            link.reset()

    async def large_answers(self) -> None:
        """Sets as much as it may, asks for it again and again, and takes nothing of it."""
        link = await self.link(small=True)
        payload = base64.b64encode(bytes(16_384)).decode()
        await link.write(
            b"".join(command("set", topic="hostile heap", key=f"{n}", payload=payload) for n in range(250))
        )
        link.transport.pause_reading()
        frames = itertools.cycle([command("list", topic="hostile heap"), command("subscribe", topic="hostile heap")])
        watch = asyncio.create_task(self.paced(link, "large answers", 20, frames))
        try:
            await asyncio.wait([watch], timeout=10)
        finally:
            watch.cancel()
            link.reset()

    async def again_and_again(self, attack: Callable[[], Awaitable[None]]) -> None:
        while True:
            await self.on.wait()
            try:
                await attack()
            except OSError:
                await asyncio.sleep(TICK)

    async def attack(self, names: Sequence[str]) -> None:
        """Until the time is over, or SIGTERM."""
        loop = asyncio.get_running_loop()
        over = loop.create_future()
        loop.add_signal_handler(signal.SIGTERM, over.set_result, None)
        loop.add_signal_handler(signal.SIGUSR1, self.switch)
        self.on.set()
        print(BEGINS, flush=True)
        todo = [getattr(self, name) for name in names for _ in range(ATTACKS[name])]
        tasks = [asyncio.create_task(self.again_and_again(attack)) for attack in todo]
        done, _ = await asyncio.wait([over, *tasks], timeout=self.seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()


ATTACKS = {
    "many_commands": 1,
    "many_names": 1,
    "large_frames": 1,
    "random_frames": 1,
    "forbidden": 1,
    "half_written": 5,
    "slow_reading": 3,
    "large_answers": 1,
}
"""What it does, on how many connections at a time."""


# Frames that nobody has thought of


def _json() -> st.SearchStrategy[Any]:
    simple = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20)
    return (
        simple | st.lists(simple, max_size=3) | st.dictionaries(st.text(max_size=9), simple | st.just([{}]), max_size=3)
    )


def _commands() -> st.SearchStrategy[bytes]:
    verbs = ("subscribe", "unsubscribe", "set", "clear", "list", "pong", "ok", "snapshot", "revoke", "event", "")
    kinds = st.sampled_from([f"ephemeral.{verb}" for verb in verbs])
    names = st.sampled_from(["hostile", "hostile/2", "", "\0", "é" * 600]) | st.text(st.characters(), max_size=30)
    fields = {
        "topic": names,
        "key": names,
        "payload": st.binary(max_size=60).map(lambda data: base64.b64encode(data).decode()),
        "ttl_ms": st.none() | st.integers() | st.floats(),
        "grace_ms": st.integers(-10, 10**6),
        "batch": st.booleans(),
        "max_rate": st.floats() | st.integers(),
        "ref": st.integers() | st.text(max_size=140),
    }
    right = st.fixed_dictionaries({"_orama": kinds, "topic": fields.pop("topic")}, optional=fields)
    wrong = st.dictionaries(st.sampled_from([*fields, "_orama", "topic", "type"]), _json(), max_size=3)
    made = st.builds(lambda a, b: json.dumps(a | b).encode(), right, st.just({}) | wrong)
    return made | st.builds(lambda data, at: data[:at], made, st.integers(0, 60))


def _wire() -> st.SearchStrategy[bytes]:
    """Mostly frames as they should be, whatever is in them, so that the connection lasts; a few of them spoilt."""
    text = _commands() | _json().map(lambda value: json.dumps(value).encode()) | st.text().map(str.encode)
    data = text | st.binary(max_size=100)
    right = text.map(encode) | st.builds(encode, data, st.just(BINARY))
    right |= st.builds(encode, st.binary(max_size=100), st.just(PING))
    wrong = (
        data.map(encode)
        | st.builds(_flip, right, st.integers(0, 8), st.integers(0, 7))
        | st.builds(lambda data, opcode, fin: encode(data, opcode, fin=fin), data, st.integers(0, 15), st.booleans())
        | st.binary(min_size=1, max_size=20)
    )
    return st.integers(0, 49).flatmap(lambda n: right if n else wrong)


def _flip(frame: bytes, at: int, bit: int) -> bytes:
    spoilt = bytearray(frame)
    spoilt[at % len(spoilt)] ^= 1 << bit
    return bytes(spoilt)


def made_by_hypothesis(count: int, number: int) -> list[bytes]:
    made: list[bytes] = []

    @seed(number)
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(_wire())
    def collect(frame: bytes) -> None:
        made.append(frame)

    collect()
    return made


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("seconds", type=float)
    for name in ("--url", "--denied", "--room"):
        options.add_argument(name, required=True)
    options.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    given = options.parse_args()
    print("seed", given.seed, file=sys.stderr)
    frames = made_by_hypothesis(FRAMES, given.seed)
    print(json.dumps(asyncio.run(_attack(given, frames))), flush=True)


async def _attack(given: argparse.Namespace, frames: list[bytes]) -> Counter[str]:
    hostile = Hostile(given.url, given.denied, given.room, given.seconds, frames)
    await hostile.attack(given.attacks)
    return hostile.done


if __name__ == "__main__":
    main()
