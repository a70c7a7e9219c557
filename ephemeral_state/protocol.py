"""The wire, both ways: frames out, commands in, and the group message between processes. Pure.

A frame is compact JSON text whose first field `_orama` says what it is. `docs/protocol.md` is this module
for people; the two must agree.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from .errors import EphemeralStateError, InvalidFrame, InvalidPayload, InvalidTTL, NameInvalid, RateLimited
from .state import Change, Entry, Reason, Revision, Topic, UntilDisconnect

__all__ = [
    "CLOSE_MESSAGE_TYPE",
    "FRAME_PREFIX",
    "GROUP_MESSAGE_TYPE",
    "LONGEST",
    "PLAIN",
    "Batch",
    "Command",
    "Event",
    "Flow",
    "Part",
    "Ref",
    "Rest",
    "add_ref",
    "as_batches",
    "decode_batch",
    "decode_command",
    "decode_pong",
    "encode_batches",
    "encode_change",
    "encode_entry",
    "encode_error",
    "encode_event",
    "encode_events",
    "encode_grace",
    "encode_hello",
    "encode_ok",
    "encode_payload",
    "encode_ping",
    "encode_revoked",
    "encode_set",
    "encode_snapshot",
    "encode_ttl",
    "encode_welcome",
    "flow",
    "is_bye",
    "peek_batch",
    "peek_ref",
    "peek_store",
    "require_size",
]

GROUP_MESSAGE_TYPE: Final = "ephemeral.events"
"""Never to be changed: a consumer without a handler for a new type is killed by the message."""

CLOSE_MESSAGE_TYPE: Final = "ephemeral.close"
"""Sent to a consumer's own channel: it is to close its socket, with the message's `code`."""

FRAME_PREFIX: Final = '{"_orama":"ephemeral.'
"""How each frame to a client begins."""

_BATCH_VERSION: Final = 1
_MAX_BATCH_CHARACTERS: Final = 256 * 1024
_REASONS: Final = frozenset(("explicit", "disconnect", "expired"))

_NO_NUMBERS: Final[Mapping[str, int]] = {}
_NOWHERE: Final = Revision(0, 0)

Ref = str | int | None

_dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_quote = json.encoder.encode_basestring


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_loads = json.JSONDecoder(parse_constant=_no_constant).decode  # json.loads would make a decoder for each frame


def _base64(payload: bytes) -> str:
    return binascii.b2a_base64(payload, newline=False).decode("ascii")


# Frames out


def encode_change(change: Change) -> str:
    """`ephemeral.set` or `ephemeral.clear`. These two never grow a field: old clients depend on it."""
    if change.reason is None:
        return encode_set(change.topic.name, change.key, change.client_id, change.payload)
    return encode_clear(change.topic.name, change.key, change.client_id, change.reason)


# Written out: these two are made once per change, and a JSON encoder would take four times as long.


def encode_set(topic: str, key: str, client_id: str, payload: bytes) -> str:
    frame = f'{{"_orama":"ephemeral.set","topic":{_quote(topic)},"key":{_quote(key)},"client_id":{_quote(client_id)}'
    return f'{frame},"payload":"{_base64(payload)}"}}' if payload else frame + "}"


def encode_clear(topic: str, key: str, client_id: str, reason: Reason) -> str:
    names = f'"topic":{_quote(topic)},"key":{_quote(key)},"client_id":{_quote(client_id)}'
    return f'{{"_orama":"ephemeral.clear",{names},"reason":"{reason}"}}'


def encode_entry(entry: Entry, number: int | None = None) -> str:
    """One element of a snapshot's `entries`. `number`: of the key, for those who take batches."""
    payload = f',"payload":"{_base64(entry.payload)}"' if entry.payload else ""
    left = "null" if entry.expires_in_ms is None else entry.expires_in_ms
    n = "" if number is None else f',"n":{number}'
    return f'{{"key":{_quote(entry.key)},"client_id":{_quote(entry.client_id)}{payload},"expires_in_ms":{left}{n}}}'


def encode_snapshot(topic: str, entries: Iterable[Entry], ref: Ref = None) -> str:
    """All of them, however many they are."""
    return add_ref(_snapshot(topic, map(encode_entry, entries)), ref)


def _snapshot(topic: str, entries: Iterable[str], more: int = 0) -> str:
    rest = f',"more":{more}' if more else ""
    return f'{{"_orama":"ephemeral.snapshot","topic":{_quote(topic)},"entries":[{",".join(entries)}]{rest}}}'


