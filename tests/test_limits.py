"""The token bucket and the list of what a client has set, on a clock of their own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ephemeral_state.limits import Bucket, Claims, Pace, Penance
from ephemeral_state.protocol import decode_command, peek_ref
from ephemeral_state.state import Topic

T = Topic("", "t")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_burst_passes_and_then_so_many_a_second(clock: Clock) -> None:
    bucket = Bucket(10, 50, clock)
    assert [bucket.take() for _ in range(50)] == [0] * 50
    assert bucket.take() > 0
    clock.now += 1
    assert [bucket.take() for _ in range(10)] == [0] * 10
    assert bucket.take() > 0


def test_whoever_keeps_to_the_rate_is_never_refused(clock: Clock) -> None:
    bucket = Bucket(64, 1, clock)
    for _ in range(10_000):
        assert bucket.take() == 0
        clock.now += 1 / 64


def test_a_refusal_tells_when_the_frame_may_come_again(clock: Clock) -> None:
    bucket = Bucket(2, 4, clock)
    for cost in (1, 3, 4, 100):
        while not (wait := bucket.take(cost)):
            pass
        clock.now += wait - 0.001
        assert bucket.take(cost) == pytest.approx(0.001, abs=0.26)
        clock.now += bucket.take(cost)
        assert bucket.take(cost) == 0


def test_once_empty_it_is_shut_for_a_moment_so_that_a_flood_is_refused_in_a_row(clock: Clock) -> None:
    bucket = Bucket(100, 512, clock)
    for _ in range(512 + 200):  # 10 000 a second, of which one in a hundred would find a token
        bucket.take()
        clock.now += 0.0001
    assert bucket.refusals >= 100


def test_an_accepted_frame_ends_the_row(clock: Clock) -> None:
    bucket = Bucket(100, 1, clock)
    bucket.take()
    for _ in range(99):
        bucket.take()
    assert bucket.refusals == 99
    clock.now += 1
    assert bucket.take() == 0
    assert bucket.refusals == 0


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(1, 40)), max_size=200), st.integers(1, 50), st.integers(1, 50))
def test_never_more_than_the_burst_and_the_rate(frames: list[tuple[float, int]], rate: int, burst: int) -> None:
    clock = Clock()
    bucket = Bucket(rate, burst, clock)
    passed = 0
    for pause, cost in frames:
        clock.now += pause
        if not bucket.take(cost):
            passed += min(cost, burst)
        assert passed <= burst + rate * (clock.now - 1000) + 1e-6


def test_what_passed_and_turned_out_to_be_more_is_charged_up_to_a_burst(clock: Clock) -> None:
    bucket = Bucket(10, 50, clock)
    bucket.charge(45)
    assert [bucket.take() for _ in range(5)] == [0] * 5
    assert bucket.take() > 0
    bucket.charge(10_000)
    clock.now += 5.2
    assert bucket.take() == 0


def test_a_refused_frame_counts_as_many_as_it_would_have_cost(clock: Clock) -> None:
    bucket = Bucket(10, 50, clock)
    bucket.take(50)
    bucket.take(30)
    bucket.take(20)
    assert bucket.refusals == 50


def test_some_are_done_at_once_and_then_one_after_another(clock: Clock) -> None:
    pace = Pace(100, 5, clock)
    waits = []
    for _ in range(10):
        waits.append(pace.take())
        clock.now += waits[-1]
    assert waits == pytest.approx([0] * 5 + [0.01] * 5)
    clock.now += 0.02
    assert [pace.take() for _ in range(2)] == pytest.approx([0, 0])
    assert pace.take() == pytest.approx(0.01)


def test_whoever_keeps_to_the_pace_never_waits(clock: Clock) -> None:
    pace = Pace(64, 1, clock)
    for _ in range(10_000):
        assert pace.take() == 0
        clock.now += 1 / 64


def test_penance_ends_and_only_the_latest_are_remembered(clock: Clock) -> None:
    penance = Penance(2, 8, 0, 10, 3, clock)
    assert penance.wait("a") == 0
    for who in "abca":
        penance.add(who)
        clock.now += 0.25
    assert [penance.wait(who) for who in "abc"] == [3.75, 1.25, 1.5]
    penance.add("d")
    assert [penance.wait(who) for who in "abcd"] == [3.75, 0, 1.5, 2]
    clock.now += 4
    assert not any(penance.wait(who) for who in "abcd")


def test_penance_doubles_up_to_a_limit_and_is_forgotten_after_a_minute(clock: Clock) -> None:
    penance, waits = Penance(1, 4, 0, 10, 10, clock), []
    for _ in range(4):
        penance.add("a")
        waits.append(penance.wait("a"))
        clock.now += 30
    assert penance.on_probation("a")
    assert not penance.on_probation("b")
    clock.now += 40
    assert not penance.on_probation("a")
    penance.add("a")
    assert [*waits, penance.wait("a")] == [1, 2, 4, 4, 1]


def test_those_who_wait_are_let_in_one_after_another_and_none_waits_too_long(clock: Clock) -> None:
    penance = Penance(1, 2, 0.25, 2.25, 10, clock)
    penance.add("a")
    assert [penance.wait("a") for _ in range(3)] == [1, 1.25, 1.5]
    assert penance.wait("b") == 0
    clock.now += 1
    penance.add("a")
    assert [penance.wait("a") for _ in range(4)] == [2, 2.25, 2.25, 2.25]
    clock.now += 4
    assert [penance.wait("a") for _ in range(3)] == [0, 0.25, 0.5]
    clock.now += 0.25  # as long after the last wait as anybody would be patient
    assert [penance.wait("a") for _ in range(3)] == [0, 0, 0]
    penance.add("a")
    assert penance.wait("a") == 2


def test_turns_that_were_given_are_kept_by_one_more_who_is_sent_away(clock: Clock) -> None:
    penance = Penance(1, 1, 0.25, 5, 10, clock)
    penance.add("a")
    assert [penance.wait("a") for _ in range(4)] == [1, 1.25, 1.5, 1.75]
    clock.now += 0.5
    penance.add("a")
    assert penance.wait("a") == 1.5


def test_claims_end_with_their_time(clock: Clock) -> None:
    claims = Claims(4, clock)
    claims.add(T, "a", 5)
    claims.add(T, "b", None)
    assert claims.live() == [(T, "a"), (T, "b")]
    clock.now += 5
    assert claims.live() == [(T, "b")]
    assert (T, "a") not in claims
    claims.discard(T, "b")
    claims.discard(T, "never there")
    assert claims.live() == []


def test_claims_are_bounded_and_the_latest_stay(clock: Clock) -> None:
    claims = Claims(4, clock)
    for number in range(1000):
        claims.add(T, f"{number}", None)
        claims.add(T, "again and again", None)
    assert len(claims) <= 8
    assert (T, "again and again") in claims
    assert (T, "999") in claims
    for number in range(1000):
        claims.add(T, f"short {number}", 0.001)
        clock.now += 1
    assert (T, "999") in claims


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(
    ref=st.one_of(st.integers(-(2**53) + 1, 2**53 - 1), st.text(st.sampled_from('a é"\\ref:1'), max_size=20)),
    topic=st.one_of(TEXT, st.sampled_from(['"ref":1', "ref", '\\"ref\\":1', '"ref": "x"'])).filter(bool),
    spaces=st.sampled_from([None, (", ", ": "), (",", ":")]),
    first=st.booleans(),
    escaped=st.booleans(),
)
def test_the_ref_of_every_command_is_found_without_reading_it(ref, topic, spaces, first, escaped) -> None:
    import json

    frame = {"_orama": "ephemeral.set", "topic": topic, "key": topic}
    frame = {"ref": ref, **frame} if first else {**frame, "ref": ref}
    text = json.dumps(frame, separators=spaces, ensure_ascii=escaped)
    assert decode_command(text, max_frame_bytes=10_000, max_name_bytes=1000).ref == ref
    assert peek_ref(text) == ref


@pytest.mark.parametrize(
    "text", ["", "x", "[" * 60_000, '"ref":' * 10_000, '"ref":"' + "a" * 60_000, '{"ref":{}}', '{"ref":1e5']
)
def test_looking_for_a_ref_in_garbage_finds_nothing_or_something_and_never_fails(text: str) -> None:
    assert peek_ref(text) in (None, 1, "ref")
