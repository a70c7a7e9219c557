"""The ready-made consumer: the whole client protocol, and nothing a client sends does harm."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from .hostile import encode
from .server import Client, Server, is_a

Frame = dict[str, Any]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def ask(client: Client, verb: str, **fields: Any) -> Frame:
    """Send a command and return its answer; what else comes meanwhile goes into the client's view."""
    await client.send({"_orama": f"ephemeral.{verb}", **fields})
    return await answer(client)


async def answer(client: Client) -> Frame:
    answers = ("ephemeral.ok", "ephemeral.error", "ephemeral.snapshot")
    return (await client.frames(lambda frame: frame["_orama"] in answers))[-1]


async def test_the_whole_protocol(server: Server, tag: str) -> None:
    async with Client(server, "ready") as ann, Client(server, "ready") as bob:
        assert await ask(bob, "subscribe", topic=tag) == {"_orama": "ephemeral.snapshot", "topic": tag, "entries": []}
        assert await ask(ann, "set", topic=tag, key="k", payload=b64(b"hello"), ttl_ms=5000, ref=1) == {
            "_orama": "ephemeral.ok",
            "ref": 1,
        }
        heard = await bob.frame()
        assert list(heard) == ["_orama", "topic", "key", "client_id", "payload"]
        assert (heard["key"], heard["payload"]) == ("k", b64(b"hello"))
        listed = await ask(ann, "list", topic=tag, ref="list")
        assert list(listed) == ["_orama", "topic", "entries", "ref"]
        assert listed["ref"] == "list"
        (entry,) = listed["entries"]
        assert 0 < entry.pop("expires_in_ms") <= 5000
        assert entry == {"key": "k", "client_id": heard["client_id"], "payload": b64(b"hello")}
        snapshot = await ask(ann, "subscribe", topic=tag, ref=0)
        assert snapshot["_orama"] == "ephemeral.snapshot"
        assert snapshot["ref"] == 0
        assert [e["key"] for e in snapshot["entries"]] == ["k"]
        # Another's key is not cleared, and that is no error.
        assert await ask(bob, "clear", topic=tag, key="k") == {"_orama": "ephemeral.ok"}
        assert await ask(ann, "clear", topic=tag, key="k") == {"_orama": "ephemeral.ok"}
        assert (await bob.frame())["reason"] == "explicit"
        assert await ask(bob, "unsubscribe", topic=tag, ref="bye") == {"_orama": "ephemeral.ok", "ref": "bye"}
        assert await ask(ann, "set", topic=tag, key="still", ttl_ms=None) == {"_orama": "ephemeral.ok"}
        assert (await ask(bob, "list", topic=tag))["entries"][0]["expires_in_ms"] is None
        assert bob.view.state == {"still": (heard["client_id"], "")}  # from the list; nothing more was heard


async def test_a_client_is_told_its_own_id_first_and_once(server: Server, tag: str) -> None:
    async with Client(server, "ready") as ann, Client(server, "ready") as bob:
        await ask(bob, "subscribe", topic=tag)
        assert ann.hello["client_id"] != bob.hello["client_id"]
        assert list(ann.hello) == ["_orama", "client_id", "ping_interval_ms"]
        assert ann.hello["ping_interval_ms"] == 8000
        await ask(ann, "set", topic=tag, key="k")
        assert (await bob.frame())["client_id"] == ann.hello["client_id"]


async def test_what_a_client_set_goes_when_it_leaves(server: Server, tag: str) -> None:
    async with Client(server, "ready") as bob:
        await ask(bob, "subscribe", topic=tag)
        async with Client(server, "ready") as ann:
            await ask(ann, "set", topic=tag, key="k", ttl_ms=None)
            await bob.frame()
        assert (await bob.frame())["reason"] == "disconnect"


@pytest.mark.parametrize("end", ["close", "reset", "neither"])
async def test_after_a_goodbye_frame_nothing_has_a_grace_whatever_the_end_is(
    server: Server, tag: str, end: str
) -> None:
    async with Client(server, "ready") as bob, Client(server, "ready") as ann:
        await ask(bob, "subscribe", topic=tag)
        for key in ("k", "last"):  # the last one is not answered when the client has left
            await ann.send({"_orama": "ephemeral.set", "topic": tag, "key": key, "ttl_ms": None, "grace_ms": 60_000})
        await bob.frames(lambda frame: frame.get("key") == "k")
        await ann.send({"_orama": "ephemeral.bye"})
        if end == "close":
            await ann.close()
        elif end == "reset":
            await ann.reset()
        while bob.view.state:
            await bob.frame()
        assert await ask(bob, "list", topic=tag) == {"_orama": "ephemeral.snapshot", "topic": tag, "entries": []}