def encode_welcome(topic: str, entries: Sequence[Entry], numbers: Mapping[str, int] = _NO_NUMBERS) -> tuple[str, Rest]:
    """The snapshot that a subscriber gets, and what does not fit into it, as frames that are sent right after it.
    It says how many sets those are: a client has seen the whole topic only with the last of them. `numbers` are those
    of the keys, for a subscriber that takes batches: its sets come in such."""
    fitting: list[str] = []
    size = _FRAME + _bytes(_quote(topic))
    for entry in entries:
        text = encode_entry(entry, numbers.get(entry.key))
        size += _bytes(text) + 1
        if fitting and size > LONGEST:
            break  # what comes next is not even looked at: a topic may have a hundred times that
        fitting.append(text)
    left = entries[len(fitting) :]
    rest = Rest(topic, left, numbers if left else _NO_NUMBERS)
    return _snapshot(topic, fitting, more=rest.sets), rest


class Rest:
    """What does not fit into a snapshot, as frames. Each is made when it is asked for, which may be never, and once."""

    def __init__(self, topic: str, entries: Sequence[Entry], numbers: Mapping[str, int]) -> None:
        self.sets = len(entries)
        self._topic = topic
        self._numbers = numbers
        self._parts = _parts(entries) if numbers else [[entry] for entry in entries]
        self._texts: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, at: int) -> str:
        if at not in self._texts:
            self._texts[at] = self._frame(self._parts[at])
        return self._texts[at]

    def _frame(self, entries: Sequence[Entry]) -> str:
        if not self._numbers:
            (entry,) = entries
            return encode_set(self._topic, entry.key, entry.client_id, entry.payload)
        events = [Event(each.key, each.client_id, each.payload, None, None, "", _NOWHERE) for each in entries]
        return _batch(self._topic, [event._replace(number=self._numbers[event.key]) for event in events])


def _at_most(key: str, client_id: str, payload: bytes) -> int:
    """How long an event is without its topic: a control character in a name takes six."""
    return 64 + 6 * (len(key) + len(client_id)) + 2 * len(payload)


def _parts(entries: Sequence[Entry]) -> list[list[Entry]]:
    parts: list[list[Entry]] = []
    size = 0
    for entry in entries:
        own = _at_most(entry.key, entry.client_id, entry.payload)
        if not parts or size + own > _MAX_BATCH_CHARACTERS:
            parts.append([])
            size = 0
        size += own
        parts[-1].append(entry)
    return parts


def _bytes(text: str) -> int:
    return len(text if text.isascii() else text.encode())


_FRAME: Final = 1024  # bytes of a snapshot that are not its topic and entries, a long ref among them, at most
LONGEST: Final = 1_000_000
"""Bytes of a frame that tells of several keys: daphne ends a connection that is to be sent one of more than 1 MiB."""


def encode_hello(client_id: str, ping_interval: float = 0) -> str:
    """The first frame of a connection: which `client_id` is the client's own, and after how many seconds of silence
    it will be asked whether it is there. 0: never."""
    frame: dict[str, Any] = {"_orama": "ephemeral.hello", "client_id": client_id}
    if ping_interval:
        frame["ping_interval_ms"] = _milliseconds(ping_interval)
    return _dumps(frame)


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def add_ref(frame: str, ref: Ref) -> str:
    """The text of a frame, as the answer to a command that had this `ref`."""
    return frame if ref is None else f'{frame[:-1]},"ref":{ref if type(ref) is int else _dumps(ref)}}}'


class Part(NamedTuple):
    text: str
    events: Sequence[Event]


def encode_events(topic: str, events: Sequence[Event]) -> list[Part]:
    """`ephemeral.batch`: several events in one frame, or in several frames where it would be too long.

    An event is `[key, payload, client_id, number]` where the key is new or its owner is, `[number, payload]` where the
    key has the owner it had, and `[key, null, client_id, reason]` for a clear. A payload is base64, or plain JSON
    itself.
    """
    frame = _batch(topic, events)
    if len(events) < 2 or 4 * len(frame) <= LONGEST or _bytes(frame) <= LONGEST:
        return [Part(frame, events)]
    half = len(events) // 2
    return [*encode_events(topic, events[:half]), *encode_events(topic, events[half:])]


