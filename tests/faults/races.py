"""Two processes write one key at the same moment: both views must end as the store does, with no beacon to help.

python -m tests.faults.races --rounds 20000
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from base64 import b64encode
from collections import Counter
from contextlib import ExitStack
from typing import Any

from ephemeral_state.state import Topic
from tests.redis_server import shared_url, unique_prefix

from .client import Violation
from .server import LAYERS, Worker, configuration
from .worker import Subscriber, serve

WAVE = 4
"""Keys raced for at once. Few, so that each wave is a race of its own and not one batch against another."""
CHUNK = 200  # keys raced for before the views are compared
SOON = 5.0  # seconds
TOPIC = "room"


def race(kind: str, rounds: int, url: str, *, layer: str = "pubsub", seed: int = 0) -> Counter[str]:
    """`kind` is "two sets", or "set and disconnect" of the owner before.

    Returns how often each worker won, and how often a key was seen to pass from one owner to the other ("transfers":
    of a set and a disconnect, the set came first). Raises `Violation` if a view ends otherwise than the store.
    """
    rng = random.Random(seed)
    wins: Counter[str] = Counter()
    settings = configuration(
        layer,
        store_url=url,
        layer_url=url,
        prefix=unique_prefix(),
        # A wrong last frame must not be made good before it is seen.
        BEACON_INTERVAL=3600,
        MAX_KEYS_PER_CLIENT=10_000,
    )
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker("tests.faults.races", settings)) for _ in range(2)]
        _both(workers, [{"do": "follow", "name": f"worker-{number}"} for number in range(2)], rng)
        for first in range(0, rounds, CHUNK):
            keys = [f"k{number}" for number in range(first, min(first + CHUNK, rounds))]
            for start in range(0, len(keys), WAVE):
                _wave(kind, workers, keys[start : start + WAVE], rng)
            wins += _compare(workers, keys)
            for worker in workers:
                worker.tell(do="end")
                worker.answer()
        workers[0].tell(do="transfers")
        wins["transfers"] = workers[0].answer()
    return wins


def _wave(kind: str, workers: list[Worker], keys: list[str], rng: random.Random) -> None:
    if kind == "two sets":
        _both(workers, [{"do": "take", "keys": keys, "delay": _delay(rng)} for _ in workers], rng)
        return
    old, new = rng.sample(workers, 2)
    old.tell(do="own", keys=keys)
    old.answer()
    commands = [{"do": "leave", "keys": keys, "delay": _delay(rng)}, {"do": "take", "keys": keys, "delay": _delay(rng)}]
    _both([old, new], commands, rng)


def _delay(rng: random.Random) -> float:
    return rng.random() * 0.0005


def _both(workers: list[Worker], commands: list[dict[str, Any]], rng: random.Random) -> None:
    for worker, command in rng.sample(list(zip(workers, commands, strict=True)), 2):
        worker.tell(**command)
    for worker in workers:
        worker.answer()


def _compare(workers: list[Worker], keys: list[str]) -> Counter[str]:
    deadline = time.monotonic() + SOON
    while True:
        workers[0].tell(do="truth")
        truth = workers[0].answer()
        for worker in workers:
            worker.tell(do="view")
        views = [worker.answer() for worker in workers]
        if all(view == truth for view in views):
            break
        if time.monotonic() > deadline:
            wrong = [
                f"{key}: {truth.get(key)} is stored, and seen are {[view.get(key) for view in views]}"
                for key in keys
                if any(view.get(key) != truth.get(key) for view in views)
            ]
            raise Violation("; ".join(wrong))
        time.sleep(0.01)
    if sorted(truth) != sorted(keys):
        raise Violation(f"lost: {sorted(set(keys) - set(truth))}")
    if ghosts := {key: owner for key, (owner, _) in truth.items() if "takes" not in owner}:
        raise Violation(f"owned by who has left: {ghosts}")
    return Counter(owner.split()[0] for owner, _ in truth.values())


class _Racer:
    """What a worker does."""

    def __init__(self) -> None:
        self._topic = Topic("", TOPIC)
        self._takes = 0
        self._old: dict[str, Subscriber] = {}

    async def __call__(self, do: str, **arguments: Any) -> Any:
        return await getattr(self, f"_{do}")(**arguments)

    async def _follow(self, name: str) -> None:
        self._name = name
        self._watching = Subscriber(name, TOPIC)
        await self._watching.connection.subscribe(self._topic)
        self._taker = Subscriber(f"{name} takes 0")

    async def _take(self, keys: list[str], delay: float) -> None:
        _spin(delay)
        self._takes += 1
        payload = f"{self._name} {self._takes}"
        await asyncio.gather(*(self._taker.connection.set(self._topic, key, payload) for key in keys))

    async def _own(self, keys: list[str]) -> None:
        self._old = {key: Subscriber(f"{self._name} owned {key}") for key in keys}
        await asyncio.gather(*(old.connection.set(self._topic, key, f"{key} 1") for key, old in self._old.items()))

    async def _leave(self, keys: list[str], delay: float) -> None:
        _spin(delay)
        await asyncio.gather(*(self._old.pop(key).connection.end(abnormal=False) for key in keys))

    async def _end(self) -> None:
        await self._taker.connection.end(abnormal=False)
        self._taker = Subscriber(f"{self._name} takes {self._takes}")

    async def _view(self) -> Any:
        if self._watching.wrong is not None:
            raise self._watching.wrong
        return self._watching.view.entries

    async def _truth(self) -> Any:
        entries = await self._watching.connection.list(self._topic)
        return {e.key: (e.client_id, b64encode(e.payload).decode()) for e in entries}

    async def _transfers(self) -> int:
        return self._watching.view.heard["transfers"]


def _spin(seconds: float) -> None:
    """For times far shorter than what timers can do."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def main() -> int:
    if sys.argv[1:] == ["--worker"]:
        serve(_Racer)
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--layer", choices=LAYERS, default="pubsub")
    options = parser.parse_args()
    with shared_url() as url:
        for kind in ("two sets", "set and disconnect"):
            started = time.monotonic()
            wins = race(kind, options.rounds, url, layer=options.layer, seed=options.seed)
            seconds = time.monotonic() - started
            print(f"{kind}: {options.rounds:,} rounds in {seconds:.0f} s, no wrong end; {dict(wins)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
