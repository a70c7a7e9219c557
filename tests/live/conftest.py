"""One process per server for the whole run, its log beside every failure, and nothing left in it after a test."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("tests.live.server")

from .server import SERVERS, Server  # noqa: E402


@pytest.fixture(scope="session")
def _servers() -> Iterator[dict[str, Server]]:
    running: dict[str, Server] = {}
    yield running
    for server in running.values():
        server.stop()


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, _servers: dict[str, Server]) -> Iterator[Server]:
    server = _servers.get(request.param)
    if server is None:
        server = Server(request.param)
        server.start()
        _servers[request.param] = server
    request.node.stash[_log] = server, server.log_position()
    yield server
    log = server.log(request.node.stash[_log][1])
    for complaint in ("never retrieved", "was destroyed but it is pending", "was never awaited"):
        assert complaint not in log


@pytest.fixture
def tag() -> str:
    """A name that no other test uses: for topics, groups and what consumers write down."""
    return uuid.uuid4().hex[:12]


_log = pytest.StashKey[tuple[Server, int]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.failed and _log in item.stash:
        server, since = item.stash[_log]
        report.sections.append((f"log of {server.name}", server.log(since)[-20_000:]))
    return report
