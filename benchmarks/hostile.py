"""People in a room, and somebody who means harm on the same server: how much longer the people wait for each other.

`tests/live/hostile.py` attacks for a minute, from a process of its own. It offers 10 000 commands a second, 100 000
names of topics, 20 frames of 1 MB a second, random frames, half-written ones, forbidden commands, large answers, and
readers that do not read. It comes back at once when it is sent away. What of that it gets rid of is in the table: ours
sends it away and lets it wait before it may come again, so it is far less than what `bare` takes. `bare` drops whatever
it says, which is the least that a server can do: what its people notice all the same is what reading costs. `ratio` is
the p99 of the time from a writer to the readers while it attacks, over the same while it waits, by turns in one run.
With `--apart` it attacks another server of the same kind: what the people notice then is what is taken of the machine.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from contextlib import nullcontext

from benchmarks.rooms.load import prepare
from benchmarks.rooms.report import Aim, Column, publish
from benchmarks.rooms.rounds import Comparison, Result, compare, contenders, parser, run
from benchmarks.rooms.servers import Contender, Server
from tests.live import hostile
from tests.redis_server import RedisServer

PEOPLE, RATE, TURNS = 20, 100, 6
P99_AIM = 1.5
GROWTH_AIM = 64.0  # MB
DOSES = ("commands", "names", "large frames", "connections")
COLUMNS = (
    Column("p50 ms", "p50", ",.1f"),
    Column("p50 without", "p50_without", ",.1f"),
    Column("p99 ms", "p99", ",.1f"),
    Column("p99 without", "p99_without", ",.1f"),
    Column("ratio", "p99_ratio", ".2f"),
    Column("arrived %", "delivered_share", ".1f", 100),
    Column("growth MB", "growth", ".1f", 1e-6),
    Column("server %", "server_cpu", ".0f", 100),
    Column("load %", "load_cpu", ".0f", 100),
    *(Column(what, what) for what in DOSES),
)


def aims(comparison: Comparison, options: Namespace) -> list[Aim]:
    made = []
    for contender in comparison.results:
        if contender.app == "ours":
            ratio = comparison.median(contender, "p99_ratio")
            made.append(Aim(f"{contender.name}: p99 of the people, with × without", ratio, P99_AIM, at_least=False))
            if options.apart:
                continue  # what grows is elsewhere
            growth = comparison.worst(contender, "growth")
            megabytes = None if growth is None else growth / 1e6
            made.append(Aim(f"{contender.name}: growth, MB, worst round", megabytes, GROWTH_AIM, at_least=False))
    return made


def main(arguments: list[str]) -> int:
    made = parser("hostile", __doc__, rounds=3, seconds=60, layers=("memory",))
    made.add_argument(
        "--attacks", nargs="+", choices=list(hostile.ATTACKS), default=list(hostile.ATTACKS), help="default: all"
    )
    made.add_argument("--apart", action="store_true", help="it attacks another server on the same machine")
    options = made.parse_args(arguments)
    if options.quick:
        options.rounds, options.seconds = 1, min(options.seconds, 1.0)
    prepare()
    with RedisServer() as redis:

        def once(contender: Contender) -> Result:
            with Server(contender, redis.url, limited=True) if options.apart else nullcontext() as other:
                result = run(
                    "hostile",
                    contender,
                    redis.url,
                    timeout=120 + 3 * options.seconds,
                    limited=True,
                    people=4 if options.quick else PEOPLE,
                    rate=RATE,
                    seconds=options.seconds,
                    turns=1 if options.quick else TURNS,
                    settle=0.2 if options.quick else 1.0,
                    begins=hostile.BEGINS,
                    hostile=[sys.executable, hostile.__file__, str(9 * options.seconds), "--attacks", *options.attacks],
                    attacked=other and other.url,
                )
                if other and (said := other.log().strip()):
                    result["log_of_the_attacked"] = said[-2000:]
            return result | {what: result.get("attacks", {}).get(what, 0) for what in DOSES}

        fighters = contenders(options)
        title = f"{PEOPLE} people, {RATE} sets/s, {options.seconds:g} s{', another server' * options.apart}"
        comparison = compare(title, fighters, once, options.rounds)
    name = "hostile-apart" if options.apart else "hostile"
    return publish(name, options, [comparison], COLUMNS, aims(comparison, options))
