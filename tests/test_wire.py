"""The fixtures of `tests/wire`, which the JavaScript client is tested against too: frames out, commands in, streams."""

from __future__ import annotations

import base64
import json
from collections import deque
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from ephemeral_state import errors, protocol
from ephemeral_state.replica import Replica
from ephemeral_state.state import Entry, Revision, Snapshot, Topic

WIRE = Path(__file__).resolve().parent / "wire"


def fixtures(name: str) -> Any:
    rows = json.loads((WIRE / f"{name}.json").read_text())
    return pytest.mark.parametrize("row", rows, ids=[row["name"] for row in rows])


def entry(topic: str, key: str, client_id: str, payload: str, expires_in_ms: int | None) -> Entry:
    return Entry(Topic("", topic), key, client_id, base64.b64decode(payload), expires_in_ms)


def event(
    key: str, client_id: str, payload: str = "", reason: Any = None, same_owner: bool = False, number: int = 0
) -> protocol.Event:
    what = (key, client_id, base64.b64decode(payload), reason, None, "", Revision(0, 0))
    return protocol.Event(*what, same_owner=same_owner, number=number)


def encode_batch(topic: str, events: list[Any]) -> str:
    (part,) = protocol.encode_events(topic, [event(*each) for each in events])
    return part.text


def encode_welcome(topic: str, entries: list[Any], numbers: dict[str, int]) -> str:
    text, _ = protocol.encode_welcome(topic, [entry(topic, *each) for each in entries], numbers)
    return text


def one_fits() -> Any:
    """Every topic is too long for a snapshot in one frame: it has one entry, and the others come after it."""
    return mock.patch.object(protocol, "LONGEST", 0)


ENCODE = {
    "set": lambda topic, key, client_id, payload: protocol.encode_set(topic, key, client_id, base64.b64decode(payload)),
    "clear": protocol.encode_clear,
    "snapshot": lambda topic, entries, ref: protocol.encode_snapshot(topic, [entry(topic, *e) for e in entries], ref),
    "welcome": encode_welcome,
    "long_welcome": one_fits()(encode_welcome),
    "batch": encode_batch,
    "revoked": protocol.encode_revoked,
    "rate_limited": lambda retry_after_ms, ref: protocol.encode_error(errors.RateLimited(retry_after_ms), ref),
    "hello": protocol.encode_hello,
    "ok": protocol.encode_ok,
    "error": lambda name, message, ref: protocol.encode_error(getattr(errors, name)(message), ref),
    "ping": protocol.encode_ping,
}


@fixtures("frames")
def test_a_frame_is_made_as_the_fixture_has_it(row: dict[str, Any]) -> None:
    ((kind, arguments),) = row["make"].items()
    text = ENCODE[kind](*arguments)
    assert json.loads(text) == json.loads(row["text"])
    assert list(json.loads(text)) == list(json.loads(row["text"]))


def decode(text: str) -> protocol.Command:
    return protocol.decode_command(text, max_frame_bytes=65_536, max_name_bytes=1024)


@fixtures("commands")
def test_a_command_is_read_as_the_fixture_has_it(row: dict[str, Any]) -> None:
    assert protocol.decode_pong(row["text"]) == row.get("pong")
    assert protocol.is_bye(row["text"]) == row.get("bye", False)
    if "pong" in row or "bye" in row:
        return
    if "error" in row:
        with pytest.raises(errors.EphemeralStateError) as refused:
            decode(row["text"])
        assert refused.value.code == row["error"]
        return
    expected = dict(row["command"])
    if "payload" in expected:
        expected["payload"] = base64.b64decode(expected["payload"])
    assert decode(row["text"]) == protocol.Command(**expected)


@fixtures("subscribe")
def test_a_subscription_may_ask_for_batches_and_a_rate(row: dict[str, Any]) -> None:
    if "error" in row:
        with pytest.raises(errors.EphemeralStateError) as refused:
            decode(row["text"])
        assert refused.value.code == row["error"]
        return
    expected = protocol.Command("subscribe", "room:1", flow=protocol.Flow(**row["flow"]))
    assert decode(row["text"]) == expected


