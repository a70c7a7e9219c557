"""`list` and `clear`: what is live, and ending it."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Final

from ..api import abrowse
from ..errors import NameRequired, StoreUnavailable
from ..inspection.clearing import Clearing
from ..inspection.times import time_left
from ..state import Clear, Entry, Topic
from ..stores import get_store
from .terminal import columns, json_line, preview, shown

__all__ = ["clear", "find", "show"]

_PAGE: Final = 200
_HEAD: Final = ("NAMESPACE", "TOPIC", "KEY", "OWNER", "NODE", "TIME LEFT", "PAYLOAD")


async def show(
    write: Callable[[str], None], *, namespace: str | None, topic: str | None, search: str, limit: int, as_json: bool
) -> bool:
    """Write the live entries, in pages as they are read. True if there are more than `limit`."""
    if topic is not None:
        Topic(namespace or "", topic).require()  # one that cannot be, as of an unset variable, is not just empty
    cursor, left, headed = "", limit, False
    while left:
        page = await abrowse(cursor=cursor, limit=min(left, _PAGE), namespace=namespace, topic=topic, search=search)
        owners = {entry.client_id for entry in page.entries}
        nodes = await get_store().homes(sorted(owners)) if owners else {}
        if as_json:
            for entry in page.entries:
                write(json_line(_as_dict(entry, nodes.get(entry.client_id))))
        elif page.entries:
            lines = list(columns(_HEAD, [_row(entry, nodes.get(entry.client_id, "")) for entry in page.entries]))
            for line in lines[headed:]:
                write(line)
            headed = True
        left -= len(page.entries)
        cursor = page.cursor
        if not cursor:
            if not headed and not as_json:
                write("Nothing is live.")
            return False
    more = await abrowse(cursor=cursor, limit=1, namespace=namespace, topic=topic, search=search)
    return bool(more.entries or more.cursor)


async def find(topic: Topic, key: str | None) -> Sequence[Entry]:
    """The live entries of the topic, or the one with that key."""
    if key == "":
        raise NameRequired("key is empty")
    if key is None:
        return (await get_store().snapshot(topic.require())).entries
    entry = await get_store().entry(topic.require(), key)
    return [] if entry is None else [entry]


async def clear(entries: Sequence[Entry]) -> int:
    """Clear them for the owners that were seen; returns how many were still theirs. Raises `StoreUnavailable`, saying
    how far it came."""
    done = Clearing()
    try:
        await done.entries([Clear(entry.client_id, entry.topic, entry.key) for entry in entries])
    except StoreUnavailable as error:
        raise StoreUnavailable(f"cleared {len(done.cleared)} of {len(entries)}, then: {error}") from error
    return len(done.cleared)


def _row(entry: Entry, node: str) -> Sequence[str]:
    names = (entry.topic.namespace, entry.topic.name, entry.key, entry.client_id, node)
    return (*map(shown, names), time_left(entry.expires_in_ms), preview(entry.payload))


def _as_dict(entry: Entry, node: str | None) -> dict[str, object]:
    return {
        "namespace": entry.topic.namespace,
        "topic": entry.topic.name,
        "key": entry.key,
        "client_id": entry.client_id,
        "node": node,
        "expires_in_ms": entry.expires_in_ms,
        "payload": base64.b64encode(entry.payload).decode(),
    }
