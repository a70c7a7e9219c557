import builtins
import importlib
import sys
from pathlib import Path

import pytest
from channels.generic.websocket import AsyncJsonWebsocketConsumer, JsonWebsocketConsumer
from channels.layers import InMemoryChannelLayer, get_channel_layer
from channels.testing import WebsocketCommunicator

from ephemeral_state import api, testing
from ephemeral_state.conf import get_settings
from ephemeral_state.consumers import UNTIL_DISCONNECT, EphemeralStateMixin, SyncEphemeralStateMixin
from ephemeral_state.stores import get_store
from ephemeral_state.stores.memory import MemoryStore
from ephemeral_state.testing import ManualClock, assert_cleared, drop, fresh_store, kill, live, reconnect

from .waiting import until

pytest_plugins = ["pytester"]


class Room(EphemeralStateMixin, AsyncJsonWebsocketConsumer):
    async def connect(self):
        await self.accept()
        await self.ephemeral_subscribe("room")
        await self.ephemeral_set("room", "here", "me", ttl=UNTIL_DISCONNECT)
        await self.ephemeral_set("room", "typing", "me", ttl=5)


def test_a_manual_clock_stands_still_until_it_is_moved():
    clock = ManualClock()
    before = clock()
    assert clock() == before
    clock.advance(1.5)
    assert clock() - before == 1_500_000_000


def test_a_manual_clock_does_not_go_back():
    with pytest.raises(ValueError, match="does not go back"):
        ManualClock().advance(-1)


def test_the_store_is_empty_at_first_and_nothing_of_it_stays_behind():
    with fresh_store():
        api.set("room", "outer", "1")
        with fresh_store():
            assert live("room") == {}
            api.set("room", "inner", "2")
            assert set(live("room")) == {"inner"}
        assert "inner" not in live("room")


def test_time_passes_only_by_the_clock():
    with fresh_store() as clock:
        api.set("room", "typing", {"name": "Ann"}, ttl=5)
        clock.advance(4.999)
        assert live("room")["typing"].expires_in_ms == 1
        assert live("room")["typing"].json() == {"name": "Ann"}
        clock.advance(0.001)
        assert live("room") == {}


def test_namespaces_are_read_one_at_a_time():
    with fresh_store():
        api.set("room", "k", "1", namespace="acme")
        assert live("room") == {}
        assert live("room", "acme")["k"].payload == b"1"


def test_the_projects_limits_and_policy_stay(settings):
    settings.EPHEMERAL_STATE = {"MAX_PAYLOAD_BYTES": 3, "POLICY": "my.Policy", "BACKEND": "no.such.Store"}
    with fresh_store():
        assert isinstance(get_store(), MemoryStore)
        assert get_store().limits.max_payload_bytes == 3
        assert get_settings().policy == "my.Policy"


def test_no_redis_is_needed_for_the_channel_layer(settings):
    settings.EPHEMERAL_STATE = {"CHANNEL_LAYER": "live"}
    settings.CHANNEL_LAYERS = {"live": {"BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer"}}
    with fresh_store():
        assert isinstance(get_channel_layer("live"), InMemoryChannelLayer)
    assert not isinstance(get_channel_layer("live"), InMemoryChannelLayer)


async def test_a_subscriber_hears_of_what_the_clock_made_expire():
    with fresh_store() as clock:
        socket = WebsocketCommunicator(Room.as_asgi(), "/")
        await socket.connect()
        for _ in range(3):
            await socket.receive_json_from()
        assert set(live("room")) == {"here", "typing"}
        clock.advance(5.001)
        frame = await socket.receive_json_from()
        assert (frame["_orama"], frame["key"], frame["reason"]) == ("ephemeral.clear", "typing", "expired")
        assert set(live("room")) == {"here"}
        await socket.disconnect()
        assert live("room") == {}


ENDED: list[str] = []


