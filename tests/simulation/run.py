"""Carries a history out and judges what came of it."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ephemeral_state import node
from ephemeral_state.conf import get_settings
from ephemeral_state.errors import StoreUnavailable
from ephemeral_state.state import Topic
from ephemeral_state.stores import make_store

from .history import TOPICS, Op
from .layer import Broker
from .model import Model, Violation
from .network import Network
from .person import Person
from .process import Process, take_over
from .server import RealRedis, Redis
from .world import Livelock, World

__all__ = ["Result", "carry_out"]

_BUGS = ("store_bug", "message_bug", "duty_ended", "sweep_failed", "clearing_failed", "policy_failed", "lease_trouble")
_NEWCOMER = 1_000_000  # the number of the first client that comes for a check
_ANSWER = 5.0  # seconds that the store may take to say what it holds


@dataclass
class Result:
    violations: list[Violation] = field(default_factory=list)
    at: float = 0.0
    """When the check was that found them, in seconds since the beginning."""
    checks: int = 0
    digest: str = ""
    """Of the trace: of two runs of one history, the same."""
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def kinds(self) -> set[str]:
        return {violation.kind for violation in self.violations}


def carry_out(
    seed: int | str,
    ops: Sequence[Op],
    real: RealRedis,
    *,
    trace: list[str] | None = None,
    going_on: bool = False,
    find: str = "",
) -> Result:
    """Until the first check that finds something wrong, or, `find`, something of that kind; `going_on`: to the end."""
    gc.collect()
    gc.freeze()
    gc.disable()  # what it closes, and when, is to depend on nothing but the seed
    try:
        return _Run(seed, ops, real, trace, going_on, find).run()
    finally:
        gc.enable()


class _Run(logging.Handler):
    def __init__(
        self, seed: int | str, ops: Sequence[Op], real: RealRedis, trace: list[str] | None, going_on: bool, find: str
    ) -> None:
        super().__init__(logging.INFO)
        self.world = world = World(seed)
        self.ops = ops
        self.result = Result()
        self._digest = hashlib.blake2b(digest_size=8)
        self._trace = trace
        self._going_on = going_on
        self._find = find
        world.trace = self._note
        self.redis = Redis(world, real)
        self.redis.tells = trace is not None
        world.network = Network(world, self.redis)
        world.broker = Broker(world)
        self.model = Model(world)
        self.people: dict[int, Person] = {}
        self.lives: Counter[str] = Counter()
        self.began = world.now
        take_over(world)
        self.observer = Process(world, "observer", 0)
        self._bugs: list[str] = []
        self._store_seen: dict[str, dict[str, tuple[str, str]]] = {}

    def _note(self, text: str) -> None:
        self._digest.update(text.encode() + b"\n")
        if self._trace is not None:
            self._trace.append(text)

    def emit(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", "")
        name = self.world.running.name if self.world.running is not None else "-"
        self._note(f"{self.world.now:.6f} {name} logs {event or record.levelname}: {record.getMessage()}")
        self.result.counts[event or "log"] += 1
        if event in _BUGS:
            text = record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                text += f" ({record.exc_info[1]!r})"
            self._bugs.append(f"{name} says {event}: {text}")

    def run(self) -> Result:
        logger = logging.getLogger("ephemeral_state")
        level, propagates, handlers = logger.level, logger.propagate, logger.handlers
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.handlers = [self]
        try:
            self._run()
        except Livelock as error:
            self.result.at = self.world.now - self.began
            self.result.violations = [Violation("bug", str(error))]
        finally:
            logger.setLevel(level)
            logger.propagate = propagates
            logger.handlers = handlers
            self._end()
        self.result.digest = self._digest.hexdigest()
        self.result.counts["turns"] = self.world.turns
        self.result.counts["calls"] = sum(self.redis.calls.values())
        return self.result

    def _run(self) -> None:
        for op in self.ops:
            if op.do in ("older", "failover"):
                self.world.at(max(self.began, self.began + op.at - op.args[0]), self.redis.save, str(id(op)))
        ends = self.began
        for op in self.ops:
            ends = self.began + op.at
            if op.do != "check":
                self.world.at(ends, self._do, op)
                continue
            self.world.at(ends - op.args[0], self._newcomer, op)
            self.world.run(ends)
            self._check()
            self.result.at = op.at
            self.result.checks += 1
            if self.result.violations and not self._going_on and (not self._find or self._find in self.result.kinds):
                return
            self.model.forget_old(self._store_seen)
            gc.collect(0 if self.result.checks % 20 else 2)
        self.world.run(ends)

    def _end(self) -> None:
        for process in list(self.world.processes):
            process.die()
        node._nodes.clear()

    # Checks

    def _check(self) -> None:
        store = self._store_seen = self._look()
        found = self.model.judge(store)
        if found and {each.kind for each in found} == {"view"}:
            # Something may have expired at this very moment, and be on its way.
            self.world.run(self.world.now + 0.5)
            found = self.model.judge(self._look())
        found += [Violation("bug", text) for text in self._bugs + self.world.failures]
        named = [each for each in found if self.model.is_named(each)]
        self.result.counts["named"] += len(named)
        found = [each for each in found if each not in named]
        self._bugs.clear()
        self.world.failures.clear()
        when = f"at {self.world.now - self.began:.1f} s " if self._going_on or self._find else ""
        self.result.violations += [each._replace(text=when + each.text) for each in found]

    def _look(self) -> dict[str, dict[str, tuple[str, str]]]:
        """What the store holds, as it says itself."""
        done: list[dict[str, dict[str, tuple[str, str]]]] = []

        async def look() -> None:
            if not self.observer._stores:
                self.observer._stores.append(make_store(get_settings()))
            store = self.observer._stores[0]
            while True:
                try:
                    seen = {}
                    for topic in TOPICS:
                        entries = (await store.snapshot(Topic("", topic))).entries
                        seen[topic] = {e.key: (e.client_id, e.payload.decode()) for e in entries}
                    done.append(seen)
                    return
                except StoreUnavailable:
                    await asyncio.sleep(0.05)

        self.observer.loop.arrived(lambda: asyncio.ensure_future(look(), loop=self.observer.loop))
        until = self.world.now + _ANSWER
        while not done and self.world.now < until:
            self.world.run(self.world.now + 0.004)
        if not done:
            raise RuntimeError("the simulated Redis does not answer, though nothing is wrong any more")
        return done[0]

    # What happens

    def _newcomer(self, op: Op) -> None:
        """Connects when nothing goes wrong any more: somebody has to be there, to clear what the dead have left."""
        self._do_start(op)
        number = _NEWCOMER + self.result.checks
        self._do_open(Op(op.at, "open", number), str(op.on))
        if number in self.people:
            for topic in TOPICS:
                self.people[number].subscribe(topic, False)

    def _do(self, op: Op) -> None:
        self.world.say(f"{op.do} {op.on} {op.args}")
        getattr(self, f"_do_{op.do}")(op, *op.args)

    def _process(self, host: str | int) -> Process | None:
        return next((process for process in self.world.processes if process.host == host), None)

    def _do_start(self, op: Op) -> None:
        if self._process(op.on) is None:
            self.lives[str(op.on)] += 1
            Process(self.world, str(op.on), self.lives[str(op.on)])

    def _do_open(self, op: Op, host: str) -> None:
        process = self._process(host)
        if process is not None and not process.ends:
            number = int(op.on)
            self.people[number] = Person(self.world, self.model, number, process)

    def _person(self, op: Op) -> Person | None:
        person = self.people.get(int(op.on))
        return person if person is not None and person.there else None

    def _do_subscribe(self, op: Op, topic: str, batch: bool) -> None:
        if person := self._person(op):
            person.subscribe(topic, batch)

    def _do_set(self, op: Op, topic: str, key: str, value: str, ttl_ms: int | None, grace_ms: int) -> None:
        if person := self._person(op):
            person.set(topic, key, value, ttl_ms, grace_ms)

    def _do_clear(self, op: Op, topic: str, key: str) -> None:
        if person := self._person(op):
            person.clear(topic, key)

    def _do_leave(self, op: Op, how: str) -> None:
        if person := self._person(op):
            person.leave(how)

    def _those_of(self, process: Process) -> list[Person]:
        return [person for person in self.people.values() if person.process is process and person.there]

    def _do_kill(self, op: Op) -> None:
        self._kill(op, sockets_end=True)

    def _do_lose_host(self, op: Op) -> None:
        self._kill(op, sockets_end=False)

    def _kill(self, op: Op, *, sockets_end: bool) -> None:
        process = self._process(op.on)
        if process is not None:
            process.die(sockets_end=sockets_end)
            for person in self._those_of(process):
                person.lost()

    def _do_orphan(self, op: Op, seconds: float) -> None:
        process = self._process(op.on)
        if process is not None:
            inherited = [each for each in self.world.network.of(process.host) if each.process is process]
            self._kill(op, sockets_end=False)
            for connection in inherited:
                self.world.after(seconds, connection.child_closes)

    def _do_terminate(self, op: Op) -> None:
        process = self._process(op.on)
        if process is None or process.frozen or process.ends:
            return
        process.ends = True
        people = self._those_of(process)
        for person in people:
            process.loop.arrived(person.end_of_process)
            person.lost()
        process.loop.arrived(lambda: self._drain(process))

    def _drain(self, process: Process) -> None:
        async def drain() -> None:
            await process.drain()
            waiting = [person._task for person in self.people.values() if person.process is process and person._task]
            if waiting:
                await asyncio.wait(waiting, timeout=3.0)
            self.world.after(0.0, process.die)

        process.duties.append(asyncio.ensure_future(drain(), loop=process.loop))

    def _do_freeze(self, op: Op, seconds: float) -> None:
        process = self._process(op.on)
        if process is not None:
            process.freeze()
            self.world.after(seconds, process.thaw)

    def _do_wall(self, op: Op, seconds: float) -> None:
        offsets: dict[str, float] = self.world.__dict__.setdefault("wall_offsets", {})
        offsets[str(op.on)] = offsets.get(str(op.on), 0.0) + seconds

    def _do_cut(self, op: Op, direction: str, seconds: float) -> None:
        """`up` and `down` are directions of the way to Redis; `all`: both, and the channel layer too."""
        self.model.network_kept_back = True
        for each in (direction,) if direction in ("up", "down") else ("up", "down"):
            self.world.network.cut(str(op.on), each, seconds)
        if direction == "all":
            self._do_layer_deaf(op, seconds)
            self._do_layer_silent(op, seconds)

    def _do_hold(self, op: Op, seconds: float) -> None:
        self.model.network_kept_back = True
        self.world.network.hold_next(str(op.on), seconds)

    def _do_reset(self, op: Op) -> None:
        self.world.network.reset(str(op.on))

    def _do_refuse(self, op: Op, seconds: float) -> None:
        self.world.network.refuse(str(op.on), seconds)
        self.world.network.reset(str(op.on))

    def _do_empty(self, op: Op, seconds: float) -> None:
        if self.redis.listens:
            self.redis.go_down()
            self.world.after(seconds, self.redis.come_up, None)
            self.model.lost(self.world.now, self.world.now + seconds, all_of_it=True)

    def _do_older(self, op: Op, age: float, seconds: float) -> None:
        if self.redis.listens:
            self.redis.go_down()
            self.world.after(seconds, self.redis.come_up, str(id(op)))
            self.model.lost(self.world.now + seconds, self.world.now + seconds, all_of_it=False)

    def _do_failover(self, op: Op, age: float, lingers: float) -> None:
        if self.redis.listens:
            self.redis.fail_over(str(id(op)), lingers)
            self.model.lost(self.world.now, self.world.now + lingers, all_of_it=False)

    def _do_pause(self, op: Op, seconds: float) -> None:
        self.redis.pause(seconds)

    def _do_scripts(self, op: Op) -> None:
        self.redis.forget_scripts()

    def _do_hang_up(self, op: Op, whom: str) -> None:
        self.redis.kill_sessions(whom)

    def _do_redis_clock(self, op: Op, seconds: float) -> None:
        self.redis.jump(seconds)
        self.model.clock_slack += abs(seconds)

    def _do_evict(self, op: Op, share: float) -> None:
        self.redis.evict(share, self.world.random_for("evict", op.at))

    def _do_layer_bad(self, op: Op, seconds: float, lose: float, repeat: float, delay: float) -> None:
        self.world.broker.be_bad(seconds, lose, repeat, delay)

    def _do_layer_deaf(self, op: Op, seconds: float) -> None:
        process = self._process(op.on)
        if process is not None:
            self.world.broker.deafen(process.name, seconds)

    def _do_layer_silent(self, op: Op, seconds: float) -> None:
        process = self._process(op.on)
        if process is not None:
            self.world.broker.silence(process.name, seconds)