def _batch(topic: str, events: Sequence[Event]) -> str:
    return f'{{"_orama":"ephemeral.batch","topic":{_quote(topic)},"events":[{",".join(map(_encode_event, events))}]}}'


def _encode_event(event: Event) -> str:
    if event.reason is not None:
        return f'[{_quote(event.key)},null,{_quote(event.client_id)},"{event.reason}"]'
    payload = _plain_json(event.payload) or f'"{_base64(event.payload)}"'
    if event.same_owner:
        return f"[{event.number},{payload}]"
    return f"[{_quote(event.key)},{payload},{_quote(event.client_id)},{event.number}]"


def _plain_json(payload: bytes) -> str:
    """The text of a JSON object or array, if whoever reads it and writes it again gets the same bytes; or else ""."""
    if payload[:1] not in (b"{", b"["):
        return ""
    try:
        text = payload.decode()
        is_plain = not _NOT_PLAIN.search(text) and _dumps(_loads(text)) == text
    except (ValueError, RecursionError):
        return ""
    return text if is_plain else ""


# What JavaScript would write in another way: 1.0, 1e-05, numbers of many digits, and keys that it takes for an index.
_NOT_PLAIN: Final = re.compile(r'\.0(?![0-9])|[0-9]e[-+]|[0-9]{16}|"[0-9]+":')


def encode_ok(ref: Ref = None) -> str:
    return add_ref('{"_orama":"ephemeral.ok"}', ref)


def encode_error(error: EphemeralStateError, ref: Ref = None) -> str:
    # An error may quote what a client sent; whatever that was, the answer must be sendable.
    message = str(error).encode(errors="replace").decode()
    frame: dict[str, Any] = {"_orama": "ephemeral.error", "code": error.code, "message": message}
    if isinstance(error, RateLimited):
        frame["retry_after_ms"] = error.retry_after_ms
    return _dumps(_with_ref(frame, ref))


def encode_revoked(topic: str) -> str:
    """The right to follow the topic has ended, and the subscription with it."""
    return _dumps({"_orama": "ephemeral.revoked", "topic": topic})


USUAL_PING_INTERVAL: Final = 8.0
"""Seconds of silence before a ping, unless a frame says more. A client may give up on a server that falls silent."""


def encode_ping(number: int, interval: float = 0) -> str:
    """Asks whether the client is there, and has read what came before this: whoever knows the number has.
    `interval`: seconds of silence before a ping; a client that has had no hello has to know if they are many."""
    slow = f',"interval_ms":{_milliseconds(interval)}' if interval > USUAL_PING_INTERVAL else ""
    return f'{{"_orama":"ephemeral.ping","n":{number}{slow}}}'


_PONG: Final = "ephemeral.pong"


def decode_pong(text: str) -> int | None:
    """The number in a client's answer to a ping, 0 where it has none; `None` for any other frame."""
    if len(text) > 128 or _PONG not in text:
        return None
    try:
        frame = json.loads(text)
    except ValueError:
        return None
    if not isinstance(frame, dict) or frame.pop("_orama", None) != _PONG:
        return None
    frame.pop("interval_ms", None)  # there are clients that send back the ping as it was, but for its name
    number = frame.pop("n", 0)
    if type(number) is float and number.is_integer():  # there are clients that write 7.0
        number = int(number)
    return number if type(number) is int and not frame else None


_BYE: Final = "ephemeral.bye"


def is_bye(text: str) -> bool:
    """Whether the frame says that the client leaves on purpose."""
    if len(text) > 64 or _BYE not in text:
        return False
    try:
        return bool(json.loads(text) == {"_orama": _BYE})
    except ValueError:
        return False


def _with_ref(frame: dict[str, Any], ref: Ref) -> dict[str, Any]:
    return frame if ref is None else frame | {"ref": ref}


# Values in: what a caller in Python may hand over


