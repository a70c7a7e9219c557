"""The verbs for code that is no consumer: views, tasks, commands. `a…` for async code, the others for the rest.

The sync forms run in an event loop of this process that serves connections or, where there is none, in a loop of
their own in a thread that ends when it has had nothing to do for a while. Called from async code they raise
`RuntimeError` instead of blocking its loop. Under gevent that loop is a greenlet, and a call waits in its own.
"""

from __future__ import annotations

import asyncio
import builtins
import hashlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from typing import Any, Final

from channels.layers import BaseChannelLayer
from django.db import transaction

from . import overdue
from .background import wait
from .broadcast import tell_all_layers
from .errors import InvalidTTL, NameInvalid
from .hold import Held
from .node import current
from .protocol import CLOSE_MESSAGE_TYPE, encode_payload, encode_ttl
from .revocation import revoke as _revoke
from .state import Clear, Drop, Entry, Notice, Page, Set, Topic, UntilDisconnect
from .stores import get_store
from .tracing import span
from .watch import watch as _watch

__all__ = [
    "abrowse",
    "aclear",
    "acount",
    "adisconnect",
    "alist",
    "alist_many",
    "arevoke",
    "aset",
    "browse",
    "clear",
    "count",
    "disconnect",
    "hold",
    "list",
    "list_many",
    "revoke",
    "set",
    "watch",
]

_AT_ONCE: Final = 16  # topics that are read from the store side by side


async def aset(
    topic: str,
    key: str,
    payload: object = b"",
    *,
    client: str | None = None,
    namespace: str = "",
    ttl: float | None = None,
) -> None:
    """Set the key and tell every subscriber. On return it is stored.

    `client` is the channel name of the connection to do it for: it owns the key, and the key goes with it. Without
    one nobody's end clears the key, only its `ttl` (seconds, by default `DEFAULT_TTL`) or a `clear`. Raises an
    `EphemeralStateError`, and then nothing was stored or told.
    """
    await _put(_set(topic, key, payload, client, namespace, ttl))


async def aclear(topic: str, key: str, *, client: str | None = None, namespace: str = "") -> None:
    """Clear the key, with reason `explicit`: whoever owns it or, given a `client`, only if that one does."""
    where = Topic(namespace, topic)
    node = current()
    with span("clear", where):
        if client is None:
            # Even so the clear names the owner that was seen: a successor's value is not ours to remove.
            entry = await node.store.entry(where.require(), key)
            client = _no_client(where, key) if entry is None else entry.client_id
        await node.write(Clear(client, where, key))


async def alist(topic: str, *, namespace: str = "") -> builtins.list[Entry]:
    """What is live in the topic, sorted by key."""
    where = Topic(namespace, topic).require()
    with span("list", where):
        snapshot, over = await asyncio.gather(get_store().snapshot(where), overdue.look())
        return builtins.list(await overdue.live(snapshot.entries, over))


async def alist_many(topics: Iterable[str], *, namespace: str = "") -> dict[str, builtins.list[Entry]]:
    """What is live in each of the topics, by topic."""
    wanted = [Topic(namespace, name).require() for name in _names(topics)]
    found: dict[str, builtins.list[Entry]] = {}
    with span("list_many", topics=len(wanted)):
        over = await overdue.look()
        for first in range(0, len(wanted), _AT_ONCE):
            reading = map(get_store().snapshot, wanted[first : first + _AT_ONCE])
            for snapshot in await asyncio.gather(*reading):
                found[snapshot.topic.name] = builtins.list(await overdue.live(snapshot.entries, over))
    return found


async def acount(topics: Iterable[str], *, namespace: str = "") -> dict[str, int]:
    """How many entries are live in each of the topics, by topic: cheaper than to list them."""
    names = _names(topics)
    wanted = [Topic(namespace, name).require() for name in names]
    with span("count", topics=len(wanted)):
        counts, _ = await asyncio.gather(get_store().counts(wanted), overdue.look())
        return dict(zip(names, counts, strict=True))


