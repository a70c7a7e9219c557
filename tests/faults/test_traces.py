"""What a process does for itself is nobody's trace, with the instrumentation of Redis that projects use."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys

import pytest

from tests.redis_server import RedisServer, unique_prefix

from .server import configuration

pytestmark = [pytest.mark.redis, pytest.mark.faults]

IDLE = 10.0  # seconds


@pytest.mark.parametrize("layer", ["pubsub", "core"])
async def test_an_idle_process_makes_no_spans(layer: str, redis_server: RedisServer) -> None:
    url = redis_server.url
    policy = {"POLICY": "tests.faults.traced.Everything", "BEACON_INTERVAL": 0.5, "SWEEP_INTERVAL": 1}
    settings = configuration(layer, store_url=url, layer_url=url, prefix=unique_prefix(), **policy)
    environment = {"FAULTS": json.dumps(settings), "DJANGO_SETTINGS_MODULE": "tests.faults.settings"}
    command = [sys.executable, "-m", "tests.faults.traced", str(IDLE)]
    done = await asyncio.to_thread(
        subprocess.run, command, env=os.environ | environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    print(f"{layer}: {len(said['idle'])} spans in {IDLE:.0f} s: {sorted(set(said['idle']))}")
    # On the core layer each consumer of Channels asks it for messages, with this package or without.
    assert set(said["idle"]) <= ({"BZPOPMIN", "EVAL"} if layer == "core" else set())
    assert "EVALSHA" in said["set"], "what was asked for is traced, with its calls of Redis"
    assert "EVALSHA" in said["write_back"], "and so is what has a span of its own"
