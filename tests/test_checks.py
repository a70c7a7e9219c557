import re
import socket
import sys

import pytest
from channels.layers import BaseChannelLayer, InMemoryChannelLayer, get_channel_layer
from django.core.checks import Error, run_checks
from django.core.checks import Warning as Caution

from ephemeral_state import checks
from ephemeral_state.state import Limits
from ephemeral_state.stores.memory import MemoryStore

from .redis_server import RedisServer

MEMORY_LAYER = {"BACKEND": "channels.layers.InMemoryChannelLayer"}
CORE_LAYER = {"BACKEND": "channels_redis.core.RedisChannelLayer"}
URL = "redis://localhost"
BARE_PUBSUB_LAYER = {"BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer"}
PUBSUB_LAYER = BARE_PUBSUB_LAYER | {"CONFIG": {"hosts": [{"address": URL, "socket_timeout": None}]}}
REDIS_STORE = {"BACKEND": "ephemeral_state.stores.redis.RedisStore"}


class LayerWithoutGroups(BaseChannelLayer):
    extensions = ()


class LayerOfTheirOwn(InMemoryChannelLayer):
    pass


class LayerWithoutItsKey(BaseChannelLayer):
    def __init__(self, **config):
        config["TIME_ZONE"]


class CoreLayerOfTheirOwn(BaseChannelLayer):
    extensions = ("groups",)


class PickyStore(MemoryStore):
    def __init__(self, limits: Limits, *, number: int) -> None:
        if number < 0:
            raise ValueError("number is negative")
        super().__init__(limits)


class PickyPolicy:
    def __init__(self, something):
        pass


class BrokenPolicy:
    def __init__(self):
        raise KeyError("a rule")


def found(settings, ephemeral=None, layer=MEMORY_LAYER):
    """What `manage.py check` says, as (severity, number, message, hint)."""
    if ephemeral is not None:
        settings.EPHEMERAL_STATE = ephemeral
    settings.CHANNEL_LAYERS = {} if layer is None else {"default": layer}
    messages = run_checks(tags=["ephemeral_state"])
    assert all(message.hint for message in messages)
    return {message.id.removeprefix("ephemeral_state."): message for message in messages}


def test_a_project_that_sets_nothing_but_a_layer_has_nothing_to_mend(settings):
    del settings.EPHEMERAL_STATE
    assert found(settings) == {}


def test_the_checks_are_part_of_every_check_run(settings):
    settings.EPHEMERAL_STATE = {"NO_SUCH": 1}
    assert "ephemeral_state.E001" in [message.id for message in run_checks()]


def test_all_faults_of_the_setting_are_said_at_once(settings):
    (message,) = found(settings, {"MAX_TTL": "long", "BACKENDS": "x", "OPTIONS": []}).values()
    assert isinstance(message, Error)
    assert message.id == "ephemeral_state.E001"
    for part in ("MAX_TTL", "BACKENDS", "OPTIONS", "the keys are BACKEND, "):
        assert part in message.msg


@pytest.mark.parametrize("value", [None, [], "memory", 5])
def test_a_setting_that_is_no_dict_is_an_error(settings, value):
    settings.EPHEMERAL_STATE = value
    assert set(found(settings)) == {"E001"}


@pytest.mark.parametrize(
    ("ephemeral", "said"),
    [
        ({"BACKEND": "no.such.Store"}, "no.such.Store"),
        ({"BACKEND": "nodots"}, "nodots"),
        ({"BACKEND": "ephemeral_state.stores.memory.NoSuch"}, "NoSuch"),
        ({"BACKEND": "collections.OrderedDict"}, "no subclass"),
        ({"BACKEND": "ephemeral_state.state.UNTIL_DISCONNECT"}, "no subclass"),
        ({"OPTIONS": {"url": "redis://localhost"}}, "url"),
        ({"BACKEND": "tests.test_checks.PickyStore"}, "number"),
        ({"BACKEND": "tests.test_checks.PickyStore", "OPTIONS": {"number": -1}}, "number is negative"),
        (REDIS_STORE | {"OPTIONS": {"partitions": 0}}, "that of the hosts, 1, not 0"),
        (REDIS_STORE | {"OPTIONS": {"partitions": "2"}}, "a whole number of at least that of the hosts, 1, not '2'"),
    ],
)
def test_a_store_that_cannot_be_made_is_an_error(settings, ephemeral, said):
    message = found(settings, ephemeral)["E002"]
    assert isinstance(message, Error)
    assert said in message.msg


