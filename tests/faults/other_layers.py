"""The convergence storm through channel layers that are not channels_redis, each with a broker of its own.

    python -m tests.faults.other_layers                # those whose packages and programs are here; says which are not
    python -m tests.faults.other_layers nats lite --seconds 20

Four processes, forty sockets, the Redis store. Notes what it saw in docs/layers.json, from which
`python -m tests.compatibility table` makes a table.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import metadata, util
from pathlib import Path
from typing import Any

from tests.redis_server import RedisServer, _free_port, wait_for

from .client import Violation
from .convergence import Plan, converge

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "layers.json"
HOST = "127.0.0.1"
APPS = ("channels", "ephemeral_state")


@contextmanager
def _process(command: list[str], port: int, **environment: str) -> Iterator[None]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log)
        try:
            wait_for(lambda: _answers(process, port), timeout=60)
            yield
        except BaseException:
            log.seek(0)
            print(log.read().decode(errors="replace")[-2000:], file=sys.stderr)
            raise
        finally:
            process.terminate()
            process.wait(30)


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    if process.poll() is not None:
        raise RuntimeError("the broker ended")
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


@contextmanager
def nats(folder: Path, redis: str) -> Iterator[dict[str, Any]]:
    port = _free_port()
    with _process([_program("nats-server"), "-a", HOST, "-p", str(port)], port):
        yield _layer("channels_nats.NatsChannelLayer", servers=[f"nats://{HOST}:{port}"], capacity=10_000)


@contextmanager
def rabbitmq(folder: Path, redis: str) -> Iterator[dict[str, Any]]:
    port, dist = _free_port(), _free_port()
    environment = {
        "RABBITMQ_NODENAME": f"test{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": HOST,
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(dist),
        "RABBITMQ_MNESIA_BASE": str(folder),
        "RABBITMQ_LOG_BASE": str(folder),
        "HOME": str(folder),  # where Erlang keeps its cookie
    }
    server = _program("/usr/lib/rabbitmq/bin/rabbitmq-server")
    with _process([server], port, **environment):
        url = f"amqp://guest:guest@{HOST}:{port}/%2F"
        name = "channels_rabbitmq.core.RabbitmqChannelLayer"
        yield _layer(name, host=url, local_capacity=10_000, remote_capacity=10_000)


@contextmanager
def valkey(folder: Path, redis: str) -> Iterator[dict[str, Any]]:
    yield _layer("channels_valkey.pubsub.ValkeyPubSubChannelLayer", hosts=[redis.replace("redis://", "valkey://")])


@contextmanager
def valkey_core(folder: Path, redis: str) -> Iterator[dict[str, Any]]:
    hosts = [redis.replace("redis://", "valkey://")]
    yield _layer("channels_valkey.core.ValkeyChannelLayer", hosts=hosts, capacity=10_000)


@contextmanager
def postgres(folder: Path, redis: str) -> Iterator[dict[str, Any]]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = _program(str(found[-1]) if found else "initdb")
    folder.chmod(0o777)
    as_postgres = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []  # it does not run as root
    data, port = folder / "data", _free_port()
    subprocess.run([*as_postgres, initdb, "-D", data, "-A", "trust", "-U", "app"], check=True, capture_output=True)
    server = str(Path(initdb).with_name("postgres"))
    with _process([*as_postgres, server, "-D", str(data), "-p", str(port), "-h", HOST, "-k", str(data)], port):
        database = {"ENGINE": "django.db.backends.postgresql", "NAME": "postgres", "USER": "app", "HOST": HOST}
        database |= {"PORT": str(port), "PASSWORD": ""}
        settings = _layer("channels_postgres.core.PostgresChannelLayer", **database, TIME_ZONE=None)
        settings |= _apps("channels_postgres") | {"DATABASES": {"default": database, "channels_postgres": database}}
        _migrate(settings, "channels_postgres")
        yield settings


@contextmanager
def lite(folder: Path, redis: str) -> Iterator[dict[str, Any]]:
    pragmas = "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"
    database = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(folder / "channels.sqlite3"),
        "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE", "init_command": pragmas},
    }
    settings = _layer("channels_lite.layers.core.SQLiteChannelLayer", database="default", capacity=10_000)
    settings |= _apps("channels_lite") | {"DATABASES": {"default": database}}
    _migrate(settings, "default")
    yield settings


LAYERS: dict[str, tuple[str, Callable[[Path, str], Any]]] = {
    "nats": ("channels-nats", nats),
    "rabbitmq": ("channels-rabbitmq", rabbitmq),
    "valkey": ("channels-valkey", valkey),
    "valkey core": ("channels-valkey", valkey_core),
    "postgres": ("channels-postgres", postgres),
    "lite": ("channels-lite", lite),
}


class Missing(Exception):
    pass


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise Missing(f"there is no {name}")
    return found


def _layer(backend: str, **config: Any) -> dict[str, Any]:
    return {"CHANNEL_LAYERS": {"default": {"BACKEND": backend, "CONFIG": config}}}


def _apps(name: str) -> dict[str, Any]:
    from tests import settings

    return {"INSTALLED_APPS": [*settings.INSTALLED_APPS, name]}


def _migrate(settings: dict[str, Any], database: str) -> None:
    environment = {"FAULTS": json.dumps(settings), "DJANGO_SETTINGS_MODULE": "tests.faults.settings"}
    command = [sys.executable, "-m", "django", "migrate", "-v", "0", f"--database={database}"]
    subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=True)


def try_layer(name: str, seconds: float) -> dict[str, Any]:
    package, broker = LAYERS[name]
    if util.find_spec(package.replace("-", "_")) is None:
        raise Missing(f"{package} is not installed")
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings = stack.enter_context(broker(folder, redis.url))
        result: dict[str, Any] = {
            "date": datetime.date.today().isoformat(),
            "package": f"{package} {metadata.version(package)}",
            "python": sys.version.split()[0],
        }
        begun = time.monotonic()
        try:
            # As gently as with channels_redis.core, which the test of it does, too.
            report = asyncio.run(
                converge(Plan(seconds=seconds, layer="pubsub", pause=0.3, seed=1, settings=settings), redis.url)
            )
        except Violation as violation:
            return result | {"violation": str(violation)[:300]}
        print(report, f"({time.monotonic() - begun:.0f} s)", flush=True)
        return result | {"operations": report.operations, "settled": round(report.settled, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layers", nargs="*", metavar="LAYER", help=f"of {', '.join(LAYERS)}; all by default")
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    for name in options.layers or LAYERS:
        if name not in LAYERS:
            parser.error(f"no such layer: {name!r}, there are {', '.join(LAYERS)}")
        print(f"== {name}", flush=True)
        try:
            result = try_layer(name, options.seconds)
        except Missing as missing:
            print(f"not tried: {missing}")
            continue
        print(result)
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        RESULTS.write_text(json.dumps(results | {name: result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
