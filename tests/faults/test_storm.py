from __future__ import annotations

import pytest

from .storm import storm

pytestmark = [pytest.mark.redis, pytest.mark.faults]


def test_two_thousand_that_join_at_once_cost_redis_a_handful_of_reads(redis_server):
    result = storm(2000, 500, redis_server)
    print(result)
    # Each process reads one snapshot and sweeps once as it starts; of an unknown script the first call counts twice.
    assert 2 <= result.scripts <= 10
