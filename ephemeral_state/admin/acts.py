"""What the admin does to entries and their owners. What was done is known also when not all of it could be."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from .. import api
from ..errors import StoreUnavailable
from ..node import current
from ..state import Clear, Topic
from .text import Identity

__all__ = ["Clearing", "disconnect"]

_AT_ONCE: Final = 500  # entries of a topic that are read and cleared at once, as many as one batch has


class Clearing:
    """Clears for the owners that were seen: what a successor has set meanwhile stays.

    Its methods raise an `EphemeralStateError` for what could not be cleared. What was cleared before is in `cleared`
    all the same.
    """

    def __init__(self) -> None:
        self.cleared: list[Identity] = []
        self.missed = 0
        """Entries that were gone or taken over already."""

    async def entries(self, entries: Sequence[Identity]) -> None:
        node = current()
        writes = (node.write(Clear(each.owner, Topic(each.namespace, each.topic), each.key)) for each in entries)
        outcomes = await asyncio.gather(*writes, return_exceptions=True)
        errors = []
        for identity, outcome in zip(entries, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                errors.append(outcome)
            elif outcome.changes:
                self.cleared.append(identity)
            else:
                self.missed += 1
        if errors:
            raise errors[0]

    async def topic(self, topic: Topic) -> None:
        """Everything that is live in it, a page at a time."""
        topic.require()
        cursor = ""
        while True:
            page = await api.abrowse(cursor=cursor, limit=_AT_ONCE, namespace=topic.namespace, topic=topic.name)
            await self.entries([Identity(*topic, entry.key, entry.client_id) for entry in page.entries])
            cursor = page.cursor
            if not cursor:
                return


async def disconnect(client: str, code: int) -> str:
    """Clear all that the client owns and close its socket. Returns what kept the socket from being closed, if anything
    did. Raises an `EphemeralStateError` if the client could not be cleared; then its socket is not closed."""
    await api.adisconnect(client)
    try:
        await api.close_socket(client, code)
    except StoreUnavailable as error:
        return str(error)
    return ""
