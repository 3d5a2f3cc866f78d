"""What is kept of each stage's run, for the report."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from executor.graphs import Graph, Stages
from executor.test_schedule import until
from ruamel.yaml import YAML

pytestmark = pytest.mark.slow
BUSY = "python3 -c 'import time; [0 for _ in iter(lambda: time.process_time() > 1, True)]'"
STAGES: Stages = {
    "a": {"cmd": f"{BUSY}; cat source > a", "deps": ["source"], "params": ["a"], "outs": ["a"]},
    "b": {"cmd": "cat a > b", "deps": ["a"], "outs": ["b"]},
    "report": {"cmd": "cat b > page", "deps": ["b", "reports/stages.json"], "outs": ["page"]},
}


def records(graph: Graph) -> dict[str, dict[str, Any]]:
    return dict(json.loads((graph.folder / "reports/stages.json").read_text()))


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    graph = Graph(tmp_path / "graph", STAGES)
    (graph.folder / "source").write_text("0\n")
    return graph


def test_inputs_time_and_machine_are_kept(graph: Graph) -> None:
    assert set(graph.run().values()) == {"done"}
    kept = records(graph)
    assert [*kept] == ["a", "b"], "what reads the file cannot be in it"
    entry = YAML(typ="safe").load(graph.lock())["stages"]["a"]
    assert {name: kept["a"][name] for name in entry} == entry
    assert kept["a"]["processor_seconds"] == pytest.approx(1, abs=0.9)
    assert kept["a"]["seconds"] >= 0.9
    assert kept["a"]["cores"] == len(os.sched_getaffinity(0))
    assert kept["a"]["attempts"] == 1
    assert kept["a"]["torch"]
    assert set(graph.run().values()) == {"unchanged"}, "the records made their reader stale"
    assert "up to date" in graph.dvc("status")


def test_a_record_ends_with_what_it_tells_of(graph: Graph) -> None:
    """Results that DVC takes from its cache keep their record only if it is of just those."""
    graph.run()
    first = records(graph)
    (graph.folder / "b").unlink()
    assert graph.run()["b"] == "cached"
    assert records(graph) == first
    (graph.folder / "source").write_text("1\n")
    graph.run()
    second = records(graph)
    assert second["a"]["deps"] != first["a"]["deps"]
    (graph.folder / "source").write_text("0\n")
    assert graph.run()["a"] == "cached"
    assert not {"a", "b"} & {*records(graph)}


def test_time_of_interrupted_attempts_counts(graph: Graph) -> None:
    stages = json.loads(json.dumps(STAGES))
    stages["a"]["cmd"] = f"{BUSY}; touch begun; [ -e go ] || sleep 600; cat source > a"
    graph = Graph(graph.folder.parent / "other", stages)
    (graph.folder / "source").write_text("0\n")
    process = graph.start()
    until((graph.folder / "begun").exists)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    (graph.folder / "go").touch()
    graph.run()
    kept = records(graph)["a"]
    assert kept["attempts"] == 2
    assert kept["processor_seconds"] == pytest.approx(2, abs=0.9)
