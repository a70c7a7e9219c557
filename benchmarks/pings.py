"""1 000 idle connections of a consumer with the mixin, asked whether they are there and not: CPU of the server.

Each answers. What is left without pings is the server's own, its WebSocket pings among it.
"""

from __future__ import annotations

from benchmarks.rooms.load import prepare
from benchmarks.rooms.report import Aim, Column, publish
from benchmarks.rooms.rounds import compare, parser, run
from benchmarks.rooms.servers import Contender

CONNECTIONS = 1_000
SETTLED = 10.0  # seconds; by then all were asked for the first time
OF_A_CORE = 0.05
COLUMNS = (
    Column("CPU %", "server_cpu", ".2f", 100),
    Column("kB each", "bytes_per_connection", ".1f", 1e-3),
    Column("connections", "connections"),
)


def main(arguments: list[str]) -> int:
    made = parser("pings", __doc__, rounds=5, seconds=32, layers=("memory",))
    made.add_argument("--connections", type=int, default=CONNECTIONS)
    options = made.parse_args(arguments)
    settled = SETTLED
    if options.quick:
        options.rounds, options.seconds, options.connections, settled = 1, 3, 60, 0.1
    prepare()
    pairs = [
        (Contender(server, "memory", "mixin"), Contender(server, "memory", "mixin", "unasked"))
        for server in options.servers
    ]

    def once(contender: Contender) -> dict[str, object]:
        wishes = {"connections": options.connections, "seconds": options.seconds, "settle": settled}
        return run("idle", contender, "", timeout=180 + options.seconds, **wishes)

    title = f"{options.connections:,} idle connections"
    comparison = compare(title, [each for pair in pairs for each in pair], once, options.rounds)
    aims = []
    for asked, unasked in pairs:
        both = zip(comparison.values(asked, "server_cpu"), comparison.values(unasked, "server_cpu"), strict=True)
        more = sorted(one - other for one, other in both if one is not None and other is not None)
        middle = more[len(more) // 2] if more else None
        aims.append(Aim(f"{asked.server}: CPU more than without pings, of a core", middle, OF_A_CORE, at_least=False))
        ratio = comparison.ratio("server_cpu", asked, unasked)
        print(f"{asked.server}: CPU × without pings: {'-' if ratio is None else format(ratio, '.2f')}")
    return publish("pings", options, [comparison], COLUMNS, aims)
