"""Durations as text for people."""

from __future__ import annotations

__all__ = ["ago", "time_left"]


def time_left(ms: float | None) -> str:
    """A lifetime, rounded down; `None` for a lifetime without a deadline."""
    if ms is None:
        return "until disconnect"
    minutes, rest = divmod(int(ms), 60_000)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest // 1000} s" if minutes else f"{rest // 100 / 10} s"


def ago(seconds: float) -> str:
    """A whole number of the largest unit that fits."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"
