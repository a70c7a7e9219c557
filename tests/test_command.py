"""`manage.py ephemeral_state`, as called and as a process of its own: what it says, what it does, how it ends."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import redis
from django.core.management import CommandError, call_command

from ephemeral_state import api, background
from ephemeral_state.management import terminal
from ephemeral_state.management.checkup import KINDS
from ephemeral_state.management.commands.ephemeral_state import Command
from ephemeral_state.signals import entry_cleared
from ephemeral_state.stores import get_store

from .redis_server import RedisServer, shared_url, unique_prefix, wait_for

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _own_store(settings, monkeypatch):
    settings.EPHEMERAL_STATE = {}
    monkeypatch.setattr(background, "_LINGER", 0.05)


def called(*arguments):
    """The lines it wrote to either stream, when called within this process."""
    out, err = io.StringIO(), io.StringIO()
    call_command("ephemeral_state", *arguments, stdout=out, stderr=err)
    return out.getvalue().splitlines(), err.getvalue().splitlines()


def refused(*arguments):
    with pytest.raises(CommandError) as caught:
        called(*arguments)
    assert caught.value.returncode == 2
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


# Called, on the memory store


def test_what_is_live_is_listed_with_its_owner_and_payload():
    api.set("room:1", "typing:5", {"name": "Zoé"}, client="specific.zoe", ttl=90)
    api.set("room:2", "k", namespace="acme", client="bob")
    lines, said = called("list")
    assert lines[0].split() == ["NAMESPACE", "TOPIC", "KEY", "OWNER", "NODE", "TIME", "LEFT", "PAYLOAD"]
    assert len(lines) == 3
    assert lines[1].split()[:5] == ["-", "room:1", "typing:5", "specific.zoe", "-"]
    assert '{"name":"Zoé"}' in lines[1]
    assert "1 min 29" in lines[1] or "1 min 30" in lines[1]
    assert lines[2].split()[:4] == ["acme", "room:2", "k", "bob"]
    assert said == ["MemoryStore shows this process only."]


def test_a_list_can_be_narrowed():
    for namespace, topic, key in (("", "a", "1"), ("", "b", "2"), ("acme", "a", "3")):
        api.set(topic, key, namespace=namespace, client=f"Client {key}")

    def keys(*options):
        return [json.loads(line)["key"] for line in called("list", "--json", *options)[0]]

    assert keys() == ["1", "2", "3"]
    assert keys("--topic", "a") == ["1", "3"]
    assert keys("--namespace", "") == ["1", "2"]
    assert keys("--namespace", "acme", "--topic", "a") == ["3"]
    assert keys("--search", "cLIENT 2") == ["2"]
    assert keys("--topic", "nobody") == []
    assert called("list", "--topic", "nobody")[0] == ["Nothing is live."]


@pytest.mark.parametrize("number", [1, 3, 199, 200, 201, 450])
def test_a_limit_is_kept_and_what_is_left_out_is_said(number):
    for n in range(450):
        api.set("room", f"{n:03}")
    for options in (), ("--json",):
        lines, said = called("list", "--limit", str(number), *options)
        assert len(lines) == number + (not options)
        assert (f"There are more than {number}: --limit shows them." in said) is (number < 450)
    assert [json.loads(line)["key"] for line in lines] == [f"{n:03}" for n in range(number)]


def test_json_has_every_field_as_it_is():
    payload = bytes(range(256))
    api.set("a\0\x1b[2J", "\u202e\x7f", payload, namespace="\n", client="c\u2028", ttl=60)
    (line,) = called("list", "--json")[0]
    assert line.isascii()
    assert line.isprintable()
    entry = json.loads(line)
    assert 0 < entry.pop("expires_in_ms") <= 60_000
    assert base64.b64decode(entry.pop("payload")) == payload
    expected = {"namespace": "\n", "topic": "a\0\x1b[2J", "key": "\u202e\x7f", "client_id": "c\u2028", "node": None}
    assert entry == expected


@pytest.mark.parametrize("evil", ["\x1b[2J", "\r\n", "\x9b31m", "\u202e", "\u2028", "\x7f", "\0", "\u200b"])
def test_nothing_that_is_stored_can_disturb_the_terminal(evil):
    api.set(f"t{evil}", f"k{evil}", f"p{evil}", namespace=f"n{evil}", client=f"c{evil}")
    lines, _ = called("list")
    assert len(lines) == 2
    assert lines[1].isprintable()
    assert lines[1].count("\\") >= 5
    assert terminal.shown(evil * 100).isprintable()


def test_a_key_is_cleared_for_everybody():
    api.set("room", "a", client="ann")
    api.set("room", "b", client="bob")
    assert called("clear", "room", "a")[0] == ["Cleared 1."]
    assert [entry.key for entry in api.list("room")] == ["b"]


def test_a_topic_is_cleared_when_one_says_yes(monkeypatch):
    for n in range(300):
        api.set("room", f"{n}", namespace="acme")
    api.set("room", "same name")
    asked = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "no")
    assert "--yes" in refused("clear", "room", "--namespace", "acme")
    assert asked == ["Clear 300 entries of topic room of namespace acme? [y/N] "]
    assert len(api.list("room", namespace="acme")) == 300
    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert called("clear", "room", "--namespace", "acme")[0] == ["Cleared 300."]
    assert api.list("room", namespace="acme") == []
    assert called("clear", "room", "--yes")[0] == ["Cleared 1."]


def test_when_the_command_ends_the_receivers_of_signals_have_heard_what_it_cleared():
    heard = []

    def slow(key, **_):
        time.sleep(0.02)
        heard.append(key)

    for n in range(10):
        api.set("room", f"{n}", client="ann")
    entry_cleared.connect(slow)
    try:
        called("clear", "room", "--yes")
        assert sorted(heard) == [f"{n}" for n in range(10)]
    finally:
        entry_cleared.disconnect(slow)


def test_without_anybody_to_ask_a_topic_stays(monkeypatch, capsys):
    api.set("room", "a")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    refused("clear", "room")
    assert capsys.readouterr().out == "Clear 1 entry of topic room? [y/N] "
    assert len(api.list("room")) == 1


def test_what_is_not_there_cannot_be_cleared_and_nothing_else_is():
    api.set("room", "a")
    assert refused("clear", "elsewhere", "--yes").startswith("nothing is live under topic elsewhere")
    assert refused("clear", "room", "b").startswith("nothing is live under key b in topic room")
    assert "namespace n\\x1b" in refused("clear", "room", "a", "--namespace", "n\x1b")
    assert refused("clear", "", "--yes") == refused("list", "--topic", "") == "topic is empty"
    assert refused("clear", "room", "") == "key is empty"
    for options in ("clear", "\ud800", "--yes"), ("list", "--topic", "\ud800"):
        assert refused(*options) == "topic has a lone surrogate at position 0"
    assert len(api.list("room")) == 1


def test_what_a_successor_has_set_meanwhile_is_not_cleared(monkeypatch):
    from ephemeral_state.management import entries

    api.set("room", "a", client="ann")
    find = entries.find

    async def find_and_be_overtaken(*arguments):
        found = await find(*arguments)
        await api.aset("room", "a", client="bob")
        return found

    monkeypatch.setattr(entries, "find", find_and_be_overtaken)
    assert called("clear", "room", "a")[0] == ["Cleared 0. The rest was gone already."]
    assert [entry.client_id for entry in api.list("room")] == ["bob"]


@pytest.mark.parametrize("arguments", [("watch", "room"), ("processes",), ("doctor",), ("doctor", "--fix", "--json")])
def test_what_needs_a_shared_store_says_so_on_a_memory_store(arguments):
    assert refused(*arguments).startswith("MemoryStore ")


def test_what_a_layer_of_one_process_cannot_carry_is_not_watched(settings):
    settings.EPHEMERAL_STATE = {"BACKEND": "ephemeral_state.stores.redis.RedisStore"}
    assert refused("watch", "room").startswith("InMemoryChannelLayer ")


@pytest.mark.parametrize(
    "wrong",
    [{"LEASE": 1}, {"LEASE": "12"}, {"NONSENSE": 1}, {"BACKEND": "no.such.Store"}, {"BACKEND": "os.path"}, []],
)
@pytest.mark.parametrize("arguments", [("list",), ("watch", "room"), ("clear", "room"), ("processes",), ("doctor",)])
def test_wrong_settings_are_said_in_one_line(settings, wrong, arguments):
    settings.EPHEMERAL_STATE = wrong
    assert "EPHEMERAL_STATE" in refused(*arguments)


# In processes of its own, on Redis

HOLDER = """
    import asyncio, sys
    import django

    django.setup()

    from ephemeral_state.connection import Connection
    from ephemeral_state.delivery import Direct
    from ephemeral_state.node import current
    from ephemeral_state.state import UNTIL_DISCONNECT, Topic

    async def send(message):
        pass

    async def main():
        connections = [Connection(f"holder.{n}", current(), Direct(send, lambda error: None)) for n in range(2)]
        await connections[0].set(Topic("acme", "room"), "held", {"by": "me"}, UNTIL_DISCONNECT)
        await asyncio.sleep(1.2)  # until the second beat, which tells of what is owned by now
        print(current().id, flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        for connection in connections:
            await connection.end(abnormal=False)

    asyncio.run(main())
"""


class Shell:
    """Runs commands with settings of their own: a Redis for the state and the channel layer."""

    def __init__(self, folder, url, prefix, **setting):
        layer = {"BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer", "CONFIG": {"hosts": [url]}}
        layer["CONFIG"]["prefix"] = prefix
        state = {"BACKEND": "ephemeral_state.stores.redis.RedisStore", "OPTIONS": {"url": url, "prefix": prefix}}
        text = f"from tests.settings import *\nEPHEMERAL_STATE = {state | setting!r}\n"
        (folder / "shell_settings.py").write_text(text + f"CHANNEL_LAYERS = {{'default': {layer!r}}}\n")
        self.env = os.environ | {
            "DJANGO_SETTINGS_MODULE": "shell_settings",
            "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
            "PYTHONWARNINGS": "default::ResourceWarning",
        }
        self.running = []

    def run(self, *arguments, code=0):
        """What it wrote to standard output; to standard error it may write only if it ends with an error."""
        done = subprocess.run(self._command(arguments), env=self.env, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stderr
        assert code == 2 or done.stderr == ""
        return done.stderr if code == 2 else done.stdout

    def python(self, script):
        """What a program of its own wrote to standard output; to standard error it may write nothing."""
        command = [sys.executable, "-c", textwrap.dedent(script)]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def start(self, *arguments):
        return self._start(self._command(arguments))

    def hold(self):
        """A process with two connections, one of which owns an entry without a deadline; and its node."""
        process = self._start([sys.executable, "-c", textwrap.dedent(HOLDER)])
        return process, process.stdout.readline().strip()

    def end(self):
        for process in self.running:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                stream.close()

    def _start(self, command):
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, env=self.env, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self.running.append(process)
        return process

    def _command(self, arguments):
        return [sys.executable, "-m", "django", "ephemeral_state", *arguments]


@pytest.fixture(scope="module")
def redis_url():
    with shared_url() as url:
        yield url


@pytest.fixture
def prefix(redis_url):
    prefix = unique_prefix()
    yield prefix
    with redis.Redis.from_url(redis_url) as client:
        for key in client.scan_iter(match=f"{{{prefix}:*", count=1000):
            client.unlink(key)


@pytest.fixture
def shell(tmp_path, redis_url, prefix, settings, request):
    settings.EPHEMERAL_STATE = {
        "BACKEND": "ephemeral_state.stores.redis.RedisStore",
        "OPTIONS": {"url": redis_url, "prefix": prefix, "timeout": 20},
    }
    settings.CHANNEL_LAYERS = {
        "default": {
            "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
            "CONFIG": {"hosts": [redis_url], "prefix": prefix},
        }
    }
    shell = Shell(tmp_path, redis_url, prefix, **getattr(request, "param", {}))
    yield shell
    shell.end()
    # The loop of the api closes its connections when nobody has used it for a while, and to this store.
    wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name == "ephemeral-state"])


class Lines:
    """The lines of a stream, as they come."""

    def __init__(self, stream):
        self.lines = []
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def _read(self, stream):
        for line in stream:
            self.lines.append(line.rstrip("\n"))

    def wait_for(self, *parts):
        wait_for(lambda: any(all(part in line for part in parts) for line in self.lines), timeout=20)

    def join(self):
        self._thread.join(20)


def processes(shell):
    return [json.loads(line) for line in shell.run("processes", "--json").splitlines()]


@pytest.mark.redis
def test_a_topic_is_watched_live_until_ctrl_c(shell):
    api.set("room", "early", "bird", namespace="acme", client="ann")
    watch = shell.start("watch", "room", "--namespace", "acme")
    lines = Lines(watch.stdout)
    lines.wait_for("live", "early", "ann", "bird")
    api.set("room", "k\x1b[2J", {"x": 1}, namespace="acme", client="c\x1b")
    lines.wait_for(" set ", "k\\x1b[2J", "c\\x1b", '{"x":1}')
    api.set("room", "elsewhere")
    api.clear("room", "k\x1b[2J", namespace="acme")
    lines.wait_for("cleared: explicit", "k\\x1b[2J")
    api.disconnect("ann")
    lines.wait_for("cleared: disconnect", "early", "ann")
    shell.run("clear", "room", "nobody", "--namespace", "acme", code=2)
    api.set("room", "again", namespace="acme")
    lines.wait_for("again")
    assert shell.run("clear", "room", "--yes", "--namespace", "acme") == "Cleared 1.\n"
    lines.wait_for("cleared: explicit", "again")
    watch.send_signal(signal.SIGINT)
    assert watch.wait(20) == 0
    lines.join()
    assert watch.stderr.read() == ""
    assert len(lines.lines) == 6
    assert all(line.isprintable() for line in lines.lines)


@pytest.mark.redis
def test_what_is_watched_can_be_read_by_a_program(shell):
    watch = shell.start("watch", "room", "--json")
    lines = Lines(watch.stdout)
    end = time.monotonic() + 20
    while not lines.lines and time.monotonic() < end:  # nothing tells when it has begun
        api.set("room", "k", b"\xff", ttl=30, client="ann")
        time.sleep(0.2)
    api.clear("room", "k")
    lines.wait_for('"clear"')
    watch.send_signal(signal.SIGINT)
    assert watch.wait(20) == 0
    lines.join()
    first, last = json.loads(lines.lines[0]), json.loads(lines.lines[-1])
    assert first["event"] in ("live", "set")
    assert base64.b64decode(first["payload"]) == b"\xff"
    assert 0 < first["expires_in_ms"] <= 30_000
    wanted = {"event": "clear", "reason": "explicit", "namespace": "", "topic": "room", "key": "k"}
    assert last.items() >= {**wanted, "client_id": "ann", "payload": "", "expires_in_ms": None}.items()


@pytest.mark.redis
def test_a_reader_that_has_seen_enough_ends_the_watch_quietly(shell):
    for n in range(3):
        api.set("room", f"{n}")
    watch = shell.start("watch", "room")
    watch.stdout.readline()
    watch.stdout.close()
    end = time.monotonic() + 20
    while watch.poll() is None and time.monotonic() < end:
        api.set("room", "more")
        time.sleep(0.1)
    assert watch.returncode == 0
    assert watch.stderr.read() == ""


@pytest.mark.redis
def test_watching_leaves_no_trace(shell, redis_url, prefix):
    watch = shell.start("watch", "room")
    lines = Lines(watch.stdout)
    api.set("room", "k")
    lines.wait_for("k")
    assert processes(shell) == []
    watch.send_signal(signal.SIGINT)
    watch.wait(20)
    with redis.Redis.from_url(redis_url) as client:
        assert not [key for key in client.scan_iter(match=f"*{prefix}*") if b"lease" in key or b"node" in key]


@pytest.mark.redis
def test_the_processes_are_listed_alive_then_frozen_then_gone(shell):
    assert shell.run("processes") == "No process holds a lease: none has a connection.\n"
    process, node = shell.hold()
    (row,) = processes(shell)
    assert row["node"] == node
    assert (row["pid"], row["connections"], row["entries"]) == (process.pid, 2, 1)
    assert (row["linked"], row["state"]) == (True, "alive")
    assert 0 < row["age"] < 60
    assert 10_000 < row["lease_remaining_ms"] <= 12_000
    head, line = shell.run("processes").splitlines()
    assert head.split() == ["NODE", "HOST", "PID", "AGE", "CONNECTIONS", "ENTRIES", "LEASE", "LINKED", "STATE"]
    assert line.split()[0] == node
    assert line.endswith("yes     alive")
    assert json.loads(shell.run("list", "--json"))["node"] == node
    process.send_signal(signal.SIGSTOP)
    wait_for(lambda: processes(shell)[0]["state"] == "frozen", timeout=30)
    process.kill()
    wait_for(lambda: (processes(shell)[0]["state"], processes(shell)[0]["linked"]) == ("gone", False), timeout=30)


@pytest.mark.redis
@pytest.mark.parametrize("shell", [{"LEASE": 5}], indirect=True)
def test_a_process_with_a_shorter_lease_is_alive_for_the_command_and_the_admin(shell, admin_client):
    process, _ = shell.hold()
    for _ in range(5):  # at different moments between two renewals
        (line,) = called("processes", "--json")[0]
        assert (json.loads(line)["state"], json.loads(line)["pid"]) == ("alive", process.pid)
        html = admin_client.get("/admin/ephemeral_state/entry/overview/").content.decode()
        assert re.findall(r'class="ephemeral-state[^>]*>([^<]*)<', html) == ["alive"]
        assert "does not renew" not in html


@pytest.mark.redis
@pytest.mark.parametrize("shell", [{"LEASE": 3}], indirect=True)
def test_what_the_only_process_left_behind_is_found_and_buried(shell):
    process, node = shell.hold()
    watch = shell.start("watch", "room", "--namespace", "acme")
    lines = Lines(watch.stdout)
    lines.wait_for("live", "held", "holder.0")
    assert "Everything fits together" in shell.run("doctor")
    process.kill()
    wait_for(lambda: processes(shell)[0]["lease_remaining_ms"] < -3500, timeout=30)
    report = json.loads(shell.run("doctor", "--json", code=1))
    assert [(each["kind"], each["found"]) for each in report["findings"]] == [("unburied", 1)]
    assert report["findings"][0]["examples"] == [{"node": node}]
    assert ", repaired" in shell.run("doctor", "--fix")
    lines.wait_for("cleared: disconnect", "held")
    assert shell.run("list") == "Nothing is live.\n"
    assert "Everything fits together" in shell.run("doctor")


@pytest.mark.redis
def test_a_process_that_ends_in_order_leaves_nothing(shell):
    process, _ = shell.hold()
    process.communicate("\n", timeout=20)
    assert process.returncode == 0
    assert shell.run("processes") == "No process holds a lease: none has a connection.\n"
    assert "Everything fits together" in shell.run("doctor")


def transitions():
    """The latest, as the admin shows them: the last one first."""

    async def look():
        store = get_store()
        try:
            return [(each.key, each.reason) for each in (await store.history()).transitions]
        finally:
            await store.close()

    return asyncio.run(look())


@pytest.mark.redis
def test_people_are_told_what_processes_without_connections_did_however_soon_they_end(shell):
    for n in range(3):
        api.set("room", f"{n}")
    wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name == "ephemeral-state"])
    assert transitions() == [("2", None), ("1", None), ("0", None)]
    assert shell.run("clear", "room", "1") == "Cleared 1.\n"
    assert transitions()[0] == ("1", "explicit")
    shell.python("""
        import django

        django.setup()

        from ephemeral_state import api

        api.set("room", "of a script")
        api.clear("room", "of a script")
    """)
    assert transitions()[:2] == [("of a script", "explicit"), ("of a script", None)]


@pytest.mark.redis
def test_a_process_that_ends_has_told_the_receivers_of_signals_what_it_set(shell):
    said = shell.python("""
        import time
        import django

        django.setup()

        from ephemeral_state import api
        from ephemeral_state.signals import entry_set

        def slow(key, **_):
            time.sleep(0.1)
            print(key)
            if key == "3":
                api.set("room", "of a receiver")  # which is told of it too

        entry_set.connect(slow)
        for n in range(4):
            api.set("room", f"{n}")
    """)
    assert said.splitlines() == ["0", "1", "2", "3", "of a receiver"]


@pytest.mark.redis
@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        (),
        ("list", "--limit", "0"),
        ("list", "--limit", "many"),
        ("list", "--nonsense"),
        ("watch",),
        ("clear",),
        ("clear", "room", "k", "too much"),
        ("doctor", "--fix=please"),
        ("clear", "elsewhere", "--yes"),
        ("clear", ""),
        ("watch", ""),
    ],
)
def test_garbage_ends_with_code_2_and_changes_nothing(shell, arguments):
    api.set("room", "k")
    said = shell.run(*arguments, code=2)
    assert "Traceback" not in said
    last = said.splitlines()[-1]
    assert last.startswith("CommandError: ") or ": error: " in last
    assert len(api.list("room")) == 1


@pytest.mark.redis
def test_a_wrong_lease_keeps_a_shared_store_as_it_is(tmp_path, shell, redis_url, prefix):
    api.set("room", "k")
    (tmp_path / "wrong").mkdir()
    wrong = Shell(tmp_path / "wrong", redis_url, prefix, LEASE=1)
    for arguments in (("doctor", "--fix"), ("clear", "room", "--yes")):
        said = wrong.run(*arguments, code=2)
        assert said.startswith("CommandError: EPHEMERAL_STATE['LEASE'] must be ")
        assert len(said.splitlines()) == 1
    assert len(api.list("room")) == 1


@pytest.mark.redis
def test_a_redis_that_says_nothing_ends_the_doctor_in_time_with_code_2(tmp_path):
    with RedisServer() as server:
        shell = Shell(tmp_path, server.url, "p")
        server.stop()
        try:
            assert shell.run("doctor", "--fix", code=2) == "CommandError: Redis did not answer within 2 s\n"
        finally:
            server.cont()


@pytest.mark.redis
@pytest.mark.parametrize("arguments", [("list",), ("watch", "room"), ("clear", "r"), ("processes",), ("doctor",)])
def test_without_redis_it_ends_with_code_2_and_one_line(tmp_path, arguments):
    with RedisServer() as server:
        url = server.url
    said = Shell(tmp_path, url, "p").run(*arguments, code=2)
    *told, last = said.splitlines()
    if arguments[0] == "watch":
        assert last == "CommandError: the channel layer fails"
        (cause,) = told
        assert "Connection refused" in cause or "Connect call failed" in cause
    else:
        assert last.startswith("CommandError: Redis refused the connection: nothing")
        assert not told


@pytest.mark.parametrize(
    ("lease", "part"),
    [
        (1.4, "must be a finite number of at least 1.5 seconds, three beats, not 1.4"),
        (0, "must be a finite number of at least 1.5 seconds, three beats, not 0"),
        (-12, "must be a finite number of at least 1.5 seconds, three beats, not -12"),
        ("12", "must be a number of seconds, not str"),
        (None, "must be a number of seconds, not NoneType"),
    ],
)
@pytest.mark.parametrize("arguments", [("doctor", "--fix"), ("clear", "room", "--yes")])
def test_a_wrong_lease_ends_with_code_2_and_one_line(settings, lease, part, arguments):
    settings.EPHEMERAL_STATE = {"LEASE": lease}
    assert refused(*arguments) == f"EPHEMERAL_STATE['LEASE'] {part}"


def section(heading):
    text = (ROOT / "docs" / "reference.md").read_text()
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_every_subcommand_and_option_is_in_the_reference_and_no_other():
    (subparsers,) = [
        action for action in Command().create_parser("manage.py", "ephemeral_state")._actions if action.dest == "verb"
    ]
    listed = {}
    for line in re.findall(r"^\| `(.*?)` \|", section("The command"), re.MULTILINE):
        verb, *words = re.findall(r"[-\w]+", line)
        if verb in subparsers.choices:
            listed[verb] = {word for word in words if word.startswith("--")}
    made = {
        verb: {name for action in parser._actions for name in action.option_strings} - {"--help", "-h"}
        for verb, parser in subparsers.choices.items()
    }
    assert listed == made


def test_every_kind_of_finding_is_in_the_reference_and_no_other():
    table = section("The command").partition("| kind |")[2]
    first = "".join(line.split("|")[1] for line in table.splitlines()[2:] if line.startswith("|"))
    assert set(re.findall(r"`([\w-]+)`", first)) == {kind.name for kind in KINDS.values()}


def test_the_exit_codes_are_in_the_help(tmp_path):
    text = Shell(tmp_path, "redis://localhost", "p").run("--help")
    assert "Exit codes: 0 " in " ".join(text.split())
