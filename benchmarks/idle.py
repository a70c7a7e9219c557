"""2 000 connections that have subscribed and do nothing: memory of each, and of an entry in the memory store.

Counted is the memory that the server's process has to itself, before and after they came. The bytes of an entry are
those of 100 000 entries with 32 bytes of payload in a fresh process.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from argparse import Namespace

from benchmarks.growth import Clock, Memory, fill
from benchmarks.rooms.load import prepare
from benchmarks.rooms.report import Aim, Column, publish
from benchmarks.rooms.rounds import Comparison, compare, contenders, parser, run
from benchmarks.rooms.servers import ROOT, Contender
from tests.redis_server import RedisServer

CONNECTIONS, ENTRIES = 2_000, 100_000
OF_HANDWRITTEN = 1.3
ENTRY_AIM = 1_000.0  # bytes
COLUMNS = (
    Column("kB each", "bytes_per_connection", ".1f", 1e-3),
    Column("× hand", "bytes_per_connection", ".2f", versus="handwritten"),
    Column("before MB", "before", ".1f", 1e-6),
    Column("after MB", "after", ".1f", 1e-6),
    Column("connections", "connections"),
    Column("idle CPU %", "server_cpu", ".1f", 100),
)


def aims(comparison: Comparison, options: Namespace) -> list[Aim]:
    made = []
    for server in options.servers:
        for layer in options.layers:
            ours, hand = Contender(server, layer, "ours"), Contender(server, layer, "handwritten")
            ratio = comparison.ratio("bytes_per_connection", ours, hand)
            made.append(Aim(f"{ours.name}: memory × {hand.name}", ratio, OF_HANDWRITTEN, at_least=False))
    return made


def entry_bytes(entries: int) -> float:
    command = [sys.executable, "-m", "benchmarks.idle", str(entries)]
    return float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def main(arguments: list[str]) -> int:
    made = parser("idle", __doc__, rounds=5, seconds=3, layers=("memory", "pubsub"))
    made.add_argument("--connections", type=int, default=CONNECTIONS)
    made.add_argument("--entries", type=int, default=ENTRIES)
    options = made.parse_args(arguments)
    if options.quick:
        options.rounds, options.seconds, options.connections, options.entries = 1, 0.2, 60, 2_000
    prepare()
    with RedisServer() as redis:

        def once(contender: Contender) -> dict[str, object]:
            settle = 0.1 if options.quick else 1.0
            wishes = {"connections": options.connections, "seconds": options.seconds, "settle": settle}
            return run("idle", contender, redis.url, timeout=120 + options.seconds, **wishes)

        title = f"{options.connections:,} connections"
        comparison = compare(title, contenders(options), once, options.rounds)
    entry = Aim("memory store: bytes per entry", entry_bytes(options.entries), ENTRY_AIM, at_least=False)
    return publish("idle", options, [comparison], COLUMNS, [*aims(comparison, options), entry])


async def _measure_entries(entries: int) -> float:
    memory, clock = Memory(), Clock()
    store = memory.store(clock)
    await fill(store, 100)
    before = memory.used()
    await fill(store, entries)
    return (memory.used() - before) / entries


if __name__ == "__main__":
    print(asyncio.run(_measure_entries(int(sys.argv[1]))))
