from __future__ import annotations

import pytest

from .storm import storm

pytestmark = [pytest.mark.redis, pytest.mark.faults]


def test_two_thousand_that_join_at_once_cost_redis_a_handful_of_reads(redis_server):
    result = storm(2000, 500, redis_server)
    print(result)
    assert result.snapshots == 2  # one for each process
    # Beside them each process sweeps once as it starts, its lease beats twice a second, a script that Redis does not
    # know yet counts twice, and nothing grows with the number of subscribers.
    assert result.scripts <= 20 + 3 * 2 * max(result.seconds)
