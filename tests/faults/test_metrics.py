"""What Prometheus sees of real processes, set up as the documentation says, while they work and things go wrong."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from websockets.asyncio.client import connect

from tests.test_docs import blocks, code, named, page, rows, section
from tests.waiting import until

from .cluster import Cluster, cluster
from .server import Server

pytestmark = [pytest.mark.redis, pytest.mark.faults]

PAGE = page("metrics.md")
ASGI = """
import os
from telemetry import serve_metrics
print("metrics on", serve_metrics(int(os.environ["FIRST"])), flush=True)
from tests.faults.asgi import application
"""

SAID = {
    "node_began": r"node \w{16} is process \d+ of \S+",
    "node_dead": r"node \w{16} is dead, cleared 6 of its entries",
    "store_trouble": r"the store fails, sets are refused and clears wait for it: .*",
    "store_trouble_over": r"the store works again",
    "lease_lost": r"the lease was lost, writing back what this process owns",
    "written_back": r"wrote back 5 entries, 5 of which the store lacked",
}
"""What the log of the process that lives on tells of it."""


class Metered:
    """Servers of a cluster, each with its metrics."""

    def __init__(self, here: Cluster, folder: Path) -> None:
        self._here = here
        (folder / "telemetry.py").write_text(named(PAGE)["telemetry.py"])
        (folder / "metered.py").write_text(ASGI)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            first = probe.getsockname()[1]
        self._environment = {
            "PYTHONPATH": os.pathsep.join([str(folder), "."]),
            "FIRST": str(first),
            "LOG_LEVEL": "INFO",
        }
        self._ports: dict[Server, int] = {}

    async def start(self) -> Server:
        server = self._here.start("uvicorn", "metered:application", **self._environment)
        said = await until(lambda: re.search(r"metrics on (\d+)", server.log()), 30)
        self._ports[server] = int(said[1])
        return server

    def port(self, server: Server) -> int:
        return self._ports[server]

    def read(self, server: Server) -> dict[str, float]:
        """By name, and by the value of our attribute if there is one: `ephemeral_state_clears_total expired`."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port(server)}/metrics", timeout=10) as response:
            families = list(text_string_to_metric_families(response.read().decode()))
        found = {}
        for sample in (sample for family in families for sample in family.samples):
            if sample.name.startswith("ephemeral_state_"):
                ours = [value for name, value in sample.labels.items() if not name.startswith("otel_scope_")]
                found[" ".join([sample.name.removeprefix("ephemeral_state_"), *ours])] = sample.value
        return found

    async def sees(self, server: Server, so: Callable[[dict[str, float]], bool], seconds: float = 10) -> None:
        """Scrape until it is so."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not so(found := self.read(server)):
            assert asyncio.get_running_loop().time() < deadline, found
            await asyncio.sleep(0.05)


async def test_prometheus_sees_what_processes_do_and_what_happens_to_them(redis_server, tmp_path):
    async with cluster(redis_server.url) as here:
        metered = Metered(here, tmp_path)
        one, other = await metered.start(), await metered.start()
        assert metered.port(one) != metered.port(other), "two processes, two ports"
        for process in (one, other):
            idle = metered.read(process)
            assert not any(idle.values())
            assert "lease_age_seconds" not in idle

        # What they do, each for itself.
        watchers = [await here.connect(one, "room") for _ in range(3)]
        owner = await here.owner(other, "room", *(f"k{n}" for n in range(7)))
        assert await owner.do(["set", "room", "k0", f"{owner.client_id} 2", None], ["clear", "room", "k1"]) == {}
        assert await owner.do(["set", "room", "t", f"{owner.client_id} 3", 0.3]) == {}
        await metered.sees(other, lambda found: found["entries"] == 6)
        told = 7 + 2 + 2  # sets, one of them twice and one cleared, and what came and expired
        await metered.sees(one, lambda found: found["deliveries_total"] == 3 * told)
        hears, does = metered.read(one), metered.read(other)
        assert (hears["connections"], hears["topics"], hears["entries"], hears["changes_total"]) == (3, 1, 0, told)
        assert (does["connections"], does["topics"], does["entries"], does["sets_total"]) == (1, 0, 6, 9)
        assert (does["writes_total"], does["clears_total explicit"]) == (10, 1)
        # Whoever is first sweeps: the one whose connection set it, or the one in which it is followed.
        assert hears["clears_total expired"] + does["clears_total expired"] == 1
        assert 3 <= does["batches_total"] <= 10
        assert hears["lease_age_seconds"] < 5
        assert await here.owner(one, "room", *(f"m{n}" for n in range(5)))

        async with connect(one.url, proxy=None) as person:
            await person.send("no command")
            await metered.sees(one, lambda found: found["refusals_total bad_frame"] == 1)

        # A process dies: another one clears what it owned, and says so.
        other.kill()
        await metered.sees(one, lambda found: found["errors_total node_dead"] == 1)
        assert metered.read(one)["clears_total disconnect"] == 6
        again = await metered.start()
        assert metered.port(again) == metered.port(other), "whoever takes the place of another takes its port"

        # Redis is gone, and comes back empty.
        await asyncio.to_thread(redis_server.kill)
        await metered.sees(one, lambda now: now["lease_age_seconds"] > 2 and now["errors_total store_trouble"] > 0, 30)
        await asyncio.to_thread(redis_server.start)
        await metered.sees(one, lambda now: now["lease_age_seconds"] < 1 and now["errors_total lease_lost"] == 1)
        assert metered.read(one)["entries"] == 5
        for event, line in SAID.items():
            await until(lambda event=event, line=line: re.search(f"ephemeral_state: {line}\n", one.log()), 10)
        await here.settle(5)
        assert len(watchers[0].views["room"].entries) == 5

        # Everything that the page promises is there, and every expression on it asks for what there is.
        seen = {name.partition(" ")[0] for name in metered.read(one)}
        listed = {code(row[1])[0].removeprefix("ephemeral_state_") for row in rows(section(PAGE, "Metrics"))}
        assert seen == listed


def test_the_expressions_and_the_alerts_ask_for_what_there_is():
    listed = {code(row[1])[0] for row in rows(section(PAGE, "Metrics"))}
    events = {code(row[0])[0] for row in rows(section(page("deployment.md"), "What the log says"))}
    prometheus, alerts = (yaml.safe_load(block) for block in blocks(PAGE, "yaml"))
    assert prometheus["scrape_configs"][0]["static_configs"][0]["targets"][0] == "127.0.0.1:9464"
    rules = [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    asked = [code(row[1])[0] for row in rows(section(PAGE, "What to ask"))]
    assert len(rules) == 5
    assert len(asked) == 6
    for expression in rules + asked:
        names = re.findall(r"ephemeral_state_\w+", expression)
        assert names
        assert set(names) <= listed, expression
        for quoted in re.findall(r'event=~?"([^"]+)"', expression):
            assert set(quoted.split("|")) <= events, expression
