"""From the store's changes to the channel-layer group of their topic."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final

from channels.layers import BaseChannelLayer, channel_layers

from .conf import get_settings
from .errors import NotConfigured, StoreUnavailable
from .protocol import encode_batches
from .state import Change, Topic

__all__ = ["find_layer", "group_name", "publish", "reconnect", "tell_all_layers"]

_SEND_TIMEOUT: Final = 2.0  # seconds for a message; a layer that hangs must not hold up the acknowledgement for long
_AT_ONCE: Final = 16  # topics whose messages are sent side by side


@lru_cache(maxsize=4096)
def group_name(namespace: str, topic: str) -> str:
    """The channel-layer group of a topic. Any channel may join it and gets
    `{"type": "ephemeral.events", "store", "namespace", "topic", "epoch", "revision", "frames": [text, …], …}`.

    Group names allow few characters and topics all, so the name is a digest. The length keeps
    `("a", "bc")` and `("ab", "c")` apart.
    """
    identity = f"{len(namespace)}:{namespace}{topic}"
    return "ephemeral." + hashlib.blake2b(identity.encode(), digest_size=20).hexdigest()


def find_layer(alias: str) -> BaseChannelLayer:
    """The configured channel layer. Raises `NotConfigured` if it is missing or has no groups."""
    # `get_channel_layer` would say that it is missing, too, if a layer raises KeyError when it is made.
    layer = channel_layers[alias] if alias in channel_layers.configs else None
    if layer is None:
        raise NotConfigured(
            f"CHANNEL_LAYERS has no {alias!r}: ephemeral state travels through a channel layer; for one process, "
            f'CHANNEL_LAYERS = {{"{alias}": {{"BACKEND": "channels.layers.InMemoryChannelLayer"}}}}'
        )
    if "groups" not in getattr(layer, "extensions", ()):
        raise NotConfigured(
            f"the channel layer {alias!r} ({type(layer).__name__}) has no groups: use one that has, such as "
            "channels_redis.pubsub.RedisPubSubChannelLayer"
        )
    return layer


async def tell_all_layers(tell: Callable[[BaseChannelLayer], Awaitable[None]]) -> None:
    """Hand a message to every layer of the project, side by side: a consumer may live on one of its own, its
    `channel_layer_alias`, and other processes cannot know on which. Raises `StoreUnavailable`, naming the layers that
    did not take it; the others have it."""
    first = get_settings().channel_layer
    find_layer(first)
    aliases = [first, *(alias for alias in channel_layers.configs if alias != first)]
    outcomes = await asyncio.gather(*(_tell(alias, tell) for alias in aliases), return_exceptions=True)
    failed = {alias: error for alias, error in zip(aliases, outcomes, strict=True) if error is not None}
    if failed:
        # Only the kind of the error: the text may name hosts, and be shown to a client.
        faults = ", ".join(f"{alias!r} ({type(error).__name__})" for alias, error in failed.items())
        cause = next(iter(failed.values()))
        raise StoreUnavailable(f"the message was not taken by the channel layer {faults}: try again") from cause


async def _tell(alias: str, tell: Callable[[BaseChannelLayer], Awaitable[None]]) -> None:
    async with asyncio.timeout(_SEND_TIMEOUT):
        await tell(channel_layers[alias])


async def publish(layer: BaseChannelLayer, changes: Iterable[Change], store: str = "") -> list[Exception]:
    """Send the changes to their groups, in order within each topic. `store` is the identity of the store that has
    them. Never raises: what could not be sent is returned, and every subscriber's process finds out by its beacon.

    A layer that is slow is waited for as long as it goes on. After a message that it does not take in time, nothing
    more is tried.
    """
    topics: dict[Topic, list[Change]] = {}
    for change in changes:
        topics.setdefault(change.topic, []).append(change)
    waiting = iter(topics.items())
    failures: list[Exception] = []
    is_hanging = False

    async def send_some() -> None:
        nonlocal is_hanging
        for topic, its_changes in waiting:
            try:
                for message in encode_batches(its_changes, store):
                    await _send(layer, group_name(*topic), message)
            except TimeoutError as error:
                is_hanging = True
                failures.append(error)
            except Exception as error:
                failures.append(error)
            if is_hanging:
                return

    if len(topics) == 1:
        await send_some()
    else:
        await asyncio.gather(*(send_some() for _ in range(min(len(topics), _AT_ONCE))))
    return failures


async def _send(layer: BaseChannelLayer, group: str, message: dict[str, Any]) -> None:
    """Once more if the layer raises: a message that comes twice is recognized by its revision."""
    async with asyncio.timeout(_SEND_TIMEOUT):
        try:
            await layer.group_send(group, message)
        except TimeoutError:
            raise
        except Exception:
            await layer.group_send(group, message)


async def reconnect(layer: BaseChannelLayer) -> None:
    """Close the connections that the pub/sub layer of channels_redis has in this event loop, since they may lead to a
    server that nobody else uses any more: it opens new ones and subscribes again by itself, within a second. Nothing
    happens to other layers."""
    in_this_loop = getattr(layer, "_layers", {}).get(asyncio.get_running_loop())
    for shard in getattr(in_this_loop, "_shards", ()):
        pool = getattr(getattr(shard, "_redis", None), "connection_pool", None)
        if pool is not None:
            with suppress(Exception):  # a connection that cannot be closed is as good as closed
                async with asyncio.timeout(_SEND_TIMEOUT):
                    await pool.disconnect()
