"""Names, payloads and times as text that can be shown; templates escape it. And the names that travel through forms."""

from __future__ import annotations

import json
from typing import Final, NamedTuple

from django.core import signing
from django.http import QueryDict
from django.utils.http import urlencode

from ..printing import printable
from ..state import Clear, Topic

__all__ = [
    "Filters",
    "Identity",
    "owner_parts",
    "payload_pretty",
    "read_token",
    "short",
]

NAME_LENGTH: Final = 80
PAYLOAD_LENGTH: Final = 160
_MAX_URL: Final = 4000  # characters; servers and proxies refuse URLs of 8 to 16 kB, and names may be as long
_SHORT_OWNER: Final = 16  # characters of an owner that is shown whole
_OWNER_TAIL: Final = 8  # characters at the end of an owner that is not
_SALT: Final = "ephemeral_state.admin"


class Filters(NamedTuple):
    """What the list is narrowed to. An empty namespace is one like any other; `None` means all of them."""

    namespace: str | None = None
    topic: str | None = None
    search: str = ""
    process: str | None = None
    """A node."""
    user: str | None = None
    lifetime: str | None = None
    """`connection`, for what has no deadline, or `deadline`."""
    order: str = ""
    """A column to sort the page by, with `-` downwards."""

    @classmethod
    def read(cls, query: QueryDict) -> Filters:
        return cls(
            query.get("namespace"),
            query.get("topic"),
            query.get("q", ""),
            query.get("process"),
            query.get("user"),
            query.get("lifetime"),
            query.get("o", ""),
        )

    def but(self, name: str, value: str | None) -> Filters:
        """The same with another value for one of them."""
        return Filters(**{**self._asdict(), name: value})

    def url(self, **more: str) -> str:
        given = {**self._asdict(), "q": self.search or None, "o": self.order or None, **more}
        del given["search"], given["order"]
        names = ("namespace", "topic", "q", "process", "user", "lifetime", "o", *more)
        return "?" + urlencode({name: given[name] for name in names if given[name] is not None})


class Identity(NamedTuple):
    namespace: str
    topic: str
    key: str
    owner: str

    def token(self) -> str:
        """Itself as a form value. Signed, so that whatever else comes back is known for garbage."""
        return signing.dumps(self, salt=_SALT, compress=True)

    @classmethod
    def of(cls, clear: Clear) -> Identity:
        return cls(*clear.topic, clear.key, clear.client)

    def clear(self) -> Clear:
        """Clears the key if this owner still has it."""
        return Clear(self.owner, Topic(self.namespace, self.topic), self.key)

    def shown(self) -> dict[str, str]:
        return {name: printable(value, NAME_LENGTH) for name, value in self._asdict().items()}

    def in_words(self) -> str:
        return " › ".join(part for part in [*self.shown().values()][:3] if part)


def owner_parts(owner: str) -> dict[str, str]:
    """The name of an owner in two parts, of which a page shows the beginning of the first; empty for a short name.
    Channel names are long, and only their ends differ."""
    shown = printable(owner, NAME_LENGTH)
    if len(shown) <= _SHORT_OWNER:
        return {"owner_head": "", "owner_tail": ""}
    return {"owner_head": shown[:-_OWNER_TAIL], "owner_tail": shown[-_OWNER_TAIL:]}


def read_token(token: str) -> Identity:
    """Raises `ValueError`."""
    try:
        return Identity(*signing.loads(token, salt=_SALT))
    except (signing.BadSignature, TypeError) as error:
        raise ValueError("not one of our tokens") from error


def payload_pretty(payload: bytes) -> tuple[str, str]:
    """What it is, and all of it over several lines."""
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        lines = (payload[at : at + 16] for at in range(0, len(payload), 16))
        return "bytes", "\n".join(f"{16 * n:04x}  {line.hex(' ')}" for n, line in enumerate(lines))
    try:
        text, kind = json.dumps(json.loads(text), indent=2, ensure_ascii=False), "JSON"
    except (ValueError, RecursionError):
        kind = "text"
    return kind, "\n".join(printable(line, len(line)) for line in text.split("\n"))


def short(url: str) -> str:
    return url if len(url) <= _MAX_URL else ""
