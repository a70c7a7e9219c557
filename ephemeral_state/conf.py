"""`settings.EPHEMERAL_STATE` as one typed, frozen object; the defaults live here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from types import MappingProxyType
from typing import Any

from django.conf import settings as django_settings
from django.core.signals import setting_changed

from .errors import NotConfigured
from .state import Limits

__all__ = ["SETTING", "Settings", "get_settings"]

SETTING = "EPHEMERAL_STATE"


@dataclass(frozen=True)
class Settings:
    """The keys of `EPHEMERAL_STATE`, in lower case. Times in seconds, sizes in bytes."""

    backend: str = "ephemeral_state.stores.memory.MemoryStore"
    """Dotted path of the store."""
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Keyword arguments of the store, e.g. `{"url": "redis://…"}`."""
    channel_layer: str = "default"
    """The alias in `CHANNEL_LAYERS` whose groups carry the events."""
    policy: str = "ephemeral_state.policy.DenyAll"
    """Dotted path of the class that decides what clients of the ready-made consumer may do."""
    default_ttl: float = 60.0
    max_ttl: float = 30 * 60.0
    max_grace: float = 60.0
    """That a client of the ready-made consumer may ask for. Revoked rights reach what lingers no sooner. What is set in
    Python may have up to `max_ttl`."""
    max_keys_per_client: int = 256
    max_payload_bytes: int = 16_384
    max_topic_bytes: int = 16 * 1024 * 1024
    """Of the keys and payloads of all entries of one topic."""
    max_frame_bytes: int = 65_536
    """Of one command to the ready-made consumer."""
    max_name_bytes: int = 1024
    """Of a topic or key in a command to the ready-made consumer. Names given in Python are not limited."""
    max_frames_per_second: int = 100
    """That one client of the ready-made consumer may send, on and on. What is longer than `max_frame_bytes` counts as
    several."""
    max_frame_burst: int = 512
    """That it may send at once: enough for one that comes back with all its keys and topics."""
    max_topics_per_client: int = 100
    """That a client of the ready-made consumer may follow."""
    max_entries_per_topic: int = 5000
    """Beyond which clients of the ready-made consumer cannot add any. What is set in Python is not limited."""
    recheck_interval: float = 60.0
    """How often the policy is asked again, at the latest, for what a client follows and owns."""
    revoke_on_signals: bool = True
    """Ask the policy again when a user logs out or is saved, or groups or permissions change."""
    sweep_interval: float = 10.0
    """The backstop. Entries set through this process expire on time without it."""
    ping_interval: float = 8.0
    """Seconds of silence after which a client is asked whether it is there, where the consumer sets no interval of its
    own. 0: it is not asked."""
    beacon_interval: float = 2.0
    """How often each process compares the topics it follows with the store."""
    lease: float = 12.0
    """How long a process that is frozen, or whose host is lost, counts as alive. At least three beats of 0.5 s."""

    shutdown_timeout: float = 5.0
    """How long the end of a server process may wait for its connections' state to be cleared."""

    @cached_property
    def limits(self) -> Limits:
        return Limits(
            max_keys_per_client=self.max_keys_per_client,
            max_payload_bytes=self.max_payload_bytes,
            max_topic_bytes=self.max_topic_bytes,
            default_ttl_ms=round(self.default_ttl * 1000),
            max_ttl_ms=round(self.max_ttl * 1000),
        )


@cache
def get_settings() -> Settings:
    """The settings in force. Raises `NotConfigured`, naming the key, when they cannot be."""
    return parse(getattr(django_settings, SETTING, {}))


def parse(raw: object) -> Settings:
    """Check the dict a project wrote. Raises `NotConfigured` with every fault in it."""
    if not isinstance(raw, Mapping):
        raise NotConfigured(f"{SETTING} must be a dict, not {type(raw).__name__}")
    known = {f.name.upper(): f for f in fields(Settings)}
    values: dict[str, Any] = {}
    faults: list[str] = []
    for key, value in raw.items():
        if key not in known:
            faults.append(f"{SETTING}[{key!r}] is unknown; the keys are {', '.join(sorted(known))}")
            continue
        name = known[key].name
        fault = _fault(name, value)
        if fault:
            faults.append(f"{SETTING}[{key!r}] {fault}")
        values[name] = MappingProxyType(dict(value)) if isinstance(value, Mapping) else value
    if not faults:
        settings = Settings(**values)
        if settings.default_ttl <= settings.max_ttl:
            return settings
        faults.append(f"{SETTING}['DEFAULT_TTL'] of {settings.default_ttl} s exceeds MAX_TTL of {settings.max_ttl} s")
    raise NotConfigured("; ".join(faults))


_SECONDS = frozenset(
    (
        "default_ttl",
        "max_ttl",
        "max_grace",
        "recheck_interval",
        "sweep_interval",
        "ping_interval",
        "beacon_interval",
        "lease",
        "shutdown_timeout",
    )
)
_LEAST_SECONDS = {"lease": (1.5, ", three beats"), "max_grace": (0.0, ""), "ping_interval": (0.0, "")}
MAX_SECONDS = 10**9  # what is stored in ms and µs stays exact
_COUNTS = frozenset(
    (
        "max_keys_per_client",
        "max_payload_bytes",
        "max_topic_bytes",
        "max_frame_bytes",
        "max_name_bytes",
        "max_frames_per_second",
        "max_frame_burst",
        "max_topics_per_client",
        "max_entries_per_topic",
    )
)


def _fault(name: str, value: object) -> str:
    if name in _SECONDS:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"must be a number of seconds, not {type(value).__name__}"
        least, why = _LEAST_SECONDS.get(name, (0.001, ""))
        if not least <= value <= MAX_SECONDS:  # also true of NaN
            return f"must be a finite number of at least {least} seconds{why}, not {value!r:.80}"
    elif name in _COUNTS:
        if isinstance(value, bool) or not isinstance(value, int):
            return f"must be a whole number, not {type(value).__name__}"
        if value < 1:
            return f"must be at least 1, not {value!r}"
    elif name == "revoke_on_signals":
        if not isinstance(value, bool):
            return f"must be True or False, not {value!r:.80}"
    elif name == "options":
        if not isinstance(value, Mapping):
            return f"must be a dict, not {type(value).__name__}"
    elif not isinstance(value, str) or not value:
        return f"must be a non-empty string, not {value!r:.80}"
    return ""


def _forget(*, setting: str, **_: Any) -> None:
    if setting == SETTING:
        get_settings.cache_clear()


setting_changed.connect(_forget, dispatch_uid="ephemeral_state.conf")
