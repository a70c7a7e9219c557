"""What must be true, judged by what the clients were answered and by nothing else.

As linearizability has it, a write takes effect at some moment between the question and the answer. A write that was
answered `unavailable` may have taken effect by then, or never: not later. Of a client that is gone, nothing stays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .person import Person
    from .world import World

__all__ = ["KINDS", "Asked", "Model", "Violation"]

KINDS = {
    "ghost": "an entry of a client that is gone",
    "lost": "nothing where a living client's value must be",
    "cleared": "a key that its owner had cleared is back",
    "older": "a client's older value in place of its newer one",
    "former": "a value of a former owner, though another client had set the key since",
    "late": "a write that was answered `unavailable` replaced, or removed, one that was made after that answer",
    "expired": "an entry that outlived its time to live",
    "refused": "a value whose set was refused",
    "view": "a subscriber's view that is not what the store holds",
    "unanswered": "a command that was not answered",
    "bug": "an exception that nobody handled, or that the product calls a bug of its own",
}

_END_TAKES = 6.0  # seconds after the end of a client in which its last writes may still be under way
_TTL_SLACK = 1.5  # seconds, either way: sweeping, and what writing back adds to a time to live
_UNHEARD = 1.0  # seconds until a heartbeat has told a Redis that it is older than it was
_VANISHED = 21.0  # seconds until a client that vanished is noticed: 18 s of silence, and clearing


class Violation(NamedTuple):
    kind: str
    text: str
    place: tuple[str, str] = ("", "")
    """The topic and the key, if it is about one."""

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(eq=False, slots=True)
class Asked:
    """One write of a client."""

    number: int
    person: Person
    kind: str
    topic: str
    key: str
    payload: str
    ttl: float | None
    grace: float
    asked_at: float
    answered_at: float = math.inf
    answer: str = ""
    """Empty until there is one; then `ok`, `unknown` or `refused`."""


class _Loss(NamedTuple):
    since: float
    until: float
    all_of_it: bool


class Model:
    def __init__(self, world: World) -> None:
        self.world = world
        self.people: list[Person] = []
        self.clock_slack = 0.0
        """Seconds that Redis' clock was put forward or back, in all."""
        self.network_kept_back = False
        """Whether something may have arrived late."""
        self._losses: list[_Loss] = []
        self._by_client: dict[str, Person] = {}
        self._places: dict[tuple[str, str], list[Asked]] = {}
        self._values: dict[str, Asked] = {}
        self._ends: dict[int, tuple[bool, bool]] = {}
        self._count = 0

    # What is heard of clients

    def came(self, person: Person) -> None:
        self.people.append(person)

    def knows(self, person: Person) -> None:
        self._by_client[person.client_id] = person

    def went(self, person: Person, *, grace: bool, vanished: bool) -> None:
        self._ends[person.number] = (grace, vanished)

    def sets(self, person: Person, topic: str, key: str, payload: str, ttl_ms: int | None, grace_ms: int) -> Asked:
        ttl = None if ttl_ms is None else ttl_ms / 1000
        asked = self._asks(person, "set", topic, key, payload, ttl, grace_ms / 1000)
        self._values[payload] = asked
        return asked

    def clears(self, person: Person, topic: str, key: str) -> Asked:
        return self._asks(person, "clear", topic, key, "", None, 0.0)

    def _asks(
        self, person: Person, kind: str, topic: str, key: str, payload: str, ttl: float | None, grace: float
    ) -> Asked:
        self._count += 1
        asked = Asked(self._count, person, kind, topic, key, payload, ttl, grace, self.world.now)
        self._places.setdefault((topic, key), []).append(asked)
        return asked

    def lost(self, since: float, until: float, *, all_of_it: bool) -> None:
        """Redis has gone back: there is another one since the first moment, and only that one from the second on."""
        self._losses.append(_Loss(since, until, all_of_it))

    def answered(self, asked: Asked, code: str | None) -> None:
        asked.answered_at = self.world.now
        asked.answer = "ok" if code is None else "unknown" if code in ("unavailable", "gone") else "refused"

    # Judging

    def is_named(self, violation: Violation) -> bool:
        """Whether it is one of the exceptions that `docs/design.md` names."""
        asked = self._places.get(violation.place, ())
        for loss in self._losses:
            if violation.kind == "former" and loss.all_of_it and self._took_unseen(violation.place, loss):
                return True
            if violation.kind in ("former", "lost", "older", "cleared", "late") and not loss.all_of_it:
                end = loss.until + _UNHEARD
                if any(each.asked_at <= end and each.answered_at >= loss.since for each in asked):
                    return True
        return False

    def _took_unseen(self, place: tuple[str, str], loss: _Loss) -> bool:
        """Whether, before everything was lost, a key was taken over while nobody in the process of its former owner
        followed the topic."""
        topic = place[0]
        asked = [each for each in self._places[place] if each.kind == "set" and each.asked_at < loss.until]
        for index, mine in enumerate(asked):
            for other in asked[index + 1 :]:
                if other.person is not mine.person and not any(
                    each.process is mine.person.process
                    and each.followed_since.get(topic, math.inf) < other.asked_at
                    and (each.ended_at is None or each.ended_at > other.answered_at)
                    for each in self.people
                ):
                    return True
        return False

    def judge(self, store: Mapping[str, Mapping[str, tuple[str, str]]]) -> list[Violation]:
        """`store`: by topic and key, the owner and the value that are there now."""
        found = []
        for (topic, key), asked in self._places.items():
            entry = store.get(topic, {}).get(key)
            wrong = self._absent(asked) if entry is None else self._present(asked, *entry)
            found += [each._replace(place=(topic, key)) for each in wrong]
        for topic, entries in store.items():
            for key in entries:
                if (topic, key) not in self._places:
                    found.append(Violation("ghost", f"{topic} {key} was never set, and is {entries[key]}"))
        for person in self.people:
            if not person.there:
                continue
            for topic, has_come in person.following.items():
                if has_come and (view := person.views.get(topic, {})) != store.get(topic, {}):
                    found.append(
                        Violation(
                            "view",
                            f"client {person.number} sees in {topic} {_told(view)}, not {_told(store.get(topic, {}))}",
                        )
                    )
                if not has_come:
                    found.append(Violation("unanswered", f"client {person.number} gets no snapshot of {topic}"))
        for places in self._places.values():
            for each in places:
                if not each.answer and each.person.there and self.world.now - each.asked_at > _END_TAKES:
                    found.append(Violation("unanswered", f"{self._name(each)} was not answered"))
        return found

    def forget_old(self, store: Mapping[str, Mapping[str, tuple[str, str]]]) -> None:
        """What cannot matter any more: keys that are not there and that nobody who is there has set."""
        for place, asked in list(self._places.items()):
            if place[1] not in store.get(place[0], {}) and all(
                not each.person.there and self.world.now - (each.person.ended_at or 0) > 120 for each in asked
            ):
                del self._places[place]
            elif len(asked) > 60:
                self._places[place] = asked[-60:]

    def _present(self, asked: list[Asked], owner: str, payload: str) -> list[Violation]:
        now = self.world.now
        mine = self._values.get(payload)
        if mine is None or mine not in asked or mine.person.client_id != owner:
            return [
                Violation("ghost", f"{asked[0].topic} {asked[0].key} is {payload!r} of {owner}, which nobody has set")
            ]
        what = f"{mine.topic} {mine.key} is {payload!r} of client {mine.person.number}"
        if mine.answer == "refused":
            return [Violation("refused", f"{what}, whose set was refused")]
        if not mine.person.there and now > self._stays_until(mine):
            return [Violation("ghost", f"{what}, who is gone since {self._ago(mine.person.ended_at)}")]
        if mine.ttl is not None and now > self._last_moment(mine) + mine.ttl + _TTL_SLACK + self.clock_slack:
            return [Violation("expired", f"{what}, whose {mine.ttl} s are over")]
        later = asked[asked.index(mine) + 1 :]
        for other in later:
            if other.person is mine.person and other.answer == "ok":
                kind = "cleared" if other.kind == "clear" else "older"
                return [
                    Violation(kind, f"{what}, and {self._name(other)} was answered ok {self._ago(other.answered_at)}")
                ]
        for other in later:
            is_set = other.kind == "set" and other.answer == "ok" and other.person is not mine.person
            if is_set and other.asked_at > self._last_moment(mine):
                kind = "late" if mine.answer != "ok" else "former"
                said = f"answered {mine.answer or 'not'} {self._ago(mine.answered_at)}"
                return [Violation(kind, f"{what}, {said}, and {self._name(other)} came after that")]
        return []

    def _absent(self, asked: list[Asked]) -> list[Violation]:
        now = self.world.now
        for index, mine in enumerate(asked):
            if mine.kind != "set" or mine.answer != "ok" or not mine.person.there:
                continue
            if mine.ttl is not None and now > mine.asked_at + mine.ttl - _TTL_SLACK - self.clock_slack:
                continue
            own = [each for each in asked[index + 1 :] if each.person is mine.person and each.answer != "refused"]
            if any(each.kind == "clear" or each.ttl is not None for each in own):
                continue
            if any(self._may_have_come_and_gone(each, mine) for each in asked if each.person is not mine.person):
                continue
            before = [each for each in asked[:index] if each.person is not mine.person and each.answer == "unknown"]
            is_late = self.network_kept_back and any(each.kind == "set" for each in before)
            kind = "late" if is_late else "lost"
            text = f"{mine.topic} {mine.key} is not there, and {self._name(mine)} was ok {self._ago(mine.answered_at)}"
            return [Violation(kind, text)]
        return []

    def _may_have_come_and_gone(self, other: Asked, mine: Asked) -> bool:
        """Whether another client may have taken the key over, and left it. What was stored though the client was told
        `unavailable` may be lost with the lease of its process, which knows of nothing to write back."""
        if other.kind != "set" or other.answer == "refused" or self._last_moment(other) < mine.asked_at:
            return False
        if not other.person.there or other.ttl is not None or other.answer != "ok":
            return True
        later = self._places[other.topic, other.key]
        later = later[later.index(other) + 1 :]
        return any(each.kind == "clear" and each.person is other.person for each in later)

    def _last_moment(self, asked: Asked) -> float:
        """After which it cannot take effect any more."""
        if asked.person.ended_at is not None:
            return min(asked.answered_at, asked.person.ended_at + _END_TAKES)
        return asked.answered_at

    def _stays_until(self, mine: Asked) -> float:
        grace, vanished = self._ends[mine.person.number]
        until = (mine.person.ended_at or 0.0) + (_VANISHED if vanished else 0.0)
        return until + (mine.grace + _TTL_SLACK + self.clock_slack if grace and mine.grace else 0.0)

    def _name(self, asked: Asked) -> str:
        value = f" = {asked.payload!r}" if asked.kind == "set" else ""
        return f"the {asked.kind} of {asked.topic} {asked.key}{value} by client {asked.person.number}"

    def _ago(self, when: float | None) -> str:
        if when is None or when == math.inf:
            return "at no time"
        return f"{self.world.now - when:.1f} s ago"


def _told(entries: Mapping[str, tuple[str, str]]) -> str:
    return "{" + ", ".join(f"{key}: {value!r} of {owner}" for key, (owner, value) in sorted(entries.items())) + "}"
