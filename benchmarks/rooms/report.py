"""What a comparison has shown: a table, the aims with their verdicts, and a file in `benchmarks/results/`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from benchmarks.rooms.load import FOLDER, node_version
from benchmarks.rooms.rounds import Comparison
from benchmarks.rooms.servers import Contender

__all__ = ["Aim", "Column", "publish"]

_PACKAGES = ("django", "channels", "channels_redis", "redis", "uvicorn", "uvloop", "httptools", "daphne", "twisted")


class Column(NamedTuple):
    heading: str
    metric: str
    style: str = ",.0f"
    scale: float = 1.0
    """What the figure is multiplied by."""
    versus: str = ""
    """Not the figure, but its ratio to that of this contender on the same server and layer: `handwritten` or `bare`."""


class Aim(NamedTuple):
    what: str
    value: float | None
    """`None`: there was nothing to measure."""
    limit: float
    at_least: bool = True

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        reached = self.value >= self.limit if self.at_least else self.value <= self.limit
        return "pass" if reached else "MISSED"

    def __str__(self) -> str:
        value = "-" if self.value is None else f"{self.value:,.3g}" if self.value < 1000 else f"{self.value:,.0f}"
        return f"{self.what}: {value} (aim: {'≥' if self.at_least else '≤'} {self.limit:,g}) {self.verdict}"


def publish(
    scenario: str,
    options: argparse.Namespace,
    comparisons: Sequence[Comparison],
    columns: Sequence[Column],
    aims: Sequence[Aim],
) -> int:
    """Print it, write it unless it was a quick run, and return the exit code: 1 if an aim was missed."""
    for comparison in comparisons:
        print(f"\n{scenario}, {comparison.title}: medians of {options.rounds} interleaved rounds")
        print(f"{'':36}" + "".join(f"{column.heading:>13}" for column in columns))
        for contender in comparison.results:
            print(f"{contender.name:36}{_row(comparison, contender, columns)}")
    print()
    for aim in aims:
        print(aim)
    machine = {"cores": os.cpu_count(), "python": sys.version.split()[0], "node": node_version()}
    print(f"{date.today()}, " + ", ".join(f"{name} {value}" for name, value in machine.items()))
    folder = Path(options.results) if options.results else None if options.quick else FOLDER / "results"
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{date.today()}-{scenario}.json"
        path.write_text(_as_json(scenario, options, comparisons, columns, aims, machine))
        print(f"written to {path}")
    failed = any("failed" in r for each in comparisons for results in each.results.values() for r in results)
    return 1 if failed or any(aim.verdict == "MISSED" for aim in aims) else 0


def _row(comparison: Comparison, contender: Contender, columns: Sequence[Column]) -> str:
    figures = ""
    for column in columns:
        ratio, median = _versus(comparison, contender, column), comparison.median(contender, column.metric)
        value = ratio if column.versus else median
        figures += f"{'-' if value is None else format(value * column.scale, column.style):>13}"
    note = comparison.note(contender)
    return figures + (f"   {_gist(note)}" if note else "")


def _gist(note: str) -> str:
    lines = note.splitlines()
    return next((line for line in lines if "Error" in line), lines[0])[:150]


def _versus(comparison: Comparison, contender: Contender, column: Column) -> float | None:
    for layer in (contender.layer, "-"):  # a bare server has no layer
        other = Contender(contender.server, layer, column.versus)
        if other in comparison.results and other != contender:
            return comparison.ratio(column.metric, contender, other)
    return None


def _as_json(
    scenario: str,
    options: argparse.Namespace,
    comparisons: Sequence[Comparison],
    columns: Sequence[Column],
    aims: Sequence[Aim],
    machine: dict[str, object],
) -> str:
    packages = json.loads((FOLDER / "package.json").read_text())["dependencies"]
    metrics = {column.metric for column in columns}
    whole = {
        "scenario": scenario,
        "date": str(date.today()),
        "machine": machine,
        "versions": {name: version(name) for name in _PACKAGES} | packages,
        "options": {name: value for name, value in vars(options).items() if name != "results"},
        "tables": [
            {
                "title": comparison.title,
                "medians": {
                    contender.name: {metric: comparison.median(contender, metric) for metric in sorted(metrics)}
                    for contender in comparison.results
                },
                "rounds": {contender.name: results for contender, results in comparison.results.items()},
            }
            for comparison in comparisons
        ],
        "aims": [{**aim._asdict(), "verdict": aim.verdict} for aim in aims],
    }
    return json.dumps(whole, indent=1) + "\n"
