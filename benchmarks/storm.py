"""50 of 200 sockets own 5 keys each and are gone at once: when has the last of the others heard the last clear?

The 50 are in a process of their own, which resets their connections all at once. Each of the other 150 is to hear 250
clears. `last ms` is until the last of them has the last one; a run in which clears are missing after 10 s has no such
figure. Channel layers have their default capacity.
"""

from __future__ import annotations

from argparse import Namespace

from benchmarks.rooms.load import prepare
from benchmarks.rooms.report import Aim, Column, publish
from benchmarks.rooms.rounds import SOCKETIO, Comparison, compare, contenders, parser, run
from benchmarks.rooms.servers import Contender
from tests.redis_server import RedisServer

SOCKETS, OWNERS, KEYS = 200, 50, 5
OF_SOCKETIO = 0.5
OF_BARE = 1.2
COLUMNS = (
    Column("last ms", "last_ms"),
    Column("missing", "missing"),
    Column("missing %", "missing_share", ".1f", 100),
    Column("observers", "incomplete_observers"),
    Column("frames", "frames"),
    Column("bytes", "bytes"),
    Column("CPU ms", "server_cpu_ms"),
    Column("load %", "load_cpu", ".0f", 100),
)


def aims(comparison: Comparison, options: Namespace) -> list[Aim]:
    made = []
    for server in options.servers:
        for layer in options.layers:
            for variant in ("", "batch"):
                ours = Contender(server, layer, "ours", variant)
                missing = comparison.worst(ours, "missing")
                made.append(Aim(f"{ours.name}: clears missing, worst round", missing, 0, at_least=False))
                if server == "uvicorn":
                    ratio = comparison.ratio("last_ms", ours, SOCKETIO)
                    made.append(Aim(f"{ours.name}: time × {SOCKETIO.name}", ratio, OF_SOCKETIO, at_least=False))
                if not variant:  # 250 frames for each, which no application sends faster than the server takes them
                    bare = Contender(server, "-", "bare")
                    ratio = comparison.ratio("last_ms", ours, bare)
                    made.append(Aim(f"{ours.name}: time × {bare.name}", ratio, OF_BARE, at_least=False))
    return made


def main(arguments: list[str]) -> int:
    made = parser("storm", __doc__, rounds=5, seconds=10, layers=("memory", "pubsub", "core"))
    made.add_argument("--sockets", type=int, default=SOCKETS, help="a quarter of them own keys")
    options = made.parse_args(arguments)
    if options.quick:
        options.rounds, options.seconds, options.sockets = 1, min(options.seconds, 5.0), 24
    owners = options.sockets * OWNERS // SOCKETS
    prepare()
    with RedisServer() as redis:

        def once(contender: Contender) -> dict[str, object]:
            return run(
                "storm",
                contender,
                redis.url,
                timeout=120 + options.seconds,
                observers=options.sockets - owners,
                owners=owners,
                keys=KEYS,
                patience=options.seconds,
            )

        fighters = contenders(options, variants=("", "batch"))
        title = f"{owners} of {options.sockets} sockets gone, {KEYS} keys each"
        comparison = compare(title, fighters, once, options.rounds)
    return publish("storm", options, [comparison], COLUMNS, aims(comparison, options))
