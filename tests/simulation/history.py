"""What clients do and what goes wrong, in time: made from a seed, shortened by the shrinker, printed for people."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

__all__ = ["DRAWN", "FAULTS", "OPEN", "TOPICS", "Op", "as_text", "dump", "load", "make"]

FAULTS = (
    "cut", "hold", "reset", "refuse",
    "empty", "older", "failover", "pause", "scripts", "hang_up", "redis_clock", "evict",
    "layer_bad", "layer_deaf", "layer_silent",
    "freeze", "kill", "lose_host", "terminate", "orphan",
    "wall",
)  # fmt: skip
"""Kinds of faults."""

OPEN = ("older", "failover", "evict")
"""Kinds whose harm is not mended yet, or, as with `evict`, is not promised to be. No seed chooses them by itself, but
`--kinds` does."""

DRAWN = tuple(kind for kind in FAULTS if kind not in OPEN)

TOPICS = ("room:0", "room:1")
_KEYS = ("k0", "k1", "k2")
_SETTLING = 6.0  # seconds without faults after which everything must be right
_SETTLING_BY_LEASE = 22.0  # the same where only the end of a lease, or of a ping, tells
_SLOW = frozenset(("lose_host", "orphan", "vanish"))


class Op(NamedTuple):
    """`do` is what, `at` when, in seconds since the beginning; `on` is a client's number or a host."""

    at: float
    do: str
    on: str | int = ""
    args: tuple[Any, ...] = ()


def dump(seed: int | str, kind: str, ops: Iterable[Op]) -> str:
    """As a file to keep: what came of it, kind by kind, depends on the seed too."""
    lines = [json.dumps({"seed": seed, "kind": kind})]
    return "\n".join(lines + [json.dumps([op.at, op.do, op.on, list(op.args)]) for op in ops]) + "\n"


def load(text: str) -> tuple[int | str, str, list[Op]]:
    """The seed, the kind of the violation that it once led to, and what happens."""
    head, *lines = [json.loads(line) for line in text.splitlines()]
    return head["seed"], head["kind"], [Op(at, do, on, tuple(args)) for at, do, on, args in lines]


_SENTENCES = {
    "start": "process {on} starts",
    "open": "client {on} connects to process {0}",
    "subscribe": "client {on} follows {0}",
    "set": "client {on} sets {1} of {0} to {2!r}, {3}",
    "clear": "client {on} clears {1} of {0}",
    "leave": "client {on} leaves ({0})",
    "kill": "process {on} is killed",
    "lose_host": "the host of process {on} is lost: no connection of it is closed",
    "orphan": "process {on} is killed, and a child of it keeps its connections open for {0} s",
    "terminate": "process {on} is asked to end, clears what its clients own, and ends",
    "freeze": "process {on} is frozen for {0} s",
    "cut": "process {on} is cut off for {1} s ({0}): what is sent meanwhile comes later",
    "hold": "the next request of process {on} to Redis is under way for {0} s, others overtake it",
    "reset": "the connections of process {on} to Redis are reset",
    "refuse": "Redis refuses connections of process {on} for {0} s",
    "empty": "Redis restarts, is away for {0} s and then empty",
    "older": "Redis restarts, is away for {1} s and then as it was {0} s before",
    "failover": "a replica that is {0} s behind takes the place of Redis; the old one goes on for {1} s",
    "pause": "Redis says nothing for {0} s",
    "scripts": "Redis forgets its scripts",
    "hang_up": "Redis hangs up on everybody ({0})",
    "redis_clock": "the clock of Redis is put by {0} s",
    "evict": "Redis evicts a part of {0} of its keys",
    "layer_bad": "for {0} s the layer loses {1:.0%}, doubles {2:.0%} and delays {3:.0%} of the messages",
    "layer_deaf": "for {0} s process {on} gets no messages",
    "layer_silent": "for {0} s the layer fails for process {on}",
    "wall": "the wall clock of process {on} is put by {0} s",
    "check": "all must be right, with a newcomer who connected to process {on} {0:g} s before and follows all topics",
}


