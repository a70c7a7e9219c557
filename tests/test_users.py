"""Whatever a project has for users: what is known of them is for people to read, and ends no connection."""

from __future__ import annotations

import datetime
import decimal
import inspect
import json
import uuid
from typing import Any
from unittest.mock import MagicMock

import pytest
from channels.generic.websocket import AsyncJsonWebsocketConsumer, JsonWebsocketConsumer
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser, Group
from django.db import models
from django.test.utils import isolate_apps
from django.utils.functional import SimpleLazyObject

from ephemeral_state import api, journal
from ephemeral_state.consumers import EphemeralStateConsumer, EphemeralStateMixin, SyncEphemeralStateMixin
from ephemeral_state.policy import Policy
from ephemeral_state.stores import get_store

from .live.peer import Peer
from .live.server import until

VALUES: dict[str, Any] = {
    "AutoField": 7,
    "BigAutoField": 7,
    "BigIntegerField": 2**62,
    "BinaryField": b"\x00\xff",
    "BooleanField": True,
    "CharField": "Zoé \ud800\u202e",
    "CommaSeparatedIntegerField": "1,2",
    "DateField": datetime.date(2026, 1, 2),
    "DateTimeField": datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC),
    "DecimalField": decimal.Decimal("NaN"),
    "DurationField": datetime.timedelta(days=1),
    "EmailField": "zoe@example.org",
    "FileField": "zoe.txt",
    "FilePathField": "/zoe.txt",
    "FloatField": float("inf"),
    "ForeignKey": None,
    "GeneratedField": "zoe",
    "GenericIPAddressField": "::1",
    "IPAddressField": "127.0.0.1",
    "ImageField": "zoe.png",
    "IntegerField": 7,
    "JSONField": {"first": ["Zoé", float("nan")]},
    "ManyToManyField": None,
    "NullBooleanField": None,
    "OneToOneField": None,
    "PositiveBigIntegerField": 7,
    "PositiveIntegerField": 7,
    "PositiveSmallIntegerField": 7,
    "SlugField": "zoe",
    "SmallAutoField": 7,
    "SmallIntegerField": 7,
    "TextField": "z" * 1_000_000,
    "TimeField": datetime.time(1, 2),
    "URLField": "https://example.org/zoe",
    "UUIDField": uuid.UUID(int=7),
}
"""What a user may be called, by the kind of its `USERNAME_FIELD`."""

NO_NAMES = {"CompositePrimaryKey", "Field", "ForeignObject", "OrderWrt"}
REMOVED = {"CommaSeparatedIntegerField", "IPAddressField", "NullBooleanField"}  # there for old migrations only
ARGUMENTS: dict[str, dict[str, Any]] = {
    "DecimalField": {"max_digits": 9, "decimal_places": 2},
    "FilePathField": {"path": "/"},
    "ForeignKey": {"to": Group, "on_delete": models.CASCADE, "related_name": "+"},
    "ManyToManyField": {"to": Group, "related_name": "+"},
    "OneToOneField": {"to": Group, "on_delete": models.CASCADE, "related_name": "+"},
}


def field_types() -> dict[str, type[models.Field[Any, Any]]]:
    found = {name: kind for name, kind in vars(models).items() if inspect.isclass(kind)}
    return {n: kind for n, kind in found.items() if issubclass(kind, models.Field) and n not in NO_NAMES}


def user_called(kind: str) -> Any:
    """A user whose name is in a field of this kind, as it was read from the database."""
    arguments = dict(ARGUMENTS.get(kind, {}))
    if kind == "GeneratedField":
        arguments = {"expression": models.Value("zoe"), "output_field": models.TextField(), "db_persist": True}
    with isolate_apps("django.contrib.auth", "django.contrib.contenttypes"):
        attributes: dict[str, Any] = {"__module__": __name__, "USERNAME_FIELD": "called"}
        attributes["called"] = field_types()[kind](**arguments)
        if not kind.endswith("AutoField"):
            attributes["number"] = models.UUIDField(primary_key=True)
        else:
            attributes["called"] = field_types()[kind](primary_key=True)
        attributes["Meta"] = type("Meta", (), {"app_label": "tests"})
        user = type(f"CalledBy{kind}", (AbstractBaseUser,), attributes)(pk=7)
    if kind != "ManyToManyField":
        user.__dict__["called_id" if kind in ("ForeignKey", "OneToOneField") else "called"] = VALUES[kind]
    return user


