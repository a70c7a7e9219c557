"""Where state is kept: the interface in `base`, one module per implementation, one instance per process."""

from __future__ import annotations

import os
import threading

from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from ..conf import SETTING, Settings, get_settings
from ..errors import NotConfigured
from .base import Store

__all__ = ["Store", "get_store", "make_store"]

_lock = threading.Lock()
_stores: list[Store] = []
_inherited: list[Store] = []


def get_store() -> Store:
    """The process's store, made on first use. Raises `NotConfigured`."""
    with _lock:
        if not _stores:
            _stores.append(make_store(get_settings()))
        return _stores[0]


def make_store(settings: Settings) -> Store:
    """A new store as the settings say. Raises `NotConfigured`, naming the setting."""
    try:
        backend = import_string(settings.backend)
    except ImportError as error:
        raise NotConfigured(f"{SETTING}['BACKEND'] {settings.backend!r} cannot be imported: {error}") from error
    if not (isinstance(backend, type) and issubclass(backend, Store)):
        raise NotConfigured(f"{SETTING}['BACKEND'] {settings.backend!r} is no subclass of ephemeral_state.stores.Store")
    try:
        return backend(settings.limits, **settings.options)
    except (TypeError, ValueError) as error:
        raise NotConfigured(f"{SETTING}['OPTIONS'] do not fit {settings.backend}: {error}") from error


def _forget(*, setting: str, **_: object) -> None:
    if setting == SETTING:
        with _lock:
            _stores.clear()


setting_changed.connect(_forget, dispatch_uid="ephemeral_state.stores")


def _after_fork() -> None:
    # The child begins with a store of its own: locks may have been held in other threads. The parent's is kept, for
    # collecting it would close, or talk on, sockets that the parent still uses.
    global _lock
    _lock = threading.Lock()
    _inherited.extend(_stores)
    _stores.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
