"""System checks: what would fail, or silently reach nobody, is said at start. They open no connection."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from channels.layers import BaseChannelLayer
from django.apps import AppConfig, apps
from django.conf import settings as project_settings
from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as Caution

from .broadcast import find_layer
from .conf import SETTING, Settings, get_settings
from .errors import EphemeralStateError
from .policy import get_policy
from .state import Drop, Set, Topic
from .stores import Store, make_store

__all__ = ["check_configuration", "check_store_answers"]

T = TypeVar("T")

_MEMORY_STORE = "ephemeral_state.stores.memory.MemoryStore"
_REDIS_STORE = "ephemeral_state.stores.redis.RedisStore"
_MEMORY_LAYER = "channels.layers.InMemoryChannelLayer"
_CORE_LAYER = "channels_redis.core.RedisChannelLayer"
_PUBSUB_LAYER = "channels_redis.pubsub.RedisPubSubChannelLayer"
_SAFE_DAPHNE = (4, 2, 3)
_READY_MADE = re.compile(r"^[^#]*\bEphemeralStateConsumer\b", re.MULTILINE)


def check_configuration(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E001 the setting, E002 the store, E003 the policy, E004 the layer; W001 to W003 how they fit; W005 daphne;
    W007 no policy."""
    try:
        settings = get_settings()
    except EphemeralStateError as error:
        return [Error(str(error), hint=f"Correct {SETTING}; what it leaves out has a default.", id=_id("E001"))]
    messages: list[CheckMessage] = []
    store = _store(settings, messages)
    _policy(settings, messages)
    layer = _layer(settings, messages)
    if layer is not None:
        messages.extend(_misfits(store, layer, settings.channel_layer))
    messages.extend(_old_daphne())
    messages.extend(_no_policy())
    return messages


