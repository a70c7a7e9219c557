import asyncio
import threading

import pytest
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import User

from ephemeral_state.consumers import EphemeralStateConsumer
from ephemeral_state.errors import NotConfigured, PermissionDenied
from ephemeral_state.policy import DenyAll, Policy, get_policy, require

VERBS = {
    "can_subscribe": ("ns", "topic"),
    "can_list": ("ns", "topic"),
    "can_set": ("ns", "topic", "key"),
    "can_clear": ("ns", "topic", "key"),
}


class SyncPolicy(Policy):
    def can_subscribe(self, scope, namespace, topic):
        return topic == "open"

    def can_set(self, scope, namespace, topic, key):
        return topic == "open" and key == scope["me"]


class AsyncPolicy(Policy):
    async def can_subscribe(self, scope, namespace, topic):
        await asyncio.sleep(0)
        return topic == "open"

    async def can_set(self, scope, namespace, topic, key):
        await asyncio.sleep(0)
        return topic == "open" and key == scope["me"]


class OrmPolicy(Policy):
    def can_subscribe(self, scope, namespace, topic):
        return User.objects.filter(username=topic).exists()


async def allowed(decide, scope, *what):
    try:
        await require(decide, scope, *what)
    except PermissionDenied:
        return False
    return True


@pytest.mark.parametrize(("verb", "what"), VERBS.items(), ids=VERBS)
@pytest.mark.parametrize("policy", [Policy(), DenyAll()], ids=["Policy", "DenyAll"])
async def test_nobody_may_do_anything_until_a_policy_says_so(policy, verb, what):
    assert not await allowed(getattr(policy, verb), {"user": "root"}, *what)


async def test_the_default_policy_denies(settings):
    del settings.EPHEMERAL_STATE
    assert isinstance(get_policy(), DenyAll)


@pytest.mark.parametrize("policy", [SyncPolicy(), AsyncPolicy()], ids=["sync", "async"])
async def test_sync_and_async_methods_decide_alike(policy):
    me = {"me": "ann"}
    assert await allowed(policy.can_subscribe, me, "", "open")
    assert not await allowed(policy.can_subscribe, me, "", "closed")
    assert await allowed(policy.can_set, me, "", "open", "ann")
    assert not await allowed(policy.can_set, me, "", "open", "bob")


@pytest.mark.parametrize("policy", [SyncPolicy(), AsyncPolicy()], ids=["sync", "async"])
async def test_whoever_may_set_may_clear_and_whoever_may_subscribe_may_list(policy):
    me = {"me": "ann"}
    assert await allowed(policy.can_clear, me, "", "open", "ann")
    assert not await allowed(policy.can_clear, me, "", "open", "bob")
    assert await allowed(policy.can_list, me, "", "open")
    assert not await allowed(policy.can_list, me, "", "closed")


@pytest.mark.parametrize("answer", [1, "yes", [True], object(), None, 0, "", False], ids=repr)
async def test_only_true_itself_is_a_yes(answer):
    async def later(scope):
        return answer

    assert not await allowed(lambda scope: answer, {})
    assert not await allowed(later, {})
    assert not await allowed(lambda scope: later(scope), {})


async def test_a_lambda_that_returns_a_coroutine_is_awaited():
    async def yes(scope):
        return True

    assert await allowed(lambda scope: yes(scope), {})


async def test_a_policy_that_fails_does_not_allow(caplog):
    def broken(scope):
        raise ZeroDivisionError

    async def broken_later(scope):
        raise ZeroDivisionError

    for decide in (broken, broken_later):
        with pytest.raises(PermissionDenied):
            await require(decide, {})
    assert caplog.text.count("the policy failed") == 2


async def test_the_refusal_does_not_tell_what_was_asked_for():
    with pytest.raises(PermissionDenied) as caught:
        await require(DenyAll().can_set, {"user": "ann"}, "secret-ns", "secret-topic", "secret-key")
    assert "secret" not in str(caught.value)
    assert caught.value.code == "forbidden"


async def test_a_sync_method_does_not_run_in_the_event_loops_thread():
    threads = []

    def decide(scope):
        threads.append(threading.current_thread())
        return True

    await require(decide, {})
    assert threads[0] is not threading.current_thread()


@pytest.mark.usefixtures("threaded_db")
async def test_a_sync_method_may_use_the_orm():
    await User.objects.acreate(username="open")
    assert await allowed(OrmPolicy().can_subscribe, {}, "", "open")
    assert not await allowed(OrmPolicy().can_subscribe, {}, "", "closed")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("no.such.Policy", "cannot be made"),
        ("nodots", "cannot be made"),
        ("ephemeral_state.policy.NoSuch", "cannot be made"),
        ("json.dumps", "cannot be made"),
        ("collections.OrderedDict", "no subclass"),
    ],
)
def test_a_policy_that_cannot_be_made_is_named(settings, path, said):
    settings.EPHEMERAL_STATE = {"POLICY": path}
    with pytest.raises(NotConfigured, match=said) as caught:
        get_policy()
    assert repr(path) in str(caught.value)


async def commands(*frames):
    socket = WebsocketCommunicator(EphemeralStateConsumer.as_asgi(), "/")
    socket.scope["me"] = "ann"
    assert (await socket.connect())[0]
    assert (await socket.receive_json_from())["_orama"] == "ephemeral.hello"
    answers = []
    for frame in frames:
        await socket.send_json_to(frame)
        answers.append(await socket.receive_json_from())
    await socket.disconnect()
    return [answer.get("code") or answer["_orama"] for answer in answers]


COMMANDS = (
    {"_orama": "ephemeral.subscribe", "topic": "open"},
    {"_orama": "ephemeral.list", "topic": "open"},
    {"_orama": "ephemeral.set", "topic": "open", "key": "bob"},
    {"_orama": "ephemeral.clear", "topic": "open", "key": "ann"},
)


async def test_the_consumer_denies_every_command_by_default(settings):
    settings.EPHEMERAL_STATE = {}
    assert await commands(*COMMANDS) == ["forbidden"] * 4


@pytest.mark.parametrize("name", ["SyncPolicy", "AsyncPolicy"])
async def test_the_consumer_asks_the_policy_of_the_project(settings, name):
    settings.EPHEMERAL_STATE = {"POLICY": f"tests.test_policy.{name}"}
    assert await commands(*COMMANDS) == ["ephemeral.snapshot", "ephemeral.snapshot", "forbidden", "ephemeral.ok"]
