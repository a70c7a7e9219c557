"""The demo as a process of its own, for tests and screenshots: started on a free port, always stopped."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]


class DemoProcess:
    """`manage.py demo`, answering when `with` is entered. `restart()` keeps the port and the database."""

    arguments: tuple[str, ...] = ("manage.py", "demo", "--port", "{port}")
    """What Python is to run."""

    def __init__(self, folder: Path, *options: str, **environment: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._output = folder / "demo.log"
        self._options = options
        # Not ours to pass on: the suite's own settings, and a Redis that happens to be there.
        inherited = {k: v for k, v in os.environ.items() if k not in ("DJANGO_SETTINGS_MODULE", "REDIS_URL", "DEBUG")}
        self.environment = inherited | {"EPHEMERAL_DEMO_DB": str(folder / "demo.sqlite3")} | environment
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> DemoProcess:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def printed(self, label: str) -> str:
        """What the demo printed beside the label."""
        found = re.search(rf"^\s*{label}\s+(\S+)$", self.output, re.MULTILINE)
        if found is None:
            raise AssertionError(f"{label} is not in the output:\n{self.output}")
        return found[1]

    def start(self) -> None:
        arguments = [argument.format(port=self.port) for argument in self.arguments]
        command = [sys.executable, "-u", *arguments, *self._options]
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + 60
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__(None, None, None)
                raise AssertionError(f"the demo does not answer:\n{self.output}")
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> int:
        """As Ctrl-C does it. The exit code."""
        assert self._process is not None
        self._process.send_signal(how)
        return self._process.wait(20)

    def restart(self) -> None:
        self.stop()
        self.start()

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.settimeout(5)
                connection.sendall(b"HEAD / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
                return connection.recv(12).endswith(b"200")
        except OSError:
            return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
