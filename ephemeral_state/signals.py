"""Django signals for what is set and cleared: once for each change, in the process that carries it out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from django.dispatch import Signal

from .state import Change, Entry

__all__ = ["entry_cleared", "entry_set"]

entry_set: Final = Signal()
"""Gets `namespace`, `topic`, `key`, `client_id` and `payload` (bytes)."""
entry_cleared: Final = Signal()
"""Gets `namespace`, `topic`, `key`, `client_id` of the last owner and `reason`."""


def wanted() -> bool:
    """Whether anybody listens: if not, a signal costs nothing."""
    return bool(entry_set.receivers or entry_cleared.receivers)


def send(changes: Iterable[Change]) -> None:
    """Call the receivers, one after the other. What they raise is logged by Django."""
    for change in changes:
        about = {"namespace": change.topic.namespace, "topic": change.topic.name, "key": change.key}
        if change.reason is None:
            entry_set.send_robust(Entry, **about, client_id=change.client_id, payload=change.payload)
        else:
            entry_cleared.send_robust(Entry, **about, client_id=change.client_id, reason=change.reason)
