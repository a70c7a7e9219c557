"""The docs say what the code does: names, defaults and codes agree both ways, and the examples run as printed."""

from __future__ import annotations

import ast
import asyncio
import base64
import importlib
import inspect
import io
import json
import logging
import os
import re
import runpy
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.layers import channel_layers
from channels.routing import URLRouter
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import AnonymousUser
from django.core.management import call_command
from django.test import RequestFactory
from django.urls import path
from django.utils.module_loading import import_string

import ephemeral_state
from ephemeral_state import (
    api,
    background,
    broadcast,
    conf,
    consumers,
    errors,
    log,
    policy,
    protocol,
    signals,
    state,
    stores,
    testing,
)
from ephemeral_state.node import idle
from ephemeral_state.stores.memory import MemoryStore
from ephemeral_state.stores.redis import RedisStore

from . import compatibility
from .redis_server import RedisServer, shared_url, unique_prefix
from .waiting import until

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md"])
SOURCE = "\n".join(file.read_text() for file in sorted((ROOT / "ephemeral_state").rglob("*.py")))

# Reading markdown


def page(name: str) -> str:
    return (DOCS / name).read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next of its level or above."""
    # Comments in code look like headings.
    prose = re.sub(r"^```.*?^```$", lambda found: found[0].replace("#", "x"), text, flags=re.MULTILINE | re.DOTALL)
    found = re.search(rf"^(#+) {re.escape(heading)}$", prose, re.MULTILINE)
    assert found is not None, f"no heading {heading!r}"
    start = found.end()
    end = re.search(rf"^#{{1,{len(found[1])}}} ", prose[start:], re.MULTILINE)
    return text[start : start + end.start()] if end else text[start:]


def rows(text: str) -> list[list[str]]:
    """The cells of all tables, without their heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    rules = [index for index, row in enumerate(cells) if set(row[0]) == {"-"}]
    return [row for index, row in enumerate(cells) if index not in rules and index + 1 not in rules]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def first_column(text: str) -> set[str]:
    return {name for row in rows(text) for name in code(row[0])}


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def named(text: str, language: str = "python", mark: str = "#") -> dict[str, str]:
    """The blocks whose first line is a comment with a file name."""
    files = {}
    for block in blocks(text, language):
        found = re.match(rf"{mark} (\S+\.(?:py|js))\n", block)
        if found:
            assert found[1] not in files or found[1].endswith("settings.py"), f"two blocks are called {found[1]}"
            files[found[1]] = block
    return files


# Words


REFERENCE = page("reference.md")


def test_every_setting_is_in_the_reference_with_its_default():
    table = rows(section(REFERENCE, "Settings"))
    listed = {code(key)[0]: ast.literal_eval(code(default)[0]) for key, default, *_ in table}
    settings = conf.Settings()
    assert listed == {
        field.name.upper(): dict(value) if field.name == "options" else value
        for field in fields(settings)
        for value in [getattr(settings, field.name)]
    }


def test_every_setting_has_its_unit():
    units = {code(key)[0]: unit for key, _, unit, _ in rows(section(REFERENCE, "Settings"))}
    seconds = {name.upper() for name in conf._SECONDS}
    assert {key for key, unit in units.items() if unit == "seconds"} == seconds
    assert {key for key, unit in units.items() if unit == "bytes"} == {key for key in units if key.endswith("_BYTES")}


def test_the_settings_shown_are_accepted():
    shown = [block for file in PAGES for block in blocks(file.read_text(), "python") if "\nEPHEMERAL_STATE = " in block]
    assert len(shown) >= 3
    for block in shown:
        values: dict[str, Any] = {}
        exec(block, values)
        conf.parse(values["EPHEMERAL_STATE"])


@pytest.mark.parametrize(
    ("heading", "modules"),
    [
        ("Consumers", [consumers]),
        ("Policies", [policy]),
        ("Errors", [errors]),
        ("Signals", [signals]),
        ("Tests", [testing]),
    ],
)
def test_every_public_name_is_in_the_reference_and_no_other(heading: str, modules: list[types.ModuleType]):
    public = {name for module in modules for name in module.__all__}
    first_table = section(REFERENCE, heading).partition("\n|")[2].partition("\n\n")[0]
    fixtures = {"ephemeral_store"}
    assert first_column("|" + first_table) - fixtures == public


def test_every_value_is_in_the_reference_and_no_other():
    stores_section = section(REFERENCE, "A store of your own")
    listed = first_column(section(REFERENCE, "Values")) | first_column(stores_section)
    assert listed == {*state.__all__, *stores.__all__}


def plain(signature: str) -> str:
    """A signature without annotations, and with its defaults written in one way."""
    (function,) = ast.parse(f"def {signature}: pass").body
    assert isinstance(function, ast.FunctionDef)
    arguments = function.args
    for argument in [*arguments.args, *arguments.kwonlyargs]:
        argument.annotation = None
    arguments.args = [argument for argument in arguments.args if argument.arg != "self"]
    return f"{function.name}({ast.unparse(arguments)})"


def signature_of(function: Callable[..., Any]) -> str:
    parameters = inspect.signature(function).parameters.values()
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    return plain(f"{function.__name__}{inspect.Signature(bare)}")


