"""Text that is safe to show: nothing in a name or payload can move a cursor or turn the text around. Pure."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["json_object", "preview", "printable"]


def printable(text: str, length: int) -> str:
    """At most `length` characters, with those that are invisible or turn the text around as escapes."""
    cut = text[:length] + ("…" if len(text) > length else "")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def preview(payload: bytes, length: int) -> str:
    """The beginning of the payload as it was written, for JSON is text too; as hex if it is no text."""
    try:
        return printable(payload.decode(), length)
    except UnicodeDecodeError:
        size = length // 3
        return f"hex {payload[:size].hex(' ')}{'…' if len(payload) > size else ''}"


def json_object(text: str) -> dict[str, Any]:
    """What a process says of itself, or of a client; nothing if that is no JSON object, for another release may say
    it differently."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
