"""Who may do what through the ready-made consumer: nobody anything, until the project says otherwise."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from typing import Any, ClassVar, TypeAlias

from channels.db import aclose_old_connections, database_sync_to_async
from django.utils.module_loading import import_string

from . import log
from .conf import SETTING, get_settings
from .errors import NotConfigured, PermissionDenied

__all__ = [
    "AllOf",
    "Authenticated",
    "DenyAll",
    "OwnKeys",
    "Policy",
    "TopicPermissions",
    "allows",
    "get_policy",
    "require",
]

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


# Ready-made ones


class Authenticated(Policy):
    """Whoever is logged in may do everything."""

    async def can_subscribe(self, scope: Scope, namespace: str, topic: str) -> bool:
        return _user_id(scope) is not None

    async def can_set(self, scope: Scope, namespace: str, topic: str, key: str) -> bool:
        return _user_id(scope) is not None


class OwnKeys(Authenticated):
    """Whoever is logged in may follow everything, and set keys that begin with the own user id and a colon: `7:typing`.

    So nobody can take a key of somebody else.
    """

    async def can_set(self, scope: Scope, namespace: str, topic: str, key: str) -> bool:
        user_id = _user_id(scope)
        return user_id is not None and key.startswith(f"{user_id}:")


class TopicPermissions(Policy):
    """Django permissions by topic. The first pattern that fits the topic decides; if none does, the answer is no."""

    permissions: ClassVar[Mapping[str, tuple[str | None, str | None]]] = {}
    """`{pattern: (permission to follow, permission to set)}`, as in `{"room:*": ("chat.view_room", "chat.say")}`.

    `None`: nobody. A pattern is one of `fnmatch`: `*`, `?` and `[…]`, upper and lower case differ.
    """

    def can_subscribe(self, scope: Scope, namespace: str, topic: str) -> bool:
        return self._has_permission(scope, topic, 0)

    def can_set(self, scope: Scope, namespace: str, topic: str, key: str) -> bool:
        return self._has_permission(scope, topic, 1)

    def _has_permission(self, scope: Scope, topic: str, which: int) -> bool:
        user = scope.get("user")
        for pattern, permissions in self.permissions.items():
            if fnmatchcase(topic, pattern):
                permission = permissions[which]
                return user is not None and permission is not None and bool(user.has_perm(permission))
        return False


class AllOf(Policy):
    """Allows what each of several policies allows."""

    policies: ClassVar[tuple[type[Policy], ...]] = ()
    """Asked in this order, up to the first that says no. None at all: no."""

    def __init__(self) -> None:
        self._parts = [policy() for policy in self.policies]

    async def can_subscribe(self, scope: Scope, namespace: str, topic: str) -> bool:
        return await self._all("can_subscribe", scope, namespace, topic)

    async def can_set(self, scope: Scope, namespace: str, topic: str, key: str) -> bool:
        return await self._all("can_set", scope, namespace, topic, key)

    async def can_clear(self, scope: Scope, namespace: str, topic: str, key: str) -> bool:
        return await self._all("can_clear", scope, namespace, topic, key)

    async def can_list(self, scope: Scope, namespace: str, topic: str) -> bool:
        return await self._all("can_list", scope, namespace, topic)

    async def _all(self, question: str, scope: Scope, *what: str) -> bool:
        for part in self._parts:
            if not await allows(getattr(part, question), scope, *what):
                return False
        return bool(self._parts)


def _user_id(scope: Scope) -> object:
    """The id of the user who is logged in, or `None`."""
    user = scope.get("user")
    return user.pk if user is not None and user.is_authenticated else None


# Asking


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


_CAN_SUBSCRIBE, _CAN_SET, _CAN_CLEAR, _CAN_LIST = (
    Policy.can_subscribe,
    Policy.can_set,
    Policy.can_clear,
    Policy.can_list,
)
_is_async = lru_cache(maxsize=64)(inspect.iscoroutinefunction)


async def _no(scope: Scope, *what: str) -> bool:
    return False


def _asked(decide: Callable[..., Decision]) -> Callable[..., Decision]:
    """Who is asked in the end. A `def` is asked in a thread, and no thread is needed where a question is left to
    another one, or has the answer of a policy that says nothing of it."""
    method: Any = getattr(decide, "__func__", None)
    if method is _CAN_CLEAR or method is _CAN_LIST:
        policy: Policy = decide.__self__  # type: ignore[attr-defined]
        return _asked(policy.can_set if method is _CAN_CLEAR else policy.can_subscribe)
    return _no if method is _CAN_SET or method is _CAN_SUBSCRIBE else decide


async def allows(decide: Callable[..., Decision], scope: Scope, *what: str) -> bool:
    """What one method of a policy decides, whether it is `def` or `async def`. Raises what the method raises."""
    decide = _asked(decide)
    if _is_async(decide):
        decision: Any = decide(scope, *what)
        return await decision is True
    allowed = await database_sync_to_async(decide)(scope, *what)
    return (await allowed if inspect.isawaitable(allowed) else allowed) is True


async def require(decide: Callable[..., Decision], scope: Scope, *what: str) -> None:
    """Raise `PermissionDenied` unless `decide` says True: the same words for "no" and for "not there"."""
    try:
        allowed = await allows(decide, scope, *what)
    except Exception:
        # A client may have found a name that the policy stumbles over. It shall not find a way in, or out.
        question = getattr(decide, "__qualname__", repr(decide))
        log.exception("policy_failed", "the policy failed in %(question)s, so the answer is no", question=question)
        allowed = False
        # It may have been a database connection that has died; an async policy has none closed before it is asked.
        await aclose_old_connections()
    if not allowed:
        _hint(decide)
        raise PermissionDenied("not allowed")


_hinted: list[bool] = []


def _hint(decide: Callable[..., Decision]) -> None:
    """The client only hears that it may not, and a project that has not chosen a policy would seek the fault in vain.
    Once for each process: from then on it is known."""
    if not _hinted and type(getattr(decide, "__self__", None)) is DenyAll:
        _hinted.append(True)
        log.warning(
            "policy_denies_all",
            "a client was refused because the policy is DenyAll, which allows nothing: set %(setting)s['POLICY'] to "
            "'ephemeral_state.policy.Authenticated' or to a subclass of Policy of your own",
            setting=SETTING,
        )