def test_every_function_of_the_api_is_in_the_reference_with_its_signature():
    listed = {plain(name) for name in first_column(section(REFERENCE, "Views, tasks and commands"))}
    assert listed == {signature_of(getattr(api, name)) for name in api.__all__}


@pytest.mark.parametrize("mixin", [consumers.EphemeralStateMixin, consumers.SyncEphemeralStateMixin])
def test_every_method_of_the_mixins_is_in_the_reference_with_its_signature(mixin: type):
    listed = {name for name in first_column(section(REFERENCE, "The mixins")) if name.startswith("ephemeral_")}
    functions = {plain(name) for name in listed if "(" in name}
    public = [name for name in dir(mixin) if name.startswith("ephemeral_")]
    assert functions == {signature_of(getattr(mixin, name)) for name in public if callable(getattr(mixin, name))}
    assert {name for name in listed if "(" not in name} == {n for n in public if not callable(getattr(mixin, n))}


def test_every_method_of_a_policy_is_in_the_reference_with_its_signature():
    listed = {plain(name) for name in first_column(section(REFERENCE, "Policies")) if "(" in name}
    assert listed == {signature_of(getattr(policy.Policy, name)) for name in dir(policy.Policy) if name[0] != "_"}


@pytest.mark.parametrize(("heading", "store"), [("MemoryStore", MemoryStore), ("RedisStore", RedisStore)])
def test_every_option_of_a_store_is_in_the_reference_with_its_default(heading: str, store: type):
    listed = {code(row[0])[0]: ast.literal_eval(code(row[1])[0]) for row in rows(section(REFERENCE, heading))}
    parameters = inspect.signature(store).parameters
    # A clock is for tests.
    assert listed == {name: p.default for name, p in parameters.items() if name not in ("limits", "clock")}


def test_every_error_is_in_the_reference_with_its_code():
    listed = {code(name)[0]: code(wire)[0] for name, wire, *_ in rows(section(REFERENCE, "Errors"))}
    assert listed == {name: getattr(errors, name).code for name in errors.__all__}
    assert len(set(listed.values())) == len(listed)


def test_the_protocol_page_has_the_codes_that_clients_can_get_and_no_other():
    seen = {code(wire)[0] for _, wire, to_client, _ in rows(section(REFERENCE, "Errors")) if to_client == "yes"}
    listed = {name for row in rows(section(page("protocol.md"), "Server to client")) for name in code(row[0])}
    assert listed == seen


def test_the_errors_that_are_value_errors_are_named():
    sentence = re.search(r"^((?:`\w+`(?:, | and )?)+) are `ValueError`s too\.$", REFERENCE, re.MULTILINE)
    assert sentence is not None
    both = {name for name in errors.__all__ if issubclass(getattr(errors, name), ValueError)}
    assert set(code(sentence[1])) == both


def test_the_fields_of_a_group_message_are_in_the_reference():
    change = state.Change(state.Topic("n", "t"), "k", "c", b"", None, None, 1, 1)
    (message,) = protocol.encode_batches([change])
    assert first_column(section(REFERENCE, "Groups")) == set(message)
    shown = json.loads(blocks(section(page("howto.md"), "Listen without the mixin"), "json")[0])
    assert set(shown) == set(message)
    assert "group_name" in broadcast.__all__


def test_every_command_of_the_protocol_is_on_its_page_with_its_fields():
    listed = {}
    for command, *_ in rows(section(page("protocol.md"), "Client to server")):
        found = re.findall(r'"(\w+)"\??:', command)
        listed[re.findall(r'"ephemeral\.(\w+)"', command)[0]] = set(found) - {"_orama"}
    assert listed == {verb: set(names) for verb, names in protocol._FIELDS.items()}


def test_every_module_has_its_place_in_the_maps_of_the_design_and_of_the_package():
    package = ROOT / "ephemeral_state"
    modules = {path.stem for path in package.glob("*.py")} | {
        path.parent.name for path in package.glob("*/__init__.py")
    }
    modules -= {"__init__", "migrations"}
    assert {name for row in rows(section(page("design.md"), "The map")) for name in code(row[1])} == modules
    lines = re.findall(r"^    ([a-z, ]+?)  ", inspect.getdoc(ephemeral_state) or "", re.MULTILINE)
    assert {name for line in lines for name in line.split(", ")} == modules


def log_calls() -> Iterator[tuple[str, list[str], set[str]]]:
    """What is called in `log`, its texts, and the names of its keywords."""
    for call in (node for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.Call)):
        match call.func:
            case ast.Attribute(ast.Name("log"), verb) if verb != "debug":
                yield verb, [text(each) for each in call.args], {each.arg or "**" for each in call.keywords}


