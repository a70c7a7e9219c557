from __future__ import annotations

import pytest

from .races import race

pytestmark = [pytest.mark.redis, pytest.mark.faults]


@pytest.mark.parametrize("layer", ["pubsub", "core"])
def test_two_processes_that_set_one_key_at_once_leave_every_view_equal_to_the_store(layer, redis_url, pytestconfig):
    wins = race("two sets", pytestconfig.getoption("faults_rounds"), redis_url, layer=layer)
    assert len(wins) == 3, "one process has won every race"


@pytest.mark.parametrize("layer", ["pubsub", "core"])
def test_a_set_that_meets_the_end_of_the_owner_before_always_stays(layer, redis_url, pytestconfig):
    rounds = pytestconfig.getoption("faults_rounds")
    wins = race("set and disconnect", rounds, redis_url, layer=layer)
    assert 0 < wins["transfers"] < rounds, "the races all ended the same way"
