"""Replays recorded traces of the reference store on a store of ours. `python -m tests.conformance --help`.

A trace is `{"name", "ops", "expected"}`; `expected[i]` is what the reference answered to `ops[i]`. Events are compared
as the frames that subscribers would get, in the same field order; errors by kind, since wordings are not a contract.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ephemeral_state import errors, protocol
from ephemeral_state.state import Change, Clear, Drop, Set, Topic, Write
from ephemeral_state.stores.base import Store

__all__ = ["GarbledFile", "ManualClock", "load", "replay"]

Trace = dict[str, Any]


class GarbledFile(Exception):
    """The file is no list of traces; the message says what is wrong, and where."""


class ManualClock:
    """Time in ns that passes only when told. It begins so low that µs with a fraction keep single ns in a double."""

    def __init__(self) -> None:
        self.now = 10**12

    def __call__(self) -> int:
        return self.now


async def replay(trace: Trace, store: Store, clock: ManualClock) -> str:
    """Run a trace on an empty store that goes by the clock. Returns its first fault, or nothing."""
    for index, (op, expected) in enumerate(zip(trace["ops"], trace["expected"], strict=True)):
        got = await _run(op, store, clock)
        for field, want in _comparable(expected).items():
            if got.get(field) != want:
                return (
                    f"trace {trace['name']}, op {index} {_short(op)}: {field}\n"
                    f"    expected {_short(want)}\n    got      {_short(got.get(field))}"
                )
    return ""


async def _run(op: Trace, store: Store, clock: ManualClock) -> Trace:
    result: Trace = {"error": None}
    changes: Iterable[Change] = ()
    match op["op"]:
        case "advance":
            clock.now += op.get("ms", 0) * 1_000_000 + op.get("nanos", 0)
        case "list":
            entries = (await store.snapshot(Topic(op.get("ns", ""), op.get("topic", "")))).entries
            result["list"] = [list(json.loads(protocol.encode_entry(entry)).items()) for entry in entries]
        case "count":
            result["count"] = await store.count()
        case "sweep":
            changes = await _sweep(store)
        case _:
            (outcome,) = await store.apply([_write(op)])
            changes = outcome.changes
            result["error"] = type(outcome.error).__name__ if outcome.error is not None else None
    result["events"] = [(*c.topic, list(json.loads(protocol.encode_change(c)).items())) for c in changes]
    result["unordered events"] = _sorted(result["events"])
    return result


async def _sweep(store: Store) -> list[Change]:
    changes: list[Change] = []
    while True:
        sweep = await store.sweep()
        changes += sweep.changes
        if sweep.next_in_ms != 0:
            return changes


def _write(op: Trace) -> Write:
    client = op.get("client", "")
    if op["op"] == "disconnect":
        return Drop(client)
    topic, key = Topic(op.get("ns", ""), op.get("topic", "")), op.get("key", "")
    if op["op"] == "clear":
        return Clear(client, topic, key)
    return Set(client, topic, key, base64.b64decode(op.get("payload_b64", ""), validate=True), op.get("ttl_ms", 0))


def _comparable(expected: Trace) -> Trace:
    events = [
        (event["namespace"], event["topic"], list(json.loads(event["frame"]).items()))
        for event in expected.get("events") or []
    ]
    fields: Trace = {"error": _kind(expected.get("error"))}
    if expected.get("unordered"):
        fields["unordered events"] = _sorted(events)
    else:
        fields["events"] = events
    if "list" in expected:
        fields["list"] = [list(entry.items()) for entry in expected["list"] or []]
    if "count" in expected:
        fields["count"] = expected["count"]
    return fields


_KINDS = {
    "requires a WebSocket client": errors.ClientRequired,
    "topic and key are required": errors.NameRequired,
    "payload too large": errors.PayloadTooLarge,
    "ephemeral keys": errors.TooManyKeys,
}


def _kind(wording: str | None) -> str | None:
    if not wording:
        return None
    return next((kind.__name__ for part, kind in _KINDS.items() if part in wording), f"unknown: {wording}")


def _sorted(events: list[Any]) -> list[Any]:
    return sorted(events, key=repr)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 400 else f"{text[:300]} … {text[-90:]}"


def load(path: Path) -> list[Trace]:
    """The traces of a file, gzipped or not. Raises `GarbledFile`, and `OSError` if it cannot be read at all."""
    data = path.read_bytes()
    try:
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    except (EOFError, OSError, zlib.error, UnicodeDecodeError) as error:
        raise GarbledFile(f"{path}: {error}") from None
    traces = [trace for line in _lines(path, text) for trace in line]
    if not traces:
        raise GarbledFile(f"{path}: holds no traces")
    return traces


def _lines(path: Path, text: str) -> Iterator[list[Trace]]:
    # Not splitlines(): JSON text may hold other separators that it takes for the end of a line.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                trace = json.loads(line)
                _check(trace)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                text = f"{path}, line {number}: is no trace: {type(error).__name__} {error}"
                raise GarbledFile(text) from None
            yield [trace]


_OPS = frozenset(("set", "clear", "list", "disconnect", "advance", "sweep", "count"))


def _check(trace: Trace) -> None:
    """Touch all that a replay will read, so that a garbled file never ends in the middle of one."""
    if not isinstance(trace["name"], str) or len(trace["ops"]) != len(trace["expected"]):
        raise ValueError("name is no text, or ops and expected differ in length")
    for op, expected in zip(trace["ops"], trace["expected"], strict=True):
        if op["op"] not in _OPS:
            raise ValueError(f"unknown op {op['op']!r}")
        try:
            _write(op)
        except binascii.Error as error:
            raise ValueError(f"payload_b64 {error}") from None
        _comparable(expected)