def encode_payload(value: object) -> bytes:
    """Bytes as they are; text as UTF-8; anything else as compact JSON, once. Raises `InvalidPayload`."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    try:
        return (value if isinstance(value, str) else _dumps(value)).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidPayload(f"payload of type {type(value).__name__} is not JSON-able: {error}") from None


def encode_ttl(ttl: float | UntilDisconnect | None) -> int | None:
    """Seconds to the ms of `Set.ttl_ms`. `None` asks for the default. Raises `InvalidTTL`."""
    if ttl is None:
        return 0
    if isinstance(ttl, UntilDisconnect):
        return None
    if isinstance(ttl, bool) or not isinstance(ttl, int | float):
        raise InvalidTTL(f"ttl must be a number of seconds or UNTIL_DISCONNECT, not {type(ttl).__name__}")
    if not abs(ttl) < _MAX_SECONDS:  # also true of NaN
        raise InvalidTTL(f"ttl of {_shown(ttl)} s is not a finite number of seconds below {_MAX_SECONDS}")
    # Rounding must not turn a very short life into 0, which asks for the default.
    return max(1, round(ttl * 1000)) if ttl > 0 else 0


def encode_grace(grace: float | None) -> int:
    """Seconds to the ms of `Set.grace_ms`. `None` and 0 ask for none. Raises `InvalidTTL`."""
    if grace is None:
        return 0
    if isinstance(grace, bool) or not isinstance(grace, int | float):
        raise InvalidTTL(f"grace must be a number of seconds, not {type(grace).__name__}")
    if not 0 <= grace < _MAX_SECONDS:  # also true of NaN
        raise InvalidTTL(f"grace of {_shown(grace)} s is not a number of seconds from 0 to {_MAX_SECONDS}")
    return round(grace * 1000)


def _shown(number: float) -> str:
    try:
        return f"{number!r:.40}"
    except ValueError:  # Python writes no whole number of more than 4300 digits
        return "far too many"


_MAX_SECONDS: Final = 10**9


class Flow(NamedTuple):
    """How a subscriber wants to hear of a topic."""

    batch: bool = False
    """Several events in one frame."""
    max_rate: float | None = None
    """At most so many frames a second; of what waits meanwhile, the newest value per key. `None`: no limit."""


PLAIN: Final = Flow()
"""One event in each frame, as they come."""


def flow(batch: bool = False, max_rate: object = None) -> Flow:
    """Raises `ValueError`."""
    if max_rate is None:
        return Flow(batch)
    if isinstance(max_rate, bool) or not isinstance(max_rate, int | float) or not 0 < max_rate <= _MAX_RATE:
        raise ValueError(
            f"max_rate must be a number of frames a second above 0 and up to {_MAX_RATE}, not {max_rate!r:.80}"
        )
    return Flow(batch, float(max_rate))


_MAX_RATE: Final = 1000


# Commands in


class Command(NamedTuple):
    """What a client asks for. `verb` is one of subscribe, unsubscribe, set, clear, list."""

    verb: str
    topic: str
    key: str = ""
    payload: bytes = b""
    ttl_ms: int | None = 0
    grace_ms: int = 0
    flow: Flow = PLAIN
    ref: Ref = None


_FIELDS: Final[Mapping[str, frozenset[str]]] = {
    "subscribe": frozenset(("topic", "batch", "max_rate")),
    "unsubscribe": frozenset(("topic",)),
    "list": frozenset(("topic",)),
    "clear": frozenset(("topic", "key")),
    "set": frozenset(("topic", "key", "payload", "ttl_ms", "grace_ms")),
}
_PREFIX: Final = "ephemeral."
_MAX_REF: Final = 128


def decode_command(text: str, *, max_frame_bytes: int, max_name_bytes: int) -> Command:
    """Read one frame of a client. Raises an error that carries the frame's `ref`, when it could be read."""
    require_size(text, max_frame_bytes)
    try:
        frame = _loads(text)
    except (ValueError, RecursionError):
        raise InvalidFrame("frame is not JSON") from None
    if not isinstance(frame, dict):
        raise InvalidFrame(f"frame is a JSON {_json_type(frame)}, not an object")
    ref = _ref(frame.pop("ref", None))
    try:
        return _command(frame, ref, max_name_bytes)
    except EphemeralStateError as error:
        error.ref = ref
        raise


def require_size(data: str | bytes, max_frame_bytes: int) -> None:
    """Raises `InvalidFrame` for a frame that is too large to be read."""
    size = len(data if not isinstance(data, str) or data.isascii() else data.encode(errors="surrogatepass"))
    if size > max_frame_bytes:
        raise InvalidFrame(f"frame of {size} bytes exceeds the limit of {max_frame_bytes} (MAX_FRAME_BYTES)")


def peek_ref(text: str) -> Ref:
    """The `ref` of a frame that is not worth reading. Of a command that is none, it may find something else."""
    # Inside of a JSON string each of these quotes would have a backslash before it.
    found = _REF.search(text)
    try:
        return _ref(json.loads(found[1])) if found else None
    except (ValueError, InvalidFrame):
        return None


