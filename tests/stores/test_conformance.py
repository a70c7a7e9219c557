from __future__ import annotations

import asyncio
import copy
import gzip
import json
from pathlib import Path

import pytest

from ephemeral_state.state import Limits
from ephemeral_state.stores.memory import MemoryStore
from tests import conformance
from tests.conformance import ManualClock, load, replay
from tests.conformance.__main__ import main

FILES = sorted(Path(conformance.__file__).parent.glob("*.jsonl.gz"))


@pytest.mark.parametrize("store", [("memory",), ("redis",), ("redis", "--partitions", "3")])
def test_the_references_traces_replay(store, capsys):
    assert main(["--store", *store, *map(str, FILES)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "211 passed, 0 failed"


@pytest.fixture(scope="module")
def traces():
    return {trace["name"]: trace for file in FILES for trace in load(file)}


@pytest.mark.parametrize(
    "tamper",
    [
        lambda expected: expected["events"][0].update(topic="other"),
        lambda expected: expected["events"].append(expected["events"][0]),
        lambda expected: expected["events"].clear(),
        lambda expected: expected.update(error="payload too large"),
        lambda expected: expected["events"][0].update(
            frame=json.dumps(dict(reversed(json.loads(expected["events"][0]["frame"]).items())))
        ),
    ],
)
def test_a_difference_is_found_and_named(traces, tamper, tmp_path, capsys):
    trace = copy.deepcopy(traces["advance_zero"])
    tamper(trace["expected"][0])
    file = tmp_path / "tampered.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, (trace, traces["advance_zero"]))).encode()))
    assert main(["--store", "memory", str(file)]) == 1
    out = capsys.readouterr().out
    assert "trace advance_zero, op 0" in out
    assert "expected" in out
    assert out.splitlines()[-1] == "1 passed, 1 failed"


@pytest.mark.parametrize("field", ["list", "count"])
def test_a_difference_in_what_is_read_is_found(traces, field):
    trace = copy.deepcopy(traces["advance_zero"])
    expected = next(expected for expected in trace["expected"] if field in expected)
    expected[field] = [] if field == "list" else 7
    clock = ManualClock()
    assert f": {field}\n" in asyncio.run(replay(trace, MemoryStore(Limits(), clock), clock))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no trace",
        b"{}\n",
        b"[1]\n",
        gzip.compress(b'{"name":"x","ops":[],"expected":[{}]}'),
        gzip.compress(b'{"name":"x","ops":[{"op":"what"}],"expected":[{"events":[]}]}'),
        gzip.compress(b'{"name":"x","ops":[{"op":"set","payload_b64":"!"}],"expected":[{"events":[]}]}'),
        gzip.compress(b'{"name":"x","ops":[{"op":"set"}],"expected":[{"events":[{"frame":"x"}]}]}'),
        gzip.compress(b"x" * 5000)[:-9],
        b"\x1f\x8bgarbage",
        b"\xff\xfe",
    ],
    ids=lambda data: f"{len(data)} bytes",
)
def test_a_garbled_file_is_a_clear_error(data, tmp_path, capsys):
    file = tmp_path / "garbled.jsonl.gz"
    file.write_bytes(data)
    assert main(["--store", "memory", str(file)]) == 2
    assert str(file) in capsys.readouterr().err


def test_a_missing_file_is_a_clear_error(tmp_path, capsys):
    assert main(["--store", "memory", str(tmp_path / "none")]) == 2
    assert "No such file" in capsys.readouterr().err
