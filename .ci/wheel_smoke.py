"""The built wheel in a project of its own: nothing of this checkout, and nothing installed but what the wheel asks for.

Follows the README: its settings and its consumer are run as they are printed there. Needs pip and the network.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("ephemeral_state", "pyproject.toml", "setup.py", "README.md", "LICENSE")
DEADLINE = 30.0  # seconds for anything that the server is to do

ASGI = """
import os
from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.urls import path
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "site1.settings")
pages = get_asgi_application()
from site1.consumers import ChatConsumer
application = ProtocolTypeRouter(
    {"http": pages, "websocket": URLRouter([path("ws/", ChatConsumer.as_asgi())])}
)
"""

LOOK_AROUND = """
import importlib.util, ephemeral_state
from django.contrib.auth.models import Permission, User
from django.test import Client
assert "site-packages" in ephemeral_state.__file__, ephemeral_state.__file__
for name in ("redis", "opentelemetry"):
    assert importlib.util.find_spec(name) is None, f"the wheel brings {name} along"
names = set(Permission.objects.filter(content_type__app_label="ephemeral_state").values_list("codename", flat=True))
expected = {"view_entry", "delete_entry", "clear_topic", "disconnect_client"}
assert names == expected, f"permissions after migrate: {names}"
client = Client(headers={"host": "localhost"})
client.force_login(User.objects.create_superuser("root"))
page = client.get("/admin/ephemeral_state/entry/")
assert page.status_code == 200 and b"0 live entries" in page.content, page.content.decode()
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        wheel = build(Path(folder))
        compare(wheel)
        python = install(Path(folder), wheel)
        project = make_project(Path(folder), python)
        for arguments in (
            ("check", "--fail-level", "WARNING"),
            ("makemigrations", "--check"),
            ("migrate", "-v", "0"),
            ("findstatic", "-v", "0", "ephemeral_state/admin.css"),
            ("shell", "-c", LOOK_AROUND),
        ):
            run([python, "manage.py", *arguments], cwd=project)
        with serving(project, python) as port:
            talk(port)
    print("wheel: built, installed, migrated, served and cleared")


def fail(why: str) -> NoReturn:
    sys.exit(f"wheel_smoke: {why}")


def run(command: list[str | Path], cwd: Path) -> None:
    done = subprocess.run(
        command, cwd=cwd, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        fail(f"{' '.join(map(str, command))[:200]} failed:\n{done.stdout}")


def environment() -> dict[str, str]:
    hidden = ("PYTHONPATH", "DJANGO_SETTINGS_MODULE", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in hidden}


def build(folder: Path) -> Path:
    # From a copy: what an earlier build left in build/ would find its way into the wheel.
    copy = folder / "source"
    copy.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder / "dist", copy], cwd=folder)
    wheels = list((folder / "dist").glob("*.whl"))
    if len(wheels) != 1:
        fail(f"one wheel was to be built, not {wheels}")
    return wheels[0]


def compare(wheel: Path) -> None:
    """Every file of the package is in the wheel, and nothing else is."""
    package = ROOT / "ephemeral_state"
    files = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    there = {path.relative_to(ROOT).as_posix() for path in files}
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        about = archive.read(metadata).decode()
    if "# django-ephemeral-state" not in about or re.search(r"\]\((?!https?:|#)", about):
        fail("the description for a package index is not README.md without relative links")
    if there != packed:
        fail(f"not in the wheel: {sorted(there - packed)}; only in the wheel: {sorted(packed - there)}")
    for kind in (".lua", ".html", ".css", "py.typed", "migrations/0001_initial.py"):
        if not any(name.endswith(kind) for name in packed):
            fail(f"the wheel has no {kind}")


def install(folder: Path, wheel: Path) -> Path:
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", wheel, "daphne"], cwd=folder)
    return python


def make_project(folder: Path, python: Path) -> Path:
    run([python, "-m", "django", "startproject", "site1"], cwd=folder)
    project = folder / "site1"
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    settings, consumer = (
        next((block for block in blocks if block.startswith(f"# {name}")), "")
        for name in ("settings.py", "consumers.py")
    )
    if "[..., " not in settings or "class ChatConsumer" not in consumer:
        fail("the README no longer shows settings.py with INSTALLED_APPS = [..., ] and consumers.py with ChatConsumer")
    settings = settings.replace("[..., ", '["daphne", *INSTALLED_APPS, ')
    with (project / "site1" / "settings.py").open("a") as file:
        file.write(f'\n{settings}\nASGI_APPLICATION = "site1.asgi.application"\n')
    (project / "site1" / "consumers.py").write_text(consumer)
    (project / "site1" / "asgi.py").write_text(ASGI)
    return project


@contextmanager
def serving(project: Path, python: Path) -> Iterator[int]:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = project / "daphne.log"
    command: list[str | Path] = [python, "-m", "daphne", "-b", "127.0.0.1", "-p", str(port), "site1.asgi:application"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=project, env=environment(), stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    fail("daphne does not start")
                time.sleep(0.05)
        yield port
    except BaseException:
        print(log.read_text(), file=sys.stderr)
        raise
    finally:
        process.terminate()
        process.wait(DEADLINE)


def talk(port: int) -> None:
    ann = Socket(port)
    ann.expect("ephemeral.snapshot", topic="room:1", entries=[])
    ann.expect("ephemeral.set", topic="room:1")
    bob = Socket(port)
    entries = bob.expect("ephemeral.snapshot")["entries"]
    if [entry["expires_in_ms"] for entry in entries] != [None]:
        fail(f"the second client was to find the first one until it disconnects: {entries}")
    here = ann.expect("ephemeral.set")
    bob.send({"type": "typing"})
    typing = ann.expect("ephemeral.set", client_id=here["client_id"])
    if json.loads(base64.b64decode(typing["payload"])) != {"name": "Zoé"}:
        fail(f"not the payload of the README: {typing}")
    bob.reset()
    cleared = [ann.expect("ephemeral.clear", reason="disconnect", client_id=here["client_id"]) for _ in range(2)]
    if {frame["key"] for frame in cleared} != {here["key"], typing["key"]}:
        fail(f"both keys of the second client were to be cleared: {cleared}")
    ann.reset()


class Socket:
    """A WebSocket client of a few lines, because the project is to have nothing installed for the test's sake."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
        self._file = self._socket.makefile("rb")
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET /ws/ HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        status = self._file.readline()
        if b" 101 " not in status:
            fail(f"no WebSocket: {status!r}")
        while self._file.readline() != b"\r\n":
            pass

    def expect(self, kind: str, **fields: object) -> dict[str, Any]:
        try:
            head = self._file.read(2)
        except TimeoutError:
            fail(f"{kind} was to come, and nothing came in {DEADLINE} s")
        if len(head) < 2 or head[0] != 0x81:
            fail(f"{kind} was to come, not {head!r}")
        length = head[1]
        if length == 126:
            (length,) = struct.unpack(">H", self._file.read(2))
        frame: dict[str, Any] = json.loads(self._file.read(length))
        if not ({"_orama": kind} | fields).items() <= frame.items():
            fail(f"{kind} with {fields} was to come, not {frame}")
        return frame

    def send(self, content: object) -> None:
        mask, text = os.urandom(4), json.dumps(content).encode()
        masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(text))
        self._socket.sendall(bytes((0x81, 0x80 | len(text))) + mask + masked)

    def reset(self) -> None:
        """Leave as a crashed client does."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._file.close()
        self._socket.close()


if __name__ == "__main__":
    main()
