"""Spans, if `opentelemetry-api` is there; without it they cost nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Final

from . import __version__
from .state import Topic

try:
    from opentelemetry import context, trace
except ImportError:
    _tracer = None
else:
    # A proxy: whatever provider the project sets later is the one that counts.
    _tracer = trace.get_tracer("ephemeral_state", __version__)

if TYPE_CHECKING:
    from opentelemetry.trace import Span

__all__ = ["housekeeping", "span"]

_NOTHING: Final = nullcontext()
_SUPPRESS: Final = "suppress_instrumentation"
"""The key by which instrumentations are asked to make no spans."""
_OURS: Final = "housekeeping of ephemeral_state"


def housekeeping() -> AbstractContextManager[None]:
    """Inside of it no instrumentation, as one of Redis, makes spans: a process that is idle would begin a trace of its
    own for each beat and each look at the store, several a second. A `span` in it makes an end of that."""
    return _NOTHING if _tracer is None else _context(_SUPPRESS, _OURS)


def span(name: str, topic: Topic | None = None, **attributes: str | int) -> AbstractContextManager[Span | None]:
    """What is done inside of it is one span, a part of the caller's trace where there is one. Keys and payloads are
    nobody's business there.

    Not for what sockets send or are sent: a span costs more than that does.
    """
    if _tracer is None:
        return _NOTHING
    if topic is not None:
        attributes |= {"namespace": topic.namespace, "topic": topic.name}
    about = {f"ephemeral_state.{key}": value for key, value in attributes.items()}
    begun = _tracer.start_as_current_span(f"ephemeral_state.{name}", attributes=about)
    # Not what the project itself has suppressed.
    return _seen(begun) if context.get_value(_SUPPRESS) == _OURS else begun


@contextmanager
def _seen(begun: AbstractContextManager[Span]) -> Iterator[Span]:
    with _context(_SUPPRESS, None), begun as it:
        yield it


@contextmanager
def _context(key: str, value: str | None) -> Iterator[None]:
    token = context.attach(context.set_value(key, value))
    try:
        yield
    finally:
        context.detach(token)
