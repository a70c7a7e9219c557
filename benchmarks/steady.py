"""One writer and a room of subscribers: how many changes a second reach them.

The writer is saturated: it keeps `--window` sets on the way and sends the next when one comes back to its own socket,
so the server sets the pace. It goes round KEYS keys, more than are ever on the way: a socket that keeps up is told of
each set, and only where one falls more than that behind does ours leave out values that have been overtaken. Counted
is what arrived, by the second of wall time; `arrived` is its share of all sets times all subscribers once everything
is still. `batch` gets several changes in a frame. The ceiling is a writer of ready-made bytes: what the load generator
can count at most; `load` is the share of a core that it used.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from contextlib import AbstractContextManager

from benchmarks.rooms.load import prepare
from benchmarks.rooms.report import Aim, Column, publish
from benchmarks.rooms.rounds import SOCKETIO, Comparison, Result, compare, contenders, parser, run
from benchmarks.rooms.servers import Contender, Server
from tests.redis_server import RedisServer

WINDOW, KEYS = 64, 200
SUBSCRIBERS = (200, 500)
CEILING = Contender("node", "-", "blast")
TIMES_HANDWRITTEN = {"uvicorn": 10.0, "daphne": 4.0}
OF_BARE = 0.8
COLUMNS = (
    Column("updates/s", "updates_per_s"),
    Column("× hand", "updates_per_s", ".1f", versus="handwritten"),
    Column("× bare", "updates_per_s", ".2f", versus="bare"),
    Column("frames/s", "frames_per_s"),
    Column("CPU µs each", "cpu_us_per_update", ".1f"),
    Column("CPU × bare", "cpu_us_per_update", ".2f", versus="bare"),
    Column("bytes each", "bytes_per_update"),
    Column("server %", "server_cpu", ".0f", 100),
    Column("load %", "load_cpu", ".0f", 100),
    Column("arrived %", "delivered_share", ".1f", 100),
)


def aims(comparison: Comparison, options: Namespace) -> list[Aim]:
    made = []
    where = comparison.title
    for server in options.servers:
        for layer in options.layers:
            ours, batch = Contender(server, layer, "ours"), Contender(server, layer, "ours", "batch")
            for other, limit in (
                (Contender(server, layer, "handwritten"), TIMES_HANDWRITTEN[server]),
                (Contender(server, "-", "bare"), OF_BARE),
            ):
                ratio = comparison.ratio("updates_per_s", ours, other)
                made.append(Aim(f"{where}: updates/s of {ours.name} × {other.name}", ratio, limit))
            ratio = comparison.ratio("updates_per_s", batch, SOCKETIO)
            made.append(Aim(f"{where}: updates/s of {batch.name} × {SOCKETIO.name}", ratio, 1.0))
    fastest = max(comparison.median(each, "frames_per_s") or 0 for each in comparison.results if each != CEILING)
    ceiling = comparison.median(CEILING, "frames_per_s")
    made.append(Aim(f"{where}: frames/s of the ceiling × the fastest", ceiling / fastest if ceiling else None, 1.2))
    return made


def saturate(
    contender: Contender,
    redis_url: str,
    options: Namespace,
    *,
    subscribers: int,
    window: int = WINDOW,
    beside: Callable[[Server], AbstractContextManager[None]] | None = None,
) -> Result:
    """One run. `beside` is what goes on meanwhile."""
    return run(
        "steady",
        contender,
        redis_url,
        timeout=60 + options.seconds,
        beside=beside,
        subscribers=subscribers,
        window=window,
        keys=KEYS,
        endless=contender == CEILING,
        seconds=options.seconds,
        warmup=0.2 if options.quick else 1.0,
    )


def main(arguments: list[str]) -> int:
    made = parser("steady", __doc__, rounds=5, seconds=3, layers=("memory", "pubsub"))
    made.add_argument("--subscribers", nargs="+", type=int, default=list(SUBSCRIBERS))
    made.add_argument("--window", type=int, default=WINDOW, help=f"less than {KEYS}; default: {WINDOW}")
    options = made.parse_args(arguments)
    if options.quick:
        options.rounds, options.seconds, options.subscribers = 1, min(options.seconds, 0.5), [20]
    prepare()
    fighters = [*contenders(options, variants=("", "batch")), CEILING]
    comparisons = []
    with RedisServer() as redis:
        for subscribers in options.subscribers:

            def once(contender: Contender, subscribers: int = subscribers) -> Result:
                return saturate(contender, redis.url, options, subscribers=subscribers, window=options.window)

            comparisons.append(compare(f"{subscribers} subscribers", fighters, once, options.rounds))
    verdicts = [aim for comparison in comparisons for aim in aims(comparison, options)]
    return publish("steady", options, comparisons, COLUMNS, verdicts)