def check_store_answers(
    app_configs: Sequence[AppConfig] | None, databases: Collection[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """W004 and W006: asked for as Django's own checks of databases are, with `manage.py check --database default`. A
    warning, since `migrate` asks too, and a store that is away must not keep a project from migrating."""
    if not databases:
        return []
    try:
        store = make_store(get_settings())
    except EphemeralStateError:
        return []  # the other check says it
    try:
        advice = _in_a_loop_of_its_own(lambda: _ask(store))
    except EphemeralStateError as error:
        hint = f"See {SETTING}['OPTIONS']; with the store away, sets are refused and the rest waits for it. What the "
        hint += "user of a Redis store needs: +@connection +@scripting +@read +@write +@pubsub +time."
        return [Caution(f"the store does not work: {error}", hint=hint, id=_id("W004"))]
    hint = 'See "Redis" in the package\'s deployment guide.'
    return [Caution(text, hint=hint, id=_id("W006")) for text in advice]


async def _ask(store: Store) -> Sequence[str]:
    """Whether it can be read and written, with a topic of its own that nobody follows; its advice."""
    name = "ephemeral_state.check"
    try:
        await store.count()
        for outcome in await store.apply([Set(name, Topic(name, name), name, b"", 1000), Drop(name)]):
            if outcome.error is not None:
                raise outcome.error
        return await store.advice()
    finally:
        await store.close()


def _store(settings: Settings, messages: list[CheckMessage]) -> Store | None:
    try:
        return make_store(settings)
    except EphemeralStateError as error:
        hint = f"{SETTING}['BACKEND'] is {_MEMORY_STORE!r} (the default), or {_REDIS_STORE!r} "
        hint += "with OPTIONS {'url': 'redis://…'} after pip install 'django-ephemeral-state[redis]'."
        messages.append(Error(str(error), hint=hint, id=_id("E002")))
        return None


def _policy(settings: Settings, messages: list[CheckMessage]) -> None:
    hint = "Name a subclass of ephemeral_state.policy.Policy that can be made without arguments."
    try:
        get_policy()
    except EphemeralStateError as error:
        messages.append(Error(str(error), hint=hint, id=_id("E003")))
    except Exception as error:  # whatever the project's own code raises
        fault = f"{SETTING}['POLICY'] {settings.policy!r} cannot be made: {type(error).__name__}: {error}"
        messages.append(Error(fault, hint=hint, id=_id("E003")))


def _layer(settings: Settings, messages: list[CheckMessage]) -> BaseChannelLayer | None:
    hint = f"Correct CHANNEL_LAYERS, or name another of its aliases in {SETTING}['CHANNEL_LAYER']."
    try:
        # The pub/sub layer has to be looked at from inside a running loop.
        return _in_a_loop_of_its_own(lambda: _find_layer(settings.channel_layer))
    except EphemeralStateError as error:
        fault = str(error)
    except Exception as error:  # whatever a layer raises when its own configuration is wrong
        fault = f"the channel layer {settings.channel_layer!r} cannot be made: {type(error).__name__}: {error}"
    messages.append(Error(fault, hint=hint, id=_id("E004")))
    return None


def _in_a_loop_of_its_own(start: Callable[[], Coroutine[Any, Any, T]]) -> T:
    # In a thread, because running a loop here would take away the one that daphne's runserver is about to use.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(start())).result()


async def _find_layer(alias: str) -> BaseChannelLayer:
    return find_layer(alias)


def _misfits(store: Store | None, layer: BaseChannelLayer, alias: str) -> Iterator[CheckMessage]:
    in_memory = _is_a(layer, _MEMORY_LAYER)
    if _is_a(store, _MEMORY_STORE) and not in_memory:
        yield Caution(
            f"the channel layer {type(layer).__name__} connects processes, but each keeps a memory store of its own: "
            "a subscriber sees what its own process keeps, and nothing of the others",
            hint=f"Set {SETTING}['BACKEND'] to {_REDIS_STORE!r}, unless one process serves everything.",
            id=_id("W001"),
        )
    if short := _too_short_patience(layer, alias):
        yield Caution(
            short,
            hint="Give each of the channel layer's hosts no socket_timeout: "
            "'CONFIG': {'hosts': [{'address': 'redis://…', 'socket_timeout': None}]}.",
            id=_id("W002"),
        )
    if _is_a(store, _REDIS_STORE) and in_memory:
        yield Caution(
            "the Redis store is shared by all processes, but the in-memory channel layer ends at this one: other "
            "processes see changes only when they compare with the store",
            hint="Use channels_redis.pubsub.RedisPubSubChannelLayer.",
            id=_id("W003"),
        )


def _is_a(thing: object, path: str) -> bool:
    # By name, because importing the class would ask for packages that a project need not have.
    return any(f"{cls.__module__}.{cls.__qualname__}" == path for cls in type(thing).__mro__)


def _too_short_patience(layer: BaseChannelLayer, alias: str) -> str:
    """What the time limit of redis-py for one answer does to a layer of channels_redis; empty if it has none."""
    is_core = _is_a(layer, _CORE_LAYER)
    if not is_core and not _is_a(layer, _PUBSUB_LAYER):
        return ""
    by_default = 5.0 if _version("redis") >= (8,) else None
    config: dict[str, Any] = project_settings.CHANNEL_LAYERS[alias]  # it is there: the layer was made from it
    hosts = config.get("CONFIG", {}).get("hosts") or [None]
    limits = [host.get("socket_timeout", by_default) if isinstance(host, dict) else by_default for host in hosts]
    shortest = min((limit for limit in limits if limit is not None), default=None)
    if shortest is None:
        return ""
    source = "redis-py 8 and newer by default waits" if shortest == by_default else "redis-py waits"
    waits = getattr(layer, "brpop_timeout", 0) if is_core else 0
    if shortest <= waits:
        return (
            f"channels_redis.core asks Redis for messages for {waits:g} s, and {source} no longer than {shortest:g} s: "
            "a consumer that no message reaches in that time ends with a TimeoutError"
        )
    if sys.version_info < (3, 12):
        return (
            f"{source} at most {shortest:g} s for Redis, and before Python 3.12 it then loses cancellations: "
            "a consumer that is cancelled while it uses the channel layer may go on"
        )
    return ""


def _old_daphne() -> Iterator[CheckMessage]:
    version = _version("daphne")
    if () < version < _SAFE_DAPHNE:
        yield Caution(
            f"daphne {'.'.join(map(str, version))} has two known security faults (CVEs), mended in 4.2.3",
            hint="pip install 'daphne>=4.2.3'",
            id=_id("W005"),
        )


def _no_policy() -> Iterator[CheckMessage]:
    if "POLICY" in getattr(project_settings, SETTING, {}):
        return
    for path in _routes():
        with suppress(OSError):
            if _READY_MADE.search(path.read_text(encoding="utf-8", errors="replace")):
                yield Caution(
                    f"{path.name} in {path.parent} uses EphemeralStateConsumer, and {SETTING} names no policy: the "
                    "default, DenyAll, refuses every command of every client",
                    hint=f"{SETTING} = {{'POLICY': 'ephemeral_state.policy.Authenticated'}} lets whoever is logged in "
                    "do everything; a subclass of ephemeral_state.policy.Policy decides for itself.",
                    id=_id("W007"),
                )
                return


def _routes() -> Iterator[Path]:
    """Where a project would name the consumer. Read as text: to import an ASGI module may begin to serve something."""
    folders = [Path(config.path) for config in apps.get_app_configs() if config.name != "ephemeral_state"]
    application = getattr(project_settings, "ASGI_APPLICATION", None) or ""
    for module in (application.rpartition(".")[0], getattr(project_settings, "ROOT_URLCONF", None) or ""):
        with suppress(ImportError, ValueError):
            spec = find_spec(package) if (package := module.rpartition(".")[0]) else None
            folders += [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
    for folder in dict.fromkeys(folders):
        yield from (folder / name for name in ("asgi.py", "routing.py", "consumers.py", "urls.py"))


def _version(package: str) -> tuple[int, ...]:
    """Empty if the package is not there, or its version cannot be read."""
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        return ()
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in release[0].split(".")) if release else ()


def _id(number: str) -> str:
    return f"ephemeral_state.{number}"