def test_a_store_whose_url_cannot_be_read_does_not_give_away_its_password(settings):
    message = found(settings, REDIS_STORE | {"OPTIONS": {"url": "http://me:secret@host:port"}})["E002"]
    assert "secret" not in message.msg + message.hint


@pytest.mark.parametrize(
    "path",
    [
        "no.such.Policy",
        "nodots",
        "collections.OrderedDict",
        "tests.test_checks.PickyPolicy",
        "tests.test_checks.BrokenPolicy",
        "json.dumps",
    ],
)
def test_a_policy_that_cannot_be_made_is_an_error(settings, path):
    message = found(settings, {"POLICY": path})["E003"]
    assert isinstance(message, Error)
    assert path in message.msg


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (None, "CHANNEL_LAYERS has no 'default'"),
        ({"BACKEND": "tests.test_checks.LayerWithoutGroups"}, "no groups"),
        ({"BACKEND": "no.such.Layer"}, "no.such.Layer"),
        ({"BACKEND": "tests.test_checks.LayerWithoutItsKey"}, "cannot be made: KeyError: 'TIME_ZONE'"),
        ({}, "No BACKEND"),
        (MEMORY_LAYER | {"CONFIG": {"no_such_option": 1}}, "no_such_option"),
    ],
)
def test_a_channel_layer_that_cannot_carry_events_is_an_error(settings, layer, said):
    message = found(settings, layer=layer)["E004"]
    assert isinstance(message, Error)
    assert said in message.msg


def test_an_alias_that_is_not_there_is_named(settings):
    assert "'live'" in found(settings, {"CHANNEL_LAYER": "live"})["E004"].msg


def test_independent_faults_are_found_in_one_run(settings):
    assert set(found(settings, {"BACKEND": "no.Store", "POLICY": "no.Policy"}, layer=None)) == {"E002", "E003", "E004"}


@pytest.mark.parametrize("layer", [PUBSUB_LAYER, {"BACKEND": "tests.test_checks.CoreLayerOfTheirOwn"}])
def test_a_memory_store_behind_a_layer_of_many_processes_is_a_warning(settings, layer):
    messages = found(settings, {}, layer)
    assert set(messages) == {"W001"}
    assert isinstance(messages["W001"], Caution)


def test_a_redis_store_behind_an_in_memory_layer_is_a_warning(settings):
    messages = found(settings, REDIS_STORE)
    assert set(messages) == {"W003"}
    assert isinstance(messages["W003"], Caution)


def test_subclasses_are_known_for_what_they_are(settings):
    ours = {"BACKEND": "tests.test_checks.LayerOfTheirOwn"}
    assert found(settings, {}, ours) == {}
    assert set(found(settings, REDIS_STORE, ours)) == {"W003"}


def versions(monkeypatch, **installed):
    real = checks.metadata.version
    monkeypatch.setattr(checks.metadata, "version", lambda package: installed.get(package) or real(package))


def hosts(layer, *entries, **config):
    return layer | {"CONFIG": {"hosts": list(entries), **config}}


@pytest.mark.parametrize(
    ("layer", "version", "warned"),
    [
        (CORE_LAYER, "8.0.0", {"W002"}),
        (CORE_LAYER, "10.1", {"W002"}),
        (CORE_LAYER, "7.4.1", set()),
        (CORE_LAYER, "unknown", set()),
        (hosts(CORE_LAYER, URL, ("localhost", 1)), "8.1.0", {"W002"}),
        (hosts(CORE_LAYER, {"address": URL, "socket_timeout": None}), "8.1.0", set()),
        (hosts(CORE_LAYER, {"address": URL, "socket_timeout": None}, URL), "8.1.0", {"W002"}),
        (hosts(CORE_LAYER, {"address": URL, "socket_timeout": 2}), "7.4.1", {"W002"}),
        (PUBSUB_LAYER, "8.1.0", set()),
        (BARE_PUBSUB_LAYER, "7.4.1", set()),
        (MEMORY_LAYER, "8.1.0", {"W003"}),
    ],
)
def test_a_redis_layer_that_redis_py_does_not_let_wait_is_a_warning(settings, monkeypatch, layer, version, warned):
    versions(monkeypatch, redis=version)
    assert set(found(settings, REDIS_STORE, layer)) == warned


