"""50 people move a cursor 20 times a second each, and see the cursors of all: 50 000 deliveries a second.

Each set carries the time at which it was sent; its age on arrival is its staleness, by one and the same clock. `in
time` is what arrived in the measured seconds, as a share of what was sent in them; `wrong` is how many of the 2 500
cursors are not where they were left, once everything is still. Values that were overtaken while a socket was not ready
may be left out, so 100 % of all deliveries is not promised, only that nothing is wrong at the end. `batch` gets several
changes in a frame, `batch+rate` at most 20 frames a second.
"""

from __future__ import annotations

from argparse import Namespace

from benchmarks.rooms.load import prepare
from benchmarks.rooms.report import Aim, Column, publish
from benchmarks.rooms.rounds import Comparison, compare, contenders, parser, run
from benchmarks.rooms.servers import Contender
from tests.redis_server import RedisServer

CLIENTS, RATE = 50, 20
STALENESS_AIM = 50.0  # ms
BYTES_AIM, CPU_AIM = 1 / 4, 1 / 3
COLUMNS = (
    Column("updates/s", "updates_per_s"),
    Column("in time %", "in_time_share", ".1f", 100),
    Column("arrived %", "delivered_share", ".1f", 100),
    Column("wrong", "wrong_at_the_end"),
    Column("p50 ms", "staleness_p50", ",.1f"),
    Column("p99 ms", "staleness_p99", ",.1f"),
    Column("kB/s each", "bytes_per_subscriber_per_s", ",.1f", 1e-3),
    Column("server %", "server_cpu", ".0f", 100),
    Column("CPU × hand", "server_cpu", ".2f", versus="handwritten"),
    Column("load %", "load_cpu", ".0f", 100),
)


def aims(comparison: Comparison, options: Namespace) -> list[Aim]:
    made = []
    for server in options.servers:
        for layer in options.layers:
            plain, rated = Contender(server, layer, "ours"), Contender(server, layer, "ours", "batch+rate")
            hand = Contender(server, layer, "handwritten")
            for each in (plain, Contender(server, layer, "ours", "batch"), rated):
                wrong = comparison.worst(each, "wrong_at_the_end")
                made.append(Aim(f"{each.name}: wrong at the end, worst round", wrong, 0, at_least=False))
            if server != "uvicorn":
                continue
            made.append(Aim(f"{plain.name}: share in time", comparison.median(plain, "in_time_share"), 0.99))
            arrived = comparison.least(plain, "delivered_share")
            made.append(Aim(f"{plain.name}: share that arrived, worst round", arrived, 1))
            p99 = comparison.median(plain, "staleness_p99")
            made.append(Aim(f"{plain.name}: p99 staleness, ms", p99, STALENESS_AIM, at_least=False))
            ratio = comparison.ratio("bytes_per_subscriber_per_s", rated, plain)
            made.append(Aim(f"{rated.name}: bytes × the plain stream", ratio, BYTES_AIM, at_least=False))
            ratio = comparison.ratio("server_cpu", rated, hand)
            made.append(Aim(f"{rated.name}: CPU × {hand.name}", ratio, CPU_AIM, at_least=False))
    return made


def main(arguments: list[str]) -> int:
    made = parser("cursors", __doc__, rounds=5, seconds=5, layers=("memory", "pubsub"))
    made.add_argument("--clients", type=int, default=CLIENTS)
    options = made.parse_args(arguments)
    if options.quick:
        options.rounds, options.seconds, options.clients = 1, min(options.seconds, 0.5), 8
    prepare()
    with RedisServer() as redis:

        def once(contender: Contender) -> dict[str, object]:
            return run(
                "cursors",
                contender,
                redis.url,
                timeout=60 + options.seconds,
                clients=options.clients,
                rate=RATE,
                seconds=options.seconds,
                warmup=0.2 if options.quick else 1.0,
            )

        fighters = contenders(options, variants=("", "batch", "batch+rate"))
        comparison = compare(f"{options.clients} clients × {RATE} Hz", fighters, once, options.rounds)
    return publish("cursors", options, [comparison], COLUMNS, aims(comparison, options))