async def adisconnect(client: str, *, close: int | None = None) -> None:
    """Clear everything the client owns, in all namespaces, with reason `disconnect`.

    With a `close` code (1000, or 3000 to 4999) its socket is closed too; without, it stays open. What is no WebSocket,
    like the owner of something held, has none. Raises `StoreUnavailable`, also for the channel layer: then everything
    is cleared, and the socket may still be open.
    """
    if not isinstance(client, str):
        raise NameInvalid(f"client is of type {type(client).__name__}, not str: give the channel name of a connection")
    if close is not None:
        _require_close_code(close)
    with span("disconnect"):
        await current().write(Drop(client))
        if close is not None:
            await close_socket(client, close)


def _require_close_code(code: object) -> None:
    if isinstance(code, bool) or not isinstance(code, int):
        raise TypeError(f"close must be a whole number, 1000 or 3000 to 4999, not {code!r:.80}")
    if code != 1000 and not 3000 <= code <= 4999:
        raise ValueError(f"close code {code!r} is none that an application may use: 1000, or 3000 to 4999")


async def close_socket(client: str, code: int) -> None:
    """The second half of `adisconnect`, for who has to know which of them failed. Raises `StoreUnavailable`."""

    async def send(layer: BaseChannelLayer) -> None:
        # Not every layer has rules for names. A name that is against them is no channel's, so there is no socket.
        if (require := getattr(layer, "require_valid_channel_name", None)) is not None:
            try:
                require(client)
            except TypeError:
                return
        await layer.send(client, {"type": CLOSE_MESSAGE_TYPE, "code": code})

    if ":" not in client:  # as no channel has in its name
        await tell_all_layers(send)


def hold(topic: str, key: str, payload: object = b"", *, namespace: str = "") -> Held:
    """Set the key for as long as a block of code runs: `with api.hold(...)`, or `async with`.

    It is cleared when the block ends in whatever way, and when the process dies. Meanwhile it survives the loss of
    what the store had. `held.set(payload)`, or `await held.aset(payload)`, gives it another value.
    """
    return Held(Topic(namespace, topic), key, payload)


def watch(topic: str, *, namespace: str = "") -> AsyncGenerator[Notice, None]:
    """Follow the topic: `async for notice in api.watch(...)` gives one snapshot, and then every change.

    Whoever is slow gets the newest value per key. Ends when the process is about to. Leave it early inside of
    `contextlib.aclosing`, or it goes on hearing until it is collected.
    """
    return _watch(Topic(namespace, topic))


async def abrowse(
    *,
    cursor: str = "",
    limit: int = 100,
    namespace: str | None = None,
    topic: str | None = None,
    search: str = "",
) -> Page:
    """Live entries of all topics, page by page; see `Store.browse`. Raises `ValueError` for a `limit` below 1, and for
    a cursor that no page had."""
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ValueError(f"limit must be a whole number of at least 1, not {limit!r:.80}")
    for name, value in {"cursor": cursor, "search": search, "namespace": namespace, "topic": topic}.items():
        if not isinstance(value, str) and (value is not None or name in ("cursor", "search")):
            raise TypeError(f"{name} is of type {type(value).__name__}, not str")
    with span("browse"):
        page, over = await asyncio.gather(
            get_store().browse(cursor=cursor, limit=limit, namespace=namespace, topic=topic, search=search),
            overdue.look(),
        )
        return Page(await overdue.live(page.entries, over), page.cursor)


def set(
    topic: str,
    key: str,
    payload: object = b"",
    *,
    client: str | None = None,
    namespace: str = "",
    ttl: float | None = None,
    on_commit: bool | str = False,
) -> None:
    """`aset` for sync code.

    `on_commit`: only when the database transaction commits, and never if it is rolled back; `True`, or the alias of
    the database. What is wrong with the arguments is raised at once. What goes wrong later is logged by Django, since
    the transaction is done; also where there is no transaction.
    """
    write = _set(topic, key, payload, client, namespace, ttl)
    get_store().limits.check(write)
    _run(lambda: _put(write), on_commit)


