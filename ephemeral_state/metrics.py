"""OpenTelemetry's metrics, where `opentelemetry-api` is installed: they read what is counted anyway, when asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from . import __version__, log
from .errors import EphemeralStateError
from .node import here
from .tally import totals

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Observation

__all__ = ["INSTRUMENTS", "Instrument", "register"]


class Instrument(NamedTuple):
    """Its name begins with `ephemeral_state.`, and it is OpenTelemetry's observable instrument of this kind."""

    kind: Literal["counter", "up_down_counter", "gauge"]
    name: str
    unit: str
    what: str
    read: Callable[[], Mapping[str, float]]
    """The numbers of now, by value of the attribute. For any thread."""
    attribute: str = ""
    """If there is none, the only value is ""."""


def _counted(**values: str) -> Mapping[str, float]:
    """What `tally` counts by these names. It is there from the beginning, as 0: of a number that is not there before
    it is 1 nobody could say that it has grown."""
    all_of_them = totals()
    return {value: all_of_them[name] for name, value in values.items()}


def _counted_under(beginning: str, known: Iterable[str]) -> Mapping[str, float]:
    """What it counts by names that begin so: those that are known beforehand, and what a project adds to them."""
    found = {name.removeprefix(beginning): n for name, n in totals().items() if name.startswith(beginning)}
    return dict.fromkeys(known, 0) | found


def _lease_age() -> Mapping[str, float]:
    age = here().lease_age
    return {} if age is None else {"": age}


INSTRUMENTS: Final = (
    Instrument(
        "up_down_counter",
        "connections",
        "{connection}",
        "Connections of this process that use their state, and blocks that hold or watch something.",
        lambda: {"": here().connections},
    ),
    Instrument(
        "up_down_counter",
        "entries",
        "{entry}",
        "Entries that these own; with the memory store, all entries.",
        lambda: {"": here().entries},
    ),
    Instrument(
        "up_down_counter",
        "topics",
        "{topic}",
        "Topics that somebody follows in this process.",
        lambda: {"": here().topics},
    ),
    Instrument(
        "counter",
        "sets",
        "{set}",
        "Keys set by this process, again and again ones too.",
        partial(_counted, set=""),
    ),
    Instrument(
        "counter",
        "clears",
        "{clear}",
        "Keys cleared by this process, by reason: of its own owners, of what had expired, of a process that had died.",
        partial(_counted, explicit="explicit", disconnect="disconnect", expired="expired"),
        "reason",
    ),
    Instrument(
        "counter",
        "writes",
        "{write}",
        "Sets, clears and ends that this process sent to the store.",
        partial(_counted, writes=""),
    ),
    Instrument(
        "counter",
        "batches",
        "{batch}",
        "Calls of the store that these writes took.",
        partial(_counted, batches=""),
    ),
    Instrument(
        "counter",
        "changes",
        "{change}",
        "Changes that this process heard of, in topics that somebody follows in it.",
        partial(_counted, heard=""),
    ),
    Instrument(
        "counter",
        "deliveries",
        "{delivery}",
        "The same, once for each connection that was told.",
        partial(_counted, handed=""),
    ),
    Instrument(
        "counter",
        "repairs",
        "{repair}",
        "Times that a topic was read from the store again, by what was noticed: a gap, or a difference by the beacon.",
        partial(_counted, gaps="gap", doubts="beacon"),
        "cause",
    ),
    Instrument(
        "counter",
        "views.wrong",
        "{view}",
        "Topics whose view here had the store's revision and not what the store has. Expected: 0.",
        partial(_counted, views_wrong=""),
    ),
    Instrument(
        "counter",
        "refusals",
        "{refusal}",
        "Commands to the ready-made consumer that were answered with an error, by its code.",
        partial(_counted_under, "refused.", [error.code for error in EphemeralStateError.__subclasses__()]),
        "code",
    ),
    Instrument(
        "counter",
        "errors",
        "{error}",
        "What went wrong, by the name of its line in the log.",
        partial(_counted_under, "error.", log.COUNTED),
        "event",
    ),
    Instrument(
        "gauge",
        "lease.age",
        "s",
        "Time since this process last renewed its lease.",
        _lease_age,
    ),
)


@cache
def register() -> None:
    """Make the instruments known, once. They are read by whatever provider the project sets, before or later."""
    try:
        from opentelemetry.metrics import get_meter
    except ImportError:
        return
    meter = get_meter("ephemeral_state", __version__)
    for instrument in INSTRUMENTS:
        create: Any = getattr(meter, f"create_observable_{instrument.kind}")
        create(f"ephemeral_state.{instrument.name}", [_observer(instrument)], instrument.unit, instrument.what)


def _observer(instrument: Instrument) -> Callable[[CallbackOptions], Iterable[Observation]]:
    from opentelemetry.metrics import Observation

    def observe(_: CallbackOptions) -> list[Observation]:
        numbers = instrument.read()
        return [Observation(n, {instrument.attribute: v} if instrument.attribute else None) for v, n in numbers.items()]

    return observe