class Silent:
    """Nothing that Django asks of a user, but that it is logged in."""

    is_authenticated = True

    def __str__(self) -> str:
        raise LookupError("no name")


class Number:
    def __str__(self) -> str:
        return "+49 30 901820"


class Caller:
    """A user of a class of the project's own, with a name that is no text."""

    is_authenticated = True
    pk = Number()

    def get_username(self) -> Number:
        return Number()


def lazy() -> Any:
    def look_up() -> Any:
        raise RuntimeError("the database must not be asked from here")

    return SimpleLazyObject(look_up)


class Open(Policy):
    async def can_set(self, scope: Any, namespace: str, topic: str, key: str) -> bool:
        return True


class Chat(EphemeralStateMixin, AsyncJsonWebsocketConsumer):
    async def receive_json(self, content: Any, **_: Any) -> None:
        await self.ephemeral_set("room", "here", ttl=60)
        await self.send_json({"_orama": "ephemeral.ok"})


class SyncChat(SyncEphemeralStateMixin, JsonWebsocketConsumer):
    def receive_json(self, content: Any, **_: Any) -> None:
        self.ephemeral_set("room", "here", ttl=60)
        self.send_json({"_orama": "ephemeral.ok"})


CONSUMERS = {"mixin": Chat, "sync mixin": SyncChat, "ready-made": EphemeralStateConsumer}


@pytest.fixture(autouse=True)
def _allowed(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_EVERY", 0.01)
    settings.EPHEMERAL_STATE = {"POLICY": "tests.test_users.Open"}


async def told_of(user: Any, consumer: str) -> dict[str, Any]:
    """What the admin is told of a user whose connection has set a key."""
    peer = Peer(CONSUMERS[consumer].as_asgi())
    peer.scope["user"] = user
    async with peer:
        peer.arrive("websocket.receive", text='{"_orama":"ephemeral.set","topic":"room","key":"here"}')
        while (frame := await peer.frame())["_orama"] == "ephemeral.hello":
            pass
        assert frame == {"_orama": "ephemeral.ok"}
        (entry,) = await api.alist("room")
        await until(lambda: reported(entry.client_id))
        about: dict[str, Any] = json.loads((await get_store().owners([entry.client_id]))[entry.client_id].about)
        return about


async def reported(client: str) -> bool:
    return client in await get_store().owners([client])


def test_there_is_a_user_for_every_kind_of_field_that_django_has() -> None:
    assert set(field_types()) <= set(VALUES)


@pytest.mark.parametrize("consumer", CONSUMERS)
@pytest.mark.parametrize("kind", sorted(set(field_types()) - REMOVED))
async def test_a_name_in_any_kind_of_field_ends_no_connection(kind: str, consumer: str) -> None:
    try:
        user = user_called(kind)
    except Exception as error:
        raise AssertionError(f"no user with {kind}") from error
    about = await told_of(user, consumer)
    assert set(about) == {"since", "user", "user_id"}
    assert all(isinstance(about[name], str) for name in ("user", "user_id"))
    json.dumps(about, ensure_ascii=False).encode()  # a page or a terminal can show it
    assert len(about["user"]) <= 255


@pytest.mark.parametrize("consumer", CONSUMERS)
@pytest.mark.parametrize(
    ("user", "expected"),
    {
        "another class": (Caller(), {"user": "+49 30 901820", "user_id": "+49 30 901820"}),
        "a mock": (MagicMock(**{"get_username.return_value": "ann"}, pk=7), {"user": "ann", "user_id": "7"}),
        "nothing but logged in": (Silent(), {"user": "", "user_id": ""}),
        "nobody": (None, {}),
        "not logged in": (AnonymousUser(), {}),
        "no user at all": ({"id": 7}, {}),
    }.values(),
    ids=lambda value: type(value).__name__,
)
async def test_whatever_stands_for_a_user_ends_no_connection(user: Any, expected: Any, consumer: str) -> None:
    about = await told_of(user, consumer)
    del about["since"]
    assert about == expected


async def test_a_lazy_user_of_a_database_that_fails_is_nobody_to_the_mixin() -> None:
    assert set(await told_of(lazy(), "mixin")) == {"since"}
