"""One server in a process of its own: a contender of a comparison, started afresh for each run."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from tests.redis_server import unique_prefix, wait_for

__all__ = ["Contender", "Server"]

ROOT = Path(__file__).resolve().parents[2]
_HOST = "127.0.0.1"
_SETTINGS = "benchmarks.rooms.settings"


class Contender(NamedTuple):
    server: str
    """`uvicorn`, `daphne` or `node`."""
    layer: str
    """`memory`, `pubsub`, `core`; `-` for what has no channel layer."""
    app: str
    """`ours`, `mixin`, `sync`, `handwritten`, `bare`, `pages`; on Node: `socketio`, `blast`."""
    variant: str = ""
    """What its subscribers ask for: `batch`, `batch+rate`; "" for the plain stream. Or what is done about
    OpenTelemetry: `scraped`, a Prometheus endpoint; `without`, the package cannot be imported. Or `unasked`: the mixin
    sends no pings."""

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.server, self.layer, self.app, self.variant)))

    @property
    def subscribe(self) -> dict[str, Any]:
        """What its clients put into their subscribe command."""
        wishes: dict[str, dict[str, Any]] = {"batch": {"batch": True}, "batch+rate": {"batch": True, "max_rate": 20}}
        return wishes.get(self.variant, {})


class Server:
    """A context manager: the server answers when it is entered, and is killed when it is left."""

    def __init__(self, contender: Contender, redis_url: str, *, limited: bool = False) -> None:
        """`limited`: clients may send as much as a project allows that sets nothing, and no more."""
        self.port = _free_port()
        self.url = f"ws://{_HOST}:{self.port}/"
        self._contender = contender
        self._metrics_port = _free_port() if contender.variant == "scraped" else 0
        self.metrics_url = f"http://{_HOST}:{self._metrics_port}/metrics"
        self._given = {
            "layer": contender.layer,
            "redis": redis_url,
            "prefix": unique_prefix(),
            "limited": limited,
            "metrics_port": self._metrics_port,
            "opentelemetry": contender.variant != "without",
            "asked": contender.variant != "unasked",
        }
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed at exit
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command(),
            cwd=ROOT,
            env=os.environ | {"DJANGO_SETTINGS_MODULE": _SETTINGS, "BENCHMARK": json.dumps(self._given)},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,  # granian has a child that serves
            preexec_fn=_many_files,
        )
        try:
            wait_for(self._listens, timeout=60)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if error is not None:
            error.add_note(f"log of {self._contender.name}:\n{self.log()[-3000:]}")
        self._log.close()

    @property
    def pid(self) -> int:
        """Of the process that serves."""
        assert self._process is not None
        if self._contender.server != "granian":
            return self._process.pid
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return max(map(int, children), key=lambda child: int(Path(f"/proc/{child}/statm").read_text().split()[1]))

    def log(self) -> str:
        """What it has written. Without the folders of this machine: it goes into results that are published."""
        text = os.pread(self._log.fileno(), 2**24, 0).decode(errors="replace")
        for folder in (sysconfig.get_path("purelib"), str(ROOT)):
            text = text.replace(f"{folder}/", "")
        return text

    def _command(self) -> list[str]:
        app, port = self._contender.app, str(self.port)
        if self._contender.server == "node":
            return ["node", f"benchmarks/load/{app}.mjs", port]
        target = f"benchmarks.rooms.{app}:application"
        if self._contender.server == "daphne":
            return [sys.executable, "-m", "daphne", "-b", _HOST, "-p", port, "-v", "0", target]
        if self._contender.server == "granian":
            how = ("--interface", "asgi", "--ws", "--no-log", "--host", _HOST, "--port", port)
            return [sys.executable, "-m", "granian", *how, target]
        quiet = ("--log-level", "warning", "--lifespan", "off")
        return [sys.executable, "-m", "uvicorn", "--host", _HOST, "--port", port, *quiet, target]

    def _listens(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"{self._contender.name} ended with {self._process.returncode}")
        with socket.socket() as probe:
            return probe.connect_ex((_HOST, self.port)) == 0


def _free_port() -> int:
    with socket.create_server((_HOST, 0)) as probe:
        return int(probe.getsockname()[1])


def _many_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
