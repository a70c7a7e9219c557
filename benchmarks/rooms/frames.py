"""The frames of the baselines: the same text as ours, built as compactly."""

from __future__ import annotations

import json

__all__ = ["OK", "SNAPSHOT", "TOPIC", "clear_frame", "set_frame"]

TOPIC = "room"
OK = '{"_orama":"ephemeral.ok"}'
SNAPSHOT = f'{{"_orama":"ephemeral.snapshot","topic":"{TOPIC}","entries":[]}}'


def set_frame(key: str, client_id: str, payload: str) -> str:
    return _compact({"_orama": "ephemeral.set", "topic": TOPIC, "key": key, "client_id": client_id, "payload": payload})


def clear_frame(key: str, client_id: str) -> str:
    frame = {"_orama": "ephemeral.clear", "topic": TOPIC, "key": key, "client_id": client_id, "reason": "disconnect"}
    return _compact(frame)


def _compact(frame: dict[str, str]) -> str:
    return json.dumps(frame, separators=(",", ":"))
