"""What holds for every test: no connection, task or thread of ours outlives it, and CI skips nothing that matters."""

import os
import signal

import pytest
from asgiref.sync import sync_to_async
from django.db import connections

from ephemeral_state import background, node

# A shell ignores it for what it runs in the background, and servers that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The thread for sync callers ends soon after the test that needed it, and not within the next one.
background._LINGER = 0.05

_NEVER_SKIPPED_IN_CI = {"redis", "faults", "browser"}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        needed = _NEVER_SKIPPED_IN_CI & {mark.name for mark in item.iter_markers()}
        if needed:
            report.outcome = "failed"
            report.longrepr = f"skipped in CI, though marked {', '.join(sorted(needed))}: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def _nothing_stays_behind():
    yield
    busy = [each for each in list(node._nodes.values()) if not each.idle]
    assert not busy, "a test left a connection behind: its node is still busy"


@pytest.fixture
async def threaded_db(transactional_db):
    """The database for an async test: the thread that asks it for async code has forgotten it afterwards.

    Channels looks at the connections of that thread before every handler, also in tests that may not use them.
    """
    yield
    await sync_to_async(_forget_the_database)()


def _forget_the_database():
    for alias in connections:
        raw = connections[alias].connection
        if raw is not None:
            raw.close()
        del connections[alias]