NAMES = ["ünïcödé ☃ 🎉", "nul \0 inside", " ", "\0", "a:b/c d@e", "x" * 1024]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
async def test_any_text_is_a_topic_and_a_key(server: Server, tag: str, name: str) -> None:
    topic = name if len(name) == 1024 else name + tag
    async with Client(server, "ready", namespace=f"{tag}:é") as ann, Client(server, "ready", namespace=tag) as other:
        await ask(ann, "subscribe", topic=topic)
        await ask(other, "subscribe", topic=topic)
        await ann.send({"_orama": "ephemeral.set", "topic": topic, "key": name})
        frames = await ann.frames(lambda frame: "client_id" in frame)
        assert (frames[-1]["topic"], frames[-1]["key"]) == (topic, name)
        assert (await ask(other, "list", topic=topic))["entries"] == []
        assert not other.view.changes


def command(verb: str, **fields: Any) -> str:
    return json.dumps({"_orama": f"ephemeral.{verb}", "topic": "T", **fields})


def setting(**fields: Any) -> str:
    return command("set", **{"key": "bad", **fields})


LONG = "n" * 10_000
BAD: dict[str, tuple[str | bytes, str, str]] = {
    "no JSON": ("{", "bad_frame", "frame is not JSON"),
    "nothing": ("", "bad_frame", "frame is not JSON"),
    "NaN": ('{"_orama":"ephemeral.set","topic":"T","key":"bad","ttl_ms":NaN}', "bad_frame", "not JSON"),
    "deep": ("[" * 60_000, "bad_frame", "frame is not JSON"),
    "array": ("[1,2]", "bad_frame", "array, not an object"),
    "array of commands": (f"[{setting()}]", "bad_frame", "array, not an object"),
    "number": ("1", "bad_frame", "number, not an object"),
    "null": ("null", "bad_frame", "null, not an object"),
    "no _orama": ('{"topic":"T","key":"bad"}', "bad_frame", "no _orama field"),
    "unknown _orama": (command("destroy"), "bad_frame", '"ephemeral.destroy" is none of'),
    "an answer as a command": (command("ok"), "bad_frame", '"ephemeral.ok" is none of'),
    "_orama is a number": ('{"_orama":7}', "bad_frame", "7 is none of"),
    "_orama is an object": ('{"_orama":{"a":[]}}', "bad_frame", "is none of"),
    "_orama beyond a double": ('{"_orama":1e999}', "bad_frame", "_orama"),
    "_orama is nested deeply": ('{"_orama":' + "[" * 900 + "]" * 900 + "}", "bad_frame", ""),
    "ref is nested deeply": ('{"_orama":"ephemeral.set","ref":' + "[" * 900 + "]" * 900 + "}", "bad_frame", ""),
    "_orama is a lone surrogate": ('{"_orama":"\\ud800"}', "bad_frame", "is none of"),
    "unknown field": (setting(client_id="somebody"), "bad_frame", 'no field "client_id"'),
    "unknown field, a lone surrogate": (setting(**{"\ud800": 1}), "bad_frame", "no field"),
    "a goodbye with a field": (command("bye"), "bad_frame", "ephemeral.bye has no other fields"),
    "no topic": ('{"_orama":"ephemeral.set","key":"bad"}', "bad_frame", "no topic"),
    "no key": (command("set"), "bad_frame", "no key"),
    "topic is a number": (setting(topic=5), "bad_frame", "topic is a JSON number"),
    "key is an array": (setting(key=[]), "bad_frame", "key is a JSON array"),
    "empty topic": (setting(topic=""), "name_required", "topic is empty"),
    "empty key": (setting(key=""), "name_required", "key is empty"),
    "long topic": (setting(topic=LONG), "name_invalid", "topic of 10000 bytes exceeds the limit of 1024"),
    "long key": (setting(key=LONG), "name_invalid", "key of 10000 bytes exceeds the limit of 1024"),
    "long in bytes": (setting(key="é" * 513), "name_invalid", "key of 1026 bytes exceeds the limit of 1024"),
    "surrogate in the topic": (setting(topic="a\ud800"), "name_invalid", "topic has a lone surrogate at position 1"),
    "surrogate in the key": (setting(key="\udfff"), "name_invalid", "key has a lone surrogate at position 0"),
    "payload is no base64": (setting(payload="***"), "payload_invalid", "not standard padded base64"),
    "payload without padding": (setting(payload="YQ"), "payload_invalid", "not standard padded base64"),
    "urlsafe payload": (setting(payload="-_-_"), "payload_invalid", "not standard padded base64"),
    "payload of snowmen": (setting(payload="☃☃☃☃"), "payload_invalid", "not standard padded base64"),
    "payload of surrogates": (setting(payload="\ud800aaa"), "payload_invalid", "not standard padded base64"),
    "payload is an object": (setting(payload={}), "payload_invalid", "object, not a base64 string"),
    "payload over the limit": (
        setting(payload=b64(bytes(16_385))),
        "payload_too_large",
        "payload of 16385 bytes exceeds the limit of 16384",
    ),
    "ttl is text": (setting(ttl_ms="5"), "ttl_invalid", "string, not a number"),
    "ttl is true": (setting(ttl_ms=True), "ttl_invalid", "boolean, not a number"),
    "ttl is huge": (setting(ttl_ms=1e300), "ttl_invalid", "not a finite number of seconds"),
    "ttl is infinite": (setting().replace("}", ',"ttl_ms":1e999}'), "ttl_invalid", "not a finite number of seconds"),
    "ttl beyond a double": (setting(ttl_ms=10**400), "ttl_invalid", "ttl"),
    "ttl of 5 000 digits": (setting().replace("}", f',"ttl_ms":{"9" * 5000}}}'), "bad_frame", "not JSON"),
    "ref is an object": (setting(ref={}), "bad_frame", "ref must be"),
    "ref is a fraction": (setting(ref=1.5), "bad_frame", "ref must be"),
    "ref is long": (setting(ref="r" * 129), "bad_frame", "at most 128 characters"),
    "ref is a surrogate": (setting(ref="\ud800"), "bad_frame", "ref must be"),
    "binary": (setting().encode(), "bad_frame", "binary frame of"),
    "empty binary": (b"", "bad_frame", "binary frame of 0 bytes"),
    "too long": (setting(payload="A" * 70_000), "bad_frame", "exceeds the limit of 65536"),
    "1 MB": ("x" * 1_000_000, "bad_frame", "frame of 1000000 bytes exceeds the limit of 65536"),
}