def as_text(ops: Iterable[Op]) -> str:
    """One line for each thing that happens."""
    lines = []
    for op in ops:
        args = list(op.args)
        if op.do == "set":
            args[3] = "until it leaves" if args[3] is None else f"for {args[3] / 1000:g} s"
            if args[4]:
                args[3] += f", with a grace of {args[4] / 1000:g} s"
        lines.append(f"{op.at:9.3f} s  " + _SENTENCES[op.do].format(*args, on=op.on))
    return "\n".join(lines)


def make(seed: int | str, seconds: float, kinds: Sequence[str] = DRAWN) -> list[Op]:
    """The history of a seed: episodes in which clients are busy and some things go wrong, each followed by a time of
    peace and a check."""
    return _Maker(seed, kinds).make(seconds)


class _Maker:
    def __init__(self, seed: int | str, kinds: Sequence[str]) -> None:
        self.rng = random.Random(f"history {seed}")
        self.kinds = list(kinds)
        self.ops: list[Op] = []
        self.hosts = ["a", "b", "c", "d"][: self.rng.choice((2, 3, 3, 3, 4))]
        self.running: set[str] = set()
        self.people: dict[int, str] = {}
        self.count = 0
        self.values = 0
        self.ends = 0.0  # of the last fault

    def make(self, seconds: float) -> list[Op]:
        at = 0.5
        while at < seconds:
            at = self._episode(at)
        self.ops.sort(key=lambda op: op.at)
        return self.ops

    def _episode(self, at: float) -> float:
        rng = self.rng
        for host in self.hosts:
            if host not in self.running:
                self._add(at, "start", host)
                self.running.add(host)
                at += 0.05
        for host in self.hosts:
            while sum(place == host for place in self.people.values()) < rng.choice((1, 2, 2, 3)):
                self._open(at, host)
                at += 0.02
        at += 1.0
        self.ends = at
        slow = False
        long = rng.uniform(3.0, 12.0)
        faults = sorted(
            (rng.uniform(0.2, long), rng.choice(self.kinds)) for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3)))
        )
        # Where it hurts: much is written around the moment when something goes wrong, and while it is wrong.
        moments = [rng.uniform(0, long) for _ in range(rng.randrange(4, 14))]
        for moment, kind in faults:
            before = self.ends
            self._fault(at + moment, kind)
            moments += [max(0.0, rng.gauss(moment, 0.3)) for _ in range(rng.randrange(3, 10))]
            if self.ends > max(before, at + moment):
                moments += [rng.uniform(moment, self.ends - at + 1.0) for _ in range(rng.randrange(2, 8))]
            slow = slow or kind in _SLOW or self.ends - at - moment > 5
        if len(faults) > 1:
            slow = True
        for moment in sorted(moments):
            slow = self._act(at + moment) or slow
        self.ends = max(self.ends, at + max(moments))
        settling = _SETTLING_BY_LEASE if slow else _SETTLING
        at = self.ends + settling
        self._add(at, "check", rng.choice(self.hosts), settling)
        return at + 0.1

    def _add(self, at: float, do: str, on: str | int = "", *args: Any) -> None:
        self.ops.append(Op(round(at, 3), do, on, args))

    def _open(self, at: float, host: str) -> None:
        self.count += 1
        self.people[self.count] = host
        self._add(at, "open", self.count, host)
        for topic in TOPICS:
            if self.rng.random() < 0.7:
                self._add(at + 0.005, "subscribe", self.count, topic, self.rng.random() < 0.3)

    def _act(self, at: float) -> bool:
        """One thing that a client does. Whether it takes long to notice."""
        rng = self.rng
        if not self.people:
            return False
        number = rng.choice(list(self.people))
        topic = rng.choice(TOPICS)
        key = rng.choice((*_KEYS, f"own{number}"))
        chance = rng.random()
        if chance < 0.68:
            self.values += 1
            ttl = rng.choice((None, None, None, None, 2000, 60000))
            grace = rng.choice((0, 0, 0, 0, 1500))
            self._add(at, "set", number, topic, key, f"v{self.values}", ttl, grace)
        elif chance < 0.84:
            self._add(at, "clear", number, topic, key)
        elif chance < 0.93:
            how = rng.choice(("close", "close", "reset", "reset", "vanish"))
            del self.people[number]
            self._add(at, "leave", number, how)
            return how == "vanish"
        else:
            self._open(at, rng.choice(self.hosts))
        return False

    def _fault(self, at: float, kind: str) -> None:
        rng = self.rng
        host = rng.choice(self.hosts)
        seconds = round(rng.choice((rng.uniform(0.2, 2.0), rng.uniform(2.0, 6.0), rng.uniform(6.0, 25.0))), 3)
        ends = at
        if kind == "cut":
            self._add(at, "cut", host, rng.choice(("up", "down", "both", "all", "all")), seconds)
            ends += 2 * seconds + 0.5  # until all that was kept back has come
        elif kind == "hold":
            seconds = min(seconds, 9.0)
            self._add(at, "hold", host, seconds)
            ends += seconds + 1.0
        elif kind in ("refuse", "layer_silent", "layer_deaf", "freeze"):
            self._add(at, kind, host, seconds)
            ends += seconds
        elif kind in ("reset", "terminate", "kill", "lose_host"):
            self._add(at, kind, host)
            ends += 1.0
        elif kind == "orphan":
            self._add(at, kind, host, seconds)
            ends += seconds
        elif kind == "empty":
            self._add(at, kind, "", round(rng.choice((0.01, rng.uniform(0, 3.0))), 3))
            ends += 3.0
        elif kind == "older":
            self._add(
                at,
                kind,
                "",
                round(rng.uniform(0.05, min(8.0, at - 0.1)), 3),
                round(rng.choice((0.01, rng.uniform(0, 2))), 3),
            )
            ends += 2.0
        elif kind == "failover":
            lingers = rng.choice((0.0, round(rng.uniform(0, 2.0), 3)))
            self._add(at, kind, "", round(rng.uniform(0.01, min(2.0, at - 0.1)), 3), lingers)
            ends += lingers
        elif kind == "pause":
            seconds = min(seconds, 8.0)
            self._add(at, kind, "", seconds)
            ends += seconds
        elif kind == "scripts":
            self._add(at, kind)
        elif kind == "hang_up":
            self._add(at, kind, "", rng.choice(("all", "subscribed")))
        elif kind == "redis_clock":
            self._add(at, kind, "", rng.choice((-1, 1)) * round(rng.choice((0.5, 5.0, 60.0)), 3))
        elif kind == "evict":
            self._add(at, kind, "", round(rng.uniform(0.05, 0.5), 2))
        elif kind == "layer_bad":
            self._add(
                at,
                kind,
                "",
                seconds,
                rng.choice((0.0, 0.1, 0.5, 1.0)),
                rng.choice((0.0, 0.2)),
                rng.choice((0.0, 0.3, 1.0)),
            )
            ends += seconds + 0.2
        elif kind == "wall":
            self._add(at, kind, host, rng.choice((-1, 1)) * round(rng.choice((1.0, 3600.0, 864000.0)), 3))
        if kind in ("terminate", "kill", "lose_host", "orphan"):
            self.people = {number: place for number, place in self.people.items() if place != host}
            back = at + round(rng.uniform(0.3, 4.0), 3) + (3.5 if kind == "terminate" else 0.0)
            self._add(back, "start", host)
            self._open(back + 0.1, host)
            ends = max(ends, back + 0.2)
        self.ends = max(self.ends, ends)
