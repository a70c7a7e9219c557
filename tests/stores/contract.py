"""What every store promises. Subclass it in a test module and provide the fixtures of `conftest.py`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ephemeral_state.errors import ClientRequired, NameInvalid, NameRequired, PayloadTooLarge, TooManyKeys
from ephemeral_state.state import UNTIL_DISCONNECT, Change, Clear, Drop, Entry, Limits, Revision, Set, Topic, Write
from tests.stores.world import ROOM, World, runs

OTHER = Topic("", "room")
STRANGE = [
    "\0",
    " ",
    "a\0",
    "\0\0",
    "\0\1",
    "é",
    "e\u0301",
    "😀",
    "\uffff",
    "日本",
    "K",
    "k",
    "{x}",
    "a:b",
    "x" * 10_000,
]


class WritingContract:
    @runs
    async def test_a_set_is_numbered_told_and_listed(self, world: World) -> None:
        change = await world.set("ann", "typing", b"\0\xff", 5_000)
        epoch = change.epoch
        assert change == Change(ROOM, "typing", "ann", b"\0\xff", None, 5_000, epoch, 1)
        assert 0 < epoch < 2**53
        snapshot = await world.store.snapshot(ROOM)
        assert list(snapshot.entries) == [Entry(ROOM, "typing", "ann", b"\0\xff", 5_000)]
        assert snapshot.revision == Revision(epoch, 1)

    @runs
    async def test_the_same_value_again_is_a_change_again(self, world: World) -> None:
        first = await world.set("ann", "k", b"x")
        second = await world.set("ann", "k", b"x")
        assert (second.epoch, second.revision) == (first.epoch, 2)

    @runs
    async def test_a_set_replaces_value_deadline_and_owner(self, world: World) -> None:
        await world.set("ann", "k", b"x", 5_000)
        await world.set("bob", "k", b"", 9_000)
        assert list(await world.entries()) == [Entry(ROOM, "k", "bob", b"", 9_000)]
        assert await world.store.count() == 1

    @runs
    async def test_the_payload_is_copied(self, world: World) -> None:
        buffer = bytearray(b"before")
        change = await world.set("ann", "k", buffer)  # type: ignore[arg-type]
        buffer[:] = b"after!"
        assert change.payload == b"before"
        assert (await world.entries())[0].payload == b"before"

    @runs
    async def test_a_ttl_of_nothing_is_the_default_and_a_long_one_is_cut(
        self, make_world: Callable[[Limits], World]
    ) -> None:
        world = make_world(Limits(default_ttl_ms=700, max_ttl_ms=2_000))
        for ttl_ms, expected in ((0, 700), (-5, 700), (1, 1), (2_000, 2_000), (2_001, 2_000)):
            assert (await world.set("ann", "k", ttl_ms=ttl_ms)).expires_in_ms == expected
            assert (await world.entries())[0].expires_in_ms == expected

    @runs
    async def test_what_lives_until_disconnect_has_no_deadline(self, world: World) -> None:
        assert repr(UNTIL_DISCONNECT) == "UNTIL_DISCONNECT"
        assert (await world.set("ann", "k", ttl_ms=None)).expires_in_ms is None
        world.advance(12 * 60 * 60 * 1000)
        assert list(await world.entries()) == [Entry(ROOM, "k", "ann", b"", None)]
        assert not (await world.store.sweep()).changes
        assert [change.reason for change in await world.drop("ann")] == ["disconnect"]
        assert await world.keys() == []

    @runs
    async def test_a_set_may_change_between_the_two_lifetimes(self, world: World) -> None:
        await world.set("ann", "k", ttl_ms=None)
        await world.set("ann", "k", ttl_ms=10)
        world.advance(11)
        assert len((await world.store.sweep()).changes) == 1
        await world.set("ann", "k", ttl_ms=10)
        await world.set("ann", "k", ttl_ms=None)
        world.advance(11)
        assert not (await world.store.sweep()).changes
        assert await world.keys() == ["k"]

    @runs
    async def test_clear_and_drop_tell_who_why_and_in_order(self, world: World) -> None:
        sets = await world.changes(Set("ann", ROOM, "a"), Set("ann", ROOM, "b", b"x"))
        epoch = sets[0].epoch
        assert await world.clear("ann", "a") == [Change(ROOM, "a", "ann", b"", "explicit", 0, epoch, 3)]
        assert await world.drop("ann") == [Change(ROOM, "b", "ann", b"", "disconnect", 0, epoch, 4)]
        assert await world.keys() == []

    @runs
    async def test_clearing_what_is_not_there_is_nothing(self, world: World) -> None:
        await world.set("ann", "k")
        assert await world.clear("ann", "other") == []
        assert await world.clear("ann", "k", OTHER) == []
        assert len(await world.clear("ann", "k")) == 1
        assert await world.clear("ann", "k") == []

    @runs
    async def test_a_drop_removes_from_all_namespaces_what_is_still_owned(self, world: World) -> None:
        topics = [Topic(namespace, name) for namespace in ("", "a", "b") for name in ("x", "y", "z")]
        await world.changes(*(Set("ann", topic, "k") for topic in topics), Set("bob", topics[4], "k"))
        changes = await world.drop("ann")
        assert {change.topic for change in changes} == set(topics) - {topics[4]}
        assert await world.store.count() == 1
        assert await world.drop("ann") == []

    @runs
    async def test_dropping_an_unknown_or_empty_client_is_nothing(self, world: World) -> None:
        await world.set("ann", "k")
        assert await world.changes(Drop("nobody"), Drop(""), Drop("\ud800")) == []
        assert await world.keys() == ["k"]

    @runs
    async def test_a_batch_is_carried_out_in_order(self, world: World) -> None:
        changes = await world.changes(
            Set("ann", ROOM, "k", b"1"),
            Clear("ann", ROOM, "k"),
            Set("bob", ROOM, "k", b"2"),
            Drop("bob"),
            Set("ann", ROOM, "k", b"3"),
        )
        assert [change.reason for change in changes] == [None, "explicit", None, "disconnect", None]
        assert (await world.entries())[0].payload == b"3"

    @runs
    async def test_an_empty_batch_is_nothing(self, world: World) -> None:
        assert await world.apply() == []


class RefusalContract:
    @pytest.mark.parametrize(
        ("write", "error"),
        [
            (Set("", Topic("", ""), "", b"x" * 20_000), ClientRequired),
            (Set("ann", Topic("", ""), "k", b"x" * 20_000), NameRequired),
            (Set("ann", ROOM, "", b"x" * 20_000), NameRequired),
            (Set("ann", ROOM, "new", b"x" * 16_385), PayloadTooLarge),
            (Set("ann", ROOM, "k", b"x" * 16_385), PayloadTooLarge),
            (Set("ann", ROOM, "new"), TooManyKeys),
            (Set("ann", OTHER, "new"), TooManyKeys),
            (Set("ann", ROOM, "of bob"), TooManyKeys),
            (Clear("", ROOM, "k"), ClientRequired),
            (Clear("ann", Topic("a", ""), "k"), NameRequired),
            (Clear("ann", ROOM, ""), NameRequired),
            (Set("ann", ROOM, "a\ud800"), NameInvalid),
            (Set("ann", Topic("\udfff", "t"), "k"), NameInvalid),
            (Set("ann", Topic("", "\udfff"), "k"), NameInvalid),
            (Set("\ud800", ROOM, "k"), NameInvalid),
            (Clear("ann", ROOM, "\ud800"), NameInvalid),
        ],
    )
    @runs
    async def test_a_refused_write_changes_nothing_and_fails_alone(
        self, make_world: Callable[[Limits], World], write: Write, error: type[Exception]
    ) -> None:
        world = make_world(Limits(max_keys_per_client=2))
        await world.changes(Set("ann", ROOM, "k"), Set("ann", OTHER, "k"), Set("bob", ROOM, "of bob"))
        before = await world.everything(ROOM, OTHER)
        (outcome,) = await world.apply(write)
        assert type(outcome.error) is error
        assert not outcome.changes
        assert await world.everything(ROOM, OTHER) == before
        good = Set("cy", ROOM, "good")
        outcomes = await world.apply(good, write, good)
        assert [type(outcome.error) for outcome in outcomes] == [type(None), error, type(None)]
        assert outcomes[2].changes[0].revision == outcomes[0].changes[0].revision + 1

    @runs
    async def test_the_largest_payload_passes(self, world: World) -> None:
        await world.set("ann", "k", b"\xff" * 16_384)
        assert (await world.entries())[0].payload == b"\xff" * 16_384

    @runs
    async def test_the_cap_counts_all_namespaces_exactly(self, world: World) -> None:
        topics = [Topic(f"n{number % 3}", f"t{number % 7}") for number in range(300)]
        outcomes = await world.apply(*(Set("ann", topic, f"k{n}") for n, topic in enumerate(topics)))
        assert [n for n, outcome in enumerate(outcomes) if outcome.error is None] == list(range(256))
        assert str(outcomes[-1].error) == "client ann owns 256 keys, the limit is 256 (MAX_KEYS_PER_CLIENT)"
        assert await world.store.count() == 256
        await world.set("ann", "k0", b"again", topic=topics[0])
        await world.set("bob", "k0", b"taken", topic=topics[0])
        await world.set("ann", "new")
        (outcome,) = await world.apply(Set("ann", topics[0], "k0"))
        assert isinstance(outcome.error, TooManyKeys)

    @runs
    async def test_the_cap_follows_what_the_same_batch_frees(self, make_world: Callable[[Limits], World]) -> None:
        world = make_world(Limits(max_keys_per_client=1))
        topics = [Topic("", f"t{number}") for number in range(8)]
        writes: list[Write] = []
        for topic in topics:
            writes += [Set("ann", topic, "k"), Set("ann", topic, "too many"), Set("bob", topic, "k"), Drop("bob")]
            writes += [Set("ann", topic, "k"), Clear("ann", topic, "k")]
        errors = [outcome.error is not None for outcome in await world.apply(*writes)]
        assert errors == [False, True, False, False, False, False] * 8

    @runs
    async def test_what_has_expired_counts_to_the_cap_until_swept(self, make_world: Callable[[Limits], World]) -> None:
        world = make_world(Limits(max_keys_per_client=1))
        await world.set("ann", "k", ttl_ms=10)
        world.advance(20)
        (outcome,) = await world.apply(Set("ann", ROOM, "new"))
        assert isinstance(outcome.error, TooManyKeys)
        assert await world.store.count() == 1
        await world.store.sweep()
        await world.set("ann", "new")


class FencingContract:
    @runs
    async def test_a_late_clear_never_removes_a_successors_value(self, world: World) -> None:
        await world.set("ann", "k", b"ann's")
        await world.set("bob", "k", b"bob's")
        assert await world.clear("ann", "k") == []
        assert (await world.entries())[0].payload == b"bob's"

    @runs
    async def test_a_late_drop_never_removes_a_successors_value(self, world: World) -> None:
        await world.set("ann", "k")
        await world.set("ann", "other")
        await world.set("bob", "k", b"bob's")
        assert [change.key for change in await world.drop("ann")] == ["other"]
        assert [(entry.key, entry.client_id) for entry in await world.entries()] == [("k", "bob")]

    @runs
    async def test_a_late_sweep_never_removes_what_was_set_again(self, world: World) -> None:
        await world.set("ann", "k", ttl_ms=10)
        world.advance(20)
        await world.set("bob", "k", ttl_ms=10)
        assert not (await world.store.sweep()).changes
        assert await world.keys() == ["k"]

    @runs
    async def test_an_expired_entry_can_be_cleared_dropped_and_taken(self, world: World) -> None:
        await world.changes(*(Set("ann", ROOM, key, b"", 10) for key in ("cleared", "taken", "dropped")))
        world.advance(11)
        assert [change.reason for change in await world.clear("ann", "cleared")] == ["explicit"]
        await world.set("bob", "taken")
        assert [change.key for change in await world.drop("ann")] == ["dropped"]
        assert await world.keys() == ["taken"]


class ReadingContract:
    @runs
    async def test_a_snapshot_ends_at_the_deadline_and_a_sweep_begins_after_it(self, world: World) -> None:
        await world.set("ann", "k", ttl_ms=10)
        world.advance(9.001)
        assert (await world.entries())[0].expires_in_ms == 0
        world.advance(0.999)
        assert await world.keys() == []
        assert not (await world.store.sweep()).changes
        world.advance(0.001)
        assert [change.reason for change in (await world.store.sweep()).changes] == ["expired"]

    @runs
    async def test_a_snapshot_removes_nothing(self, world: World) -> None:
        await world.set("ann", "k", ttl_ms=10)
        world.advance(60)
        revision = (await world.store.snapshot(ROOM)).revision
        assert (await world.store.revisions([ROOM]))[0] == revision
        assert await world.store.count() == 1

    @runs
    async def test_one_entry_is_read_as_the_snapshot_has_it(self, world: World) -> None:
        for number, key in enumerate(STRANGE):
            await world.set(f"c{number}", key, b"\0" * number, 5_000 if number % 2 else None)
            await world.set("other", key, b"elsewhere", topic=OTHER)
        await world.set("heir", STRANGE[0], b"taken over")
        await world.clear("c1", STRANGE[1])
        entries = {entry.key: entry for entry in await world.entries()}
        assert len(entries) == len(STRANGE) - 1
        for key in STRANGE:
            assert await world.store.entry(ROOM, key) == entries.get(key)

    @runs
    async def test_an_entry_that_is_not_live_is_not_read_and_not_removed(self, world: World) -> None:
        await world.set("ann", "k", ttl_ms=10)
        world.advance(9.5)
        entry = await world.store.entry(ROOM, "k")
        assert entry == Entry(ROOM, "k", "ann", b"", 0)
        world.advance(0.5)
        assert await world.store.entry(ROOM, "k") is None
        assert await world.store.count() == 1
        for topic, key in ((ROOM, ""), (ROOM, "K"), (ROOM, "\ud800"), (OTHER, "k"), (Topic("\ud800", "\ud800"), "k")):
            assert await world.store.entry(topic, key) is None

    @runs
    async def test_a_snapshot_is_sorted_by_the_bytes_of_the_keys(self, world: World) -> None:
        await world.changes(*(Set("ann", ROOM, key) for key in STRANGE))
        assert await world.keys() == sorted(STRANGE, key=str.encode)

    @runs
    async def test_names_are_any_text_and_never_mixed_up(self, world: World) -> None:
        topics = [Topic(namespace, name) for namespace in ("", *STRANGE[:7]) for name in STRANGE[:7]]
        topics += [Topic("a", "b:c"), Topic("a:b", "c"), Topic("ab", "c"), Topic("a", "bc"), Topic("x", STRANGE[-1])]
        for number, topic in enumerate(topics):
            await world.changes(Set(topic.name, topic, topic.name, str(number).encode()))
        for number, topic in enumerate(topics):
            (entry,) = await world.entries(topic)
            assert entry == Entry(topic, topic.name, topic.name, str(number).encode(), 60_000)
        page = await world.store.browse(limit=1000)
        assert sorted(entry.topic for entry in page.entries) == sorted(topics)
        assert {change.topic for change in await world.drop("\0")} == {t for t in topics if t.name == "\0"}

    @runs
    async def test_an_unknown_topic_is_empty(self, world: World) -> None:
        for topic in (ROOM, Topic("", ""), Topic("\ud800", "\ud800")):
            snapshot = await world.store.snapshot(topic)
            assert (snapshot.topic, snapshot.revision, list(snapshot.entries)) == (topic, Revision(0, 0), [])
            assert await world.store.revisions([topic]) == [Revision(0, 0)]
        assert await world.store.revisions([]) == []
        assert await world.store.count() == 0


class RevisionContract:
    @runs
    async def test_the_changes_of_a_topic_in_a_batch_are_contiguous(self, world: World) -> None:
        topics = [Topic("n", f"t{number}") for number in range(6)]
        for _ in range(3):
            writes: list[Write] = [Set(f"c{n % 4}", topics[n % 6], f"k{n % 9}") for n in range(50)]
            changes = await world.changes(*writes, Clear("c1", topics[1], "k1"), Drop("c2"), Drop("c3"))
            for topic in topics:
                own = [(change.epoch, change.revision) for change in changes if change.topic == topic]
                first = own[0][1]
                assert own == [(own[0][0], first + number) for number in range(len(own))]
                assert (await world.store.revisions([topic]))[0] == Revision(*own[-1])

    @runs
    async def test_revisions_answer_in_the_order_of_the_question(self, world: World) -> None:
        topics = [Topic("n", f"t{number}") for number in range(20)]
        last = {}
        for number, topic in enumerate(topics[::2]):
            for _ in range(number + 1):
                change = await world.set("ann", "k", topic=topic)
                last[topic] = Revision(change.epoch, change.revision)
        expected = [last.get(topic, Revision(0, 0)) for topic in topics]
        assert await world.store.revisions(topics) == expected
        assert await world.store.revisions([topics[2], topics[2]]) == [expected[2]] * 2

    @runs
    async def test_a_topic_that_was_empty_goes_on_or_begins_a_larger_epoch(self, world: World) -> None:
        last = await world.set("ann", "k")
        for _ in range(5):
            (last,) = await world.clear("ann", "k")
            world.advance(1)
            change = await world.set("ann", "k")
            went_on = (change.epoch, change.revision) == (last.epoch, last.revision + 1)
            assert went_on or (change.epoch > last.epoch and change.revision == 1)

    @runs
    async def test_a_snapshot_carries_the_revision_it_is_the_result_of(self, world: World) -> None:
        for write in (Set("ann", ROOM, "a"), Set("ann", ROOM, "b"), Clear("ann", ROOM, "a")):
            (change,) = await world.changes(write)
            assert (await world.store.snapshot(ROOM)).revision == Revision(change.epoch, change.revision)


class SweepContract:
    @runs
    async def test_a_sweep_removes_what_has_expired_and_nothing_else(self, world: World) -> None:
        await world.changes(*(Set("ann", Topic("", f"t{n}"), "k", b"x", 10 + n) for n in range(20)))
        world.advance(20)
        sweep = await world.store.sweep()
        assert sorted(change.topic.name for change in sweep.changes) == sorted(f"t{n}" for n in range(10))
        assert {(change.reason, change.client_id, change.payload) for change in sweep.changes} == {
            ("expired", "ann", b"")
        }
        assert await world.store.count() == 10
        assert not (await world.store.sweep()).changes

    @runs
    async def test_a_sweep_takes_at_most_its_limit_and_asks_to_be_called_again(self, world: World) -> None:
        await world.changes(*(Set("ann", ROOM, f"k{n}", b"", 10) for n in range(60)))
        world.advance(11)
        seen: list[int] = []
        while (sweep := await world.store.sweep(limit=25)).changes:
            assert len(sweep.changes) <= 25
            seen += [change.revision for change in sweep.changes]
            assert sweep.next_in_ms == 0 or len(seen) == 60
        assert seen == list(range(61, 121))
        assert (await world.store.sweep()).next_in_ms is None

    @runs
    async def test_a_sweep_tells_when_the_next_is_worth_while(self, world: World) -> None:
        assert (await world.store.sweep()).next_in_ms is None
        await world.changes(Set("ann", ROOM, "a", b"", 500), Set("ann", OTHER, "b", b"", 900))
        for _ in range(2):
            next_in_ms = (await world.store.sweep()).next_in_ms
            assert next_in_ms is not None
            # It may be late by some ms, never early: that would be a sweep for nothing.
            assert 1 <= next_in_ms <= 550
            world.advance(next_in_ms)
            assert len((await world.store.sweep()).changes) == 1
        assert (await world.store.sweep()).next_in_ms is None


class BrowsingContract:
    @staticmethod
    async def pages(world: World, limit: int, **filters: str) -> list[Entry]:
        entries: list[Entry] = []
        cursor = ""
        for _ in range(1000):
            page = await world.store.browse(cursor=cursor, limit=limit, **filters)  # type: ignore[arg-type]
            assert len(page.entries) <= limit
            entries += page.entries
            cursor = page.cursor
            if not cursor:
                return entries
        raise AssertionError("the pages never end")

    @runs
    async def test_pages_hold_every_live_entry_once(self, world: World) -> None:
        topics = [Topic(f"n{n % 3}", f"t{n % 5}") for n in range(100)]
        await world.changes(
            *(Set(f"c{n % 2}", topic, f"k{n}", b"p%d" % n, None if n % 2 else 5_000) for n, topic in enumerate(topics)),
            Set("c", topics[0], "expired", b"", 1),
        )
        world.advance(1)
        for limit in (1, 7, 100, 1000):
            entries = await self.pages(world, limit)
            assert sorted(entry.key for entry in entries) == sorted(f"k{n}" for n in range(100))
        for entry in entries:
            number = int(entry.key[1:])
            left = None if number % 2 else 4_999
            assert entry == Entry(topics[number], entry.key, f"c{number % 2}", b"p%d" % number, left)

    @runs
    async def test_pages_can_be_of_one_topic_or_namespace(self, world: World) -> None:
        topics = [
            Topic("a", "x"),
            Topic("a", "y"),
            Topic("b", "x"),
            Topic("", "x"),
            Topic("a\0", "x"),
            Topic("ab", "x"),
        ]
        await world.changes(*(Set("c", topic, f"k{n}") for topic in topics for n in range(5)))
        for limit in (2, 50):
            for namespace in ("a", "", "nobody"):
                entries = await self.pages(world, limit, namespace=namespace)
                assert len(entries) == 5 * sum(topic.namespace == namespace for topic in topics)
                assert {entry.topic.namespace for entry in entries} <= {namespace}
            assert {e.topic for e in await self.pages(world, limit, topic="x")} == {t for t in topics if t.name == "x"}
            entries = await self.pages(world, limit, namespace="a", topic="x")
            assert [(entry.topic, entry.key) for entry in entries] == [(topics[0], f"k{n}") for n in range(5)]

    @runs
    async def test_a_search_looks_at_topic_key_and_client_whatever_the_case(self, world: World) -> None:
        await world.changes(
            Set("ann", Topic("needle", "t"), "in the namespace"),
            Set("ann", Topic("", "a Needle"), "topic"),
            Set("ann", Topic("", "t"), "NEEDLE key"),
            Set("needle", Topic("", "t"), "client"),
            Set("ann", Topic("", "t"), "STRASSE"),
        )
        for limit in (1, 50):
            found = {entry.key for entry in await self.pages(world, limit, search="nEEdle")}
            assert found == {"topic", "NEEDLE key", "client"}
        assert [entry.key for entry in await self.pages(world, 5, search="straße")] == ["STRASSE"]

    @runs
    async def test_entries_that_come_and_go_between_pages_disturb_nothing_else(self, world: World) -> None:
        await world.changes(*(Set("c", ROOM, f"k{n:02}") for n in range(40)))
        first = await world.store.browse(limit=20)
        await world.changes(Clear("c", ROOM, first.entries[-1].key), Set("c", ROOM, "k00"), Set("c", ROOM, "a"))
        rest = await world.store.browse(cursor=first.cursor, limit=100)
        keys = [entry.key for entry in (*first.entries, *rest.entries)]
        assert keys == [f"k{n:02}" for n in range(40)]

    @pytest.mark.parametrize("cursor", ["?", "abc", "cjk5OmE=", "e30=", "é", "W10=", "cng6YQ=="])
    @runs
    async def test_a_foreign_cursor_is_refused(self, world: World, cursor: str) -> None:
        with pytest.raises(ValueError, match="cursor"):
            await world.store.browse(cursor=cursor)


class StoreContract(
    WritingContract,
    RefusalContract,
    FencingContract,
    ReadingContract,
    RevisionContract,
    SweepContract,
    BrowsingContract,
):
    """All of it."""
