"""Waiting for conditions, never for time; and what has been said meanwhile."""

import asyncio
import time


async def until(condition, seconds=10.0):
    """Return the first true value of `condition()`; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"still not so after {seconds} s"
        await asyncio.sleep(0.005)
    return value


async def settle():
    """Let everything that is ready to run, run."""
    for _ in range(20):
        await asyncio.sleep(0)


def events(caplog):
    """The names of the lines that our log has said, in their order."""
    return [record.event for record in caplog.records if hasattr(record, "event")]