class Lingering(EphemeralStateMixin, AsyncJsonWebsocketConsumer):
    async def connect(self):
        await self.accept()
        await self.ephemeral_set("room", f"here:{self.scope['path']}", ttl=UNTIL_DISCONNECT)
        await self.ephemeral_set("room", "lingers", ttl=UNTIL_DISCONNECT, grace=5)

    async def disconnect(self, code):
        ENDED.append(f"{code}")


class SyncLingering(SyncEphemeralStateMixin, JsonWebsocketConsumer):
    def connect(self):
        self.accept()
        self.ephemeral_set("room", f"here:{self.scope['path']}", ttl=UNTIL_DISCONNECT)
        self.ephemeral_set("room", "lingers", ttl=UNTIL_DISCONNECT, grace=5)

    def disconnect(self, code):
        ENDED.append(f"{code}")


@pytest.mark.parametrize("consumer", [Lingering, SyncLingering])
async def test_connections_are_killed_dropped_and_come_back_as_they_do_in_real_life(consumer):
    with fresh_store() as clock:
        ENDED.clear()
        socket = WebsocketCommunicator(consumer.as_asgi(), "/mine")
        await socket.connect()
        await _are_live("here:/mine", "lingers")
        await drop(socket)
        await assert_cleared("room", "here:/mine")
        assert (set(live("room")), ENDED) == ({"lingers"}, ["1006"])
        socket = WebsocketCommunicator(consumer.as_asgi(), "/mine")
        await socket.connect()
        await _are_live("here:/mine", "lingers")
        first = live("room")["lingers"].client_id
        socket = await reconnect(socket)
        await _are_live("here:/mine", "lingers")
        assert live("room")["lingers"].client_id != first
        await kill(socket)
        await assert_cleared("room", "here:/mine", within=2)
        assert ENDED == ["1006", "1006"], "who is killed does not hear of it"
        clock.advance(5.001)
        await assert_cleared("room", "lingers")


async def _are_live(*keys):
    await until(lambda: set(live("room")) == set(keys))


async def test_what_is_not_cleared_in_time_fails_the_test():
    with fresh_store():
        await api.aset("room", "k", "v")
        with pytest.raises(AssertionError, match=r"'k' of 'room' is still there after 0\.02 s: Entry"):
            await assert_cleared("room", "k", within=0.02)
        await assert_cleared("room", "k", namespace="other")


async def test_a_reconnect_that_is_refused_fails_the_test():
    class Once(EphemeralStateMixin, AsyncJsonWebsocketConsumer):
        async def connect(self):
            if ENDED:
                await self.close()
            else:
                await self.accept()

        async def disconnect(self, code):
            ENDED.append("once")

    with fresh_store():
        ENDED.clear()
        socket = WebsocketCommunicator(Once.as_asgi(), "/")
        await socket.connect()
        with pytest.raises(AssertionError, match="refused"):
            await reconnect(socket)


def test_the_fixture_comes_with_the_plugin(pytester):
    pytester.makeconftest(
        """
        from django.conf import settings
        settings.configure(CHANNEL_LAYERS={})
        pytest_plugins = ["ephemeral_state.testing"]
        """
    )
    pytester.makepyfile(
        """
        from ephemeral_state import api
        from ephemeral_state.testing import live

        def test_one(ephemeral_store):
            api.set("room", "typing", "x", ttl=5)
            assert live("room")
            ephemeral_store.advance(5)
            assert not live("room")

        async def test_two(ephemeral_store):
            assert not live("room")
            await api.aset("room", "typing", "x", ttl=5)
            assert live("room")
        """
    )
    pytester.makeini(
        f"""
        [pytest]
        pythonpath = {Path(__file__).parent.parent}
        asyncio_mode = auto
        asyncio_default_fixture_loop_scope = function
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:django")
    result.assert_outcomes(passed=2)


def test_the_module_can_be_imported_without_pytest(monkeypatch):
    real = builtins.__import__

    def without_pytest(name, *args, **kwargs):
        if name == "pytest":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pytest)
    monkeypatch.delitem(sys.modules, "ephemeral_state.testing")
    module = importlib.import_module("ephemeral_state.testing")
    assert not hasattr(module, "ephemeral_store")
    assert module.live is not testing.live
