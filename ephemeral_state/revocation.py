"""Asking again whether somebody may: each user's connections have a group, and are told there to ask the policy."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
import threading
from collections.abc import Iterable
from typing import Any, Final

from channels.db import database_sync_to_async
from channels.layers import BaseChannelLayer
from django.apps import apps
from django.conf import settings as django_settings
from django.core.exceptions import SynchronousOnlyOperation, ValidationError
from django.db import transaction
from django.db.models.signals import class_prepared, m2m_changed, post_delete, post_save, pre_delete
from django.utils.crypto import constant_time_compare

from . import log
from .background import Begun, begin
from .broadcast import tell_all_layers
from .conf import Settings, get_settings
from .errors import EphemeralStateError, NotConfigured
from .state import Topic
from .tracing import housekeeping

__all__ = [
    "REVOKE_MESSAGE_TYPE",
    "connect_signals",
    "find_user_group",
    "join",
    "leave",
    "refresh_user",
    "revoke",
    "session_digest",
    "user_group",
]

REVOKE_MESSAGE_TYPE: Final = "ephemeral.revoke"
_LAYER_TIMEOUT: Final = 2.0  # seconds
_MOST_MEMBERS: Final = 1000  # of a group of users; those of a larger one are found out by the next recheck


async def revoke(users: Iterable[object], *, topic: str | None = None, session: str | None = None) -> None:
    """Let all connections of these users, given or by primary key, ask the policy again; with a `session`, end those
    that came with it. Raises `ValueError` for what is no user, `StoreUnavailable` if the channel layer does not take
    the message."""
    await _revoke([_key(user) for user in users], topic=topic, session=session)


async def _revoke(keys: Iterable[object], *, topic: str | None = None, session: str | None = None) -> None:
    message = {"type": REVOKE_MESSAGE_TYPE}
    if topic is not None:
        message["topic"] = Topic("", topic).require().name
    if session is not None:
        message["session"] = session
    for key in keys:
        group = _group_name(key)

        async def send(layer: BaseChannelLayer, group: str = group) -> None:
            if "groups" in getattr(layer, "extensions", ()):
                await layer.group_send(group, message)

        await tell_all_layers(send)


# The group


async def find_user_group(scope: Any) -> str | None:
    """`user_group`, also of a lazy user that the database has yet to be asked for."""
    try:
        return user_group(scope)
    except SynchronousOnlyOperation:
        return await database_sync_to_async(user_group)(scope)


def user_group(scope: Any) -> str | None:
    """The channel-layer group of the connection's user; `None` if nobody is logged in."""
    user = scope.get("user")
    return _group_name(_pk_of(user)) if _is_logged_in(user) and hasattr(user, "pk") else None


def _is_logged_in(user: Any) -> bool:
    # Some projects put something of their own in the scope, which need not have Django's `is_authenticated`.
    return user is not None and bool(getattr(user, "is_authenticated", False))


def _group_name(key: object) -> str:
    return "ephemeral.user." + hashlib.blake2b(str(key).encode(errors="surrogatepass"), digest_size=20).hexdigest()


def _key(user: Any) -> object:
    """The primary key of a user, or one that is given by itself. Raises `ValueError` for what is no user."""
    if isinstance(user, type) or user is None:
        raise ValueError(f"{user!r} is no user: give the user, or its primary key")
    model = _user_model()
    if not hasattr(user, "pk"):
        return user if model is None else _as_key(user, model)
    if not _is_logged_in(user) or user.pk is None:
        raise ValueError(f"{user!r:.80} is no user that could be logged in, so it has no connections of its own")
    return _pk_of(user)


def _pk_of(user: Any) -> object:
    """The primary key as the user model has it, also of a child model with a key of its own."""
    model = _user_model()
    return user._get_pk_val(model._meta) if model is not None and isinstance(user, model) else user.pk


def _as_key(value: object, model: Any) -> object:
    # As the model has it, since the group is named by its text: a UUID may be given with hyphens or without.
    try:
        return model._meta.pk.to_python(value)
    except ValidationError as error:
        raise ValueError(
            f"{value!r:.80} is neither a user nor a primary key of {model._meta.label}: give the user itself"
        ) from error


def _user_model() -> Any:
    """The project's user model; `None` if it has none."""
    if not apps.is_installed("django.contrib.auth"):
        return None
    from django.contrib.auth import get_user_model

    return get_user_model()


async def join(layer: BaseChannelLayer, group: str, channel: str) -> None:
    try:
        with housekeeping():
            async with asyncio.timeout(_LAYER_TIMEOUT):
                await layer.group_add(group, channel)
    except Exception as error:
        log.warning(
            "revocation_deaf",
            "a revocation will not be heard at once, the channel layer does not answer: %(error)s",
            client=channel,
            error=repr(error),
        )