class Reader:
    """A second reading of `docs/protocol.md`, which knows nothing of the package and nothing of the client."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.entries: dict[str, tuple[str, str]] = {}
        self.changes: list[list[str]] = []
        self.told: list[dict[str, Any]] = []
        self.more = 0
        self.keys: dict[int, str] = {}

    def read(self, frame: dict[str, Any]) -> None:
        if frame.get("topic") != self.topic:
            return
        kind = frame["_orama"]
        if kind == "ephemeral.snapshot":
            self.told, self.more = frame["entries"], frame.get("more", 0)
        elif kind == "ephemeral.set" and self.more:
            self.told, self.more = [*self.told, frame], self.more - 1
            kind = "ephemeral.snapshot"
        if kind == "ephemeral.snapshot":
            if self.more:
                return
            there = {entry["key"]: (entry["client_id"], entry.get("payload", "")) for entry in self.told}
            for key in [key for key in self.entries if key not in there]:
                self.clear(key, "missed")
            for key, (owner, payload) in there.items():
                self.set(key, owner, payload)
            self.keys = {entry["n"]: entry["key"] for entry in self.told if "n" in entry}
        elif kind == "ephemeral.set":
            self.set(frame["key"], frame["client_id"], frame.get("payload", ""))
        elif kind == "ephemeral.clear":
            self.clear(frame["key"], frame["reason"])
        elif kind == "ephemeral.batch":
            for event in frame["events"]:
                match event:
                    case [key, None, _, reason]:
                        self.clear(key, reason)
                    case [key, payload, owner, number] if self.more:
                        told = {"key": key, "client_id": owner, "payload": as_base64(payload), "n": number}
                        self.read({"_orama": "ephemeral.set", "topic": self.topic, **told})
                    case [key, payload, owner, number]:
                        self.keys[number] = key
                        self.set(key, owner, as_base64(payload))
                    case [number, payload]:
                        key = self.keys[number]
                        self.set(key, self.entries[key][0], as_base64(payload))

    def set(self, key: str, owner: str, payload: str) -> None:
        if self.entries.get(key) != (owner, payload):
            self.entries[key] = (owner, payload)
            self.changes.append(["set", key])

    def clear(self, key: str, reason: str) -> None:
        if self.entries.pop(key, None):
            self.changes.append(["clear", key, reason])


def as_base64(payload: Any) -> str:
    if isinstance(payload, str):
        return payload
    return base64.b64encode(protocol.encode_payload(payload)).decode()


def check(row: dict[str, Any], frames: list[dict[str, Any]]) -> None:
    reader = Reader(row["topic"])
    for frame in frames:
        reader.read(frame)
    assert {key: list(value) for key, value in reader.entries.items()} == row["view"]
    assert reader.changes == row["changes"]


@fixtures("streams")
def test_a_stream_ends_in_the_view_of_the_fixture(row: dict[str, Any]) -> None:
    check(row, row["frames"])


@fixtures("batches")
def test_a_stream_of_batches_says_the_same_as_the_plain_one(row: dict[str, Any]) -> None:
    check(row, row["frames"])
    check(row, row["plain"])


@fixtures("batches")
def test_a_batch_is_made_as_the_fixture_has_it(row: dict[str, Any]) -> None:
    known: dict[int, tuple[str, str]] = {}  # whose key and owner each number stands for
    for frame in row["frames"]:
        if frame["_orama"] == "ephemeral.snapshot":
            known = {each["n"]: (each["key"], each["client_id"]) for each in frame["entries"]}
            continue
        events = []
        for each in frame["events"]:
            match each:
                case [key, None, owner, reason]:
                    events.append([key, owner, "", reason])
                case [key, payload, owner, number]:
                    known[number] = key, owner
                    events.append([key, owner, as_base64(payload), None, False, number])
                case [number, payload]:
                    events.append([*known[number], as_base64(payload), None, True, number])
        assert json.loads(encode_batch(frame["topic"], events)) == frame


def told_by_the_server(topic: Topic, plain: list[dict[str, Any]], at_once: int) -> list[dict[str, Any]]:
    """What happened in the topic according to these frames, in the snapshots and batches the server makes of it."""
    replica = Replica(topic)
    told: list[str] = []
    waiting: list[protocol.Event] = []
    frames = deque(frame for frame in plain if frame.get("topic") == topic.name)

    def flush() -> None:
        if waiting:
            told.extend(part.text for part in protocol.encode_events(topic.name, waiting))
            waiting.clear()

    while frames:
        frame = frames.popleft()
        following = Revision(1, replica.revision.revision + 1)
        if frame["_orama"] == "ephemeral.snapshot":
            flush()
            rest = [frames.popleft() for _ in range(frame.get("more", 0))]
            fields = [(each["key"], each["client_id"], each.get("payload", "")) for each in [*frame["entries"], *rest]]
            entries = [entry(topic.name, *each, None) for each in fields]
            replica.reset(Snapshot(topic, following, entries), replica.asking(), 0)
            with one_fits() if rest else nullcontext():
                text, others = protocol.encode_welcome(topic.name, replica.entries(0), replica.numbers())
            told += [text, *others]
        elif frame["_orama"] in ("ephemeral.set", "ephemeral.clear"):
            what = event(frame["key"], frame["client_id"], frame.get("payload", ""), frame.get("reason"))
            waiting += replica.apply(protocol.Batch(topic, following, [what]), 0)
            if len(waiting) >= at_once:
                flush()
    flush()
    return [json.loads(text) for text in told]


@pytest.mark.parametrize("at_once", [1, 2, 100])
@pytest.mark.parametrize("name", ["streams", "batches"])
def test_what_the_server_makes_of_a_stream_says_the_same(name: str, at_once: int) -> None:
    kinds = set()
    for row in json.loads((WIRE / f"{name}.json").read_text()):
        frames = told_by_the_server(Topic("", row["topic"]), row.get("plain", row["frames"]), at_once)
        check(row, frames)
        kinds.update((frame["_orama"], "more" in frame) for frame in frames)
    assert kinds == {("ephemeral.snapshot", False), ("ephemeral.snapshot", True), ("ephemeral.batch", False)}


@fixtures("plain_json")
def test_json_stands_in_a_batch_as_it_is_if_everybody_would_write_it_so(row: dict[str, Any]) -> None:
    assert protocol._plain_json(row["payload"].encode()) == (row["payload"] if row["plain"] else "")
