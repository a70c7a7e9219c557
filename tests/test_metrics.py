"""Counts, metrics and spans: they say what happened, belong to whom they should, and nothing depends on them."""

import ast
import asyncio
import os
import subprocess
import sys
import threading

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ephemeral_state import api, metrics, tracing
from ephemeral_state.connection import Connection
from ephemeral_state.consumers import EphemeralStateConsumer
from ephemeral_state.delivery import Direct
from ephemeral_state.errors import NameRequired
from ephemeral_state.node import current
from ephemeral_state.state import UNTIL_DISCONNECT, Clear, Set, Topic
from ephemeral_state.tally import tally, totals
from ephemeral_state.testing import fresh_store

from .live.peer import Peer
from .test_docs import SOURCE, code, page, rows, section
from .test_hub import TOPIC, Client, Rig
from .waiting import until

ROOM = Topic("", "room")


STATES = {each.name for each in metrics.INSTRUMENTS if each.kind != "counter"}


class Metrics:
    """What a provider of the project reads."""

    def __init__(self, monkeypatch):
        self._reader = InMemoryMetricReader()
        self._provider = MeterProvider([self._reader])
        with monkeypatch.context() as patch:
            patch.setattr("opentelemetry.metrics.get_meter", self._provider.get_meter)
            metrics.register.__wrapped__()
        self._before = self.read()

    def read(self):
        found = {}
        for resource in self._reader.get_metrics_data().resource_metrics:
            for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
                for point in metric.data.data_points:
                    (value,) = dict(point.attributes).values() or ("",)
                    found[metric.name.removeprefix("ephemeral_state."), value] = point.value
        return found

    def more(self):
        """What is there now, and what was counted since the beginning; without what is 0."""
        found = self.read()
        changed = {key: n if key[0] in STATES else n - self._before.get(key, 0) for key, n in found.items()}
        return {key: n for key, n in changed.items() if n}

    def end(self):
        self._provider.shutdown()


@pytest.fixture
def measured(monkeypatch):
    measured = Metrics(monkeypatch)
    yield measured
    measured.end()


