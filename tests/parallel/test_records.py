"""What is kept of each stage's run, for the report."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from parallel.graphs import Graph, Stages
from parallel.test_schedule import until
from ruamel.yaml import YAML

from dvc_parallel.records import Records
from toycircuits.core.config import InputError

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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": {}', "not valid JSON: Expecting ',' delimiter"),
        ("[]", "found list; allowed is an object of records by stage"),
        ('{"a": 1}', "a: found 1; allowed is an object"),
    ],
)
def test_what_is_no_file_of_records_is_named_and_left(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "stages.json"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        Records(file, tmp_path / "spent", set(), [], tmp_path)
    assert str(error.value).startswith(f"{file}: {message}")
    assert "\n" not in str(error.value)
    assert file.read_text() == text


def test_what_fails_while_recording_is_a_warning(graph: Graph) -> None:
    """A finished stage is done, and one that fails fails for its own reason."""
    driver = (graph.folder / "drive.py").read_text()
    broken = "def broken(*told): raise KeyError('seconds')\nRecords.add = broken\n"
    cut = driver.index("class Silent")
    (graph.folder / "drive.py").write_text(driver[:cut] + broken + driver[cut:])
    process = graph.start(targets=["b"])
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out)["states"] == {"a": "done", "b": "done"}
    warning = "warning: no record kept of its run: KeyError: 'seconds'"
    assert f"done a {warning}\n" in err
    pipeline = (graph.folder / "dvc.yaml").read_text()
    (graph.folder / "dvc.yaml").write_text(pipeline.replace("cat a > b", "exit 3"))
    err = graph.start(targets=["b"]).communicate(timeout=60)[1]
    assert f"failed b exit code 3; {warning}\n" in err


def test_attempts_that_nobody_can_read_do_not_count(graph: Graph) -> None:
    kept = graph.folder / ".resume/spent/a.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("[]")
    graph.run(targets=["a"])
    assert records(graph)["a"]["attempts"] == 1
    assert not kept.exists()
