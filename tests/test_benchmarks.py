"""A tiny run of each benchmark: its table has all its rows, and every delivery was counted. Not its speed."""

import json
import shutil
from xml.etree import ElementTree

import pytest

from benchmarks import churn, cursors, hostile, idle, metrics, pings, plot, slow, steady, storm

pytestmark = pytest.mark.skipif(not shutil.which("npm"), reason="the load generator needs Node and npm")


@pytest.fixture
def run(tmp_path, capsys):
    """Runs a benchmark as on the command line, on uvicorn, and returns the runs of its only table by contender."""

    def runs(scenario, *arguments, written=None):
        name = written or scenario.__name__.rpartition(".")[2]
        code = scenario.main(["--quick", "--servers", "uvicorn", "--results", str(tmp_path), *arguments])
        printed = capsys.readouterr().out
        assert code in (0, 1), printed  # whether an aim is reached by so small a run says nothing
        (path,) = tmp_path.glob(f"*-{name}.json")
        (table,) = json.loads(path.read_text())["tables"]
        found = {contender: results for contender, (results,) in table["rounds"].items()}
        for contender, result in found.items():
            assert "failed" not in result, result
            assert f"\n{contender} " in printed
            assert "errors" not in result or result["errors"] == 0 or "skipped" in result
        return {contender: result for contender, result in found.items() if "skipped" not in result}

    return runs


OURS = {"uvicorn memory ours", "uvicorn memory ours batch"}


def test_steady_counts_every_delivery_and_can_be_drawn(run, tmp_path, capsys):
    apps = ("ours", "sync", "handwritten", "bare", "socketio")
    runs = run(steady, "--layers", "pubsub", "--seconds", "0.3", "--apps", *apps)
    ceiling = runs.pop("node - blast")
    assert ceiling["updates"] > 0
    for name, result in runs.items():
        assert result["sent"] > 0, name
        assert result["delivered"] == result["expected"] == 20 * result["sent"], name
    ours = {"uvicorn pubsub ours", "uvicorn pubsub ours batch"}
    others = {"uvicorn pubsub sync", "uvicorn pubsub handwritten", "uvicorn - bare", "node - socketio"}
    assert runs.keys() == ours | others

    assert plot.main(["--results", str(tmp_path), "--images", str(tmp_path)]) == 0
    capsys.readouterr()
    texts = ElementTree.parse(tmp_path / "benchmark-steady.svg").iter("{http://www.w3.org/2000/svg}text")
    assert {"ours, uvicorn, pubsub", "Socket.IO"} <= {text.text for text in texts}


def test_what_is_scraped_delivers_as_much(run):
    runs = run(metrics, "--layers", "memory")
    assert runs.keys() == {"uvicorn memory ours without", "uvicorn memory ours", "uvicorn memory ours scraped"}
    for name, result in runs.items():
        assert result["delivered"] == result["expected"] == 20 * result["sent"], name
        assert result["cpu_us_per_update"] > 0, name


def test_connections_that_are_asked_are_compared_with_such_that_are_not(run):
    runs = run(pings)
    assert runs.keys() == {"uvicorn memory mixin", "uvicorn memory mixin unasked"}
    assert {result["connections"] for result in runs.values()} == {60}


def test_cursors_end_where_they_were_left(run):
    runs = run(cursors, "--layers", "memory", "--seconds", "0.3", "--apps", "ours")
    assert runs.keys() == OURS | {"uvicorn memory ours batch+rate"}
    for name, result in runs.items():
        assert 0 < result["delivered"] <= 8 * result["sets"], name
        assert result["wrong_at_the_end"] == 0, name


def test_a_small_storm_reaches_every_observer(run):
    runs = run(storm, "--layers", "memory", "--seconds", "2", "--apps", "ours", "handwritten")
    assert runs.keys() == OURS | {"uvicorn memory handwritten"}
    for name, result in runs.items():
        assert result["delivered"] + result["missing"] == result["expected"] == 18 * 6 * 5, name
    assert {runs[name]["missing"] for name in OURS} == {0}


def test_churn_and_idle_have_all_their_connections(run):
    for scenario in (churn, idle):
        runs = run(scenario, "--layers", "memory", "--apps", "ours")
        assert runs["uvicorn memory ours"]["connections"] == 60


def test_a_slow_reader_is_at_the_truth_after_reading_again(run):
    runs = run(slow, "--layers", "memory", "--seconds", "0.5", "--apps", "ours", "socketio")
    assert runs.keys() == OURS | {"node - socketio"}
    for name, result in runs.items():
        assert result["wrong_at_the_end"] == 0, name
        assert result["delivered"] == result["expected"], name


@pytest.mark.parametrize(("where", "written"), [((), "hostile"), (("--apart",), "hostile-apart")])
def test_beside_a_hostile_client_everything_arrives_and_nobody_else_is_sent_away(run, where, written):
    runs = run(hostile, "--layers", "memory", "--seconds", "1", "--apps", "ours", *where, written=written)
    (result,) = runs.values()
    assert result["delivered_share"] == 1
    assert result["lost"] == 0
    assert result["attacks"]["commands"] > 0
