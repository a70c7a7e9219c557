"""What the command prints: names and payloads that are safe to print, tables, and lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

from .. import printing
from ..printing import printable

__all__ = ["columns", "json_line", "preview", "shown"]

_NAME_LENGTH: Final = 60
_PAYLOAD_LENGTH: Final = 80


def shown(text: str) -> str:
    """At most 60 characters that are safe to print; `-` for none."""
    return printable(text, _NAME_LENGTH) or "-"


def preview(payload: bytes) -> str:
    """The beginning of the payload; `-` for none."""
    return printing.preview(payload, _PAYLOAD_LENGTH) or "-"


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """The lines of a table, each column as wide as its longest cell."""
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def json_line(value: Any) -> str:
    """On one line, in ASCII: a terminal shows it as it is, and a program reads it line by line."""
    return json.dumps(value).replace("\x7f", "\\u007f")