def text(node: ast.expr) -> str:
    """A literal, with `{field}` for what is put in when it is said and `…` for what is put in before."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(
        re.sub(r"%\((\w+)\)[s.0f]+", r"{\1}", part.value) if isinstance(part, ast.Constant) else "…" for part in parts
    )


def test_what_the_log_says_is_what_the_code_says():
    levels = {"exception": "error", "error": "error", "warning": "warning", "info": "info"}
    said = []
    for verb, texts, keywords in log_calls():
        event = texts[0]
        if verb == "Trouble":
            said.append((event, texts[1], "error" if "traceback" in keywords else "warning"))
            said.append((f"{event}_over", texts[2], "warning"))
        else:
            said.append((event, texts[1], levels[verb]))
            assert set(re.findall(r"\{(\w+)\}", texts[1])) <= keywords, texts
    listed = [
        (*code(row[0]), *code(row[1]), row[2]) for row in rows(section(page("deployment.md"), "What the log says"))
    ]
    assert sorted(listed) == sorted(said)
    assert len({event for event, _, _ in said}) == len(said)
    counted = [event for event, _, level in said if level != "info" and not event.endswith("_over")]
    assert sorted(counted) == list(log.COUNTED)
    assert SOURCE.count("getLogger") == 1, "everything is said through ephemeral_state.log"


def test_the_log_as_lines_of_json():
    (source,) = (block for block in blocks(page("deployment.md"), "python") if block.startswith("# logs.py"))
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(namespace["JsonLines"]())
    log.logger.addHandler(handler)
    try:
        log.warning("node_dead", "node %(node)s is dead, cleared %(entries)s of its entries", node="ab", entries=3)
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            log.exception("store_bug", "the store failed in a way it should not")
        log.logger.warning("from %s", "elsewhere")
    finally:
        log.logger.removeHandler(handler)
    dead, bug, other = map(json.loads, stream.getvalue().splitlines())
    assert (dead["event"], dead["node"], dead["entries"], dead["level"]) == ("node_dead", "ab", 3, "WARNING")
    assert dead["message"] == "node ab is dead, cleared 3 of its entries"
    assert "ZeroDivisionError" in bug["traceback"]
    assert other["message"] == "from elsewhere"


def test_every_system_check_is_in_the_reference_and_no_other():
    ids = {f"ephemeral_state.{number}" for number in re.findall(r'_id\("([EW]\d+)"\)', SOURCE)}
    assert ids
    assert set(re.findall(r"ephemeral_state\.[EW]\d+", REFERENCE)) == ids


def test_the_readmes_commands_install_what_there_is():
    shown = [block for block in blocks((ROOT / "README.md").read_text(), "sh") if "requirements" in block]
    demo, tests = ([ROOT / name for name in re.findall(r"-r (\S+)", block)] for block in shown)
    assert demo == [ROOT / "requirements.txt"]
    assert tests == [ROOT / "requirements-dev.txt"]
    assert "-r requirements.txt" in tests[0].read_text().splitlines()


def test_the_tables_of_versions_are_what_the_runs_have_noted():
    shown = page("compatibility.md")
    assert compatibility.page(shown) == shown, "python -m tests.compatibility table"
    names = {combination.name for combination in compatibility.COMBINATIONS}
    assert json.loads(compatibility.RESULTS.read_text()).keys() <= names


def test_the_hosted_workflow_runs_every_combination_and_interpreter():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "python -m tests.compatibility list" in workflow
    assert set(re.findall(r'"(3\.\d+)"', workflow)) == set(compatibility.PYTHONS)


# Links


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_links_lead_somewhere(file: Path):
    text = re.sub(r"^```.*?^```$", "", file.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        where, _, anchor = target.partition("#")
        other = (file.parent / where).resolve() if where else file
        assert other.exists(), f"{file.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", other.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), f"{file.name} links to {target}"


# Blocks


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_python_compiles(file: Path):
    for block in blocks(file.read_text(), "python"):
        compile(block, file.name, "exec")


SHAPES = {
    "ephemeral.set": (["_orama", "topic", "key", "client_id"], {"payload"}),
    "ephemeral.clear": (["_orama", "topic", "key", "client_id", "reason"], set()),
    "ephemeral.snapshot": (["_orama", "topic", "entries"], {"ref"}),
    "ephemeral.error": (["_orama", "code", "message"], {"ref"}),
    "ephemeral.ok": (["_orama"], {"ref"}),
}


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_json_parses_and_frames_have_their_fields(file: Path):
    for block in blocks(file.read_text(), "json"):
        try:
            values = [json.loads(block)]
        except ValueError:
            values = [json.loads(line) for line in block.splitlines()]
        for value in values:
            if "_orama" in value:
                needed, allowed = SHAPES[value["_orama"]]
                assert list(value)[: len(needed)] == needed
                assert set(value) - set(needed) <= allowed
                json.loads(base64.b64decode(value.get("payload", "e30="), validate=True))


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
@pytest.mark.parametrize("name", ["tutorial.md", "howto.md", "client.md", "protocol.md"])
def test_javascript_parses(name: str, tmp_path: Path):
    scripts = blocks(page(name), "js")
    assert scripts
    for number, script in enumerate(scripts):
        # a module, where there may be imports
        file = tmp_path / f"{number}.{'mjs' if 'import ' in script or 'await ' in script else 'js'}"
        file.write_text(script)
        subprocess.run(["node", "--check", file], check=True, timeout=60)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
def test_the_browser_client_shows_what_the_frames_say():
    files = named(page("tutorial.md"), "js", "//")
    client = files["chat/static/chat/live.js"]
    assert len(client.splitlines()) <= 12
    group = named(page("howto.md"), "js", "//")["who-is-online.js"]

    def payload(**value: Any) -> bytes:
        return json.dumps(value).encode()

    topic = state.Topic("", "t")
    entries = [
        state.Entry(topic, "here:1", "1", payload(name="Zoé", user=1), None),
        state.Entry(topic, "here:2", "2", payload(name="<b>Bob</b>", user=2), None),
        state.Entry(topic, "here:3", "3", payload(name="Zoé", user=1), None),
    ]
    frames = [
        protocol.encode_snapshot("t", entries),
        protocol.encode_set("t", "typing:1", "1", payload(name="Zoé")),
        protocol.encode_clear("t", "here:2", "2", "disconnect"),
        protocol.encode_clear("t", "typing:1", "1", "expired"),
        protocol.encode_snapshot("t", []),
    ]
    script = f"""
        const places = {{"#here": {{}}, "#typing": {{}}}};
        globalThis.document = {{querySelector: (selector) => places[selector]}};
        {client}
        {group}
        const seen = [];
        for (const frame of {json.dumps(frames)}) {{
            showLive(JSON.parse(frame));
            seen.push([places["#here"].textContent, places["#typing"].textContent, [...people().values()]]);
        }}
        console.log(JSON.stringify(seen));
    """
    done = subprocess.run(["node", "-e", script], check=True, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout) == [
        ["Zoé, <b>Bob</b>, Zoé", "", ["Zoé", "<b>Bob</b>"]],
        ["Zoé, <b>Bob</b>, Zoé", "typing: Zoé", ["Zoé", "<b>Bob</b>"]],
        ["Zoé, Zoé", "typing: Zoé", ["Zoé"]],
        ["Zoé, Zoé", "", ["Zoé"]],
        ["", "", []],
    ]


# Examples


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], types.ModuleType]]:
    """Makes the files of a page importable: `load("howto.md", "chat.typing")`."""
    before = set(sys.modules)
    written: list[str] = []

    def load(page_name: str, module: str) -> types.ModuleType:
        if not written:
            for name, text in named(page(page_name)).items():
                file = tmp_path / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
                for folder in [*file.relative_to(tmp_path).parents][:-1]:
                    (tmp_path / folder / "__init__.py").touch()
                written.append(name)
            monkeypatch.syspath_prepend(tmp_path)
        return importlib.import_module(module)

    yield load
    ours = {name.split("/")[0].removesuffix(".py") for name in written}
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ours:
            del sys.modules[name]


@pytest.fixture(autouse=True)
def _own_store(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.EPHEMERAL_STATE = {}
    monkeypatch.setattr(background, "_LINGER", 0.05)


class User:
    """What the examples ask of a user."""

    is_authenticated = True

    def __init__(self, pk: int, name: str, tenant_id: int = 0) -> None:
        self.pk = pk
        self.name = name
        self.tenant_id = tenant_id

    def get_username(self) -> str:
        return self.name


ZOE, BOB = User(1, "Zoé"), User(11, "Bob")


class Browser:
    """A socket that keeps what it has read, for tests that wait for a frame among others."""

    def __init__(self, application: Any, user: Any = ZOE, address: str = "/") -> None:
        self.socket = WebsocketCommunicator(application, address)
        self.socket.scope["user"] = user
        self.frames: list[dict[str, Any]] = []

    async def __aenter__(self) -> Browser:
        connected, _ = await self.socket.connect(timeout=10)
        assert connected
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.socket.disconnect(timeout=10)

    async def say(self, **frame: Any) -> None:
        await self.socket.send_json_to(frame)

    async def read(self) -> dict[str, Any]:
        frame: dict[str, Any] = json.loads(await self.socket.receive_from(timeout=10))
        self.frames.append(frame)
        return frame

    async def read_until(self, **values: Any) -> dict[str, Any]:
        while True:
            frame = await self.read()
            if all(frame.get(name) == value for name, value in values.items()):
                return frame

    async def ask(self, verb: str, **values: Any) -> dict[str, Any]:
        await self.say(_orama=f"ephemeral.{verb}", **values)
        return await self.read()


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.to_thread(function, *args)


async def test_the_chat_of_the_tutorial(load: Any):
    consumer = load("tutorial.md", "chat.consumers").ChatConsumer
    views = load("tutorial.md", "chat.views")
    load("tutorial.md", "chat.urls")
    application = URLRouter([path("ws/chat/<str:room_name>/", consumer.as_asgi())])
    request = RequestFactory().post("/")
    async with Browser(application, BOB, "/ws/chat/lobby/") as bob:
        assert (await bob.read())["_orama"] == "ephemeral.snapshot"
        own = await bob.read()
        async with Browser(application, AnonymousUser(), "/ws/chat/lobby/") as guest:
            snapshot = await guest.read()
            assert [entry["key"] for entry in snapshot["entries"]] == [own["key"]]
            here = await bob.read()
            assert here["key"].startswith("here:")
            assert json.loads(base64.b64decode(here["payload"]))["name"].startswith("guest ")

            await guest.say(typing=True)
            typing = await bob.read()
            assert typing["key"] == here["key"].replace("here:", "typing:")
            await guest.say(message="hello")
            assert (await bob.read_until(key=typing["key"]))["reason"] == "explicit"
            if not any("message" in frame for frame in bob.frames):
                assert await bob.read() == {"message": "hello"}

            names = json.loads((await in_thread(views.who, request, "lobby")).content)["here"]
            assert names[0] == "Bob"
            assert len(names) == 2
            await in_thread(views.ask_bot, request, "lobby")
            assert (await bob.read())["key"] == "typing:bot"
            await in_thread(api.clear, "room:lobby", "typing:bot")
            await bob.read_until(_orama="ephemeral.clear", key="typing:bot")
        assert (await bob.read_until(key=here["key"]))["reason"] == "disconnect"


async def test_the_tutorials_consumer_clears_when_a_handler_raises(load: Any):
    consumer = load("tutorial.md", "chat.consumers").ChatConsumer
    application = URLRouter([path("ws/chat/<str:room_name>/", consumer.as_asgi())])
    async with Browser(application, BOB, "/ws/chat/lobby/") as bob:
        zoe = Browser(application, ZOE, "/ws/chat/lobby/")
        await zoe.__aenter__()
        await zoe.socket.send_to("no JSON")
        assert (await bob.read_until(_orama="ephemeral.clear"))["reason"] == "disconnect"
        with pytest.raises(json.JSONDecodeError):
            await zoe.socket.wait()


async def test_the_tests_of_the_tutorials_chat(load: Any):
    module = load("tutorial.md", "chat.test_live")
    with testing.fresh_store() as clock:
        await module.test_nobody_stays_behind(clock)
    with testing.fresh_store() as clock:
        await module.test_typing_ends_by_itself_and_with_the_connection(clock)
        await load("tutorial.md", "chat.test_before").test_a_message_comes_back_to_its_sender(clock)


async def test_typing(load: Any):
    consumer = load("howto.md", "chat.typing").TypingConsumer.as_asgi()
    async with Browser(consumer) as zoe, Browser(consumer, BOB) as bob:
        await zoe.say(typing=True)
        frame = await bob.read_until(_orama="ephemeral.set")
        assert json.loads(base64.b64decode(frame["payload"])) == {"name": "Zoé"}
        await zoe.say(typing=False)
        await bob.read_until(_orama="ephemeral.clear", key=frame["key"], reason="explicit")


async def test_who_is_online_with_several_tabs(load: Any):
    online = load("howto.md", "chat.online")
    consumer = online.OnlineConsumer.as_asgi()
    guest = Browser(consumer, AnonymousUser())
    assert (await guest.socket.connect(timeout=10))[0] is False
    await guest.socket.wait()
    async with Browser(consumer, BOB) as bob:
        async with Browser(consumer) as one, Browser(consumer) as two:
            await one.read_until(_orama="ephemeral.set")
            await two.read_until(_orama="ephemeral.set")
            assert online.people(await api.alist("room:1")) == {1: ("Zoé", 2), 11: ("Bob", 1)}
        await bob.read_until(_orama="ephemeral.clear")
        await bob.read_until(_orama="ephemeral.clear")
        assert online.people(await in_thread(api.list, "room:1")) == {11: ("Bob", 1)}


async def test_cursors(load: Any):
    consumer = load("howto.md", "chat.cursors").CursorConsumer.as_asgi()
    async with Browser(consumer) as zoe:
        await zoe.say(x=0.5, y=0.123456)
        frame = await zoe.read_until(_orama="ephemeral.set")
        assert json.loads(base64.b64decode(frame["payload"])) == {"x": 0.5, "y": 0.1235}
        (entry,) = await api.alist("room:1")
        assert entry.expires_in_ms is None


async def test_a_soft_lock_is_what_the_page_says_it_is(load: Any):
    consumer = load("howto.md", "documents.consumers").DocumentConsumer.as_asgi()
    async with Browser(consumer) as zoe, Browser(consumer, BOB) as bob:
        await zoe.say(type="edit")
        first = await bob.read_until(_orama="ephemeral.set")
        await bob.say(type="edit")
        assert await bob.read() == {"type": "busy", "editor": "Zoé"}
        await bob.say(type="edit", take_over=True)
        second = await zoe.read_until(_orama="ephemeral.set", key="editor", payload=payload_of({"name": "Bob"}))
        assert second["client_id"] != first["client_id"]
        await zoe.say(type="done")  # who has lost it cannot clear it
        await zoe.say(type="edit")
        await zoe.read_until(type="busy", editor="Bob")
        await bob.say(type="done")
        await zoe.read_until(_orama="ephemeral.clear", key="editor", client_id=second["client_id"])


def payload_of(value: object) -> str:
    return base64.b64encode(protocol.encode_payload(value)).decode()


async def test_a_filter_also_filters_the_snapshot(load: Any):
    consumer = load("howto.md", "chat.quiet").QuietConsumer.as_asgi()
    await api.aset("room:1", "cursor:1", {})
    await api.aset("room:1", "here:1", {})
    async with Browser(consumer, AnonymousUser()) as guest, Browser(consumer) as zoe:
        assert (await guest.read())["entries"] == []
        assert (await guest.read())["key"] == "here:1"
        assert (await zoe.read())["entries"] == []
        assert [(await zoe.read())["key"], (await zoe.read())["key"]] == ["cursor:1", "here:1"]
        await api.aclear("room:1", "cursor:1")
        await api.aclear("room:1", "here:1")
        assert (await guest.read())["key"] == "here:1"


async def test_a_format_of_ones_own(load: Any):
    consumer = load("howto.md", "chat.names").NamesConsumer.as_asgi()
    await api.aset("room:1", "here:1", {"name": "Zoé"})
    async with Browser(consumer) as zoe:
        assert await zoe.read() == {"type": "names", "names": ["Zoé"]}
        await api.aset("room:1", "typing:2", {"name": "Bob"})
        await api.aset("room:1", "here:2", {"name": "Bob"})
        assert await zoe.read() == {"type": "join", "id": "here:2", "name": "Bob"}
        await api.aclear("room:1", "here:2")
        assert await zoe.read() == {"type": "leave", "id": "here:2"}


async def test_tenants_are_apart(load: Any):
    consumer = load("howto.md", "chat.tenants").TenantConsumer.as_asgi()
    await api.aset("room:1", "a", namespace="tenant:7")
    await api.aset("room:1", "b", namespace="tenant:8")
    async with Browser(consumer, User(1, "Zoé", tenant_id=7)) as zoe:
        assert [entry["key"] for entry in (await zoe.read())["entries"]] == ["a"]


async def test_a_sync_consumer(load: Any):
    consumer = load("howto.md", "chat.sync").SyncChatConsumer.as_asgi()
    async with Browser(consumer) as bob, Browser(consumer) as zoe:
        await bob.read_until(_orama="ephemeral.set")
        await zoe.say()
        frame = await bob.read_until(_orama="ephemeral.set", payload=payload_of({"name": "Zoé"}))
        while not frame["key"].startswith("typing:"):
            frame = await bob.read_until(_orama="ephemeral.set")


async def test_views(load: Any):
    views = load("howto.md", "shop.views")
    await api.aset("product:5", "a")
    request = RequestFactory().get("/")
    assert json.loads((await in_thread(views.viewers, request, 5)).content) == {"viewers": 1}
    assert json.loads((await views.viewers_async(request, 5)).content) == {"viewers": 1}
    request = RequestFactory().get("/?pk=5&pk=6")
    assert json.loads((await in_thread(views.all_viewers, request)).content) == {"product:5": 1, "product:6": 0}


async def test_commands_and_tasks(load: Any):
    export = load("howto.md", "shop.tasks").export
    command = load("howto.md", "shop.management.commands.reindex").Command()

    class Staff(consumers.EphemeralStateMixin, AsyncWebsocketConsumer):
        async def connect(self) -> None:
            await self.accept()
            await self.ephemeral_subscribe("staff")
            await self.ephemeral_subscribe("user:1")

    async with Browser(Staff.as_asgi()) as staff:
        for topic in ("staff", "user:1"):
            await staff.read_until(_orama="ephemeral.snapshot", topic=topic)
        await in_thread(call_command, command)
        await staff.read_until(_orama="ephemeral.set", key="reindex")
        await staff.read_until(_orama="ephemeral.clear", key="reindex")
        await in_thread(export, 1)
        await staff.read_until(_orama="ephemeral.set", key="export", payload=payload_of({"percent": 100}))
        await staff.read_until(_orama="ephemeral.clear", key="export", reason="disconnect")


async def test_the_end_of_a_transaction(load: Any, monkeypatch: pytest.MonkeyPatch):
    saved = []

    class Objects:
        def create(self, **fields: Any) -> Any:
            saved.append(fields)
            return types.SimpleNamespace(pk=len(saved), **fields)

    models = types.ModuleType("chat.models")
    models.Message = types.SimpleNamespace(objects=Objects())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "chat.models", models)
    monkeypatch.setattr("django.db.transaction.atomic", lambda view: view)
    monkeypatch.setattr("django.db.transaction.on_commit", lambda act, **_: act())
    post = load("howto.md", "chat.saving").post
    request = RequestFactory().post("/", {"text": "hello"})
    request.user = ZOE  # type: ignore[assignment]
    async with aclosing(api.watch("room:5")) as notices:
        await anext(notices)
        await api.aset("room:5", "typing:1")
        assert (await anext(notices)).key == "typing:1"
        await in_thread(post, request, 5)
        async with asyncio.timeout(10):
            told = [(notice.kind, notice.key) for notice in [await anext(notices) for _ in range(2)]]
        assert told == [("set", "message:1"), ("clear", "typing:1")]


async def test_server_sent_events(load: Any):
    module = load("howto.md", "shop.stream")
    assert 15 <= module.QUIET <= 30
    response = await module.stream(RequestFactory().get("/"), 5)
    assert response["Content-Type"] == "text/event-stream"
    assert (response["Cache-Control"], response["X-Accel-Buffering"]) == ("no-cache", "no")
    events = aiter(response)
    assert json.loads((await anext(events)).decode().removeprefix("data: "))["entries"] == []
    await api.aset("product:5", "a")
    event = (await anext(events)).decode()
    assert event.endswith("\n\n")
    assert json.loads(event.removeprefix("data: "))["key"] == "a"
    await events.aclose()


async def test_server_sent_events_are_not_cut_while_nothing_happens_and_end_with_their_client(
    load: Any, monkeypatch: pytest.MonkeyPatch
):
    module = load("howto.md", "shop.stream")
    monkeypatch.setattr(module, "QUIET", 0.01)
    heard: list[str] = []

    async def read() -> None:
        async for event in await module.stream(RequestFactory().get("/"), 5):
            heard.append(event.decode())

    reading = asyncio.create_task(read())
    await until(lambda: heard.count(": quiet\n\n") >= 2)
    for key in ("a", "b"):
        await api.aset("product:5", key)
        await until(lambda key=key: f'"key":"{key}"' in "".join(heard))
    assert [event for event in heard if not event.startswith(("data: ", ": quiet"))] == []
    assert not idle()
    reading.cancel()  # as Django does
    with pytest.raises(asyncio.CancelledError):
        await reading
    await until(idle)


async def test_last_seen(load: Any, monkeypatch: pytest.MonkeyPatch):
    seen: list[str] = []

    class Objects:
        def filter(self, user_id: str) -> Objects:
            seen.append(user_id)
            return self

        def update(self, **_: Any) -> None:
            pass

    models = types.ModuleType("chat.models")
    models.Profile = types.SimpleNamespace(objects=Objects())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "chat.models", models)
    receiver = load("howto.md", "chat.receivers").remember
    try:
        async with api.hold("room:1", "here:7:x"), api.hold("room:1", "typing:7:x"):
            pass
        await until(lambda: seen == ["7"])
    finally:
        signals.entry_cleared.disconnect(receiver)


async def test_sending_somebody_away(load: Any):
    ban = load("howto.md", "shop.ban").ban
    online = load("howto.md", "chat.online").OnlineConsumer.as_asgi()
    async with Browser(online, BOB) as bob:
        zoe = Browser(online, ZOE)
        assert (await zoe.socket.connect(timeout=10))[0]
        await in_thread(ban, 1)
        await bob.read_until(_orama="ephemeral.clear", reason="disconnect")
        while (output := await zoe.socket.receive_output(10))["type"] != "websocket.close":
            pass
        assert output["code"] == 4003
        await zoe.socket.disconnect()


async def test_a_group_handler(load: Any):
    consumer = load("howto.md", "shop.dashboard").DashboardConsumer.as_asgi()
    async with Browser(consumer) as dashboard:
        await api.aset("room:1", "k")
        assert await dashboard.read() == {"key": "k", "what": "arrived"}
        await api.aclear("room:1", "k")
        assert await dashboard.read() == {"key": "k", "what": "explicit"}


async def test_the_ready_made_consumer_with_a_policy(load: Any, settings: Any):
    load("howto.md", "chat.policy")
    shown = blocks(section(page("howto.md"), "Use the ready-made consumer"), "python")[2]
    values: dict[str, Any] = {}
    exec(shown, values)
    settings.EPHEMERAL_STATE = values["EPHEMERAL_STATE"]
    application = URLRouter(load("howto.md", "chat.routing").websocket_urlpatterns)
    async with Browser(application, ZOE, "/ws/state/") as zoe:
        assert list(await zoe.read()) == ["_orama", "client_id", "ping_interval_ms"]
        assert (await zoe.ask("subscribe", topic="room:1"))["entries"] == []
        assert (await zoe.ask("subscribe", topic="elsewhere"))["code"] == "forbidden"
        assert (await zoe.ask("set", topic="room:1", key="11:cursor"))["code"] == "forbidden"
        await zoe.say(_orama="ephemeral.set", topic="room:1", key="1:cursor", payload=payload_of({"x": 1}))
        assert {(await zoe.read())["_orama"], (await zoe.read())["_orama"]} == {"ephemeral.set", "ephemeral.ok"}
    async with Browser(application, AnonymousUser(), "/ws/state/") as guest:
        assert (await guest.read())["_orama"] == "ephemeral.hello"
        assert (await guest.ask("subscribe", topic="room:1"))["code"] == "forbidden"


@pytest.mark.parametrize(
    ("origin", "enters"), [("https://ours.example", True), ("https://evil.example", False), ("", False)]
)
async def test_pages_of_other_sites_do_not_get_in(load: Any, settings: Any, origin: str, enters: bool):
    settings.ALLOWED_HOSTS = ["ours.example"]
    headers = [(b"origin", origin.encode())] if origin else []
    socket = WebsocketCommunicator(load("howto.md", "chat.asgi").application, "/ws/state/", headers)
    connected, _ = await socket.connect(timeout=10)
    assert connected == enters
    await socket.disconnect(timeout=10)


def test_a_project_with_models_starts_with_the_asgi_application_shown(load: Any, tmp_path: Path):
    load("howto.md", "chat.policy")
    routing = tmp_path / "chat/routing.py"
    routing.write_text("from django.contrib.auth.models import User\n" + routing.read_text())
    (tmp_path / "chat/settings.py").write_text((ROOT / "tests/settings.py").read_text())
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [
        sys.executable,
        "-c",
        "from chat.asgi import application; print(sorted(application.application_mapping))",
    ]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("['http', 'websocket']\n", 0), done.stderr


async def test_a_policy_of_several(load: Any, settings: Any):
    chat = load("howto.md", "chat.policies")
    settings.EPHEMERAL_STATE = {"POLICY": "chat.policies.ChatPolicy"}

    class Member(User):
        def has_perm(self, permission: str) -> bool:
            return permission in ("chat.view_room", "chat.view_news")

    class Writer(Member):
        def has_perm(self, permission: str) -> bool:
            return True

    class OfTenant(consumers.EphemeralStateConsumer):
        ephemeral_namespace = "tenant:7"

    class OfAnother(consumers.EphemeralStateConsumer):
        ephemeral_namespace = "tenant:8"

    async def may(consumer: Any, user: Any, topic: str, key: str) -> list[bool]:
        async with Browser(consumer.as_asgi(), user) as browser:
            await browser.read_until(_orama="ephemeral.hello")
            answers = [await browser.ask("list", topic=topic), await browser.ask("set", topic=topic, key=key)]
            return [answer.get("code") is None for answer in answers]

    assert issubclass(chat.ChatPolicy, policy.Policy)
    assert await may(OfTenant, Writer(1, "Zoé", 7), "room:1", "1:k") == [True, True]
    assert await may(OfTenant, Writer(1, "Zoé", 7), "room:1", "11:k") == [True, False]
    assert await may(OfTenant, Member(1, "Zoé", 7), "room:1", "1:k") == [True, False]
    assert await may(OfTenant, Writer(1, "Zoé", 7), "news", "1:k") == [True, False]
    assert await may(OfTenant, Writer(1, "Zoé", 7), "elsewhere", "1:k") == [False, False]
    assert await may(OfAnother, Writer(1, "Zoé", 7), "room:1", "1:k") == [False, False]


async def test_a_ban(load: Any, settings: Any, monkeypatch: pytest.MonkeyPatch):
    load("howto.md", "chat.policy")
    settings.EPHEMERAL_STATE = {"POLICY": "chat.policy.RoomPolicy"}
    bans: list[Any] = []
    room = types.SimpleNamespace(pk=1, bans=types.SimpleNamespace(create=lambda user: bans.append(user)))
    ban = load("howto.md", "chat.moderation").ban
    application = URLRouter(load("howto.md", "chat.routing").websocket_urlpatterns)
    async with Browser(application, ZOE, "/ws/state/") as zoe:
        await zoe.read()
        assert (await zoe.ask("subscribe", topic="room:1"))["entries"] == []
        banned = lambda scope, namespace, topic: scope["user"] not in bans  # noqa: E731
        monkeypatch.setattr(policy.get_policy(), "can_subscribe", banned)
        await in_thread(ban, room, ZOE)
        assert await zoe.read() == {"_orama": "ephemeral.revoked", "topic": "room:1"}


async def test_the_test_of_ones_own_consumer(load: Any):
    module = load("howto.md", "chat.test_typing")
    with testing.fresh_store() as clock:
        await module.test_typing_goes_with_its_owner(clock)
    with testing.fresh_store() as clock:
        await module.test_typing_goes_after_five_seconds(clock)


@pytest.mark.redis
async def test_on_redis_the_example_runs_with_the_settings_shown(load: Any, settings: Any):
    consumer = load("howto.md", "chat.typing").TypingConsumer.as_asgi()
    shown: dict[str, Any] = {}
    exec(blocks(section(page("howto.md"), "Run on Redis"), "python")[0], shown)
    layer = shown["CHANNEL_LAYERS"]["default"]
    import_string(layer["BACKEND"])
    with shared_url() as url:
        shown["EPHEMERAL_STATE"]["OPTIONS"] |= {"url": url, "prefix": unique_prefix()}
        (host,) = layer["CONFIG"]["hosts"]
        layer["CONFIG"] |= {"hosts": [host | {"address": url}], "prefix": unique_prefix()}
        settings.CHANNEL_LAYERS = shown["CHANNEL_LAYERS"]
        settings.EPHEMERAL_STATE = shown["EPHEMERAL_STATE"]
        async with Browser(consumer, BOB) as bob:
            async with Browser(consumer) as zoe:
                await zoe.say(typing=True)
                await bob.read_until(_orama="ephemeral.set")
            await bob.read_until(_orama="ephemeral.clear", reason="disconnect")
        await channel_layers["default"].flush()


@pytest.mark.redis
@pytest.mark.parametrize("layer", ["core.RedisChannelLayer", "pubsub.RedisPubSubChannelLayer"])
async def test_the_layer_of_the_settings_shown_loses_no_cancellation(layer: str):
    shown: dict[str, Any] = {}
    exec(blocks(section(page("howto.md"), "Run on Redis"), "python")[0], shown)
    (host,) = shown["CHANNEL_LAYERS"]["default"]["CONFIG"]["hosts"]
    with shared_url() as url:
        channels = import_string(f"channels_redis.{layer}")(hosts=[host | {"address": url}], prefix=unique_prefix())

        async def send() -> None:
            while True:
                await channels.group_send("nobody", {"type": "news"})

        for number in range(60):
            task = asyncio.create_task(send())
            await asyncio.sleep(number % 10 / 5000)
            task.cancel()
            done, _ = await asyncio.wait([task], timeout=5)
            assert done, f"cancellation {number} was lost"
        await channels.flush()


@pytest.mark.redis
async def test_a_socket_outlives_a_redis_that_is_away(load: Any, settings: Any):
    consumer = load("howto.md", "chat.patient").PatientConsumer.as_asgi()
    with RedisServer() as redis:
        url = redis.url
    settings.EPHEMERAL_STATE = {"BACKEND": "ephemeral_state.stores.redis.RedisStore", "OPTIONS": {"url": url}}
    async with Browser(consumer) as zoe:
        for _ in range(2):
            await zoe.say(typing=True)
            assert (await zoe.read())["type"] == "notice"


def test_a_package_index_is_given_no_relative_links_or_images() -> None:
    text = runpy.run_path(str(ROOT / "setup.py"))["description"]()
    assert "# django-ephemeral-state" in text
    assert "See the tutorial, the how-to and the reference" in text
    assert re.findall(r"\]\((?!https?:|#)[^)]*\)|<details>|<img", text) == []
