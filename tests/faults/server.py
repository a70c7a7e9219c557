"""Processes of ours: servers that clients connect to, and workers that are told what to do, line by line."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.redis_server import wait_for

__all__ = ["LAYERS", "CeleryWorker", "Gunicorn", "Server", "Worker", "configuration"]

_ROOT = Path(__file__).resolve().parents[2]
_HOST = "127.0.0.1"

LAYERS = {
    "pubsub": "channels_redis.pubsub.RedisPubSubChannelLayer",
    "core": "channels_redis.core.RedisChannelLayer",
    "lossy pubsub": "tests.faults.layers.LossyPubSub",
    "lossy core": "tests.faults.layers.LossyCore",
}


def configuration(
    layer: str, *, store_url: str, layer_url: str, prefix: str, chaos: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """The settings of a process. `more` goes into `EPHEMERAL_STATE`."""
    config = {"hosts": [{"address": layer_url, "socket_timeout": None}], "prefix": prefix, **(chaos or {})}
    if "core" in layer:
        config["capacity"] = 10_000
    return {
        "CHANNEL_LAYERS": {"default": {"BACKEND": LAYERS[layer], "CONFIG": config}},
        "EPHEMERAL_STATE": {
            "BACKEND": "ephemeral_state.stores.redis.RedisStore",
            "OPTIONS": {"url": store_url, "prefix": prefix},
            "POLICY": "tests.faults.asgi.AllowAll",
            **more,
        },
    }


class _Process:
    """A context manager. What it says goes into `log()`."""

    def __init__(self, settings: dict[str, Any], **environment: str) -> None:
        self._settings = settings
        self._environment = environment
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed at exit
        self._process: subprocess.Popen[str] | None = None

    def _start(self, *command: str, **more: Any) -> subprocess.Popen[str]:
        environment = {"DJANGO_SETTINGS_MODULE": "tests.faults.settings", "FAULTS": json.dumps(self._settings)}
        self._process = subprocess.Popen(
            [sys.executable, *command],
            cwd=_ROOT,
            env=os.environ | environment | self._environment,
            stdin=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,  # a server may have children, and some signals are for all of them
            **more,
        )
        return self._process

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def send(self, number: int) -> float:
        """Send it a signal, and return when. Those that cannot be handled go to its children too."""
        assert self._process is not None
        sent = time.monotonic()
        if number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
        else:
            self._process.send_signal(number)
        return sent

    def kill(self) -> float:
        """SIGKILL it, and return when."""
        return self.send(signal.SIGKILL)

    def wait(self, seconds: float) -> int:
        """Its exit code. Raises `subprocess.TimeoutExpired`."""
        assert self._process is not None
        return self._process.wait(seconds)

    def log(self) -> str:
        return os.pread(self._log.fileno(), 2**24, 0).decode(errors="replace")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self.kill()
            with self._process:  # closes its pipes
                pass
        if error is not None:
            error.add_note(f"log of {type(self).__name__}:\n{self.log()[-5000:]}")
        self._log.close()


class Server(_Process):
    """Serves an application of `tests.faults.asgi`, or of the module that is named with it. Connections wait in the
    kernel until it is up."""

    port: int

    def __init__(
        self, settings: dict[str, Any], server: str = "uvicorn", application: str = "application", **environment: str
    ) -> None:
        super().__init__(settings, **environment)
        self._server = server
        self._application = application if ":" in application else f"tests.faults.asgi:{application}"

    def __enter__(self) -> Self:
        command = ("-m", "tests.faults.asgi", self._server, self._application)
        with socket.create_server((_HOST, 0), backlog=1024) as listening:
            self.port = listening.getsockname()[1]
            fd = listening.fileno()
            if self._server != "granian":
                self._start(*command, str(fd), pass_fds=[fd], stdout=self._log)
        if self._server == "granian":
            self._start(*command, str(self.port), stdout=self._log)
            wait_for(self._listens, timeout=60)
        return self

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((_HOST, self.port)) == 0

    @property
    def url(self) -> str:
        return f"ws://{_HOST}:{self.port}/"


class Worker(_Process):
    """Runs a module that answers each JSON line with one JSON line."""

    def __init__(self, module: str, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self._module = module

    def __enter__(self) -> Self:
        self._start("-m", self._module, "--worker", stdout=subprocess.PIPE)
        return self

    def tell(self, **what: Any) -> None:
        """Say it without waiting, so that several workers do it at once."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the worker has ended")
        return json.loads(line)


class Gunicorn(_Process):
    """Serves `tests.faults.wsgi` in one process: Django as most projects run it."""

    def __init__(self, settings: dict[str, Any], worker: str = "gthread", **environment: str) -> None:
        super().__init__(settings, **environment)
        self._worker = worker

    def __enter__(self) -> Self:
        with socket.create_server((_HOST, 0)) as listening:
            self.port = listening.getsockname()[1]
            bind = f"fd://{listening.fileno()}"
            command = ("-m", "gunicorn", "tests.faults.wsgi", "--no-control-socket", "--timeout=120")
            self._start(
                *command,
                "--workers=1",
                *(["--threads=4"] if self._worker == "gthread" else []),
                f"--worker-class={self._worker}",
                f"--bind={bind}",
                pass_fds=[listening.fileno()],
                stdout=self._log,
            )
        return self

    @property
    def url(self) -> str:
        return f"http://{_HOST}:{self.port}"

    def prepare(self, *command: str) -> None:
        """Run a command of `manage.py` with the same settings, before it is started."""
        with self._start("-m", "django", *command, stdout=self._log) as process:
            assert process.wait(60) == 0, self.log()


class CeleryWorker(_Process):
    """Carries out the tasks of `tests.faults.tasks` in a pool, of forked processes or of greenlets."""

    def __init__(self, settings: dict[str, Any], pool: str = "prefork", **environment: str) -> None:
        super().__init__(settings, **environment)
        self._pool = pool

    def __enter__(self) -> Self:
        size = 2 if self._pool == "prefork" else 20
        command = (
            "-m",
            "celery",
            "-A",
            "tests.faults.tasks",
            "worker",
            f"--pool={self._pool}",
            f"--concurrency={size}",
        )
        self._start(*command, "--without-gossip", "--without-mingle", "--loglevel=warning", stdout=self._log)
        return self
