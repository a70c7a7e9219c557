import asyncio
import json
import threading

import pytest
from asgiref.sync import sync_to_async
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import AnonymousUser, Permission, User

from ephemeral_state import api
from ephemeral_state import policy as asking
from ephemeral_state.consumers import EphemeralStateConsumer
from ephemeral_state.errors import NotConfigured, PermissionDenied
from ephemeral_state.policy import (
    AllOf,
    Authenticated,
    DenyAll,
    OwnKeys,
    Policy,
    TopicPermissions,
    allows,
    get_policy,
    require,
)

from .live.peer import Peer
from .waiting import events

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


@pytest.mark.parametrize("answer", [1, "yes", [True], object, None, 0, "", False], ids=repr)
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
    assert events(caplog) == ["policy_failed", "policy_failed"]


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


def test_no_thread_is_asked_for_what_another_question_answers_or_nobody_does():
    class Quick(Policy):
        async def can_subscribe(self, scope, namespace, topic):
            return True

        async def can_set(self, scope, namespace, topic, key):
            return key == "mine"

    def begun(policy, verb, *what):
        """Without a loop: a thread could not be waited for."""
        try:
            allows(getattr(policy, verb), {}, *what).send(None)
        except StopIteration as answer:
            return answer.value

    assert begun(Quick(), "can_list", "", "topic") is True
    assert begun(Quick(), "can_clear", "", "topic", "mine") is True
    assert begun(Quick(), "can_clear", "", "topic", "theirs") is False
    assert [begun(DenyAll(), verb, *what) for verb, what in VERBS.items()] == [False] * 4


async def test_what_a_sync_question_answers_too_is_asked_in_a_thread():
    threads = []

    class Slow(Policy):
        def can_set(self, scope, namespace, topic, key):
            threads.append(threading.current_thread())
            return True

        async def can_clear(self, scope, namespace, topic, key):
            raise AssertionError("is not asked about a set")

    class SlowToo(Slow):
        can_clear = Policy.can_clear

    assert await allowed(Slow().can_set, {}, *VERBS["can_set"])
    assert await allowed(SlowToo().can_clear, {}, *VERBS["can_clear"])
    assert len(threads) == 2
    assert threading.current_thread() not in threads


async def test_a_method_that_is_put_in_place_of_another_is_asked_from_then_on(monkeypatch):
    policy = AsyncPolicy()
    assert await allowed(policy.can_clear, {"me": "ann"}, "", "open", "ann")
    monkeypatch.setattr(AsyncPolicy, "can_set", Policy.can_set)
    assert not await allowed(policy.can_clear, {"me": "ann"}, "", "open", "ann")
    assert not await allowed(policy.can_set, {"me": "ann"}, "", "open", "ann")

    monkeypatch.setattr(Policy, "can_set", lambda self, *what: True)
    assert await allowed(Policy().can_set, {}, "", "open", "ann")
    monkeypatch.setattr(Policy, "can_clear", lambda self, *what: False)
    assert not await allowed(Policy().can_clear, {}, "", "open", "ann")


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


# Every command, every decision, everybody


class Everything(Policy):
    def can_subscribe(self, scope, namespace, topic):
        return True

    def can_set(self, scope, namespace, topic, key):
        return True


class EverythingLater(Policy):
    async def can_subscribe(self, scope, namespace, topic):
        return True

    async def can_set(self, scope, namespace, topic, key):
        return True


class Truthy(Policy):
    def can_subscribe(self, scope, namespace, topic):
        return "yes"

    async def can_set(self, scope, namespace, topic, key):
        return 1


class Failing(Policy):
    async def can_subscribe(self, scope, namespace, topic):
        raise KeyError(topic)

    def can_set(self, scope, namespace, topic, key):
        raise KeyError(key)


class OnlyClearAndList(Policy):
    async def can_clear(self, scope, namespace, topic, key):
        return True

    def can_list(self, scope, namespace, topic):
        return True


class ByPermission(TopicPermissions):
    permissions = {  # noqa: RUF012
        "room:9*": (None, None),
        "room:*": ("auth.view_user", "auth.change_user"),
        "*": ("auth.delete_user", "auth.delete_user"),
    }


