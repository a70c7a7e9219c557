"""Runs a script of `benchmarks/load/` under Node, whose packages are installed on first use."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.rooms.servers import Server

__all__ = ["NodeMissing", "attack", "node_version", "prepare"]

FOLDER = Path(__file__).resolve().parents[1]


class NodeMissing(Exception):
    """The load generator cannot run."""


def prepare() -> None:
    """Raises `NodeMissing`, saying what to do."""
    for program in ("node", "npm"):
        if not shutil.which(program):
            raise NodeMissing(f"{program} is not on the path: the load generator needs Node 18 or newer, with npm")
    wanted = (FOLDER / "package-lock.json").read_bytes()
    installed = FOLDER / "node_modules" / ".lock-of-what-is-installed"
    if installed.exists() and installed.read_bytes() == wanted:
        return
    print("installing the load generator's packages (npm ci) …", flush=True)
    command = ["npm", "ci", "--no-audit", "--no-fund", "--loglevel", "error"]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True)
    if done.returncode:
        raise NodeMissing(f"npm ci failed in {FOLDER}: {done.stderr.strip()[-500:]}")
    installed.write_bytes(wanted)


def node_version() -> str:
    return subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()


def attack(script: str, server: Server, *, timeout: float, **options: Any) -> dict[str, Any]:
    """What the script measured. `{"skipped": why}` if the server refused what its clients asked for."""
    given = json.dumps({"url": server.url, "pid": server.pid, **options})
    # The young generation of a program that makes garbage only: large enough to be collected seldom.
    command = ["node", "--max-semi-space-size=64", f"load/{script}.mjs", given]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise RuntimeError(f"load/{script}.mjs ended with {done.returncode}:\n{done.stderr.strip()[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result
