import math
from collections import OrderedDict
from dataclasses import FrozenInstanceError, fields
from types import MappingProxyType

import pytest

from ephemeral_state.conf import SETTING, Settings, get_settings, parse
from ephemeral_state.errors import NotConfigured
from ephemeral_state.state import Limits

GOOD = {
    "BACKEND": "ephemeral_state.stores.redis.RedisStore",
    "OPTIONS": {"url": "redis://localhost"},
    "CHANNEL_LAYER": "live",
    "POLICY": "my.Policy",
    "DEFAULT_TTL": 30,
    "MAX_TTL": 90.5,
    "MAX_GRACE": 0.5,
    "MAX_KEYS_PER_CLIENT": 1,
    "MAX_PAYLOAD_BYTES": 2,
    "MAX_TOPIC_BYTES": 9,
    "MAX_FRAME_BYTES": 3,
    "MAX_NAME_BYTES": 4,
    "MAX_FRAMES_PER_SECOND": 5,
    "MAX_FRAME_BURST": 6,
    "MAX_TOPICS_PER_CLIENT": 7,
    "MAX_ENTRIES_PER_TOPIC": 8,
    "RECHECK_INTERVAL": 2.5,
    "REVOKE_ON_SIGNALS": False,
    "SWEEP_INTERVAL": 0.5,
    "PING_INTERVAL": 0.5,
    "BEACON_INTERVAL": 7,
    "LEASE": 1.5,
    "SHUTDOWN_TIMEOUT": 8,
}
SECONDS = [
    "DEFAULT_TTL",
    "MAX_TTL",
    "RECHECK_INTERVAL",
    "SWEEP_INTERVAL",
    "BEACON_INTERVAL",
    "LEASE",
    "SHUTDOWN_TIMEOUT",
]
COUNTS = [
    "MAX_KEYS_PER_CLIENT",
    "MAX_PAYLOAD_BYTES",
    "MAX_TOPIC_BYTES",
    "MAX_FRAME_BYTES",
    "MAX_NAME_BYTES",
    "MAX_FRAMES_PER_SECOND",
    "MAX_FRAME_BURST",
    "MAX_TOPICS_PER_CLIENT",
    "MAX_ENTRIES_PER_TOPIC",
]
OR_NONE = ["MAX_GRACE", "PING_INTERVAL"]  # seconds, and 0 switches it off
TEXTS = ["BACKEND", "CHANNEL_LAYER", "POLICY"]


def fault(raw):
    with pytest.raises(NotConfigured) as caught:
        parse(raw)
    return str(caught.value)


def test_the_lists_of_this_module_name_every_key():
    others = {"OPTIONS", "REVOKE_ON_SIGNALS", *OR_NONE}
    assert set(GOOD) == {field.name.upper() for field in fields(Settings)} == {*SECONDS, *COUNTS, *TEXTS, *others}


@pytest.mark.parametrize("value", [None, 1, 0, "yes", "False"], ids=repr)
def test_a_switch_is_true_or_false(value):
    assert fault({"REVOKE_ON_SIGNALS": value}) == f"{SETTING}['REVOKE_ON_SIGNALS'] must be True or False, not {value!r}"


def test_an_empty_dict_gives_the_limits_of_the_contract():
    settings = parse({})
    assert settings == Settings()
    assert settings.limits == Limits(256, 16_384, 60_000, 30 * 60_000)
    assert settings.sweep_interval == 10
    assert settings.policy == "ephemeral_state.policy.DenyAll"


@pytest.mark.parametrize("key", GOOD)
def test_every_key_can_be_set_alone(key):
    assert getattr(parse({key: GOOD[key]}), key.lower()) == GOOD[key]


def test_all_keys_can_be_set_together_and_become_the_limits_in_ms():
    assert parse(GOOD).limits == Limits(1, 2, 30_000, 90_500, 9)


def test_any_mapping_will_do():
    assert parse(OrderedDict(GOOD)) == parse(MappingProxyType(GOOD)) == parse(GOOD)


@pytest.mark.parametrize("raw", [None, [], [("MAX_TTL", 5)], "memory", 5, {"MAX_TTL"}])
def test_what_is_no_dict_is_refused_with_its_type(raw):
    assert fault(raw) == f"{SETTING} must be a dict, not {type(raw).__name__}"


@pytest.mark.parametrize("key", ["backend", "MAX_KEY", "", 5, None, "x" * 500])
def test_an_unknown_key_is_refused_with_the_keys_there_are(key):
    said = fault({key: 1})
    assert f"[{key!r}] is unknown" in said
    assert all(known in said for known in GOOD)


