"""Who may do what through the ready-made consumer: nobody anything, until the project says otherwise."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from typing import Any, TypeAlias

from channels.db import aclose_old_connections, database_sync_to_async
from django.utils.module_loading import import_string

from .conf import SETTING, get_settings
from .errors import NotConfigured, PermissionDenied

__all__ = ["DenyAll", "Policy", "get_policy", "require"]

logger = logging.getLogger("ephemeral_state")

Decision: TypeAlias = bool | Awaitable[bool]
Scope: TypeAlias = Mapping[str, Any]


class Policy:
    """Subclass it, override what you allow, and name it in `EPHEMERAL_STATE["POLICY"]`.

    Each method gets the connection's ASGI scope (`scope["user"]` behind `AuthMiddlewareStack`), and may be
    `async def` or `def`; a `def` runs in a thread and may use the ORM. One instance serves all connections.
    """

    def can_subscribe(self, scope: Scope, namespace: str, topic: str) -> Decision:
        return False

    def can_set(self, scope: Scope, namespace: str, topic: str, key: str) -> Decision:
        return False

    def can_clear(self, scope: Scope, namespace: str, topic: str, key: str) -> Decision:
        """Clearing is of one's own keys only; by default whoever may set may clear."""
        return self.can_set(scope, namespace, topic, key)

    def can_list(self, scope: Scope, namespace: str, topic: str) -> Decision:
        """By default whoever may subscribe may list."""
        return self.can_subscribe(scope, namespace, topic)


class DenyAll(Policy):
    """The default."""


def get_policy() -> Policy:
    """The project's policy. Raises `NotConfigured`."""
    return _make(get_settings().policy)


@cache
def _make(path: str) -> Policy:
    try:
        policy = import_string(path)()
    except (ImportError, TypeError) as error:
        raise NotConfigured(f"{SETTING}['POLICY'] {path!r} cannot be made: {error}") from error
    if not isinstance(policy, Policy):
        raise NotConfigured(f"{SETTING}['POLICY'] {path!r} is no subclass of ephemeral_state.policy.Policy")
    return policy


async def require(decide: Callable[..., Decision], scope: Scope, *what: str) -> None:
    """Raise `PermissionDenied` unless `decide` says True: the same words for "no" and for "not there"."""
    try:
        if inspect.iscoroutinefunction(decide):
            allowed = await decide(scope, *what)
        else:
            allowed = await database_sync_to_async(decide)(scope, *what)
            if inspect.isawaitable(allowed):
                allowed = await allowed
    except Exception:
        # A client may have found a name that the policy stumbles over. It shall not find a way in, or out.
        logger.exception("the policy failed, so the answer is no")
        allowed = False
        # It may have been a database connection that has died; an async policy has none closed before it is asked.
        await aclose_old_connections()
    if allowed is not True:
        raise PermissionDenied("not allowed")