class OwnTenant(Policy):
    async def can_subscribe(self, scope, namespace, topic):
        return scope["user"].first_name == namespace

    async def can_set(self, scope, namespace, topic, key):
        return scope["user"].first_name == namespace


class OwnKeysByPermission(AllOf):
    policies = (OwnKeys, ByPermission)


class OwnKeysOfTenant(AllOf):
    policies = (OwnTenant, OwnKeys)


class Nothing(AllOf):
    pass


ALL = "subscribe list set-own set-other clear-own clear-other"
OWN = "subscribe list set-own clear-own"
#           policy: what anonymous, user, staff, another tenant may do
TABLE = {
    "DenyAll": ("", "", "", ""),
    "Nothing": ("", "", "", ""),
    "Truthy": ("", "", "", ""),
    "Failing": ("", "", "", ""),
    "Everything": (ALL, ALL, ALL, ALL),
    "EverythingLater": (ALL, ALL, ALL, ALL),
    "OnlyClearAndList": tuple(["list clear-own clear-other"] * 4),
    "Authenticated": ("", ALL, ALL, ALL),
    "OwnKeys": ("", OWN, OWN, OWN),
    "ByPermission": ("", "subscribe list", ALL, ""),
    "OwnKeysByPermission": ("", "subscribe list", OWN, ""),
    "OwnTenant": ("", ALL, ALL, ""),
    "OwnKeysOfTenant": ("", OWN, OWN, ""),
}
READY_MADE = ("DenyAll", "Authenticated", "OwnKeys")
PEOPLE = ("anonymous", "user", "staff", "another tenant")


class OfAcme(EphemeralStateConsumer):
    ephemeral_namespace = "acme"


def people():
    """They have rights by the database, as anybody has."""
    rights = {"user": ["view_user"], "staff": ["view_user", "change_user"], "another tenant": []}
    found = {"anonymous": AnonymousUser()}
    for name, codenames in rights.items():
        tenant = "other" if name == "another tenant" else "acme"
        found[name] = User.objects.create(username=name, first_name=tenant, is_staff=name == "staff")
        found[name].user_permissions.set(Permission.objects.filter(codename__in=codenames))
    # As a request has them: without what the steps above have left in caches.
    return found | {name: User.objects.get(username=name) for name in rights}


def all_commands(topic, user):
    return {
        "subscribe": {"_orama": "ephemeral.subscribe", "topic": topic},
        "list": {"_orama": "ephemeral.list", "topic": topic},
        "set-own": {"_orama": "ephemeral.set", "topic": topic, "key": f"{user.pk}:k"},
        "set-other": {"_orama": "ephemeral.set", "topic": topic, "key": f"{user.pk}1:k"},
        "clear-own": {"_orama": "ephemeral.clear", "topic": topic, "key": f"{user.pk}:k"},
        "clear-other": {"_orama": "ephemeral.clear", "topic": topic, "key": f"{user.pk}1:k"},
        "unsubscribe": {"_orama": "ephemeral.unsubscribe", "topic": topic},
    }


async def ask(peer, frame):
    peer.arrive("websocket.receive", text=json.dumps(frame))
    while (answer := await peer.frame())["_orama"] not in ("ephemeral.ok", "ephemeral.error", "ephemeral.snapshot"):
        pass
    return answer


