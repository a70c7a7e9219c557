"""Two processes full of subscribers join one topic at the same moment, as after a deploy."""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass

from ephemeral_state.state import Limits, Set, Topic
from ephemeral_state.stores.redis import RedisStore
from tests.redis_server import RedisServer, unique_prefix

from .server import Worker, configuration
from .worker import Subscriber, serve

TOPIC = Topic("", "room")


@dataclass(frozen=True)
class Storm:
    snapshots: int
    """How many times Redis was asked for the whole of a topic."""
    scripts: int
    """How many scripts Redis has run meanwhile, of whatever kind: also those that renew leases."""
    seconds: list[float]
    """How long each process took, and how much of that its CPU."""
    cpu: list[float]


def storm(subscribers: int, entries: int, redis: RedisServer, layer: str = "pubsub") -> Storm:
    """Raises `AssertionError` if a subscriber does not get one snapshot with all entries."""
    prefix = unique_prefix()
    asyncio.run(_fill(redis.url, prefix, entries))
    # Only what joining costs.
    quiet = {"BEACON_INTERVAL": 3600, "SWEEP_INTERVAL": 3600}
    settings = configuration(layer, store_url=redis.url, layer_url=redis.url, prefix=prefix, **quiet)
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker("tests.faults.storm", settings)) for _ in range(2)]
        for worker in workers:
            worker.tell(do="nothing")
            worker.answer()
        before = _calls(redis)
        for number, worker in enumerate(workers):
            worker.tell(do="join", name=f"worker {number}", subscribers=subscribers // 2, entries=entries)
        answers = [worker.answer() for worker in workers]
        snapshots, scripts = (now - then for now, then in zip(_calls(redis), before, strict=True))
        return Storm(snapshots, scripts, [a["seconds"] for a in answers], [a["cpu"] for a in answers])


async def _fill(url: str, prefix: str, entries: int) -> None:
    store = RedisStore(Limits(max_keys_per_client=entries), url=url, prefix=prefix, timeout=30)
    await store.apply([Set("somebody", TOPIC, f"k{n}", b"somebody %d" % n, None) for n in range(entries)])
    await store.close()


def _calls(redis: RedisServer) -> tuple[int, int]:
    """HGETALL, which is what reads a topic and nothing else does, and scripts."""
    stats = redis.command("INFO", "commandstats")

    def calls(*names: str) -> int:
        return sum(stats[f"cmdstat_{name}"]["calls"] for name in names if f"cmdstat_{name}" in stats)

    return calls("hgetall"), calls("evalsha", "eval")


async def _obey(do: str, name: str = "", subscribers: int = 0, entries: int = 0) -> dict[str, float]:
    crowd = [Subscriber(f"{name} {n}", TOPIC.name) for n in range(subscribers)]
    started, cpu = time.perf_counter(), _cpu()
    await asyncio.gather(*(each.connection.subscribe(TOPIC) for each in crowd))
    answer = {"seconds": time.perf_counter() - started, "cpu": _cpu() - cpu}
    for each in crowd:
        if each.wrong is not None:
            raise each.wrong
        assert each.view.heard == {"frames": 1}
        assert len(each.view.entries) == entries
    return answer


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__" and sys.argv[1:] == ["--worker"]:
    serve(lambda: _obey)
