"""What both stores keep for people: counts by the minute, the latest transitions, owners, topics."""

from __future__ import annotations

from ephemeral_state.state import Set, Topic
from ephemeral_state.stores.base import MINUTES, Owner, Report, Transition
from tests.stores.world import ROOM, World, runs


def transition(key: str, client: str = "ann", age_ms: float = 0) -> Transition:
    return Transition(age_ms, ROOM, key, client, None, "n1")


@runs
async def test_counts_add_up_within_a_minute_and_are_forgotten_after_an_hour(world: World) -> None:
    await world.store.report(Report("n1", {"set": 2, "expired": 1}))
    await world.store.report(Report("n2", {"set": 3}))
    minutes = (await world.store.history()).minutes
    assert len(minutes) == MINUTES
    assert sum(minute.get("set", 0) for minute in minutes) == 5
    assert sum(minute.get("expired", 0) for minute in minutes[-2:]) == 1


@runs
async def test_transitions_are_told_from_the_last_one_back_for_one_entry_or_all(world: World) -> None:
    await world.store.report(Report("n1", {}, [transition("a", age_ms=5000), transition("b")]))
    await world.store.report(Report("n1", {}, [transition("a", "bob")]))
    everything = (await world.store.history()).transitions
    assert [(each.key, each.client) for each in everything] == [("a", "bob"), ("b", "ann"), ("a", "ann")]
    assert everything[0]._replace(age_ms=0) == transition("a", "bob")
    assert 5000 <= everything[2].age_ms < 60_000
    of_a = (await world.store.history(ROOM, "a")).transitions
    assert [each.client for each in of_a] == ["bob", "ann"]
    assert (await world.store.history(Topic("else", "where"), "a")).transitions == []


@runs
async def test_owners_are_known_until_they_are_gone(world: World) -> None:
    await world.changes(Set("ann", ROOM, "k", b"", None, "n1"))
    await world.store.report(Report("n1", {}, came={"ann": "{}"}))
    assert await world.store.owners(["ann", "bob"]) == {"ann": Owner("n1", "{}")}
    await world.store.report(Report("n1", {}, gone=["ann"]))
    assert (await world.store.owners(["ann"])).get("ann", Owner("n1", "")).about == ""


@runs
async def test_topics_are_counted_in_their_order(world: World) -> None:
    names = [Topic(f"n{n % 3}", f"t{n}\0") for n in range(30)]
    await world.changes(*(Set("ann", name, f"{key}") for n, name in enumerate(names) for key in range(n % 4 + 1)))
    found, cursor = [], ""
    while True:
        some, cursor = await world.store.topics(cursor=cursor, limit=7)
        found += some
        if not cursor:
            break
    assert dict(found) == {name: n % 4 + 1 for n, name in enumerate(names)}
    assert len(found) == len(names)
    assert await world.store.counts([names[3], ROOM, names[0]]) == [4, 0, 1]
