"""What a subscriber reads off a real socket: the snapshot, then the two frames of the contract, to the letter."""

from __future__ import annotations

import base64
import json

import pytest

from .server import Client, Server, is_a, until

KINDS = ["async", "async-json", "async-raw", "sync", "sync-json", "sync-raw"]


def set_frame(topic: str, key: str, client_id: str, payload: bytes) -> str:
    tail = f',"payload":"{base64.b64encode(payload).decode()}"' if payload else ""
    return f'{{"_orama":"ephemeral.set","topic":"{topic}","key":"{key}","client_id":"{client_id}"{tail}}}'


def clear_frame(topic: str, key: str, client_id: str, reason: str) -> str:
    head = f'{{"_orama":"ephemeral.clear","topic":"{topic}","key":"{key}"'
    return f'{head},"client_id":"{client_id}","reason":"{reason}"}}'


@pytest.mark.parametrize("kind", KINDS)
async def test_the_two_frames_have_exactly_these_fields_in_this_order(server: Server, tag: str, kind: str) -> None:
    async with Client(server, kind) as watcher, Client(server, kind) as owner:
        name = await owner.name()
        await watcher.subscribe(tag)
        await owner.set(tag, "empty")
        assert await watcher.text() == set_frame(tag, "empty", name, b"")
        await owner.set(tag, "k", "böse <&> ☃")
        assert await watcher.text() == set_frame(tag, "k", name, "böse <&> ☃".encode())
        await owner.do("set", topic=tag, key="json", payload={"name": "Ann", "at": [1, 2]})
        assert await watcher.text() == set_frame(tag, "json", name, b'{"name":"Ann","at":[1,2]}')
        await owner.do("clear", topic=tag, key="empty")
        assert await watcher.text() == clear_frame(tag, "empty", name, "explicit")
        await owner.do("set", topic=tag, key="short", ttl=0.05)
        assert await watcher.text() == set_frame(tag, "short", name, b"")
        assert await watcher.text() == clear_frame(tag, "short", name, "expired")
        await owner.close()
        assert {await watcher.text(), await watcher.text()} == {
            clear_frame(tag, "k", name, "disconnect"),
            clear_frame(tag, "json", name, "disconnect"),
        }


@pytest.mark.parametrize("kind", KINDS)
async def test_subscribing_gives_one_snapshot_and_then_the_stream(server: Server, tag: str, kind: str) -> None:
    async with Client(server, kind) as owner, Client(server, kind) as watcher:
        name = await owner.name()
        await owner.set(tag, "b", "2", ttl="until disconnect")
        await owner.set(tag, "a", "1", ttl=30)
        await owner.set(tag, "empty", ttl="until disconnect")
        await watcher.do("subscribe", topic=tag)
        text = await watcher.text()
        snapshot = json.loads(text)
        assert json.dumps(snapshot, separators=(",", ":")) == text
        assert list(snapshot) == ["_orama", "topic", "entries"]
        assert snapshot["_orama"] == "ephemeral.snapshot"
        assert snapshot["topic"] == tag
        first, *others = snapshot["entries"]
        assert list(first) == ["key", "client_id", "payload", "expires_in_ms"]
        assert 0 < first.pop("expires_in_ms") <= 30_000
        assert first == {"key": "a", "client_id": name, "payload": base64.b64encode(b"1").decode()}
        assert others == [
            {"key": "b", "client_id": name, "payload": base64.b64encode(b"2").decode(), "expires_in_ms": None},
            {"key": "empty", "client_id": name, "expires_in_ms": None},
        ]
        await owner.do("clear", topic=tag, key="a")
        assert await watcher.text() == clear_frame(tag, "a", name, "explicit")
        # The setter hears its own sets if it subscribed, and nobody hears a topic not subscribed.
        await owner.set(f"{tag} other", "k")
        await watcher.do("unsubscribe", topic=tag)
        await watcher.settled()
        await owner.set(tag, "unheard")
        await watcher.do("echo", what="the next frame")
        assert await watcher.frame() == "the next frame"


@pytest.mark.parametrize("kind", KINDS)
async def test_no_set_falls_between_the_snapshot_and_the_stream(server: Server, tag: str, kind: str) -> None:
    async with Client(server, "async") as owner:
        for number in range(100):
            await owner.do("set", topic=tag, key=f"{number}")
            if number % 20 == 10:
                async with Client(server, kind) as watcher:
                    snapshot = await watcher.subscribe(tag)
                    await owner.set(tag, "last", f"{number}")
                    seen = [entry["key"] for entry in snapshot["entries"]]
                    frames = await watcher.frames(lambda frame: frame["key"] == "last")
                    seen += [frame["key"] for frame in frames if frame["key"] != "last"]
                    assert sorted({*seen} - {"last"}, key=int) == [str(n) for n in range(number + 1)]
                    assert len(seen) == len(set(seen))


@pytest.mark.parametrize("kind", ["async-reshaping", "sync-reshaping"])
async def test_an_overridden_event_handler_filters_and_reshapes(server: Server, tag: str, kind: str) -> None:
    async with Client(server, "async") as owner, Client(server, kind) as watcher:
        await owner.set(tag, "before", "1")
        await owner.set(tag, "secret before", "1")
        assert (await watcher.subscribe(tag))["entries"] == []
        assert await watcher.frame() == ["set", "before", "1", None]
        await owner.set(tag, "secret", "2")
        await owner.set(tag, "k", "3")
        assert await watcher.frame() == ["set", "k", "3", None]
        await owner.do("clear", topic=tag, key="secret")
        await owner.do("clear", topic=tag, key="k")
        assert await watcher.frame() == ["clear", "k", "", "explicit"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_ttl_that_passes_is_told_within_a_quarter_of_a_second(server: Server, tag: str, kind: str) -> None:
    async with Client(server, kind) as owner, Client(server, kind) as watcher:
        await watcher.subscribe(tag)
        lateness = []
        for number in range(5):
            await owner.set(tag, f"k{number}", ttl=0.2)
            assert is_a("ephemeral.set", await watcher.frame())
            heard_at = watcher.now()
            assert (await watcher.frame())["reason"] == "expired"
            lateness.append(watcher.now() - heard_at - 0.2)
        assert sorted(lateness)[2] < 0.25  # the median: one pause of a busy machine is no fault of ours


async def test_who_takes_a_key_over_keeps_it_when_the_first_owner_leaves(server: Server, tag: str) -> None:
    async with Client(server, "async") as watcher, Client(server, "async") as heir:
        await watcher.subscribe(tag)
        async with Client(server, "sync") as first:
            await first.set(tag, "k", "first")
            await heir.set(tag, "k", "heir")
            await first.do("clear", topic=tag, key="k")
            await first.settled()
        await heir.set(tag, "end")
        await watcher.frames(lambda frame: frame["key"] == "end")
        assert watcher.view.state["k"] == (await heir.name(), base64.b64encode(b"heir").decode())
    await until(lambda: nothing_left(server, tag))


async def nothing_left(server: Server, tag: str) -> bool:
    return not (await server.debug(topic=tag))["entries"]
