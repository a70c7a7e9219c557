"""What can go wrong, each kind with the code that clients see on the wire."""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "ClientRequired",
    "ConnectionGone",
    "EphemeralStateError",
    "InvalidFrame",
    "InvalidPayload",
    "InvalidTTL",
    "NameInvalid",
    "NameRequired",
    "NotAccepted",
    "NotConfigured",
    "PayloadTooLarge",
    "PermissionDenied",
    "RateLimited",
    "StoreUnavailable",
    "TooManyEntries",
    "TooManyKeys",
    "TooManyTopics",
    "TopicTooLarge",
]


class EphemeralStateError(Exception):
    """Base of every error this package raises on purpose; `str(error)` is safe to show to a client."""

    code: ClassVar[str] = "error"
    ref: str | int | None = None
    """The `ref` of the client's frame that this is about, if there was one."""


class ClientRequired(EphemeralStateError, ValueError):
    """A set or clear came without an owner."""

    code = "client_required"


class NameRequired(EphemeralStateError, ValueError):
    """The topic or the key is empty."""

    code = "name_required"


class NameInvalid(EphemeralStateError, ValueError):
    """A topic, key, namespace or client is not text that can be written as UTF-8, or is longer than allowed."""

    code = "name_invalid"


class PayloadTooLarge(EphemeralStateError, ValueError):
    """The payload has more bytes than `MAX_PAYLOAD_BYTES`."""

    code = "payload_too_large"


class InvalidPayload(EphemeralStateError, ValueError):
    """The payload is neither bytes nor text nor something that JSON can express."""

    code = "payload_invalid"


class InvalidTTL(EphemeralStateError, ValueError):
    """The time to live is not a finite number of seconds, or may not be used here."""

    code = "ttl_invalid"


class TooManyKeys(EphemeralStateError):
    """The client owns `MAX_KEYS_PER_CLIENT` keys already."""

    code = "too_many_keys"


class TooManyTopics(EphemeralStateError):
    """The client follows `MAX_TOPICS_PER_CLIENT` topics already."""

    code = "too_many_topics"


class TooManyEntries(EphemeralStateError):
    """The topic has `MAX_ENTRIES_PER_TOPIC` entries already."""

    code = "too_many_entries"


class TopicTooLarge(EphemeralStateError):
    """Keys and payloads of the topic would have more bytes than `MAX_TOPIC_BYTES`; or have more than can be read at
    once."""

    code = "topic_too_large"

    def __init__(self, message: str, size: int = 0) -> None:
        super().__init__(message)
        self.size = size
        """Bytes of the topic."""


class RateLimited(EphemeralStateError):
    """The client sends more frames than `MAX_FRAMES_PER_SECOND`."""

    code = "rate_limited"

    def __init__(self, retry_after_ms: int) -> None:
        super().__init__(f"too many frames (MAX_FRAMES_PER_SECOND): wait {retry_after_ms} ms")
        self.retry_after_ms = retry_after_ms


class InvalidFrame(EphemeralStateError, ValueError):
    """A client's frame is no command of the protocol."""

    code = "bad_frame"


class PermissionDenied(EphemeralStateError):
    """The policy says no. The message never tells whether the thing exists."""

    code = "forbidden"


class ConnectionGone(EphemeralStateError):
    """The connection has ended, so nothing may be set in its name any more."""

    code = "gone"


class NotAccepted(EphemeralStateError):
    """A subscription was asked for before the WebSocket was accepted, so its snapshot could not be sent."""

    code = "not_accepted"


class NotConfigured(EphemeralStateError):
    """A setting or the channel layer is missing or wrong; the message names it."""

    code = "not_configured"


class StoreUnavailable(EphemeralStateError):
    """The store did not answer, or refused, within its time limit; nothing was acknowledged."""

    code = "unavailable"
