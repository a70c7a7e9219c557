"""What has a grace outlives an abnormal end by that much, on every store."""

from __future__ import annotations

import pytest

from ephemeral_state.state import Change, Drop, Restore, Revision, Set

from .world import ROOM, World, runs

UNTIL_DISCONNECT = None


async def expire(world: World) -> list[tuple[str, str | None]]:
    return [(change.key, change.reason) for change in (await world.store.sweep()).changes]


async def set_with_grace(world: World, client: str, key: str, grace_ms: int, ttl_ms: int | None = None) -> Change:
    (change,) = await world.changes(Set(client, ROOM, key, b"", ttl_ms, "", grace_ms))
    return change


@runs
async def test_after_an_abnormal_end_it_stays_for_its_grace_and_then_goes_as_disconnected(world: World) -> None:
    await set_with_grace(world, "c", "k", 5000)
    assert await world.changes(Drop("c", abnormal=True)) == []
    (entry,) = await world.entries()
    assert entry.expires_in_ms == 5000
    world.advance(4999)
    assert await expire(world) == []
    assert await world.keys() == ["k"]
    world.advance(20)
    assert await expire(world) == [("k", "disconnect")]


@runs
async def test_a_goodbye_clears_at_once(world: World) -> None:
    await set_with_grace(world, "c", "k", 5000)
    assert [change.reason for change in await world.changes(Drop("c"))] == ["disconnect"]


@runs
async def test_what_has_no_grace_goes_at_once_whatever_the_end(world: World) -> None:
    await set_with_grace(world, "c", "with", 5000)
    await set_with_grace(world, "c", "without", 0)
    changes = await world.changes(Drop("c", abnormal=True))
    assert [change.key for change in changes] == ["without"]
    assert await world.keys() == ["with"]


@runs
async def test_a_new_connection_takes_it_over_with_one_set_and_no_clear(world: World) -> None:
    await set_with_grace(world, "before", "k", 5000)
    await world.changes(Drop("before", abnormal=True))
    world.advance(1000)
    await set_with_grace(world, "after", "k", 5000)
    world.advance(60_000)
    assert await expire(world) == []
    (entry,) = await world.entries()
    assert (entry.client_id, entry.expires_in_ms) == ("after", None)
    assert await world.changes(Drop("before")) == []


@runs
async def test_a_time_to_live_that_ends_before_the_grace_ends_it_as_expired(world: World) -> None:
    await set_with_grace(world, "c", "k", 5000, ttl_ms=1000)
    await world.changes(Drop("c", abnormal=True))
    world.advance(1020)
    assert await expire(world) == [("k", "expired")]


@runs
async def test_ending_twice_gives_no_second_grace(world: World) -> None:
    await set_with_grace(world, "c", "k", 5000)
    await world.changes(Drop("c", abnormal=True))
    world.advance(4000)
    await world.changes(Drop("c", abnormal=True))
    world.advance(1020)
    assert await expire(world) == [("k", "disconnect")]


@runs
async def test_a_goodbye_in_its_name_ends_the_grace(world: World) -> None:
    await set_with_grace(world, "c", "k", 5000)
    await world.changes(Drop("c", abnormal=True))
    assert [change.key for change in await world.changes(Drop("c"))] == ["k"]
    assert await world.store.count() == 0


@runs
async def test_setting_it_again_without_a_grace_takes_the_grace_away(world: World) -> None:
    await set_with_grace(world, "c", "k", 5000)
    await set_with_grace(world, "c", "k", 0)
    assert len(await world.changes(Drop("c", abnormal=True))) == 1


@runs
async def test_no_grace_is_longer_than_the_longest_time_to_live(world: World) -> None:
    await set_with_grace(world, "c", "k", 10**9)
    await world.changes(Drop("c", abnormal=True))
    (entry,) = await world.entries()
    assert entry.expires_in_ms == 30 * 60_000


@pytest.mark.redis
@runs
async def test_what_lingers_is_its_owners_again_when_the_owner_turns_out_to_live(world: World) -> None:
    if not world.store.shared:
        return  # nobody is thought dead there
    change = await set_with_grace(world, "c", "k", 5000)
    await world.changes(Drop("c", abnormal=True))
    stamp = Revision(change.epoch, change.revision)
    await world.changes(Restore("c", ROOM, "k", b"", None, "n", stamp, 5000))
    world.advance(60_000)
    assert await expire(world) == []
    (entry,) = await world.entries()
    assert entry.expires_in_ms is None