@pytest.fixture
def spans(monkeypatch):
    """A function that returns the spans that have ended, by name."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("tests"))
    yield lambda: {span.name.removeprefix("ephemeral_state."): span for span in exporter.get_finished_spans()}
    provider.shutdown()


async def taken(message):
    """A socket that takes everything."""


def connection(name):
    return Connection(name, current(), Direct(taken, pytest.fail))


# The documentation


def test_the_page_lists_every_instrument_and_no_other():
    listed = {}
    for name, _, kind, unit, attribute, _ in rows(section(page("metrics.md"), "Metrics")):
        listed[code(name)[0]] = (kind.replace("-", "_").replace(" ", "_"), *code(unit), *code(attribute)[:1])
    assert listed == {
        each.name: (each.kind, each.unit, *filter(None, [each.attribute])) for each in metrics.INSTRUMENTS
    }


def test_the_page_lists_every_span_and_no_other():
    listed = {
        code(name)[0].partition(".")[2]: set(code(about))
        for name, about, _ in rows(section(page("metrics.md"), "Traces"))
    }
    made = {}
    for call in (each for each in ast.walk(ast.parse(SOURCE)) if isinstance(each, ast.Call)):
        if isinstance(call.func, ast.Name) and call.func.id == "span":
            name, *topic = call.args
            made[name.value] = {each.arg for each in call.keywords} | ({"namespace", "topic"} if topic else set())
    assert listed == made


# Counting


def test_threads_count_without_losing_any_and_their_names_are_used_again():
    before, own = totals(), []
    together = threading.Barrier(4)

    def count():
        together.wait()
        own.append(tally())
        for _ in range(20_000):
            tally()["tests"] += 1

    for _ in range(3):
        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        seen = [totals()["tests"] for _ in range(50)]
        for thread in threads:
            thread.join()
        assert seen == sorted(seen)
        assert len({id(each) for each in own[-4:]}) == 4
    assert totals()["tests"] - before["tests"] == 3 * 4 * 20_000
    assert len({id(each) for each in own}) < 12


def test_a_child_begins_at_nothing():
    tally()["tests"] += 1
    child = os.fork()
    if child == 0:
        os._exit(0 if not totals() else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert totals()["tests"]


async def test_what_happens_is_what_is_measured(measured):
    with fresh_store() as clock:
        owner, near, far = connection("owner"), connection("near"), connection("far")
        for follower in (near, far):
            await follower.subscribe(ROOM)
        await asyncio.gather(*(owner.set(ROOM, f"{n}", ttl=UNTIL_DISCONNECT) for n in range(5)))
        await owner.set(ROOM, "soon", ttl=1)
        await until(lambda: measured.more().get(("deliveries", "")) == 12)
        assert measured.more() == {
            ("connections", ""): 3,
            ("entries", ""): 6,
            ("topics", ""): 1,
            ("sets", ""): 6,
            ("writes", ""): 6,
            ("batches", ""): 6,  # a store that answers at once is asked at once
            ("changes", ""): 6,
            ("deliveries", ""): 12,
        }
        await owner.clear(ROOM, "0")
        clock.advance(1.5)
        await until(lambda: ("clears", "expired") in measured.more())
        await owner.end(abnormal=False)
        await until(lambda: measured.more().get(("deliveries", "")) == 24)
        more = measured.more()
        assert {reason: more["clears", reason] for reason in ("explicit", "expired", "disconnect")} == {
            "explicit": 1,
            "expired": 1,
            "disconnect": 4,
        }
        assert (more["writes", ""], more["connections", ""], ("entries", "") in more) == (8, 2, False)
        for follower in (near, far):
            await follower.end(abnormal=False)
        assert {"connections", "topics"}.isdisjoint(name for name, _ in measured.more())


async def test_a_late_subscriber_is_counted_for_what_it_hears_itself(measured):
    rig = Rig()
    early, late = Client(), Client()
    await rig.hub.follow(TOPIC, early.delivery)
    await rig.write(Set("c", TOPIC, "first"))
    await until(lambda: len(early.frames) == 2)
    await rig.write(Set("c", TOPIC, "second"), Set("c", TOPIC, "third"))  # the room rests: it waits
    await rig.hub.follow(TOPIC, late.delivery)
    await until(lambda: early.view == late.view and len(early.view) == 3)
    told = sum(frame["_orama"] != "ephemeral.snapshot" for client in (early, late) for frame in client.frames)
    assert measured.more()["deliveries", ""] == told
    await rig.hub.stop()


async def test_repairs_are_counted_by_what_was_noticed(measured, spans):
    rig = Rig()
    client = Client()
    await rig.hub.follow(TOPIC, client.delivery)
    await rig.write(Set("c", TOPIC, "lost"), tell=False)
    await rig.write(Set("c", TOPIC, "shows the gap"))
    await until(lambda: len(client.view) == 2)
    assert measured.more()["repairs", "gap"] == 1
    await rig.write(Clear("c", TOPIC, "lost"), tell=False)
    await until(lambda: len(client.view) == 1)
    assert measured.more()["repairs", "beacon"] >= 1
    await rig.hub.stop()
    assert dict(spans()["repair"].attributes) == {"ephemeral_state.namespace": "", "ephemeral_state.topic": "room"}


async def test_refused_commands_are_counted_by_code(measured, settings):
    settings.EPHEMERAL_STATE = {"MAX_FRAME_BURST": 4}
    async with Peer(EphemeralStateConsumer.as_asgi()) as peer:
        for text in ("no command", '{"_orama":"ephemeral.list","topic":"t"}', "x" * 70_000, "one too many", "another"):
            peer.arrive("websocket.receive", text=text)
        codes = []
        while len(codes) < 5:
            frame = await peer.frame()
            codes += [frame["code"]] if frame["_orama"] == "ephemeral.error" else []
    counted = {code: n for (name, code), n in measured.more().items() if name == "refusals"}
    assert counted == {code: codes.count(code) for code in codes}
    assert set(codes) == {"bad_frame", "forbidden", "rate_limited"}


# Spans


@pytest.mark.parametrize("serving", [False, True], ids=["a loop of our own", "the loop that serves"])
async def test_a_call_is_a_part_of_its_callers_trace(spans, serving):
    def view():
        with trace.get_tracer_provider().get_tracer("view").start_as_current_span("view") as span:
            api.set("room", "secret-key", "secret-payload", namespace="n")
            api.clear("room", "secret-key", namespace="n")
            api.list("room")
            api.list_many(["room", "hall"])
            api.count(["room"])
            api.browse()
            api.disconnect("secret-client")
            api.revoke(7)
            return span.get_span_context().trace_id

    here = connection("someone") if serving else None
    provider = TracerProvider()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "get_tracer_provider", lambda: provider)
        trace_id = await asyncio.to_thread(view)
    if here is not None:
        await here.end(abnormal=False)
    found = spans()
    assert {name: span.context.trace_id for name, span in found.items()} == dict.fromkeys(
        ("set", "clear", "list", "list_many", "count", "browse", "disconnect", "revoke"), trace_id
    )
    assert "secret" not in "".join(span.to_json() for span in found.values())
    assert dict(found["set"].attributes) == {"ephemeral_state.namespace": "n", "ephemeral_state.topic": "room"}
    assert dict(found["list_many"].attributes) == {"ephemeral_state.topics": 2}


async def test_what_is_raised_is_in_the_span(spans):
    with pytest.raises(NameRequired):
        await api.aclear("", "k", client="c")
    assert spans()["clear"].status.description == "NameRequired: topic is empty"


async def test_what_a_process_does_for_itself_is_no_part_of_the_trace_of_whoever_came_first(spans):
    provider = TracerProvider()
    with provider.get_tracer("socket").start_as_current_span("the first connection"):
        first = connection("first")
        await first.subscribe(ROOM)
        await first.set(ROOM, "k", ttl=5)
    node = current()
    await node.store.apply([Set("other", ROOM, "lost")])  # and nobody is told
    await until(lambda: "repair" in spans())
    assert spans()["repair"].parent is None
    await first.end(abnormal=False)


# Without it


def test_without_the_package_everything_works_and_nothing_of_it_is_loaded():
    program = """
import sys
sys.modules["opentelemetry"] = None
import django
django.setup()
from ephemeral_state import api, metrics, tracing
with api.hold("room", "k"):
    api.set("room", "other", ttl=5)
    assert len(api.list("room")) == 2
assert tracing.span("set") is tracing.span("repair")
metrics.register()
assert not [name for name in sys.modules if name.startswith("opentelemetry.")]
"""
    environment = os.environ | {"DJANGO_SETTINGS_MODULE": "tests.settings"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
