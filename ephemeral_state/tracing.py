"""Spans, if `opentelemetry-api` is there; without it they cost nothing."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Final

from . import __version__
from .state import Topic

try:
    from opentelemetry import trace
except ImportError:
    _tracer = None
else:
    # A proxy: whatever provider the project sets later is the one that counts.
    _tracer = trace.get_tracer("ephemeral_state", __version__)

if TYPE_CHECKING:
    from opentelemetry.trace import Span

__all__ = ["span"]

_NOTHING: Final = nullcontext()


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
    return _tracer.start_as_current_span(f"ephemeral_state.{name}", attributes=about)