@pytest.mark.parametrize(
    ("frame", "code", "words"),
    [pytest.param(*case, id=name) for name, case in BAD.items()],
)
async def test_bad_input_is_answered_and_changes_nothing(
    server: Server, tag: str, frame: str | bytes, code: str, words: str
) -> None:
    async with Client(server, "ready", namespace=tag) as bad, Client(server, "ready", namespace=tag) as watcher:
        await ask(watcher, "subscribe", topic="T")
        await bad.send(frame)
        error = await bad.frame()
        assert error["_orama"] == "ephemeral.error"
        assert error["code"] == code
        assert words in error["message"]
        assert len(error["message"]) < 400
        # The connection still works, nothing was stored, and the first thing that anybody hears is the next set.
        assert await ask(bad, "set", topic="T", key="good", ref="good") == {"_orama": "ephemeral.ok", "ref": "good"}
        assert (await watcher.frame())["key"] == "good"
        assert [entry["key"] for entry in (await ask(bad, "list", topic="T"))["entries"]] == ["good"]


async def test_an_error_repeats_the_ref(server: Server, tag: str) -> None:
    async with Client(server, "ready", namespace=tag) as client:
        for number, (frame, code, _) in enumerate(list(BAD.values())):
            if isinstance(frame, str) and frame.startswith('{"_orama": "ephemeral.') and "ref" not in frame:
                await client.send(frame[:-1] + f',"ref":{number}}}')
                error = await client.frame()
                if "not JSON" not in error["message"] and "exceeds the limit of 65536" not in error["message"]:
                    assert (error["code"], error["ref"]) == (code, number)


