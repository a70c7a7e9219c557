"""Clears entries for the owners that were seen: an entry that a successor has set meanwhile stays."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from .. import api
from ..node import current
from ..state import Clear, Topic

__all__ = ["Clearing"]

_PAGE: Final = 500  # entries of a topic that are read and cleared at once, as many as one batch has


class Clearing:
    """Counts its outcomes. Its methods raise an `EphemeralStateError` for the entries that could not be cleared; those
    that were cleared before are in `cleared` all the same."""

    def __init__(self) -> None:
        self.cleared: list[Clear] = []
        self.missed = 0
        """Entries that were gone or taken over already."""

    async def entries(self, clears: Sequence[Clear]) -> None:
        node = current()
        outcomes = await asyncio.gather(*(node.write(clear) for clear in clears), return_exceptions=True)
        errors = []
        for clear, outcome in zip(clears, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                errors.append(outcome)
            elif outcome.changes:
                self.cleared.append(clear)
            else:
                self.missed += 1
        if errors:
            raise errors[0]

    async def topic(self, topic: Topic) -> None:
        """Every live entry of the topic, a page at a time."""
        topic.require()
        cursor = ""
        while True:
            page = await api.abrowse(cursor=cursor, limit=_PAGE, namespace=topic.namespace, topic=topic.name)
            await self.entries([Clear(entry.client_id, topic, entry.key) for entry in page.entries])
            cursor = page.cursor
            if not cursor:
                return
