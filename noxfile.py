"""The package on other versions. `nox -l` lists; `nox -s subset` needs nothing but the interpreters.

nox -s tests-3.12                       # the whole suite
nox -s subset                           # the sharp subset, on every interpreter that this machine has
nox -t matrix                           # each combination of tests/compatibility.py
nox -s matrix-redis-8 matrix-valkey-9   # these
nox -s table                            # docs/compatibility.md, from the runs
"""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nox

sys.path.insert(0, str(Path(__file__).parent))
from tests.compatibility import COMBINATIONS, PYTHONS, SUBSET, Combination

nox.options.default_venv_backend = "uv|venv"
nox.options.error_on_missing_interpreters = True
nox.options.sessions = ["subset"]


def interpreters() -> dict[str, str]:
    """Those of `PYTHONS` that can be started here: on the path, or kept by pyenv or uv."""
    homes = [Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"]
    homes.append(Path(os.environ.get("UV_PYTHON_INSTALL_DIR", Path.home() / ".local/share/uv/python")))
    found = {}
    for version in PYTHONS:
        kept = [str(path) for home in homes for path in sorted(home.glob(f"*/bin/python{version}"))]
        for path in filter(None, [shutil.which(f"python{version}"), *kept]):
            # A shim of pyenv may be there and not start. Asked for the real place, where no other shim is beside it.
            asked = [path, "-c", "import sys, venv; print(sys._base_executable)"]
            answer = subprocess.run(asked, capture_output=True, text=True, check=False)
            if answer.returncode == 0:
                found[version] = answer.stdout.strip()
                break
    return found


FOUND = interpreters()
OWN = f"{sys.version_info.major}.{sys.version_info.minor}"
# nox looks for them by name.
os.environ["PATH"] = os.pathsep.join([*(str(Path(path).parent) for path in FOUND.values()), os.environ["PATH"]])


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The whole suite."""
    session.install("-r", "requirements-dev.txt")
    session.run("python", "-m", "pytest", "-n", "2", "--dist", "loadfile", "-q", *session.posargs)


@nox.session(python=list(FOUND))
def subset(session: nox.Session) -> None:
    """The sharp subset."""
    for missing in set(PYTHONS) - set(FOUND):
        session.warn(f"Python {missing} is not on this machine: nothing is said about it")
    session.install("-r", "requirements-dev.txt")
    session.run("python", "-m", "pytest", "-n", "2", "--dist", "loadfile", "-q", *SUBSET, *session.posargs)


def matrix(session: nox.Session, combination: Combination) -> None:
    session.install("-r", "requirements-dev.txt")
    if combination.packages:  # in the place of what the file asks for, also where the file asks for something else
        session.install("--upgrade", *combination.packages)
    codes = range(256) if combination.may_fail else [0]
    session.run("python", "-m", "tests.compatibility", "run", combination.name, success_codes=codes)


for each in COMBINATIONS:
    name = f"matrix-{each.slug}"
    nox.session(functools.partial(matrix, combination=each), python=each.python, name=name, tags=["matrix"])


@nox.session(python="3.13")
def layers(session: nox.Session) -> None:
    """The convergence storm through channel layers of other brokers, which have to be installed."""
    packages = ("nats", "rabbitmq", "valkey", "postgres", "lite")
    session.install("-r", "requirements-dev.txt", *(f"channels-{name}" for name in packages))
    session.run("python", "-m", "tests.faults.other_layers", *session.posargs)


@nox.session(python=False)
def table(session: nox.Session) -> None:
    """docs/compatibility.md from docs/compatibility.json."""
    session.run(sys.executable, "-m", "tests.compatibility", "table")
