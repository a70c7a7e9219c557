"""What it costs to be watched: `steady` with metrics that are scraped every second, and without OpenTelemetry at all.

`ours` has the package installed and no provider, as when a project does nothing about it. `ours without` cannot import
it. `ours scraped` has a provider, and a Prometheus endpoint that is read over HTTP every second, fifteen times as often
as usual. CPU is that of the whole server process, per delivered update.
"""

from __future__ import annotations

import threading
import urllib.request
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.rooms.load import prepare
from benchmarks.rooms.report import Aim, Column, publish
from benchmarks.rooms.rounds import Comparison, Result, compare, parser
from benchmarks.rooms.servers import Contender, Server
from benchmarks.steady import SUBSCRIBERS, saturate
from tests.redis_server import RedisServer

EVERY = 1.0  # seconds between scrapes
MOST = 1.03
COLUMNS = (
    Column("updates/s", "updates_per_s"),
    Column("CPU µs each", "cpu_us_per_update", ".2f"),
    Column("server %", "server_cpu", ".0f", 100),
    Column("arrived %", "delivered_share", ".1f", 100),
)


@contextmanager
def scraped(server: Server) -> Iterator[None]:
    """Read its metrics every second, in a thread. Raises `RuntimeError` if they never were there."""
    done, seen = threading.Event(), 0

    def scrape() -> None:
        nonlocal seen
        while not done.wait(EVERY):
            with urllib.request.urlopen(server.metrics_url, timeout=10) as response:
                seen += b"ephemeral_state_deliveries_total" in response.read()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    if not seen:
        raise RuntimeError("the metrics were never read")


def aims(comparison: Comparison, contenders: list[Contender]) -> list[Aim]:
    made = []
    for contender in contenders:
        if contender.variant != "without":
            ratio = comparison.ratio("cpu_us_per_update", contender, contender._replace(variant="without"))
            made.append(Aim(f"{comparison.title}: CPU of {contender.name} × without", ratio, MOST, at_least=False))
    return made


def main(arguments: list[str]) -> int:
    made = parser("metrics", __doc__, rounds=9, seconds=4, layers=("memory", "pubsub"))
    made.set_defaults(servers=["uvicorn"])
    made.add_argument("--subscribers", nargs="+", type=int, default=list(SUBSCRIBERS))
    options: Namespace = made.parse_args(arguments)
    if options.quick:
        options.rounds, options.seconds, options.subscribers = 1, 1.5, [20]
    prepare()
    fighters = [
        Contender(server, layer, "ours", variant)
        for server in options.servers
        for layer in options.layers
        for variant in ("without", "", "scraped")
    ]
    comparisons = []
    with RedisServer() as redis:
        for subscribers in options.subscribers:

            def once(contender: Contender, subscribers: int = subscribers) -> Result:
                beside = scraped if contender.variant == "scraped" else None
                return saturate(contender, redis.url, options, subscribers=subscribers, beside=beside)

            comparisons.append(compare(f"{subscribers} subscribers", fighters, once, options.rounds))
    verdicts = [aim for comparison in comparisons for aim in aims(comparison, fighters)]
    return publish("metrics", options, comparisons, COLUMNS, verdicts)
