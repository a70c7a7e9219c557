"""People come, subscribe, set one key and leave, 20 at a time and as fast as they can.

Connections a second, and the memory that the server has to itself after 1 000, 6 000 and 10 000 of them: the growth is
between the last two, as the first fill caches. On the in-memory layer the hand-written consumer has to do with the
first 1 000, which is to its advantage: for 10 000 it takes nine minutes, as that layer goes through all that is there
with each message, and keeps for a minute what nobody has read who has left.
"""

from __future__ import annotations

from argparse import Namespace

from benchmarks.rooms.load import prepare
from benchmarks.rooms.report import Aim, Column, publish
from benchmarks.rooms.rounds import Comparison, compare, contenders, parser, run
from benchmarks.rooms.servers import Contender
from tests.redis_server import RedisServer

AT_ONCE = 20
MILESTONES = (1_000, 6_000, 10_000)
OF_HANDWRITTEN = 0.8
GROWTH_AIM = 1.0  # MB
COLUMNS = (
    Column("connections/s", "connections_per_s"),
    Column("× hand", "connections_per_s", ".2f", versus="handwritten"),
    Column("CPU ms each", "cpu_ms_per_connection", ".2f"),
    Column("server %", "server_cpu", ".0f", 100),
    Column("load %", "load_cpu", ".0f", 100),
    Column("first MB", "memory_first", ".1f", 1e-6),
    Column("last MB", "memory_last", ".1f", 1e-6),
    Column("growth MB", "memory_growth", ".2f", 1e-6),
)


def aims(comparison: Comparison, options: Namespace) -> list[Aim]:
    made = []
    for server in options.servers:
        for layer in options.layers:
            ours, hand = Contender(server, layer, "ours"), Contender(server, layer, "handwritten")
            ratio = comparison.ratio("connections_per_s", ours, hand)
            made.append(Aim(f"{ours.name}: connections/s × {hand.name}", ratio, OF_HANDWRITTEN))
            growth = comparison.median(ours, "memory_growth")
            megabytes = None if growth is None else growth / 1e6
            made.append(Aim(f"{ours.name}: growth at the end, MB", megabytes, GROWTH_AIM, at_least=False))
    return made


def main(arguments: list[str]) -> int:
    made = parser("churn", __doc__, rounds=5, seconds=0, layers=("memory", "pubsub"))
    made.add_argument("--milestones", nargs="+", type=int, default=list(MILESTONES), help="numbers of connections")
    options = made.parse_args(arguments)
    if options.quick:
        options.rounds, options.milestones = 1, [20, 40, 60]
    prepare()
    with RedisServer() as redis:

        def once(contender: Contender) -> dict[str, object]:
            settle = 0.1 if options.quick else 1.0
            milestones = options.milestones[:1] if contender[1:3] == ("memory", "handwritten") else options.milestones
            wishes = {"milestones": milestones, "at_once": AT_ONCE, "settle": settle}
            return run("churn", contender, redis.url, timeout=600, **wishes)

        title = f"{options.milestones[-1]:,} connections, {AT_ONCE} at a time"
        comparison = compare(title, contenders(options), once, options.rounds)
    return publish("churn", options, [comparison], COLUMNS, aims(comparison, options))