@pytest.mark.parametrize("key", [*SECONDS, *OR_NONE])
@pytest.mark.parametrize(
    "value", [None, "5", True, b"5", [5], math.nan, math.inf, -math.inf, -1, 10**400, 1 + 0j], ids=repr
)
def test_seconds_are_finite_numbers(key, value):
    assert fault({key: value}).startswith(f"{SETTING}[{key!r}] must be a ")


def test_a_project_may_grant_clients_no_grace_and_ask_none():
    assert parse({"MAX_GRACE": 0}).max_grace == 0
    assert parse({"PING_INTERVAL": 0}).ping_interval == 0


@pytest.mark.parametrize("key", SECONDS)
@pytest.mark.parametrize("value", [0, 0.0009], ids=repr)
def test_seconds_are_finite_numbers_above_zero(key, value):
    assert fault({key: value}).startswith(f"{SETTING}[{key!r}] must be a ")


@pytest.mark.parametrize("key", COUNTS)
@pytest.mark.parametrize("value", [None, "5", True, 5.0, math.nan, [5], 0, -1], ids=repr)
def test_counts_are_whole_numbers_above_zero(key, value):
    assert fault({key: value}).startswith(f"{SETTING}[{key!r}] must be a")


@pytest.mark.parametrize("key", TEXTS)
@pytest.mark.parametrize("value", [None, "", b"x", 5, ["x"], Settings], ids=repr)
def test_paths_and_aliases_are_text(key, value):
    assert fault({key: value}).startswith(f"{SETTING}[{key!r}] must be a non-empty string, not ")


def test_a_long_wrong_value_is_cut_in_the_message():
    assert len(fault({"POLICY": ["x" * 10_000]})) < 200


@pytest.mark.parametrize("value", [None, [], "url", 5])
def test_options_are_a_dict(value):
    assert fault({"OPTIONS": value}) == f"{SETTING}['OPTIONS'] must be a dict, not {type(value).__name__}"


def test_all_faults_are_said_at_once():
    said = fault({"MAX_TTL": math.nan, "OPTIONS": 5, "NO_SUCH": 1, "POLICY": "", "MAX_NAME_BYTES": 10})
    assert said.count("; EPHEMERAL_STATE") == 3
    for key in ("MAX_TTL", "OPTIONS", "NO_SUCH", "POLICY"):
        assert f"[{key!r}]" in said
    assert "['MAX_NAME_BYTES']" not in said


def test_a_lease_must_last_three_beats():
    assert "at least 1.5 seconds, three beats, not 1.49" in fault({"LEASE": 1.49})


@pytest.mark.parametrize("given", [{"MAX_TTL": 59}, {"DEFAULT_TTL": 1801}, {"DEFAULT_TTL": 6, "MAX_TTL": 5}])
def test_the_default_ttl_may_not_exceed_the_longest(given):
    assert "['DEFAULT_TTL'] of" in fault(given)


def test_the_default_ttl_may_be_the_longest():
    assert parse({"MAX_TTL": 60}).limits.max_ttl_ms == 60_000


def test_settings_cannot_be_changed_by_accident():
    options = {"url": "redis://localhost"}
    settings = parse({"OPTIONS": options})
    options["url"] = "redis://elsewhere"
    assert settings.options == {"url": "redis://localhost"}
    with pytest.raises(TypeError):
        settings.options["url"] = "redis://elsewhere"
    with pytest.raises(FrozenInstanceError):
        settings.max_ttl = 5


def test_the_settings_are_read_once_and_again_when_they_change(settings):
    settings.EPHEMERAL_STATE = {"MAX_NAME_BYTES": 10}
    first = get_settings()
    assert first.max_name_bytes == 10
    settings.LANGUAGE_CODE = "de"
    assert get_settings() is first
    settings.EPHEMERAL_STATE = {"MAX_NAME_BYTES": 20}
    assert get_settings().max_name_bytes == 20


def test_without_the_setting_the_defaults_hold(settings):
    settings.EPHEMERAL_STATE = {"MAX_NAME_BYTES": 10}
    del settings.EPHEMERAL_STATE
    assert get_settings() == Settings()


def test_a_wrong_setting_is_refused_at_each_use(settings):
    settings.EPHEMERAL_STATE = {"NO_SUCH": 1}
    for _ in range(2):
        with pytest.raises(NotConfigured, match="NO_SUCH"):
            get_settings()