_REF: Final = re.compile(r'"ref"\s{0,9}:\s{0,9}(-?[0-9]{1,16}|"(?:[^"\\]|\\.){0,256}")')


def _command(frame: dict[str, Any], ref: Ref, max_name_bytes: int) -> Command:
    kind = frame.pop("_orama", None)
    if kind is None:
        raise InvalidFrame("frame has no _orama field")
    verb = kind[len(_PREFIX) :] if isinstance(kind, str) and kind.startswith(_PREFIX) else ""
    allowed = _FIELDS.get(verb)
    if kind == _BYE:
        raise InvalidFrame(f"{_BYE} has no other fields")  # without any it never comes here
    if allowed is None:
        raise InvalidFrame(f"_orama {_quoted(kind)} is none of: {', '.join(_PREFIX + v for v in _FIELDS)}")
    for name in frame:
        if name not in allowed:
            raise InvalidFrame(f"{kind} has no field {_quoted(name)}; it has {', '.join(sorted(allowed))}")
    return Command(
        verb,
        topic=_name(frame, "topic", max_name_bytes),
        key=_name(frame, "key", max_name_bytes) if "key" in allowed else "",
        payload=_payload(frame["payload"]) if "payload" in frame else b"",
        ttl_ms=_ttl_ms(frame["ttl_ms"]) if "ttl_ms" in frame else 0,
        grace_ms=_grace_ms(frame["grace_ms"]) if "grace_ms" in frame else 0,
        flow=_flow(frame) if verb == "subscribe" else PLAIN,
        ref=ref,
    )


def _name(frame: Mapping[str, Any], field: str, max_name_bytes: int) -> str:
    name = frame.get(field)
    if name is None:
        raise InvalidFrame(f"frame has no {field}")
    if not isinstance(name, str):
        raise InvalidFrame(f"{field} is a JSON {_json_type(name)}, not a string")
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise NameInvalid(f"{field} has a lone surrogate at position {error.start}") from None
    if size > max_name_bytes:
        raise NameInvalid(f"{field} of {size} bytes exceeds the limit of {max_name_bytes} (MAX_NAME_BYTES)")
    return name


def _flow(frame: Mapping[str, Any]) -> Flow:
    batch = frame.get("batch", False)
    if not isinstance(batch, bool):
        raise InvalidFrame(f"batch is a JSON {_json_type(batch)}, not true or false")
    try:
        return flow(batch, frame.get("max_rate"))
    except ValueError as error:
        raise InvalidFrame(str(error)) from None


def _payload(value: object) -> bytes:
    if not isinstance(value, str):
        raise InvalidPayload(f"payload is a JSON {_json_type(value)}, not a base64 string")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidPayload("payload is not standard padded base64") from None


