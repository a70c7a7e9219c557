"""What operators read: for each thing that they should know one line, with a name and fields for programs."""

from __future__ import annotations

import logging
from typing import Final

from .tally import tally

__all__ = ["COUNTED", "Trouble", "debug", "error", "exception", "info", "warning"]

logger = logging.getLogger("ephemeral_state")

COUNTED: Final = (
    "clearing_failed",
    "comparing_trouble",
    "duty_ended",
    "foreign_messages",
    "hearing_trouble",
    "joining_trouble",
    "keys_evicted",
    "layer_deaf",
    "lease_lost",
    "lease_trouble",
    "leaving_failed",
    "link_denied",
    "message_bug",
    "message_ignored",
    "node_dead",
    "node_ends_late",
    "node_reaped",
    "not_configured",
    "policy_denies_all",
    "policy_failed",
    "publishing_trouble",
    "recheck_trouble",
    "revocation_deaf",
    "revocation_untold",
    "set_after_end",
    "signals_trouble",
    "store_advice",
    "store_bug",
    "store_trouble",
    "sweep_failed",
    "users_trouble",
    "view_wrong",
)
"""The warnings and errors. An alarm for the first of its kind needs to know beforehand that there were none."""

_CALLER: Final = 3  # frames up, to whoever has something to say


def debug(message: str, *args: object) -> None:
    """For who works on the package: it has no name, and is nothing to rely on."""
    logger.debug(message, *args, stacklevel=2)


def info(event: str, message: str, **fields: str | float) -> None:
    """The `message` has the fields in it by name; the record has them, and `event`, as attributes."""
    _say(logging.INFO, event, message, fields)


def warning(event: str, message: str, **fields: str | float) -> None:
    """As `info`, and counted as an error."""
    _count(event)
    _say(logging.WARNING, event, message, fields)


def error(event: str, message: str, **fields: str | float) -> None:
    """As `warning`."""
    _count(event)
    _say(logging.ERROR, event, message, fields)


def exception(event: str, message: str, **fields: str | float) -> None:
    """As `error`, with the traceback of what is being handled."""
    _count(event)
    _say(logging.ERROR, event, message, fields, traceback=True)


class Trouble:
    """Says it once when trouble begins and once when it is over, and counts however often it is met."""

    def __init__(self, event: str, began: str, over: str, *, traceback: bool = False) -> None:
        """`began` may have `%(error)s` in it. With `traceback` that is an error, and otherwise a warning."""
        self._event = event
        self._began = began
        self._over = over
        self._traceback = traceback
        self._now = False

    def met(self, error: Exception | None = None) -> None:
        """It is there, or there still."""
        _count(self._event)
        if not self._now:
            self._now = True
            level = logging.ERROR if self._traceback else logging.WARNING
            fields: dict[str, str | float] = {} if error is None else {"error": _shown(error)}
            _say(level, self._event, self._began, fields, traceback=self._traceback)

    def over(self) -> None:
        """All is well, or well again."""
        if self._now:
            self._now = False
            _say(logging.WARNING, self._event + "_over", self._over, {})


def _shown(error: Exception) -> str:
    """Its `repr`, unless that leaves out the text, as the one of redis-py's errors does."""
    shown, text = repr(error), str(error)
    return shown if not text or text in shown or repr(text)[1:-1] in shown else f"{type(error).__name__}({text!r})"


def _count(event: str) -> None:
    tally()["error." + event] += 1


def _say(level: int, event: str, message: str, fields: dict[str, str | float], *, traceback: bool = False) -> None:
    args = (fields,) if fields else ()
    logger.log(level, message, *args, exc_info=traceback, extra={"event": event, **fields}, stacklevel=_CALLER)
