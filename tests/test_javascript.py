"""The JavaScript client: its own tests in Node, its types, and two of it on real servers."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from django.contrib.staticfiles.storage import ManifestStaticFilesStorage, staticfiles_storage
from django.core.management import call_command

from .browser.process import ROOT, DemoProcess

HERE = ROOT / "tests" / "js"
STATIC = ROOT / "ephemeral_state" / "static" / "ephemeral_state"
LIMIT = 180  # seconds


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    """Node, and the packages that `tests/js/package-lock.json` pins; they are installed where they are not."""
    missing = next((name for name in ("node", "npm") if shutil.which(name) is None), None)
    if missing is None:
        with (HERE / "package-lock.json").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            wanted = json.loads((HERE / "package.json").read_text())["devDependencies"]
            if not all((HERE / "node_modules" / name).exists() for name in wanted):
                command = ["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"]
                done = subprocess.run(command, cwd=HERE, timeout=LIMIT, check=False)
                missing = "npm ci" if done.returncode else None
    if missing is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"no {missing}")
        pytest.skip(f"no {missing}")


def run(*command: str | Path, **more: Any) -> str:
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=LIMIT, check=False, **more)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    return done.stdout


def tsc(*options: str | Path, project: str = ".") -> None:
    run("node", "node_modules/typescript/bin/tsc", "-p", project, *options)


def test_its_own_tests_pass() -> None:
    output = run("node", "--test", "--test-timeout=60000")
    counted = {name: int(number) for name, number in re.findall(r"^[#ℹ] (\w+) (\d+)$", output, re.MULTILINE)}
    assert counted["pass"] > 100
    assert counted["fail"] == counted["skipped"] == counted["cancelled"] == 0


def test_its_types_are_right() -> None:
    tsc()


def test_the_declarations_are_those_of_the_source(tmp_path: Path) -> None:
    tsc("--noEmit", "false", "--declaration", "--emitDeclarationOnly", "--outDir", tmp_path)
    made = {file.name: file.read_text() for file in tmp_path.glob("*.d.ts")}
    assert made == {file.name: file.read_text() for file in STATIC.glob("*.d.ts")}, "npm run declarations"
    assert {name.removesuffix(".d.ts") for name in made} == {file.stem for file in STATIC.glob("ephemeral-*.js")}


def test_a_project_in_typescript_compiles_with_the_declarations() -> None:
    tsc(project="tsconfig.consumer.json")


@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
def test_two_clients_see_each_other_on_a_real_server(tmp_path: Path, server: str) -> None:
    with DemoProcess(tmp_path, "--server", server) as demo:
        run("node", "live.js", f"ws://127.0.0.1:{demo.port}/ws/state/")
        bundle("live.js", tmp_path / "live.mjs", "--platform=node", "--format=esm", f"--banner:js={WITH_REQUIRE}")
        run("node", tmp_path / "live.mjs", f"ws://127.0.0.1:{demo.port}/ws/state/")


def test_each_file_goes_into_a_bundle_for_a_page(tmp_path: Path) -> None:
    files = list(STATIC.glob("ephemeral-*.js"))
    assert len(files) == 4
    for file in files:
        bundle(file, tmp_path / file.name, "--platform=browser", "--format=iife")
        assert "require(" not in (tmp_path / file.name).read_text()


def test_the_hook_is_bundled_from_elsewhere_by_what_the_docs_say(tmp_path: Path) -> None:
    package = tmp_path / "site-packages"
    shutil.copytree(STATIC, package)
    project = tmp_path / "project"
    project.mkdir()
    (project / "node_modules").symlink_to(HERE / "node_modules")
    main = project / "main.js"
    main.write_text('import "react";\nimport { useTopic } from "ephemeral-state/ephemeral-react.js";\nuseTopic();\n')
    docs = (ROOT / "docs" / "client.md").read_text()
    options = re.findall(r"^ +(--alias:\S+)", docs, re.MULTILINE)
    where, *more = [re.sub(r"(?<==)/\S+", str(package), option) for option in options]
    assert where == f"--alias:ephemeral-state={package}"
    assert more == ["--alias:react=react"]

    def build(*options: str) -> str:
        command = [HERE / "node_modules/.bin/esbuild", main, "--bundle", *options]
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=LIMIT, check=False)
        return done.stdout or done.stderr

    assert 'Could not resolve "react"' in build(where)
    made = build(where, *more)
    assert made.count("function useTopic(") == 1
    assert made.count('ReactVersion = "') == 1  # React itself, and once


@pytest.mark.parametrize("aggregates", [False, True], ids=["as-it-is", "import-aggregation"])
def test_its_files_import_each_other_where_names_carry_hashes(tmp_path: Path, settings: Any, aggregates: bool) -> None:
    storage = f"{__name__}.{'Aggregating' if aggregates else 'Hashing'}"
    settings.STATIC_ROOT = tmp_path
    settings.STORAGES = settings.STORAGES | {"staticfiles": {"BACKEND": storage}}
    call_command("collectstatic", interactive=False, verbosity=0)
    for name in ("state", "presence", "face"):
        address = staticfiles_storage.url(f"ephemeral_state/ephemeral-{name}.js")
        file = tmp_path / address.removeprefix(settings.STATIC_URL)
        assert re.fullmatch(rf"ephemeral-{name}\.[0-9a-f]{{12}}\.js", file.name)
        bundle(file, tmp_path / "bundle.js", "--platform=browser")  # which finds what it imports
        if aggregates:
            assert not re.search(r"""from ["']\./ephemeral-\w+\.js""", file.read_text())


class Hashing(ManifestStaticFilesStorage):
    pass


class Aggregating(ManifestStaticFilesStorage):
    support_js_module_import_aggregation = True


# The package "ws" is of the older kind, and asks Node for its modules in the older way.
WITH_REQUIRE = 'import { createRequire } from "node:module"; const require = createRequire(import.meta.url);'


def bundle(source: str | Path, target: Path, *options: str) -> None:
    """By esbuild, as for production. What the files import from elsewhere, React, is that of the project."""
    environment = os.environ | {"NODE_PATH": str(HERE / "node_modules")}
    run(
        "node_modules/.bin/esbuild",
        source,
        "--bundle",
        "--minify",
        "--log-level=warning",
        f"--outfile={target}",
        *options,
        env=environment,
    )