async def leave(layer: BaseChannelLayer, group: str, channel: str) -> None:
    try:
        with housekeeping():
            async with asyncio.timeout(_LAYER_TIMEOUT):
                await layer.group_discard(group, channel)
    except Exception as error:
        log.debug("leaving the group of a user failed, the layer will expire it: %r", error)


# The user


def session_digest(session: Any) -> str:
    """Names a session without giving it away; empty for none."""
    key = getattr(session, "session_key", None)
    return hashlib.blake2b(key.encode(), digest_size=20).hexdigest() if key else ""


async def refresh_user(scope: Any) -> bool:
    """Load the connection's user again, with the rights it has now. False if it is gone: the session has ended, or
    the user was deactivated or deleted."""
    user = scope.get("user")
    if not _is_logged_in(user):
        return True
    fresh = await database_sync_to_async(_load)(user, scope.get("session"))
    if fresh is None or not fresh.is_authenticated or fresh.pk != user.pk:
        return False
    scope["user"] = fresh
    return True


def _load(user: Any, session: Any) -> Any:
    from django.contrib.auth import SESSION_KEY

    if session is not None and session.session_key and SESSION_KEY in session:
        return _by_session(session)
    manager = getattr(user.__class__, "_default_manager", None)
    if manager is None:
        return user  # no model: nothing to look up
    fresh = manager.filter(pk=user.pk).first()
    return fresh if fresh is not None and getattr(fresh, "is_active", True) else None


def _by_session(session: Any) -> Any:
    """The user that a request with this session would have now, without changing the session."""
    from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model, load_backend
    from django.utils.module_loading import import_string

    now = import_string(f"{django_settings.SESSION_ENGINE}.SessionStore")(session.session_key)
    path = now.get(BACKEND_SESSION_KEY)
    if SESSION_KEY not in now or path not in django_settings.AUTHENTICATION_BACKENDS:
        return None
    user: Any = load_backend(path).get_user(get_user_model()._meta.pk.to_python(now[SESSION_KEY]))
    if hasattr(user, "get_session_auth_hash"):
        known = now.get(HASH_SESSION_KEY, "")
        good = [user.get_session_auth_hash(), *getattr(user, "get_session_auth_fallback_hash", tuple)()]
        if not any(constant_time_compare(known, one) for one in good):
            return None  # the password was changed
    return user


# Django's signals

_UID: Final = "ephemeral_state.revocation"


def connect_signals() -> None:
    """Listen to what changes the rights of users, where the project has users."""
    if not apps.is_installed("django.contrib.auth"):
        return
    from django.contrib.auth.models import Group
    from django.contrib.auth.signals import user_logged_out

    user_logged_out.connect(_logged_out, dispatch_uid=_UID)
    for made in apps.get_models():
        _listen_to(made)
    class_prepared.connect(_model_made, dispatch_uid=_UID)
    for field in _rights():
        changed = functools.partial(_users_changed, field.name)
        m2m_changed.connect(changed, sender=field.remote_field.through, weak=False, dispatch_uid=_UID)
        if field.name == "groups":
            m2m_changed.connect(_group_changed, sender=Group.permissions.through, dispatch_uid=_UID)


def _rights() -> list[Any]:
    """The fields of the user model that are Django's groups and permissions: a project's own users may have something
    else of this name, or nothing."""
    from django.contrib.auth.models import Group, Permission

    kinds: dict[str, Any] = {"groups": Group, "user_permissions": Permission}
    fields = _user_model()._meta.many_to_many
    return [field for field in fields if field.name in kinds and issubclass(field.related_model, kinds[field.name])]


def _model_made(sender: Any, **_: Any) -> None:
    _listen_to(sender)


def _listen_to(model: Any) -> None:
    """A user, or a group, may be changed through any model that has its table: a proxy, a child, a parent. Not by one
    receiver for all models, because Django deletes slowly what anybody listens to."""
    from django.contrib.auth.models import Group

    user_model = _user_model()
    if _tables(model) & _tables(user_model):
        post_save.connect(_saved, sender=model, dispatch_uid=_UID)
    if issubclass(model, user_model):  # with a parent the user is deleted, too, as the model that it is
        post_delete.connect(_deleted, sender=model, dispatch_uid=_UID)
    if issubclass(model, Group) and any(field.name == "groups" for field in _rights()):
        pre_delete.connect(_group_deleted, sender=model, dispatch_uid=_UID)


def _tables(model: Any) -> set[Any]:
    """The models whose tables have a part of it."""
    return {each._meta.concrete_model for each in (model, *model._meta.get_parent_list())}


