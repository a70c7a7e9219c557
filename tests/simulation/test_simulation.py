"""The simulation itself: it is the same each time, finds what is known to go wrong, and shortens what it has found."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .history import OPEN, Op, as_text, dump, load, make
from .shrink import shrink

KEPT = sorted((Path(__file__).parent / "kept").glob("*.jsonl"))
"""Histories that once failed, each the shortest one found. None is ever taken out."""


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: what it puts in the place of time and chance is put there for good."""
    command = [sys.executable, "-m", "tests.simulation", "--no-shrink", *arguments]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment, check=False)


@pytest.mark.redis
def test_two_runs_of_a_seed_do_the_same_in_the_same_order():
    every_kind = ",".join(sorted({*OPEN, "kill", "freeze", "terminate", "layer_bad", "hang_up"}))
    runs = [
        simulate("--seed", "5", "--hours", "0.1", "--digest", "--going-on", "--kinds", every_kind) for _ in range(2)
    ]
    digests = [re.findall(r"digest (\w+)", run.stdout) for run in runs]
    assert len(digests[0]) == 1, runs[0].stdout + runs[0].stderr
    assert digests[0] == digests[1]


@pytest.mark.redis
def test_other_seeds_do_other_things():
    run = simulate("--seed", "5", "--seeds", "2", "--hours", "0.01", "--digest")
    first, second = re.findall(r"digest (\w+)", run.stdout)
    assert first != second


@pytest.mark.redis
def test_a_cluster_is_right_whatever_a_few_seeds_let_go_wrong():
    run = simulate("--seed", "1", "--seeds", "4", "--hours", "0.15")
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.fixture(scope="module")
def replayed():
    return simulate("--replay", *map(str, KEPT))


@pytest.mark.redis
@pytest.mark.parametrize("path", KEPT, ids=[path.stem for path in KEPT])
def test_a_history_that_once_failed(path, replayed):
    """Where one of its faults is still open, nothing else may be wrong than once was; else nothing at all."""
    _, kind, ops = load(path.read_text())
    is_open = any(op.do in OPEN for op in ops)
    (came_to,) = re.findall(rf"^{path.stem}: (.*)$", replayed.stdout, re.MULTILINE)
    assert came_to in ("right", kind if is_open else "right"), replayed.stdout + replayed.stderr


def test_a_history_is_as_long_as_it_is_asked_to_be():
    ops = make(3, 600)
    assert [op.at for op in ops] == sorted(op.at for op in ops)
    assert 600 < ops[-1].at < 720
    assert ops[-1].do == "check"
    assert load(dump(3, "lost", ops)) == (3, "lost", ops)
    assert len(as_text(ops).splitlines()) == len(ops)


def test_a_history_is_shortened_to_what_matters():
    ops = [op for op in make(4, 400) if op.do != "check"]
    ops.append(Op(ops[-1].at + 20, "check", "a", (20.0,)))
    needed = [op for op in ops if op.do == "set"][7::40]

    def fails(candidate):
        values = [op.args[2] for op in candidate if op.do == "set"]
        return [op.args[2] for op in needed] == [value for value in values if value in {op.args[2] for op in needed}]

    short = shrink(ops, fails)
    assert [op[1:] for op in short] == [op[1:] for op in (*needed, ops[-1])]
    assert short[-1].at - short[-2].at >= 20, "the check may not come sooner after what it judges"
    assert short[0].at < 1
