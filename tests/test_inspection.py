"""The state of a process, judged in one place, and durations as text."""

from __future__ import annotations

import json
import math

import pytest

from ephemeral_state.inspection.processes import judged
from ephemeral_state.inspection.times import ago, time_left
from ephemeral_state.stores.base import NodeStatus

NOW = 1_000_000.0


def status(remaining_ms, *, linked=True, is_dying=False, node="n", info=None, **more):
    about = {"host": "h", "pid": 7, "started": NOW - 90, "connections": 2, "entries": 3, "lease": 12.0} | more
    return NodeStatus(node, remaining_ms, linked, is_dying, "1", json.dumps(about) if info is None else info)


@pytest.mark.parametrize(
    ("remaining_ms", "more", "state"),
    [
        (12_000, {}, "alive"),
        (9_001, {}, "alive"),
        (8_999, {}, "frozen"),
        (-1, {}, "frozen"),
        # The length of its own lease counts, and not that of ours.
        (4_500, {"lease": 5.0}, "alive"),
        (1_900, {"lease": 5.0}, "frozen"),
        (59_000, {"lease": 60}, "alive"),
        (50_000, {"lease": 60}, "frozen"),
        (1, {"lease": 1.5}, "alive"),
        (0, {"lease": 1.5}, "frozen"),
        # Its connection to the store is cut for a moment, or was never seen.
        (11_500, {"linked": False}, "alive"),
        (10_900, {"linked": False}, "gone"),
        (-1, {"linked": False}, "gone"),
        (-500, {"is_dying": True}, "being cleared"),
        (-500, {"is_dying": True, "linked": False}, "being cleared"),
        # Nothing, or nothing of use, is known of it.
        (3_000, {"info": ""}, "alive"),
        (-1, {"info": "[]"}, "frozen"),
        (3_000, {"info": "", "linked": False}, "gone"),
        (3_000, {"lease": "soon"}, "alive"),
        (3_000, {"lease": True}, "alive"),
    ],
)
def test_the_state_of_a_process_follows_from_its_own_lease(remaining_ms, more, state):
    (process,) = judged([status(remaining_ms, **more)], NOW)
    assert process.state == state


def test_a_process_is_told_of_as_it_told_of_itself():
    (process,) = judged([status(11_000)], NOW)
    assert process[:6] == ("n", "h", 7, 90.0, 2, 3)
    assert (process.remaining, process.silent, process.name) == (11.0, 1.0, "h:7")
    (unknown,) = judged([status(11_000, info='{"pid": "x", "host": 1, "started": null, "entries": false}')], NOW)
    assert unknown[:6] == ("n", None, None, None, None, None)
    assert (unknown.silent, unknown.name) == (None, "?:?")


def test_a_node_that_came_back_while_its_former_lease_is_cleared_is_listed_once():
    found = judged([status(11_900), status(-300, is_dying=True), status(-300, is_dying=True, node="m")], NOW)
    assert [(each.node, each.state) for each in found] == [("n", "alive"), ("m", "being cleared")]


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (None, "until disconnect"),
        (0, "0.0 s"),
        (59_999, "59.9 s"),
        (60_000, "1 min 0 s"),
        (3_599_999.9, "59 min 59 s"),
        (5_400_000, "1 h 30 min"),
        (90_000_000, "25 h 0 min"),
    ],
)
def test_the_time_left_is_rounded_down(ms, text):
    assert time_left(ms) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (59.9, "59 s"), (60, "1 min"), (7199, "1 h"), (math.pi * 86_400, "3 d")],
)
def test_an_age_is_a_whole_number_of_the_largest_unit(seconds, text):
    assert ago(seconds) == text