def _logged_out(request: Any, user: Any, **_: Any) -> None:
    if user is not None:
        _tell([_pk_of(user)], session=session_digest(getattr(request, "session", None)))


def _saved(sender: Any, instance: Any, created: bool, raw: bool, using: str, update_fields: Any, **_: Any) -> None:
    model = _user_model()
    # Every login saves the user, but for nothing that matters here. A new child may be of a user that was there.
    is_new = created and sender._meta.concrete_model is model._meta.concrete_model
    if is_new or raw or (update_fields and set(update_fields) <= {"last_login"}):
        return
    if isinstance(instance, model):
        _tell([_pk_of(instance)], using=using)
        return
    for shared in _tables(sender) & _tables(model):
        _tell_all_with(using, **{shared._meta.pk.name: instance._get_pk_val(shared._meta)})


def _deleted(instance: Any, using: str, **_: Any) -> None:
    _tell([_pk_of(instance)], using=using)


# What is about to be cleared or deleted is told of too: inside of Django's own transaction, so it is sent after it.
_ACTIONS: Final = frozenset(("post_add", "post_remove", "pre_clear"))


def _users_changed(
    relation: str, *, instance: Any, action: str, reverse: bool, pk_set: Any, using: str, **_: Any
) -> None:
    """Of the groups or permissions of users."""
    if action in _ACTIONS:
        if not reverse:
            _tell([_pk_of(instance)], using=using)
        elif pk_set is None:  # all of them
            _tell_all_with(using, **{relation: instance.pk})
        else:
            _tell(pk_set, using=using)


def _group_changed(instance: Any, action: str, reverse: bool, pk_set: Any, using: str, **_: Any) -> None:
    """Of the permissions of groups."""
    if action in _ACTIONS:
        if not reverse:
            _tell_all_with(using, groups=instance.pk)
        elif pk_set is None:
            _tell_all_with(using, groups__permissions=instance.pk)
        else:
            _tell_all_with(using, groups__in=pk_set)


def _group_deleted(instance: Any, using: str, **_: Any) -> None:
    from django.contrib.auth.models import Group

    _tell_all_with(using, groups=instance._get_pk_val(Group._meta))


def _tell_all_with(using: str, **what: object) -> None:
    """From the users' side: what it is called on the other one is up to the project."""
    if _is_on():
        users = _user_model()._default_manager.using(using).filter(**what).order_by()
        _tell(users.values_list("pk", flat=True).distinct()[:_MOST_MEMBERS], using=using)


def _is_on() -> bool:
    try:
        settings = get_settings()
    except NotConfigured:  # the system checks say so
        return False
    return settings.revoke_on_signals and settings.policy != Settings().policy


def _tell(users: Iterable[object], *, using: str | None = None, session: str | None = None) -> None:
    """After the transaction, since others will look at the database. Never raises, and never waits for the channel
    layer: nobody's logout is to fail, or to take longer than without us."""
    users = list(users)
    if not users or not _is_on():
        return
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        transaction.on_commit(lambda: _untold.tell(users, session), using=using, robust=True)
    else:  # where Django allows no transaction
        task = loop.create_task(_try_to_revoke(users, session))
        _telling.add(task)
        task.add_done_callback(_telling.discard)


_telling: set[asyncio.Task[None]] = set()


class _Untold:
    """The users that are to be told of beside what the caller does. While the layer takes the message of some, or
    does not take it, the others wait together: however many are saved meanwhile, each is told of once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users: dict[str | None, dict[object, None]] = {}  # by session
        self._begun: Begun | None = None

    def tell(self, users: Iterable[object], session: str | None) -> None:
        with self._lock:
            self._users.setdefault(session, {}).update(dict.fromkeys(users))
            if self._begun is None or not self._begun.is_under_way:
                self._begun = begin(self._tell)

    def told(self, timeout: float) -> None:
        """Wait until all that are waiting now have been told of."""
        with self._lock:
            begun = self._begun
        if begun is not None:
            begun.future.result(timeout)

    async def _tell(self) -> None:
        while by_session := self._take():
            for session, users in by_session.items():
                await _try_to_revoke(users, session)

    def _take(self) -> dict[str | None, dict[object, None]]:
        with self._lock:
            users, self._users = self._users, {}
            if not users:
                self._begun = None
            return users


_untold = _Untold()


def _after_fork() -> None:
    global _untold
    _untold = _Untold()  # the parent tells of what it has saved


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


async def _try_to_revoke(users: Iterable[object], session: str | None) -> None:
    try:
        await _revoke(users, session=session)
    except EphemeralStateError as error:
        log.warning(
            "revocation_untold",
            "changed rights cannot be told, each connection asks for itself later: %(error)s",
            error=repr(error),
        )
