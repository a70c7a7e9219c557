"""What the admin's pages show, read from the store in steps that stay short whatever is stored."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from django.utils.http import urlencode

from .. import api
from ..inspection.processes import Process, processes
from ..inspection.times import ago, time_left
from ..node import here
from ..printing import json_object, preview, printable
from ..state import Entry, Topic
from ..stores import get_store
from ..stores.base import KINDS, History, Owner, Transition
from .text import NAME_LENGTH, PAYLOAD_LENGTH, Filters, Identity, owner_parts, payload_pretty, short

__all__ = ["EntryPage", "Found", "entry_page", "find", "overview", "tag"]

PAGE_SIZE: Final = 100
_BUDGET: Final = 1000  # entries looked at for one page where this process has to filter them
_MOST_TOPICS: Final = 5000
_SAMPLE: Final = 200  # entries whose owners are looked for
_COLUMNS: Final = ("namespace", "topic", "key", "payload", "time_left", "owner", "user", "process", "age")


class Found(NamedTuple):
    """A page of the list."""

    rows: Sequence[dict[str, Any]] = ()
    cursor: str = ""
    processes: Sequence[dict[str, str]] = ()


async def find(filters: Filters, cursor: str) -> Found:
    """Raises an `EphemeralStateError`, or `ValueError` for a cursor that is none."""
    store = get_store()
    living = _names(await processes(store))
    entries: list[Entry] = []
    owners: dict[str, Owner] = {}
    looked = 0
    while True:
        page = await api.abrowse(
            cursor=cursor,
            limit=PAGE_SIZE,
            namespace=filters.namespace,
            topic=filters.topic,
            search=filters.search,
        )
        cursor = page.cursor
        found = await store.owners([*{entry.client_id for entry in page.entries}])
        owners |= found
        entries += [entry for entry in page.entries if _wanted(entry, owners.get(entry.client_id), filters)]
        looked += PAGE_SIZE
        if not (filters.process or filters.user or filters.lifetime):
            break
        if not cursor or len(entries) >= PAGE_SIZE or looked >= _BUDGET:
            break
    rows = [_row(entry, owners.get(entry.client_id), living, shared=store.shared) for entry in entries]
    column = filters.order.removeprefix("-")
    if column in _COLUMNS:
        rows.sort(key=lambda row: row["sort"][column], reverse=filters.order.startswith("-"))
    nodes = [{"node": node, "name": name} for node, name in sorted(living.items(), key=lambda each: each[1])]
    return Found(rows, cursor, nodes)


def tag(rows: Sequence[Mapping[str, Any]], *more: object) -> str:
    """Changes when something else is to be seen than time passing."""
    now = time.time() * 1000
    steady = [
        (
            row["id"],
            row["sort"]["owner"],  # a row's token names it, and only a row that is sent anew has that of a new owner
            row["payload"],
            row["size"],
            row["user"],
            row["process"],
            _deadline(now, row["left_ms"]),
        )
        for row in rows
    ]
    return f'"{hashlib.blake2b(repr((steady, more)).encode(), digest_size=12).hexdigest()}"'


def _deadline(now: float, left_ms: int | None) -> int | None:
    return None if left_ms is None else round((now + left_ms) / 2000)


def _wanted(entry: Entry, owner: Owner | None, filters: Filters) -> bool:
    if filters.lifetime in ("connection", "deadline") and (filters.lifetime == "connection") != (
        entry.expires_in_ms is None
    ):
        return False
    if filters.process and (owner is None or owner.node != filters.process):
        return False
    return not filters.user or (owner is not None and json_object(owner.about).get("user") == filters.user)


def _row(entry: Entry, owner: Owner | None, living: Mapping[str, str], *, shared: bool) -> dict[str, Any]:
    identity = Identity(*entry.topic, entry.key, entry.client_id)
    about = json_object(owner.about) if owner is not None else {}
    user = str(about.get("user", ""))
    since = about.get("since")
    age = max(0.0, time.time() - since) if isinstance(since, int | float) else None
    process = ""
    if owner is not None:
        process = living.get(owner.node, "no living process") if shared else _this_process()
    return (
        identity.shown()
        | owner_parts(identity.owner)
        | {
            "id": hashlib.blake2b(repr(identity[:3]).encode(errors="surrogatepass"), digest_size=9).hexdigest(),
            "token": identity.token(),
            "url": short("entry/?" + _query(identity)),
            "namespace_url": short(Filters(identity.namespace).url()),
            "topic_url": short(Filters(*entry.topic).url()),
            "payload": preview(entry.payload, PAYLOAD_LENGTH),
            "size": len(entry.payload),
            "time_left": time_left(entry.expires_in_ms),
            "left_ms": entry.expires_in_ms,
            "full_ms": max(entry.expires_in_ms or 0, get_store().limits.default_ttl_ms),
            "user": printable(user, NAME_LENGTH),
            "user_url": short(Filters(user=user).url()) if user else "",
            "process": process,
            "lost": process == "no living process",
            "age": "" if age is None else ago(age),
            "age_s": None if age is None else int(age),
            "sort": {
                **identity._asdict(),
                "payload": entry.payload,
                "time_left": float("inf") if entry.expires_in_ms is None else entry.expires_in_ms,
                "user": user,
                "process": process,
                "age": age or 0,
            },
        }
    )


def _query(identity: Identity) -> str:
    return urlencode({"id": identity.token()})


def _names(found: Sequence[Process]) -> dict[str, str]:
    return {each.node: printable(each.name, NAME_LENGTH) for each in found}


def _this_process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


# One entry


class EntryPage(NamedTuple):
    row: dict[str, Any] | None
    """`None`: it is gone."""
    kind: str
    payload: str
    gone: str
    """Why it is gone, where that is remembered."""
    lease: dict[str, Any] | None
    transitions: Sequence[dict[str, Any]]


async def entry_page(identity: Identity) -> EntryPage:
    """Everything that is known of a key, whoever owns it now."""
    store = get_store()
    topic = Topic(identity.namespace, identity.topic)
    entry, history, found = await asyncio.gather(
        store.entry(topic, identity.key), store.history(topic, identity.key), processes(store)
    )
    names = _names(found)
    transitions = _transitions(history.transitions, names, shared=store.shared)
    if entry is None:
        latest = history.transitions[0] if history.transitions else None
        return EntryPage(None, "", "", (latest and latest.reason) or "", None, transitions)
    owner = (await store.owners([entry.client_id])).get(entry.client_id)
    row = _row(entry, owner, names, shared=store.shared)
    lease = next((_lease(each) for each in found if owner is not None and each.node == owner.node), None)
    return EntryPage(row, *payload_pretty(entry.payload), "", lease, transitions)


def _transitions(
    history: Sequence[Transition], names: Mapping[str, str], *, shared: bool, most: int | None = None
) -> list[dict[str, Any]]:
    """The last one first. Whose a key was before is known if the transition before is remembered."""
    owners: dict[tuple[Topic, str], str] = {}
    before = []
    for each in reversed(history):
        before.append(owners.pop((each.topic, each.key), ""))
        if each.reason is None:
            owners[each.topic, each.key] = each.client
    pairs = list(zip(history, reversed(before), strict=True))[:most]
    return [_transition(each, owner, names, shared=shared) for each, owner in pairs]


def _transition(each: Transition, before: str, names: Mapping[str, str], *, shared: bool) -> dict[str, Any]:
    identity = Identity(*each.topic, each.key, each.client)
    return (
        identity.shown()
        | owner_parts(identity.owner)
        | {
            "what": "set" if each.reason is None else each.reason,
            "taken_from": printable(before, NAME_LENGTH) if each.reason is None and before != each.client else "",
            "former": {"owner": printable(before, NAME_LENGTH), **owner_parts(before)},
            "ago": ago(each.age_ms / 1000),
            "process": names.get(each.node, each.node) if shared else _this_process(),
            "url": short("entry/?" + _query(identity)),
        }
    )


def _lease(process: Process) -> dict[str, Any]:
    return {
        "node": process.node,
        "process": printable(process.name, NAME_LENGTH),
        "age": "" if process.age is None else ago(process.age),
        "connections": "" if process.connections is None else process.connections,
        "entries": "" if process.entries is None else process.entries,
        "renewed": "" if process.silent is None else f"{process.silent:.1f} s ago",
        "remaining": f"{max(0.0, process.remaining):.1f} s",
        "state": process.state,
        "url": Filters(process=process.node).url(),
    }


# The overview


async def overview() -> dict[str, Any]:
    """Raises an `EphemeralStateError`."""
    store = get_store()
    topics: list[tuple[Topic, int]] = []
    cursor = ""
    while True:
        some, cursor = await store.topics(cursor=cursor)
        topics += some
        if not cursor or len(topics) >= _MOST_TOPICS:
            break
    count, found, history = await asyncio.gather(store.count(), processes(store), store.history())
    leases = [_lease(each) for each in found]
    leases.sort(key=lambda lease: (lease["state"] == "alive", lease["process"]))
    connections = sum(each.connections or 0 for each in found)
    if not store.shared:
        connections = here().connections
    busiest = sorted(topics, key=lambda each: -each[1])[:10]
    most = busiest[0][1] if busiest else 1
    return {
        "tiles": [
            ("Entries", count),
            ("Connections", connections),
            ("Topics", f"{len(topics)}{' or more' if cursor else ''}"),
            ("Processes", sum(lease["state"] == "alive" for lease in leases) if store.shared else 1),
        ],
        "shared": store.shared,
        "this_process": _this_process(),
        "leases": leases,
        "warnings": await _warnings(leases) if store.shared else [],
        "charts": [
            _chart("Sets per minute", history, ("set",)),
            _chart("Clears per minute", history, KINDS[1:]),
        ],
        "minutes": [
            {"ago": len(history.minutes) - 1 - n, **{kind: minute.get(kind, 0) for kind in KINDS}}
            for n, minute in enumerate(history.minutes)
        ][::-1],
        "named": any(topic.namespace for topic, _ in busiest),
        "busiest": [
            {
                "namespace": printable(topic.namespace, NAME_LENGTH),
                "topic": printable(topic.name, NAME_LENGTH),
                "count": size,
                "most": most,
                "url": short(Filters(*topic).url()),
            }
            for topic, size in busiest
        ],
        "transitions": _transitions(history.transitions, _names(found), shared=store.shared, most=15),
    }


async def _warnings(leases: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    texts = {
        "frozen": "does not renew its lease: it is frozen, or its host is lost",
        "gone": "has lost its connection to Redis: it was killed, or its host is lost",
        "being cleared": "is dead, and what its connections owned is being cleared",
    }
    warnings = [
        {"text": f"{lease['process']} {texts[lease['state']]}", "url": lease["url"]}
        for lease in leases
        if lease["state"] != "alive"
    ]
    sample = (await api.abrowse(limit=_SAMPLE)).entries
    held = [entry for entry in sample if entry.expires_in_ms is None]
    owners = await get_store().owners([*{entry.client_id for entry in held}])
    living = {lease["node"] for lease in leases}
    for entry in held:
        owner = owners.get(entry.client_id)
        if owner is None or owner.node not in living:
            identity = Identity(*entry.topic, entry.key, entry.client_id)
            text = f"{identity.in_words()} has no living owner, and no deadline"
            warnings.append({"text": text, "url": short("entry/?" + _query(identity))})
    return warnings[:20]


def _chart(title: str, history: History, kinds: Sequence[str]) -> dict[str, Any]:
    """Stacked bars, one per minute, in a drawing 600 wide and 120 high."""
    sums = [sum(minute.get(kind, 0) for kind in kinds) for minute in history.minutes]
    top = max(max(sums), 1)
    width = 600 / len(sums)
    bars = []
    for n, minute in enumerate(history.minutes):
        base = 120.0
        for kind in kinds:
            height = 118 * minute.get(kind, 0) / top
            if height:
                base -= height
                shape = {"x": f"{n * width + 1:.1f}", "y": f"{base:.1f}", "height": f"{height:.1f}"}
                bars.append({**shape, "kind": kind, "number": minute.get(kind, 0), "ago": len(sums) - 1 - n})
    return {"title": title, "bars": bars, "width": f"{width - 2:.1f}", "top": max(sums), "kinds": kinds}
