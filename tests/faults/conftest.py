from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.redis_server import RedisServer, shared_url


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption("--faults-seconds", type=float, default=20.0, help="how long each convergence test operates")
    group.addoption("--faults-rounds", type=int, default=2000, help="how many rounds each race has")
    group.addoption("--faults-kills", type=int, default=8, help="how many processes are killed under load")


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A Redis that nothing happens to."""
    with shared_url() as url:
        yield url


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A Redis of one's own, to be treated badly."""
    with RedisServer() as server:
        yield server
