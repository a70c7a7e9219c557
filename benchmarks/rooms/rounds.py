"""Interleaved runs: each round runs every contender once, and begins with another one.

A noisy neighbour so meets all of them, and what is compared are the two of one round, never two medians.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from benchmarks.rooms.load import attack
from benchmarks.rooms.servers import Contender, Server

__all__ = ["SOCKETIO", "Comparison", "Result", "compare", "contenders", "parser", "run"]

Result = dict[str, Any]

APPS = ("ours", "handwritten", "bare", "socketio")
ON_DEMAND = ("sync",)
SOCKETIO = Contender("node", "-", "socketio")


class Comparison(NamedTuple):
    """The results of one table: of each contender one per round."""

    title: str
    results: dict[Contender, list[Result]]

    def values(self, contender: Contender, metric: str) -> list[float | None]:
        """Of each round; `None` where it was skipped, failed or has no such figure."""
        return [result.get(metric) for result in self.results.get(contender, [])]

    def median(self, contender: Contender, metric: str) -> float | None:
        return _median([value for value in self.values(contender, metric) if value is not None])

    def worst(self, contender: Contender, metric: str) -> float | None:
        """The greatest of all rounds."""
        return max((value for value in self.values(contender, metric) if value is not None), default=None)

    def least(self, contender: Contender, metric: str) -> float | None:
        """The smallest of all rounds."""
        return min((value for value in self.values(contender, metric) if value is not None), default=None)

    def ratio(self, metric: str, one: Contender, other: Contender) -> float | None:
        """The median of the rounds' ratios."""
        pairs = zip(self.values(one, metric), self.values(other, metric), strict=False)
        return _median([a / b for a, b in pairs if a is not None and b])

    def note(self, contender: Contender) -> str:
        """Why it has no figures; empty if it has."""
        notes = (f"{why}: {r[why]}" for r in self.results[contender] for why in ("skipped", "failed") if why in r)
        return next(notes, "")


def parser(
    name: str,
    doc: str | None,
    *,
    rounds: int,
    seconds: float,
    layers: Sequence[str],
    servers: Sequence[str] = ("uvicorn", "daphne"),
) -> argparse.ArgumentParser:
    """The options that all comparisons have."""
    made = argparse.ArgumentParser(
        prog=f"benchmarks {name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--rounds", type=int, default=rounds, help=f"default: {rounds}")
    made.add_argument("--seconds", type=float, default=seconds, help=f"of one run; default: {seconds:g}")
    made.add_argument("--servers", nargs="+", choices=servers, default=list(servers))
    made.add_argument("--layers", nargs="+", choices=("memory", "pubsub", "core"), default=list(layers))
    made.add_argument(
        "--apps", nargs="+", choices=APPS + ON_DEMAND, default=list(APPS), help=f"default: {', '.join(APPS)}"
    )
    made.add_argument("--quick", action="store_true", help="one small round, to see that it works; writes nothing")
    made.add_argument("--results", metavar="DIR", help="where to write the results; default: benchmarks/results")
    return made


def contenders(options: argparse.Namespace, *, variants: Sequence[str] = ("",), bare: bool = True) -> list[Contender]:
    """Ours in its variants beside the hand-written one on each server and layer, a bare one per server, Socket.IO."""
    made = []
    for server in options.servers:
        for layer in options.layers:
            made += [Contender(server, layer, "ours", variant) for variant in variants]
            made.append(Contender(server, layer, "handwritten"))
            made.append(Contender(server, layer, "sync"))
        if bare:
            made.append(Contender(server, "-", "bare"))
    return [contender for contender in [*made, SOCKETIO] if contender.app in options.apps]


def compare(title: str, fighters: Sequence[Contender], once: Callable[[Contender], Result], rounds: int) -> Comparison:
    """A contender that fails has no figures; the others go on."""
    results: dict[Contender, list[Result]] = {contender: [] for contender in fighters}
    for turn in range(rounds):
        first = turn * len(fighters) // rounds
        for number, contender in enumerate([*fighters[first:], *fighters[:first]], 1):
            _progress(f"{title}: round {turn + 1} of {rounds}, {number} of {len(fighters)}: {contender.name}")
            if any("skipped" in result for result in results[contender]):
                result = results[contender][0]
            else:
                try:
                    result = once(contender)
                except (RuntimeError, TimeoutError, subprocess.TimeoutExpired) as error:
                    result = {"failed": "\n".join([str(error), *getattr(error, "__notes__", [])])}
            results[contender].append(result)
    _progress("")
    return Comparison(title, results)


def run(
    script: str,
    contender: Contender,
    redis_url: str,
    *,
    timeout: float,
    limited: bool = False,
    beside: Callable[[Server], AbstractContextManager[None]] | None = None,
    **options: Any,
) -> Result:
    """One run against a fresh server. `beside` is what goes on meanwhile."""
    dialect = "socketio" if contender.app == "socketio" else "frames"
    with Server(contender, redis_url, limited=limited) as server, beside(server) if beside else nullcontext():
        result = attack(script, server, timeout=timeout, dialect=dialect, subscribe=contender.subscribe, **options)
        if log := server.log().strip():
            result["log"] = log[-2000:]
    return result


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
