"""One subscriber stops reading for a minute while 1 000 updates a second go to it and to 10 others.

What the server's memory grows by meanwhile, how long the others wait (p99 of the time from the writer to them, beside
the same without the slow one, in the same run), and whether the slow one ends at the truth once it reads again. It says
all the time that it is alive, but never that it has read: ours ends it after 10 s in which it does not. `again` is 1
where it was ended and had to reconnect. The payload is large enough that the kernel's buffers, some megabytes, are full
within seconds. Memory is that of the process that serves.
"""

from __future__ import annotations

from argparse import Namespace

from benchmarks.rooms.load import prepare
from benchmarks.rooms.report import Aim, Column, publish
from benchmarks.rooms.rounds import Comparison, compare, contenders, parser, run
from benchmarks.rooms.servers import Contender
from tests.redis_server import RedisServer

SERVERS = ("uvicorn", "daphne", "granian")
OTHERS, KEYS, RATE, PAYLOAD = 10, 50, 1_000, 1_000  # with 20 others daphne and granian have no time left
GROWTH_AIM = 5.0  # MB
P99_AIM = 1.2
COLUMNS = (
    Column("growth MB", "growth", ".1f", 1e-6),
    Column("p50 ms", "p50", ",.1f"),
    Column("p99 ms", "p99", ",.1f"),
    Column("p99 without", "p99_without", ",.1f"),
    Column("ratio", "p99_ratio", ".2f"),
    Column("arrived %", "delivered_share", ".1f", 100),
    Column("wrong", "wrong_at_the_end"),
    Column("caught up ms", "caught_up_ms"),
    Column("again", "reconnected"),
    Column("server %", "server_cpu", ".0f", 100),
    Column("load %", "load_cpu", ".0f", 100),
)


def aims(comparison: Comparison, options: Namespace) -> list[Aim]:
    made = []
    for server in options.servers:
        for layer in options.layers:
            for variant in options.variants:
                ours = Contender(server, layer, "ours", variant)
                growth = comparison.worst(ours, "growth")
                megabytes = None if growth is None else growth / 1e6
                made.append(Aim(f"{ours.name}: growth, MB, worst round", megabytes, GROWTH_AIM, at_least=False))
                ratio = comparison.median(ours, "p99_ratio")
                made.append(Aim(f"{ours.name}: p99 of the others, with × without", ratio, P99_AIM, at_least=False))
                wrong = comparison.worst(ours, "wrong_at_the_end")
                made.append(Aim(f"{ours.name}: wrong at the end, worst round", wrong, 0, at_least=False))
    return made


def main(arguments: list[str]) -> int:
    made = parser("slow", __doc__, rounds=5, seconds=60, layers=("memory",), servers=SERVERS)
    made.add_argument("--variants", nargs="+", choices=("", "batch"), default=["", "batch"], help="default: both")
    made.add_argument("--others", type=int, default=OTHERS)
    made.add_argument("--rate", type=int, default=RATE, help=f"updates a second; default: {RATE}")
    made.add_argument("--payload", type=int, default=PAYLOAD, help=f"bytes; default: {PAYLOAD}")
    options = made.parse_args(arguments)
    if options.quick:
        options.rounds, options.seconds, options.others, options.rate = 1, min(options.seconds, 1.0), 4, 100
    prepare()
    with RedisServer() as redis:

        def once(contender: Contender) -> dict[str, object]:
            return run(
                "slow",
                contender,
                redis.url,
                timeout=120 + 2 * options.seconds,
                others=options.others,
                keys=KEYS,
                rate=options.rate,
                payload=options.payload,
                before=min(options.seconds, 10),
                seconds=options.seconds,
                settle=0.2 if options.quick else 1.0,
                patience=30 if not options.quick else 3,
            )

        fighters = contenders(options, variants=options.variants, bare=False)  # a bare one waits for the slow one
        title = f"{options.others} others, {options.rate:,} updates/s, {options.seconds:g} s"
        comparison = compare(title, fighters, once, options.rounds)
    return publish("slow", options, [comparison], COLUMNS, aims(comparison, options))