@pytest.mark.usefixtures("threaded_db")
async def test_every_command_of_everybody_under_every_policy(settings):
    everybody = await sync_to_async(people)()
    names = [f"{user.pk}{more}:k" for user in everybody.values() for more in ("", "1")]
    no = {"_orama": "ephemeral.error", "code": "forbidden", "message": "not allowed"}
    checked = 0
    for policy, row in TABLE.items():
        module = "ephemeral_state.policy" if policy in READY_MADE else "tests.test_policy"
        settings.EPHEMERAL_STATE = {"POLICY": f"{module}.{policy}"}
        for person, may in zip(PEOPLE, row, strict=True):
            # A topic that is full, and one that nobody has ever heard of.
            for key in names:
                await api.aset("room:1", key, "secret", namespace="acme")
            for topic in ("room:1", "room:2"):
                peer = Peer(OfAcme.as_asgi())
                peer.scope["user"] = everybody[person]
                async with peer:
                    await peer.frame()
                    for name, frame in all_commands(topic, everybody[person]).items():
                        answer = await ask(peer, frame)
                        if name in may.split() or name == "unsubscribe":
                            assert answer["_orama"] in ("ephemeral.ok", "ephemeral.snapshot"), (policy, person, name)
                        else:
                            assert answer == no, (policy, person, name)
                        checked += 1
                if not may:
                    said = [frame for frame in peer.sent if frame["type"] == "websocket.send"]
                    assert not any("secret" in frame["text"] for frame in said)
            # What it may set it has taken, and that went with it; nothing else was touched.
            mine = all_commands("room:1", everybody[person])
            taken = {frame["key"] for name, frame in mine.items() if name.startswith("set-") and name in may.split()}
            stored = {entry.key: entry.client_id for entry in await api.alist("room:1", namespace="acme")}
            assert set(stored) == set(names) - taken, (policy, person)
            assert all(owner.startswith("api:") for owner in stored.values())
            assert await api.alist("room:2", namespace="acme") == []
    assert checked == len(TABLE) * 4 * 2 * 7


@pytest.mark.usefixtures("threaded_db")
async def test_the_first_pattern_that_fits_decides():
    everybody = await sync_to_async(people)()
    policy, staff = ByPermission(), {"user": everybody["staff"]}
    assert await allowed(policy.can_subscribe, staff, "", "room:1")
    assert not await allowed(policy.can_subscribe, staff, "", "room:91")
    assert not await allowed(policy.can_subscribe, staff, "", "ROOM:1")
    assert not await allowed(policy.can_subscribe, staff, "", "lobby")
    assert not await allowed(policy.can_subscribe, {}, "", "room:1")
    root = await User.objects.acreate(username="root", is_superuser=True)
    assert await allowed(policy.can_subscribe, {"user": root}, "", "lobby")
    assert not await allowed(policy.can_subscribe, {"user": root}, "", "room:91")
    assert not await allowed(TopicPermissions().can_subscribe, {"user": root}, "", "room:1")


@pytest.mark.parametrize("policy", [Authenticated(), OwnKeys()])
async def test_without_a_user_in_the_scope_nobody_is_logged_in(policy):
    assert not await allowed(policy.can_subscribe, {}, "", "t")
    assert not await allowed(policy.can_set, {}, "", "t", "None:k")


async def test_user_1_may_not_set_the_keys_of_user_11():
    one = {"user": User(pk=1)}
    assert await allowed(OwnKeys().can_set, one, "", "t", "1:k")
    for key in ("11:k", "1", "1k", " 1:k", "k:1:"):
        assert not await allowed(OwnKeys().can_set, one, "", "t", key)


async def test_an_async_policy_that_fails_has_old_database_connections_closed(monkeypatch):
    closed = []
    monkeypatch.setattr("channels.db.close_old_connections", lambda: closed.append(True))

    async def decide(scope, topic):
        raise OSError("the database is gone")

    with pytest.raises(PermissionDenied):
        await require(decide, {}, "t")
    assert closed


async def test_a_project_without_a_policy_is_told_once_why_everything_is_refused(caplog, monkeypatch):
    monkeypatch.setattr(asking, "_hinted", [])
    for question in (DenyAll().can_set, DenyAll().can_subscribe, DenyAll().can_list):
        with pytest.raises(PermissionDenied, match=r"^not allowed$"):
            await require(question, {}, "", "room", "key")
    assert events(caplog) == ["policy_denies_all"]
    assert "EPHEMERAL_STATE['POLICY']" in caplog.text


async def test_a_policy_of_the_projects_own_says_no_without_a_line(caplog, monkeypatch):
    monkeypatch.setattr(asking, "_hinted", [])
    with pytest.raises(PermissionDenied):
        await require(Authenticated().can_set, {}, "", "room", "key")
    assert events(caplog) == []
