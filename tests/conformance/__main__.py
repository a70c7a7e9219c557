"""Replay recorded traces: exit 0 if all passed, 1 if some failed, 2 if they cannot be run."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import redis

from ephemeral_state.errors import EphemeralStateError
from ephemeral_state.state import Limits
from ephemeral_state.stores.base import Store
from ephemeral_state.stores.memory import MemoryStore
from ephemeral_state.stores.redis import RedisStore
from tests.redis_server import shared_url, unique_prefix

from . import GarbledFile, ManualClock, load, replay


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--store", choices=("memory", "redis"), required=True)
    parser.add_argument("--partitions", type=int, default=1, help="of the Redis store (default: 1)")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.jsonl.gz")
    options = parser.parse_args(argv)
    try:
        traces = [trace for file in options.files for trace in load(file)]
        return run(traces, options.store, options.partitions)
    except (GarbledFile, OSError, EphemeralStateError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(traces: Sequence[dict[str, Any]], store: str, partitions: int = 1) -> int:
    with ExitStack() as stack:
        url = stack.enter_context(shared_url()) if store == "redis" else ""
        prefix = unique_prefix()
        if url:
            stack.callback(_delete, url, prefix)
        failed = asyncio.run(_run_all(traces, url, prefix, partitions))
    print(f"{len(traces) - failed} passed, {failed} failed")
    return 1 if failed else 0


async def _run_all(traces: Sequence[dict[str, Any]], url: str, prefix: str, partitions: int) -> int:
    failed = 0
    for number, trace in enumerate(traces):
        clock = ManualClock()
        store: Store = MemoryStore(Limits(), clock)
        if url:
            # A prefix for each trace: it begins with nothing stored.
            store = RedisStore(Limits(), url=url, prefix=f"{prefix}-{number}", partitions=partitions, clock=clock)
        fault = await replay(trace, store, clock)
        await store.close()
        if fault:
            failed += 1
            print(f"FAILED {fault}")
    return failed


def _delete(url: str, prefix: str) -> None:
    with suppress(redis.RedisError), redis.Redis.from_url(url) as client:
        for key in client.scan_iter(match=f"{{{prefix}-*", count=1000):
            client.unlink(key)


if __name__ == "__main__":
    sys.exit(main())