async def test_the_257th_key_is_refused_and_an_overwrite_is_not(server: Server, tag: str) -> None:
    async with Client(server, "ready", namespace=tag) as client, Client(server, "ready", namespace=tag) as watcher:
        await ask(watcher, "subscribe", topic="T")
        for number in range(256):
            await client.send({"_orama": "ephemeral.set", "topic": f"T{number % 3}", "key": f"{number}"})
        for _ in range(256):
            assert (await answer(client)) == {"_orama": "ephemeral.ok"}
        error = await ask(client, "set", topic="T", key="one more", ref=257)
        assert (error["_orama"], error["code"], error["ref"]) == ("ephemeral.error", "too_many_keys", 257)
        assert "the limit is 256" in error["message"]
        assert (await ask(client, "set", topic="T0", key="0", payload=b64(b"new")))["_orama"] == "ephemeral.ok"
        await ask(client, "clear", topic="T0", key="0")
        assert (await ask(client, "set", topic="T", key="fits now"))["_orama"] == "ephemeral.ok"
        assert (await watcher.frame())["key"] == "fits now"


async def test_many_bad_frames_leave_the_connection_open(server: Server, tag: str) -> None:
    bad = [frame for frame, _, _ in BAD.values() if len(frame) < 5000]
    async with Client(server, "ready", namespace=tag) as client:
        for _ in range(500 // len(bad)):  # more at once would be too many, whatever is in them
            for frame in bad:
                await client.send(frame)
        assert (await ask(client, "list", topic="T", ref="end")) is not None
        while client.view.welcomed == 0:
            await client.frame()


@pytest.mark.parametrize("batch", [True, False])
async def test_a_topic_that_is_too_large_for_one_frame_is_heard_all_the_same(
    server: Server, tag: str, batch: bool
) -> None:
    """daphne ends a connection that is to be sent a frame of more than 1 MiB."""
    payload = b64(bytes(16_384))
    async with Client(server, "ready", namespace=tag) as ann, Client(server, "ready", namespace=tag) as bob:
        keys = {f"k{number}" for number in range(150)}
        for key in keys:
            await ann.send({"_orama": "ephemeral.set", "topic": "T", "key": key, "payload": payload})
        for _ in keys:
            assert await answer(ann) == {"_orama": "ephemeral.ok"}
        assert (await ask(bob, "list", topic="T"))["code"] == "too_many_entries"
        snapshot = await ask(bob, "subscribe", topic="T", batch=batch)
        heard = {entry["key"] for entry in snapshot["entries"]}
        assert len(heard) + snapshot["more"] == len(keys)
        await ask(ann, "set", topic="T", key="last")
        while heard != {*keys, "last"}:
            frame = await bob.frame()
            if is_a("ephemeral.ping", frame):  # it is asked for whether it has read so much
                await bob.send(json.dumps(frame | {"_orama": "ephemeral.pong"}))
            else:
                heard |= {key for key, *_ in frame["events"]} if "events" in frame else {frame["key"]}


async def test_what_was_asked_before_the_protocol_was_broken_is_no_fault_of_the_server(
    server: Server, tag: str
) -> None:
    """uvicorn has closed the connection by itself when the answers come. granian closes without a code."""
    since = server.log_position()
    for _ in range(20):
        async with Client(server, "ready", namespace=tag) as client:
            frame = encode(command("list", ref=1).encode())
            client.ws.transport.write(frame * 5 + encode(b"\xff"))
            assert await client.closed() in (1005, 1006, 1007)
    log = server.log(since)
    assert log.count("Traceback") == log.count("Invalid UTF-8 sequence received from client")


async def test_the_default_policy_forbids_everything(server: Server, tag: str) -> None:
    # The live settings decide in this namespace as `DenyAll` does.
    async with Client(server, "ready", namespace="denied") as client:
        for verb, more in [("subscribe", {}), ("list", {}), ("set", {"key": "k"}), ("clear", {"key": "k"})]:
            assert await ask(client, verb, topic=tag, ref=verb, **more) == {
                "_orama": "ephemeral.error",
                "code": "forbidden",
                "message": "not allowed",
                "ref": verb,
            }
        assert await ask(client, "unsubscribe", topic=tag) == {"_orama": "ephemeral.ok"}
    assert not (await server.debug(topic=tag, namespace="denied"))["entries"]