def clear(
    topic: str, key: str, *, client: str | None = None, namespace: str = "", on_commit: bool | str = False
) -> None:
    """`aclear` for sync code; `on_commit` as in `set`."""
    get_store().limits.check(Clear("anybody" if client is None else client, Topic(namespace, topic), key))
    _run(lambda: aclear(topic, key, client=client, namespace=namespace), on_commit)


def list(topic: str, *, namespace: str = "") -> builtins.list[Entry]:
    """`alist` for sync code."""
    return wait(lambda: alist(topic, namespace=namespace))


def list_many(topics: Iterable[str], *, namespace: str = "") -> dict[str, builtins.list[Entry]]:
    """`alist_many` for sync code."""
    return wait(lambda: alist_many(topics, namespace=namespace))


def count(topics: Iterable[str], *, namespace: str = "") -> dict[str, int]:
    """`acount` for sync code."""
    return wait(lambda: acount(topics, namespace=namespace))


def disconnect(client: str, *, close: int | None = None) -> None:
    """`adisconnect` for sync code."""
    wait(lambda: adisconnect(client, close=close))


def browse(
    *,
    cursor: str = "",
    limit: int = 100,
    namespace: str | None = None,
    topic: str | None = None,
    search: str = "",
) -> Page:
    """`abrowse` for sync code."""
    return wait(lambda: abrowse(cursor=cursor, limit=limit, namespace=namespace, topic=topic, search=search))


async def arevoke(user: object, topic: str | None = None) -> None:
    """Let all connections of the user ask the policy again, in every process: for what they follow and own, or for
    one topic of it, in whatever namespace.

    Only connections of `EphemeralStateConsumer` ask a policy. `user` is the user or its primary key. Returns when the
    channel layer has the message. Raises `StoreUnavailable` if it does not take it.
    """
    with span("revoke"):
        await _revoke([user], topic=topic)


def revoke(user: object, topic: str | None = None) -> None:
    """`arevoke` for sync code."""
    wait(lambda: arevoke(user, topic))


def _set(topic: str, key: str, payload: object, client: str | None, namespace: str, ttl: float | None) -> Set:
    if isinstance(ttl, UntilDisconnect):
        raise InvalidTTL("UNTIL_DISCONNECT needs a connection whose end would clear the key: set it in its consumer")
    where = Topic(namespace, topic)
    owner = _no_client(where.require(), key) if client is None else client
    return Set(owner, where, key, encode_payload(payload), encode_ttl(ttl))


async def _put(write: Set) -> None:
    with span("set", write.topic):
        await current().write(write)
        await overdue.look()


def _run(write: Callable[[], Coroutine[Any, Any, object]], on_commit: bool | str) -> None:
    if on_commit is False:
        wait(write)
    elif on_commit is not True and not isinstance(on_commit, str):
        raise TypeError(f"on_commit must be True, False or the alias of a database, not {on_commit!r:.80}")
    else:
        using = on_commit if isinstance(on_commit, str) else None
        transaction.on_commit(lambda: wait(write), using=using, robust=True)


def _names(topics: Iterable[str]) -> builtins.list[str]:
    if isinstance(topics, str):
        raise TypeError(f"topics are several, give them as a list: [{topics!r}]")
    if not isinstance(topics, Iterable):
        raise TypeError(f"topics must be a list of topics, not {topics!r:.80}")
    return [*dict.fromkeys(Topic("", name).require().name for name in topics)]


def _no_client(topic: Topic, key: str) -> str:
    # One name per entry, so that no two of them share one client's cap.
    identity = f"{len(topic.namespace)}:{topic.namespace}{len(topic.name)}:{topic.name}{key}"
    return "api:" + hashlib.blake2b(identity.encode(errors="surrogatepass"), digest_size=12).hexdigest()
