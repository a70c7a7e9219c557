"""From the store's changes to the channel-layer group of their topic."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable
from functools import lru_cache
from typing import Final

from channels.layers import BaseChannelLayer, channel_layers

from .conf import get_settings
from .errors import NotConfigured, StoreUnavailable
from .protocol import encode_batches
from .state import Change, Topic

__all__ = ["find_layer", "group_name", "publish", "tell_all_layers"]

_SEND_TIMEOUT: Final = 2.0  # seconds for all topics; a layer that hangs must not hold up the acknowledgement for long


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
        raise NotConfigured(f"the channel layer {alias!r} ({type(layer).__name__}) has no groups")
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
    them. Never raises: what could not be sent is returned, and every subscriber's process finds out by its beacon."""
    topics: dict[Topic, list[Change]] = {}
    for change in changes:
        topics.setdefault(change.topic, []).append(change)
    failures: list[Exception] = []
    now = asyncio.get_running_loop().time
    until = now() + _SEND_TIMEOUT
    for topic, its_changes in topics.items():
        if failures and now() >= until:
            break
        try:
            async with asyncio.timeout_at(until):
                for message in encode_batches(its_changes, store):
                    await layer.group_send(group_name(*topic), message)
        except Exception as error:
            failures.append(error)
    return failures
