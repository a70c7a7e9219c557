"""The README's first command in a fresh clone, as it is printed there: the demo is to answer and to end cleanly.

    python .ci/first_command.py [PYTHON...]      # interpreters to try; by default the one that runs this

No compiler is on the path. Prints for each interpreter the seconds, the packages, and the words of the demo.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEADLINE = 300.0  # seconds, for a slow package index
MOST_PACKAGES = 30


def main() -> None:
    command = first_command()
    for python in sys.argv[1:] or [sys.executable]:
        with tempfile.TemporaryDirectory() as folder:
            clone = Path(folder) / "clone"
            copy_tracked(clone)
            try_it(python, command, clone, tools(Path(folder) / "bin", python))


def first_command() -> str:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    if not blocks or not blocks[0].startswith("python3 -m venv") or "manage.py demo" not in blocks[0]:
        sys.exit("first_command: the README's first command is no longer `python3 -m venv … manage.py demo`")
    return str(blocks[0].strip())


def copy_tracked(clone: Path) -> None:
    """What a clone of this commit has, and what is not committed yet."""
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, check=True, stdout=subprocess.PIPE, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, clone / name)


def tools(folder: Path, python: str) -> Path:
    """A path with `python3` and a shell, and with no compiler."""
    folder.mkdir()
    interpreter = shutil.which(python)
    if interpreter is None:
        sys.exit(f"first_command: there is no interpreter {python!r}")
    # The interpreter itself: a shim would look for its version in the folder that it is called from.
    (folder / "python3").symlink_to(run([interpreter, "-c", "import sys; print(sys._base_executable)"]).strip())
    for name in ("sh", "env", "uname"):
        found = shutil.which(name)
        if found:
            (folder / name).symlink_to(found)
    return folder


def run(command: list[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def try_it(python: str, command: str, clone: Path, path: Path) -> None:
    hidden = ("PYTHONPATH", "DJANGO_SETTINGS_MODULE", "VIRTUAL_ENV", "REDIS_URL")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    log = clone / "printed"
    begun = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["sh", "-c", f"{command} --port 0"],
            cwd=clone,
            env={**environment, "PATH": str(path), "PYTHONUNBUFFERED": "1"},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        while (found := re.search(r"Chat +(http://\S+)", log.read_text())) is None:
            if process.poll() is not None or time.monotonic() - begun > DEADLINE:
                fail(python, "the demo does not start", log)
            time.sleep(0.1)
        with urllib.request.urlopen(found[1], timeout=30) as page:
            if page.status != 200:
                fail(python, f"the demo answers with {page.status}", log)
        seconds = time.monotonic() - begun
        os.killpg(process.pid, signal.SIGINT)
        process.wait(30)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    printed = log.read_text()
    if "Bye." not in printed:
        fail(python, "the demo does not end with Bye.", log)
    its = str(clone / ".venv" / "bin" / "python")
    packages = run([its, "-m", "pip", "--disable-pip-version-check", "list", "--format=freeze"]).split()
    if len(packages) > MOST_PACKAGES:
        fail(python, f"{len(packages)} packages, at most {MOST_PACKAGES} are meant: {packages}", log)
    version = run([its, "-V"]).strip()
    words = [line.strip() for line in printed.splitlines() if re.match(r" *(Chat|Open|Bye)", line)]
    print(f"first command: {version}: {seconds:.0f} s, {len(packages)} packages; {' | '.join(words)}", flush=True)


def fail(python: str, why: str, log: Path) -> None:
    print(log.read_text(), file=sys.stderr)
    sys.exit(f"first_command: {python}: {why}")


if __name__ == "__main__":
    main()