@pytest.mark.parametrize(("python", "warned"), [((3, 11), {"W002"}), ((3, 12), set())])
@pytest.mark.parametrize(
    ("layer", "version"),
    [(BARE_PUBSUB_LAYER, "8.1.0"), (hosts(CORE_LAYER, {"host": "localhost", "socket_timeout": 60}), "7.4.1")],
)
def test_a_layer_that_loses_cancellations_is_a_warning(settings, monkeypatch, layer, version, python, warned):
    versions(monkeypatch, redis=version)
    monkeypatch.setattr(checks.sys, "version_info", python)
    assert set(found(settings, REDIS_STORE, layer)) == warned


@pytest.mark.parametrize(
    ("version", "warned"),
    [("4.1.2", {"W005"}), ("4.2.2", {"W005"}), ("4.2.3", set()), ("4.3", set()), ("4.2.10", set()), ("own", set())],
)
def test_a_daphne_with_known_faults_is_a_warning(settings, monkeypatch, version, warned):
    versions(monkeypatch, daphne=version)
    messages = found(settings)
    assert set(messages) == warned
    assert all(version in message.msg and "4.2.3" in message.hint for message in messages.values())


@pytest.mark.parametrize(("version", "refused"), [("5.0.0", True), ("5.0.7", True), ("5.0.8", False), ("8.1.0", False)])
def test_a_redis_py_that_is_too_old_is_an_error(settings, monkeypatch, version, refused):
    monkeypatch.setattr("redis.__version__", version)
    messages = found(settings, REDIS_STORE, PUBSUB_LAYER)
    assert set(messages) == ({"E002"} if refused else set())
    if refused:
        assert f"redis-py {version} is too old: 5.0.8" in messages["E002"].msg


def test_a_core_layer_without_any_redis_py_is_not_ours_to_judge(settings, monkeypatch):
    def missing(package):
        raise checks.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(checks.metadata, "version", missing)
    assert found(settings, REDIS_STORE, CORE_LAYER) == {}  # nor is a daphne that is not there