def _ttl_ms(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidTTL(f"ttl_ms is a JSON {_json_type(value)}, not a number or null")
    # A float, as JavaScript has it: one that is too large for that is infinite.
    return encode_ttl(_float(value) / 1000)


def _grace_ms(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidTTL(f"grace_ms is a JSON {_json_type(value)}, not a number")
    return encode_grace(_float(value) / 1000)


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _ref(value: object) -> Ref:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53):
        return value
    if isinstance(value, str) and len(value) <= _MAX_REF and value.isprintable():
        return value
    raise InvalidFrame(
        f"ref must be null, a whole number below 2**53 or printable text of at most {_MAX_REF} characters"
    )


def _json_type(value: object) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")


def _quoted(value: object) -> str:
    # Python's own words for what is no text: a number that JSON reads as infinite cannot be written as JSON.
    text = f'"{value}"' if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# Between processes


class Event(NamedTuple):
    """A change on its way to subscribers, and what a replica needs of it."""

    key: str
    client_id: str
    payload: bytes
    reason: Reason | None
    expires_in_ms: int | None
    text: str
    """Empty where no message brought it: made when somebody is to hear it, by `encode_event`."""
    revision: Revision
    """The change's own, or that of the snapshot that revealed it."""
    fresh: bool = False
    """The key was not there before: whoever has not heard of this event does not know the key at all."""
    same_owner: bool = False
    """The key was there before, with the same owner: whoever knows the key knows its owner, and its number."""
    number: int = 0
    """Stands for the key from when it comes until it goes, and for no other one before or after."""

    @property
    def length(self) -> int:
        """About how many characters it takes to tell."""
        return len(self.text) or _at_most(self.key, self.client_id, self.payload)


def encode_event(topic: str, event: Event) -> str:
    """The frame that tells of it by itself."""
    if event.text:
        return event.text
    if event.reason is None:
        return encode_set(topic, event.key, event.client_id, event.payload)
    return encode_clear(topic, event.key, event.client_id, event.reason)


class Batch(NamedTuple):
    """Consecutive events of one topic; `first.revision` is the revision of the first of them."""

    topic: Topic
    first: Revision
    events: Sequence[Event]


def encode_batches(changes: Sequence[Change], store: str = "") -> list[dict[str, Any]]:
    """Group messages for changes of one topic in the order of their revisions, each of a size any channel layer
    carries. A message holds consecutive changes: where another process has written in between, the next begins.
    `store` is the identity of the store that has them.

    Only text and numbers, since that is what every layer's serializer keeps as it is.
    """
    messages: list[dict[str, Any]] = []
    size = 0
    following = (-1, -1)
    for change in changes:
        text = encode_change(change)
        if (change.epoch, change.revision) != following or size + len(text) > _MAX_BATCH_CHARACTERS:
            size = 0
            messages.append(
                {
                    "type": GROUP_MESSAGE_TYPE,
                    "version": _BATCH_VERSION,
                    "store": store,
                    "namespace": change.topic.namespace,
                    "topic": change.topic.name,
                    "epoch": change.epoch,
                    "revision": change.revision,
                    "frames": [],
                    "expires_in_ms": [],
                }
            )
        following = (change.epoch, change.revision + 1)
        size += len(text)
        messages[-1]["frames"].append(text)
        messages[-1]["expires_in_ms"].append(-1 if change.expires_in_ms is None else change.expires_in_ms)
    return messages


def as_batches(changes: Iterable[Change]) -> list[Batch]:
    """The changes as whoever gets their messages will see them, in their order within each topic."""
    batches: list[Batch] = []
    latest: dict[Topic, tuple[int, int, list[Event]]] = {}
    for topic, key, client_id, payload, reason, expires_in_ms, epoch, revision in changes:
        event = Event(key, client_id, payload, reason, expires_in_ms, "", Revision(epoch, revision))
        *following, events = latest.get(topic, _NO_EVENTS)
        if following != [epoch, revision]:
            events = []
            batches.append(Batch(topic, event.revision, events))
        events.append(event)
        latest[topic] = epoch, revision + 1, events
    return batches


_NO_EVENTS: Final[tuple[int, int, list[Event]]] = (-1, -1, [])


def peek_batch(message: Mapping[str, Any]) -> tuple[Topic, Revision]:
    """Which topic a message is of, and the revision of its last event. Raises `InvalidFrame` for what a newer version,
    or somebody else, put into the group."""
    try:
        if message["version"] != _BATCH_VERSION:
            raise InvalidFrame(f"group message of version {message['version']!r}")
        last = Revision(int(message["epoch"]), int(message["revision"]) + len(message["frames"]) - 1)
        return Topic(str(message["namespace"]), str(message["topic"])), last
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise InvalidFrame(f"group message cannot be read: {error}") from error


def peek_store(message: Mapping[str, Any]) -> str:
    """The identity of the store that has what the message says; empty for a message that does not tell, as those of
    releases before this field."""
    return str(message.get("store", ""))


def decode_batch(message: Mapping[str, Any]) -> Batch:
    """Raises `InvalidFrame`."""
    topic, (epoch, _) = peek_batch(message)
    try:
        first = int(message["revision"])
        frames = zip(message["frames"], message["expires_in_ms"], strict=True)
        events = [_event(text, ms, Revision(epoch, at)) for at, (text, ms) in enumerate(frames, first)]
        return Batch(topic, Revision(epoch, first), events)
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise InvalidFrame(f"group message cannot be read: {error}") from error


def _event(text: str, expires_in_ms: int, revision: Revision) -> Event:
    frame = json.loads(text)
    reason = frame.get("reason")
    if reason is not None and reason not in _REASONS:
        raise InvalidFrame(f"clear with reason {reason!r}")
    payload = base64.b64decode(frame.get("payload", ""))
    left = expires_in_ms if expires_in_ms >= 0 else None
    return Event(frame["key"], frame["client_id"], payload, reason, left, text, revision)
