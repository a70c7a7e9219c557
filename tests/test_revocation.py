"""Rights that end while somebody is connected: what they were good for ends with them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from channels.auth import AuthMiddlewareStack
from channels.layers import get_channel_layer
from django.conf import settings as django_settings
from django.contrib.auth.models import AnonymousUser, Group, Permission, User
from django.db import transaction
from django.db.models.signals import post_delete, pre_delete
from django.test import Client as Browser
from django.test.utils import isolate_apps
from django.utils.functional import SimpleLazyObject

from ephemeral_state import api, background, consumers, revocation
from ephemeral_state.consumers import EphemeralStateConsumer
from ephemeral_state.errors import NameInvalid, NameRequired, StoreUnavailable
from ephemeral_state.policy import Policy, TopicPermissions
from ephemeral_state.tally import totals

from .live.peer import Peer
from .live.server import until
from .redis_server import RedisServer
from .waiting import events, settle

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.usefixtures("threaded_db")


class Rooms(TopicPermissions):
    permissions = {  # noqa: RUF012
        "room:*": ("auth.view_user", "auth.change_user"),
        "lobby": ("auth.view_group", "auth.view_group"),
    }


class Moody(Policy):
    """Says what the test wants, of names that begin so."""

    yes: tuple[str, ...] = ()
    fails = False
    asked = 0

    async def can_subscribe(self, scope: Any, namespace: str, topic: str) -> bool:
        Moody.asked += 1
        if Moody.fails:
            raise ConnectionError("no database")
        return topic.startswith(Moody.yes)

    async def can_set(self, scope: Any, namespace: str, topic: str, key: str) -> bool:
        return await self.can_subscribe(scope, namespace, topic)


@pytest.fixture(autouse=True)
def _policy(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(background, "_LINGER", 0.05)
    settings.EPHEMERAL_STATE = {"POLICY": "tests.test_revocation.Rooms"}
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.db"
    Moody.yes, Moody.fails, Moody.asked = ("room", "lobby"), False, 0
    for trouble in (consumers._no_users, consumers._no_answer):  # of the process, also of earlier tests
        trouble.over()
    yield
    for thread in threading.enumerate():
        if thread.name == "ephemeral-state":  # users were saved while no loop served anybody
            thread.join(10)


def rights(*codenames: str) -> Any:
    return Permission.objects.filter(codename__in=codenames)


async def ann(*codenames: str) -> User:
    user = await _create(*codenames)
    await asyncio.to_thread(revocation._untold.told, 30)
    return user


@sync_to_async
def _create(*codenames: str) -> User:
    user = User.objects.create_user("ann", password="old")
    user.user_permissions.set(rights(*codenames))
    return user


@sync_to_async
def at_once(act: Callable[[], Any]) -> Any:
    """In the thread of the database."""
    return act()


async def in_db(act: Callable[[], Any]) -> Any:
    """Likewise. Returns when those have been told whom it concerns."""
    result = await at_once(act)
    await asyncio.to_thread(revocation._untold.told, 30)
    return result


async def login(user: User) -> Browser:
    browser = Browser()
    await in_db(lambda: browser.force_login(user))
    return browser


def peer_of(browser: Browser) -> Peer:
    peer = Peer(AuthMiddlewareStack(EphemeralStateConsumer.as_asgi()))
    cookie = browser.cookies[django_settings.SESSION_COOKIE_NAME].value
    peer.scope["headers"] = [(b"cookie", f"{django_settings.SESSION_COOKIE_NAME}={cookie}".encode())]
    return peer


def peer_with(user: Any) -> Peer:
    """One that came without a session, as by a token."""
    peer = Peer(EphemeralStateConsumer.as_asgi())
    peer.scope["user"] = user
    return peer


@asynccontextmanager
async def connected(peer: Peer, *frames: dict[str, Any]) -> AsyncIterator[Peer]:
    async with peer:
        await say(peer, *frames)
        yield peer


async def say(peer: Peer, *frames: dict[str, Any]) -> None:
    """Give commands, which are to succeed."""
    for number, frame in enumerate(frames):
        verb = frame.pop("do")
        peer.arrive("websocket.receive", text=json.dumps({"_orama": f"ephemeral.{verb}", **frame, "ref": number}))
        while (answer := await peer.frame()).get("ref") != number:
            pass
        assert answer["_orama"] != "ephemeral.error", answer


def follow(topic: str) -> dict[str, Any]:
    return {"do": "subscribe", "topic": topic}


def put(topic: str, key: str) -> dict[str, Any]:
    return {"do": "set", "topic": topic, "key": key, "ttl_ms": None}


async def next_of(peer: Peer, kind: str) -> Any:
    while (frame := await peer.frame())["_orama"] != f"ephemeral.{kind}":
        pass
    return frame


async def keys(topic: str) -> list[str]:
    return [entry.key for entry in await api.alist(topic)]


def closed_with(peer: Peer) -> list[int]:
    return [message["code"] for message in peer.sent if message["type"] == "websocket.close"]


# What ends


def _reverse(user: User, act: Callable[[Any], Any], manager: str) -> None:
    for permission in rights("view_user", "change_user"):
        act(getattr(permission, manager))


DIRECT: dict[str, Callable[[User], Any]] = {
    "permissions of the user are removed": lambda u: u.user_permissions.remove(*rights("view_user", "change_user")),
    "the user gets others": lambda u: u.user_permissions.set(rights("view_group")),
    "the user is removed from permissions": lambda u: _reverse(u, lambda users: users.remove(u), "user_set"),
    "permissions are taken from all users": lambda u: _reverse(u, lambda users: users.clear(), "user_set"),
}
BY_GROUP: dict[str, Callable[[User], Any]] = {
    "the user leaves the group": lambda u: u.groups.remove(Group.objects.get()),
    "the user leaves all groups": lambda u: u.groups.clear(),
    "the group loses the user": lambda u: Group.objects.get().user_set.remove(u),
    "the group loses all users": lambda u: Group.objects.get().user_set.clear(),
    "the group loses its permissions": lambda u: Group.objects.get().permissions.clear(),
    "the permissions lose the group": lambda u: _reverse(u, lambda groups: groups.clear(), "group_set"),
    "the group is deleted": lambda u: Group.objects.all().delete(),
}
BOTH = [pytest.param(False, change, id=name) for name, change in DIRECT.items()]
BOTH += [pytest.param(True, change, id=name) for name, change in BY_GROUP.items()]


@pytest.mark.parametrize(("by_group", "change"), BOTH)
async def test_a_permission_that_is_taken_away_ends_what_it_allowed(by_group: bool, change: Any) -> None:
    user = await ann("view_group")

    def give() -> None:
        if by_group:
            group = Group.objects.create(name="people")
            group.permissions.set(rights("view_user", "change_user"))
            user.groups.add(group)
        else:
            user.user_permissions.add(*rights("view_user", "change_user"))

    await in_db(give)
    commands = [follow("room:1"), follow("lobby"), put("room:1", "mine"), put("lobby", "mine")]
    async with connected(peer_of(await login(user)), *commands) as peer:
        await in_db(lambda: change(user))
        assert await next_of(peer, "revoked") == {"_orama": "ephemeral.revoked", "topic": "room:1"}
        await until(lambda: gone("room:1"))
        await api.aset("room:1", "not for her")
        await api.aset("lobby", "for her")
        assert (await next_of(peer, "set"))["key"] == "for her"
        assert await keys("lobby") == ["for her", "mine"]
        assert closed_with(peer) == []
        peer.arrive("websocket.receive", text='{"_orama":"ephemeral.subscribe","topic":"room:1"}')
        assert (await next_of(peer, "error"))["code"] == "forbidden"


async def gone(topic: str) -> bool:
    return "mine" not in await keys(topic)


async def heard_reasons(topic: str, act: Callable[[], Awaitable[Any]]) -> list[str]:
    """What a subscriber is told of the key `mine` that `act` takes away."""
    Moody.yes = (*Moody.yes, topic)
    watcher = api.watch(topic)
    await anext(watcher)
    await act()
    async with asyncio.timeout(10):
        while (notice := await anext(watcher)).reason is None:
            pass
    await watcher.aclose()
    return [notice.key, notice.reason]


async def test_what_may_not_be_set_any_more_is_cleared_with_reason_explicit() -> None:
    user = await ann("view_user", "change_user")
    async with connected(peer_of(await login(user)), put("room:1", "mine")):

        async def demote() -> None:
            await in_db(lambda: user.user_permissions.clear())

        assert await heard_reasons("room:1", demote) == ["mine", "explicit"]


LEAVING: dict[str, Callable[[User, Browser], Any]] = {
    "logs out": lambda user, browser: browser.logout(),
    "is deactivated": lambda user, browser: (setattr(user, "is_active", False), user.save()),
    "is deleted": lambda user, browser: user.delete(),
    "gets another password": lambda user, browser: (user.set_password("new"), user.save()),
}


@pytest.mark.parametrize("leave", LEAVING.values(), ids=LEAVING)
async def test_a_user_who_is_gone_is_sent_away_after_the_clears(leave: Any) -> None:
    user = await ann("view_user", "change_user")
    browser = await login(user)
    async with connected(peer_of(browser), follow("room:1"), put("room:1", "mine")) as peer:

        async def act() -> None:
            await in_db(lambda: leave(user, browser))

        assert await heard_reasons("room:1", act) == ["mine", "disconnect"]
        await until(lambda: closed_with(peer))
        assert closed_with(peer) == [4403]
        assert await gone("room:1")


async def test_only_the_session_that_logs_out_is_sent_away() -> None:
    user = await ann("view_user", "change_user")
    here, there = await login(user), await login(user)
    by_token = await in_db(lambda: User.objects.get())
    async with (
        connected(peer_of(here), put("room:1", "mine")) as leaving,
        connected(peer_of(there), put("room:1", "other")) as staying,
        connected(peer_with(by_token), put("room:1", "token")) as with_token,
    ):
        await in_db(here.logout)
        await until(lambda: closed_with(leaving))
        await say(staying, follow("room:1"))
        await say(with_token, follow("room:1"))
        assert await keys("room:1") == ["other", "token"]
        assert closed_with(staying) == closed_with(with_token) == []


async def test_without_a_session_a_deactivated_user_is_sent_away_too() -> None:
    user = await ann("view_user", "change_user")
    async with connected(peer_with(await in_db(lambda: User.objects.get())), put("room:1", "mine")) as peer:
        await in_db(lambda: (setattr(user, "is_active", False), user.save()))
        await until(lambda: closed_with(peer))
        assert closed_with(peer) == [4403]


async def test_nobody_else_is_asked() -> None:
    bob = await in_db(lambda: User.objects.create(username="bob"))
    await in_db(lambda: bob.user_permissions.set(rights("view_user", "change_user")))
    user = await ann("view_user", "change_user")
    async with connected(peer_of(await login(bob)), follow("room:1")) as other:
        async with connected(peer_of(await login(user)), follow("room:1")) as peer:
            await in_db(user.user_permissions.clear)
            await next_of(peer, "revoked")
        await api.aset("room:1", "k")
        assert (await next_of(other, "set"))["key"] == "k"


# Asking


async def test_revoke_asks_again_for_everything_or_for_one_topic(settings: Any) -> None:
    settings.EPHEMERAL_STATE = {"POLICY": "tests.test_revocation.Moody"}
    user = await ann()
    commands = [follow("room:1"), follow("room:2"), follow("lobby"), put("room:1", "mine"), put("room:2", "mine")]
    async with connected(peer_of(await login(user)), *commands) as peer:
        Moody.yes = ("lobby",)
        await api.arevoke(user, "room:2")
        assert (await next_of(peer, "revoked"))["topic"] == "room:2"
        await until(lambda: gone("room:2"))
        assert await keys("room:1") == ["mine"]
        await in_db(lambda: api.revoke(user.pk))
        assert (await next_of(peer, "revoked"))["topic"] == "room:1"
        await until(lambda: gone("room:1"))
        await api.arevoke(user)
        await api.aset("lobby", "k")
        assert (await next_of(peer, "set"))["key"] == "k"


async def test_what_the_consumer_itself_subscribed_and_set_is_not_asked_about(settings: Any) -> None:
    class Greeting(EphemeralStateConsumer):
        async def connect(self) -> None:
            await super().connect()
            await self.ephemeral_subscribe("announcements")
            await self.ephemeral_set("announcements", "mine", ttl=60)

    settings.EPHEMERAL_STATE = {"POLICY": "tests.test_revocation.Moody"}
    user = await ann()
    peer = Peer(Greeting.as_asgi())
    peer.scope["user"] = user
    async with connected(peer, follow("room:1")):
        Moody.yes = ()
        await api.arevoke(user)
        await next_of(peer, "revoked")
        await api.aset("announcements", "k")
        while (await next_of(peer, "set"))["key"] != "k":
            pass
        assert await keys("announcements") == ["k", "mine"]


async def test_a_policy_that_fails_says_no_to_a_revocation(settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    settings.EPHEMERAL_STATE = {"POLICY": "tests.test_revocation.Moody"}
    user = await ann()
    async with connected(peer_of(await login(user)), follow("room:1")) as peer:
        Moody.fails = True
        await api.arevoke(user)
        await next_of(peer, "revoked")
    assert "the policy fails when asked again" in caplog.text


async def test_the_policy_is_asked_again_from_time_to_time_also_for_those_without_a_user(settings: Any) -> None:
    settings.EPHEMERAL_STATE = {"POLICY": "tests.test_revocation.Moody", "RECHECK_INTERVAL": 0.05}
    async with connected(Peer(EphemeralStateConsumer.as_asgi()), follow("room:1"), put("room:1", "mine")) as peer:
        before = Moody.asked
        await until(lambda: Moody.asked >= before + 6)
        Moody.yes = ()
        assert (await next_of(peer, "revoked"))["topic"] == "room:1"
        await until(lambda: gone("room:1"))


async def test_a_lost_message_does_not_leave_rights_for_ever(settings: Any) -> None:
    settings.EPHEMERAL_STATE = {"POLICY": "tests.test_revocation.Rooms", "RECHECK_INTERVAL": 0.3}
    settings.EPHEMERAL_STATE["REVOKE_ON_SIGNALS"] = False
    user = await ann("view_user", "change_user")
    browser = await login(user)
    async with connected(peer_of(browser), follow("room:1"), put("room:1", "mine")) as peer:
        await in_db(browser.logout)
        await until(lambda: closed_with(peer))
        assert closed_with(peer) == [4403]


async def test_a_database_that_is_away_for_a_moment_takes_nothing_away(
    settings: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.EPHEMERAL_STATE = {"POLICY": "tests.test_revocation.Moody", "RECHECK_INTERVAL": 0.05}
    user = await ann()
    async with connected(peer_of(await login(user)), follow("room:1"), put("room:1", "mine")) as peer:

        def away(*_: Any) -> None:
            raise ConnectionError("no database")

        before = totals()
        with monkeypatch.context() as patch:
            patch.setattr("django.contrib.auth.backends.ModelBackend.get_user", away)
            await until(lambda: (totals() - before)["error.users_trouble"] >= 2)
        Moody.fails = True
        await until(lambda: (totals() - before)["error.recheck_trouble"] >= 4)
        Moody.fails = False
        await until(lambda: "the policy answers again" in caplog.text)
        said = ["users_trouble", "users_trouble_over", "recheck_trouble", "recheck_trouble_over"]
        assert events(caplog) == said
        await api.aset("room:1", "k")
        while (await next_of(peer, "set"))["key"] != "k":
            pass
        assert await keys("room:1") == ["k", "mine"]


# Telling


class RolledBack(Exception):
    pass


class Messages:
    """A member of a user's group, as a consumer is."""

    def __init__(self, user: User) -> None:
        self.user = user

    async def __aenter__(self) -> Messages:
        from ephemeral_state.revocation import user_group

        self.layer = get_channel_layer()
        self.channel = await self.layer.new_channel()
        self.group = user_group({"user": self.user})
        await self.layer.group_add(self.group, self.channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.layer.group_discard(self.group, self.channel)

    async def comes(self) -> None:
        async with asyncio.timeout(20):
            await self.layer.receive(self.channel)

    async def count(self) -> int:
        await settle()
        number = 0
        while True:
            try:
                async with asyncio.timeout(0.05):
                    await self.layer.receive(self.channel)
            except TimeoutError:
                return number
            number += 1


async def test_nothing_is_told_before_the_transaction_ends_or_after_one_that_failed() -> None:
    user = await ann("view_user")

    def save(fail: bool) -> None:
        with transaction.atomic():
            user.save()
            user.user_permissions.clear()
            seen.append(fail)
            if fail:
                raise RolledBack

    seen: list[bool] = []
    async with Messages(user) as messages, api_loop():
        with pytest.raises(RolledBack):
            await in_db(lambda: save(fail=True))
        assert await messages.count() == 0
        await in_db(lambda: save(fail=False))
        # The second change may be told together with the first.
        assert 1 <= await until(messages.count) <= 2


@asynccontextmanager
async def api_loop() -> AsyncIterator[None]:
    """A connection keeps this loop serving: the in-memory layer belongs to it."""
    async with Peer(EphemeralStateConsumer.as_asgi()):
        yield


async def test_a_login_and_a_project_that_denies_everything_tell_nothing(settings: Any) -> None:
    user = await ann("view_user")
    async with Messages(user) as messages, api_loop():
        await login(user)
        await in_db(lambda: User.objects.create(username="new"))
        assert await messages.count() == 0
    settings.EPHEMERAL_STATE = {}
    async with Messages(user) as messages, api_loop():
        await in_db(user.save)
        assert await messages.count() == 0


BY_ONE = {"POLICY": "ephemeral_state.policy.Authenticated"}


@pytest.mark.parametrize(
    "setting",
    [{}, BY_ONE, BY_ONE | {"REVOKE_ON_SIGNALS": False}, {"NONSENSE": 1}],
    ids=lambda setting: "-".join(setting),
)
@pytest.mark.parametrize("model", ["Bare", "Member", "Player"])
def test_whatever_users_a_project_has_its_groups_can_be_changed(model: str, setting: dict[str, Any]) -> None:
    command = [sys.executable, "-W", "error", "-m", "tests.people", model, json.dumps(setting)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    told = {act: names for act, (names, _) in seen.items() if names}
    asked = {act: times for act, (_, times) in seen.items() if times}
    if setting != BY_ONE:
        assert (told, asked) == ({}, {})
    elif model != "Member":
        assert (told, asked) == ({"user.save": ["bob"]}, {})
    else:
        silent = ("group.members.add again", "user.save")
        assert told == {act: ["ann"] for act in seen if act not in silent} | {"user.save": ["bob"]}
        assert asked == {act: 1 for act in seen if act.startswith(("group.p", "permission.g")) or act in ASKING}


ASKING = ("crew.delete", "group.delete", "group.members.clear", "permission.holders.clear")


def test_users_are_heard_of_through_every_model_of_their_table() -> None:
    command = [sys.executable, "-W", "error", "-m", "tests.people", "Heir", json.dumps(BY_ONE)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    told = {act: sorted(set(names)) for act, (names, _) in json.loads(done.stdout).items()}
    assert told == {
        "parent.save": ["bob"],
        "proxy.save": ["bob"],
        "proxy.save of a login": [],
        "proxy.create": [],
        "child.save": ["young"],
        "neighbour.create": ["bob"],
        "neighbour.save": ["bob"],
        "proxy.delete": ["carl"],
        "child.delete": ["young"],
        "parent.delete": ["ann"],
    }


@isolate_apps("tests")
async def test_a_user_who_is_deactivated_through_a_proxy_that_came_late_is_sent_away_at_once() -> None:
    class Person(User):
        class Meta:
            proxy = True
            app_label = "tests"

    user = await ann("view_user", "change_user")

    def deactivate() -> None:
        person = Person.objects.get(pk=user.pk)
        person.is_active = False
        person.save()

    async with connected(peer_of(await login(user)), put("room:1", "mine")) as peer:
        await in_db(deactivate)
        await until(lambda: closed_with(peer))
        assert closed_with(peer) == [4403]


def test_no_other_model_is_deleted_more_slowly_because_users_are_listened_to() -> None:
    assert pre_delete.has_listeners(Group)
    assert post_delete.has_listeners(User)
    assert not any(signal.has_listeners(Permission) for signal in (pre_delete, post_delete))


async def test_a_connection_of_a_proxy_of_the_user_is_the_users() -> None:
    with isolate_apps("tests"):

        class Person(User):
            class Meta:
                proxy = True
                app_label = "tests"

    user = await ann("view_user", "change_user")
    person = await in_db(lambda: Person.objects.get(pk=user.pk))
    async with connected(peer_with(person), put("room:1", "mine")) as peer:
        await in_db(lambda: (setattr(user, "is_active", False), user.save()))
        await until(lambda: closed_with(peer))
        assert closed_with(peer) == [4403]


NO_USERS = {
    "nobody": None,
    "somebody who is not logged in": AnonymousUser(),
    "a user who was never saved": User(username="new"),
    "a name": "ann",
    "several": [1, 2],
    "a model": User,
    "another model's instance": Group(pk=1),
}


@pytest.mark.parametrize("user", NO_USERS.values(), ids=NO_USERS)
async def test_what_is_no_user_cannot_be_revoked(user: object) -> None:
    with pytest.raises(ValueError, match="user"):
        await api.arevoke(user)
    with pytest.raises(ValueError, match="user"):
        await in_db(lambda: api.revoke(user))


async def test_the_topic_of_a_revocation_is_a_name() -> None:
    with pytest.raises(NameRequired):
        await api.arevoke(1, "")
    with pytest.raises(NameInvalid):
        await api.arevoke(1, 7)  # type: ignore[arg-type]


async def test_a_consumer_on_a_channel_layer_of_its_own_hears_of_it_at_once(settings: Any) -> None:
    class Elsewhere(EphemeralStateConsumer):
        channel_layer_alias = "chat"  # type: ignore[assignment]

    layer = {"BACKEND": "channels.layers.InMemoryChannelLayer"}
    settings.CHANNEL_LAYERS = {"default": layer, "chat": layer}
    user = await ann("view_user", "change_user")
    peer = Peer(Elsewhere.as_asgi())
    peer.scope["user"] = user
    async with connected(peer, put("room:1", "mine")):
        await in_db(lambda: (setattr(user, "is_active", False), user.save()))
        await until(lambda: closed_with(peer))
        assert closed_with(peer) == [4403]


async def test_a_users_key_may_be_given_as_text() -> None:
    user = await ann("view_user", "change_user")
    async with Messages(user) as messages:
        await api.arevoke(str(user.pk))
        assert await messages.count() == 1


async def test_a_lazy_user_is_looked_up_before_its_group_is_joined() -> None:
    user = await ann("view_user", "change_user")
    lazy = SimpleLazyObject(lambda: User.objects.get(pk=user.pk))
    async with connected(peer_with(lazy), put("room:1", "mine")) as peer:
        await in_db(lambda: (setattr(user, "is_active", False), user.save()))
        await until(lambda: closed_with(peer))


async def test_a_scope_whose_user_is_none_of_djangos_is_nobodys(settings: Any) -> None:
    settings.EPHEMERAL_STATE = {"POLICY": "tests.test_revocation.Moody", "RECHECK_INTERVAL": 0.05}
    async with connected(peer_with({"id": 7}), put("room:1", "mine")) as peer:
        before = Moody.asked
        await until(lambda: Moody.asked >= before + 2)
        assert closed_with(peer) == []


async def test_a_logout_does_not_fail_when_nobody_can_be_told(
    settings: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await ann()
    browser = await login(user)

    async def away(*_: Any) -> None:
        raise ConnectionError("no layer")

    monkeypatch.setattr("channels.layers.InMemoryChannelLayer.group_send", away)
    async with api_loop():
        await in_db(browser.logout)
        assert await until(lambda: events(caplog)) == ["revocation_untold"]
        with pytest.raises(StoreUnavailable):
            await api.arevoke(user)


async def test_nobody_who_saves_a_user_waits_for_the_channel_layer(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = [await in_db(lambda n=n: User.objects.create(username=f"u{n}")) for n in range(3)]
    asked, answers = [], asyncio.Event()

    async def hang(layer: Any, group: str, message: Any) -> None:
        asked.append(group)
        await answers.wait()

    monkeypatch.setattr("channels.layers.InMemoryChannelLayer.group_send", hang)
    async with api_loop():
        await at_once(users[0].save)
        await until(lambda: len(asked) == 1)
        for _ in range(100):  # all while the first message has not been taken
            for user in users[1:]:
                await at_once(user.save)
        assert len(asked) == 1
        answers.set()
        await until(lambda: len(asked) == 3)
        await at_once(users[0].save)
        await until(lambda: len(asked) == 4)
    assert events(caplog) == []


@pytest.mark.redis
async def test_no_save_waits_while_redis_hangs(settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    with RedisServer() as server:
        layer = "channels_redis.pubsub.RedisPubSubChannelLayer"
        settings.CHANNEL_LAYERS = {"default": {"BACKEND": layer, "CONFIG": {"hosts": [server.url]}}}
        user = await ann("view_user")
        async with Messages(user) as messages, api_loop():
            await in_db(user.save)
            await messages.comes()
            server.stop()
            try:
                await at_once(user.save)
                assert events(caplog) == []  # nobody has answered yet, nor been given up
                assert await until(lambda: events(caplog)) == ["revocation_untold"]
            finally:
                server.cont()
            await in_db(user.save)
            await messages.comes()


async def test_who_has_left_is_in_no_group_any_more() -> None:
    user = await ann("view_user")
    layer = get_channel_layer()
    async with connected(peer_of(await login(user)), follow("room:1")):
        assert any(group.startswith("ephemeral.user.") for group in layer.groups)
    assert not any(group.startswith("ephemeral.user.") for group in layer.groups)