def test_no_check_opens_a_connection(settings, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a check went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    store = REDIS_STORE | {"OPTIONS": {"url": "redis://unreachable.invalid:6379"}}
    assert found(settings, store, PUBSUB_LAYER) == {}
    assert get_channel_layer() is not None


def test_whether_the_store_answers_is_only_asked_with_the_databases(settings):
    settings.EPHEMERAL_STATE = REDIS_STORE | {"OPTIONS": {"url": "redis://127.0.0.1:1"}}
    settings.CHANNEL_LAYERS = {"default": PUBSUB_LAYER}
    assert run_checks() == []
    (message,) = checks.check_store_answers(None, databases=["default"])
    assert (message.id, message.level) == ("ephemeral_state.W004", Caution("").level)
    assert "nothing listens at the address in EPHEMERAL_STATE['OPTIONS']" in message.msg


@pytest.mark.redis
def test_a_redis_that_may_evict_is_warned_of_before_it_does(settings):
    with RedisServer() as server:
        settings.EPHEMERAL_STATE = REDIS_STORE | {"OPTIONS": {"url": server.url}}
        assert checks.check_store_answers(None, databases=["default"]) == []
        for policy in ("volatile-lru", "allkeys-lru", "volatile-ttl", "allkeys-random"):
            server.command("CONFIG", "SET", "maxmemory-policy", policy)
            server.command("CONFIG", "SET", "maxmemory", "100mb")
            (message,) = checks.check_store_answers(None, databases=["default"])
            assert message.id == "ephemeral_state.W006"
            assert f"maxmemory-policy {policy}" in message.msg
            assert "noeviction" in message.msg
        server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
        assert checks.check_store_answers(None, databases=["default"]) == []


@pytest.mark.redis
@pytest.mark.parametrize("rules", ["~* resetchannels +@all", "~* &* +@all -pubsub", "~* &* +@all -subscribe"])
def test_a_redis_user_without_a_right_that_is_needed_is_told_which(settings, rules):
    with RedisServer() as server:
        server.command("ACL", "SETUSER", "app", "reset", "on", ">pw", *rules.split())
        settings.EPHEMERAL_STATE = REDIS_STORE | {"OPTIONS": {"hosts": [f"redis://app:pw@127.0.0.1:{server.port}"]}}
        (message,) = checks.check_store_answers(None, databases=["default"])
        assert message.id == "ephemeral_state.W006"
        assert "SUBSCRIBE, and PUBSUB NUMSUB, of {ephemeral:v2:0}:alive:*" in message.msg


@pytest.mark.redis
@pytest.mark.parametrize("command", ["INFO", "CONFIG", "CLIENT", "SCRIPT"])
def test_a_redis_that_forbids_a_command_that_is_not_needed_passes(settings, command):
    with RedisServer("--rename-command", command, "") as server:
        server.command("ACL", "SETUSER", "app", "reset", "on", ">pw", "~*", "&*", "+@all")
        settings.EPHEMERAL_STATE = REDIS_STORE | {"OPTIONS": {"url": f"redis://app:pw@127.0.0.1:{server.port}/1"}}
        assert checks.check_store_answers(None, databases=["default"]) == []


@pytest.mark.redis
@pytest.mark.parametrize("denied", ["-evalsha", "-eval", "-time", "-@read", "-@write", "resetkeys ~other:*"])
def test_a_redis_that_forbids_what_is_needed_is_named_so(settings, denied):
    with RedisServer() as server:
        server.command("ACL", "SETUSER", "app", "reset", "on", ">pw", "~*", "&*", "+@all", *denied.split())
        settings.EPHEMERAL_STATE = REDIS_STORE | {"OPTIONS": {"url": f"redis://app:pw@127.0.0.1:{server.port}"}}
        (message,) = checks.check_store_answers(None, databases=["default"])
        assert message.id == "ephemeral_state.W004"
        assert re.search("permission|can't (run this command|access at least one of the keys)", message.msg)
        assert "+@scripting +@read +@write +@pubsub +time" in message.hint


def test_a_store_that_answers_passes(settings):
    settings.EPHEMERAL_STATE = {}
    assert checks.check_store_answers(None, databases=["default"]) == []


@pytest.fixture
def site(tmp_path, settings, monkeypatch):
    """A project's own package, whose modules a test may write. It is never imported."""
    package = tmp_path / "site_of_a_check"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    settings.ASGI_APPLICATION = "site_of_a_check.asgi.application"
    settings.ROOT_URLCONF = "tests.urls"
    yield package
    sys.modules.pop("site_of_a_check", None)


USES_IT = "raise SystemExit\npath('ws/', EphemeralStateConsumer.as_asgi())\n"


@pytest.mark.parametrize("module", ["asgi", "routing", "consumers", "urls"])
def test_a_ready_made_consumer_without_a_policy_is_warned_of_with_the_line_to_write(settings, site, module):
    settings.EPHEMERAL_STATE = {}
    (site / f"{module}.py").write_text(USES_IT)
    (message,) = run_checks()
    assert message.id == "ephemeral_state.W007"
    assert f"{module}.py" in message.msg
    assert "EPHEMERAL_STATE = {'POLICY': 'ephemeral_state.policy.Authenticated'}" in message.hint


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"POLICY": "ephemeral_state.policy.Authenticated"}, USES_IT),
        ({"POLICY": "ephemeral_state.policy.DenyAll"}, USES_IT),
        ({}, "path('ws/', ChatConsumer.as_asgi())  # no EphemeralStateConsumer\n"),
    ],
    ids=["a policy", "denied on purpose", "a consumer of the project's own"],
)
def test_with_a_policy_or_another_consumer_nothing_is_warned_of(settings, site, setting, text):
    settings.EPHEMERAL_STATE = setting
    (site / "routing.py").write_text(text)
    assert run_checks() == []


@pytest.mark.parametrize("application", [None, "", "asgi", "no.such.asgi.application"])
def test_a_project_without_a_package_of_its_own_is_checked_too(settings, application):
    settings.EPHEMERAL_STATE = {}
    settings.ASGI_APPLICATION = application
    assert run_checks() == []
