"""A result belongs to the inputs that its record names, whenever somebody edits them."""

import hashlib
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from parallel.graphs import Graph, Stages
from parallel.test_schedule import of, until
from ruamel.yaml import YAML

pytestmark = pytest.mark.slow

# The command tells us what it does, and waits for us.
TELL = 'echo run >> runs; touch ready; while ! test -e "{0}"; do sleep 0.05; done'
READS = f"{TELL.format('go')}; cat source > x; touch read; {TELL.format('end')}"
# A command says that it has read its inputs, but for those in the braces.
SAYS_SO = 'printf "{0}" > .said; mv .said "$DVC_PARALLEL_READ"'


def graph_of(folder: Path, command: str, **stage: Any) -> Graph:
    stages: Stages = {"x": {"cmd": command, "deps": ["source"], "outs": ["x"]} | stage}
    graph = Graph(folder, stages)
    (graph.folder / "source").write_text("0\n")
    return graph


def write(graph: Graph, name: str, text: str) -> None:
    (graph.folder / name).write_text(text)


def runs(graph: Graph) -> int:
    """How many times the command has run."""
    return len((graph.folder / "runs").read_text().splitlines())


def reach(graph: Graph, name: str) -> None:
    """Wait for the file by which the command tells that it has come so far."""
    until((graph.folder / name).exists)


@pytest.mark.parametrize("engine", [["local", 1], ["local", 2], ["dask", 1]], ids=str)
def test_what_was_read_of_an_edit_is_not_recorded(tmp_path: Path, engine: list[Any]) -> None:
    """The edit is taken back, so that DVC's hash is the same before and after."""
    graph = graph_of(tmp_path / "graph", READS)
    process = graph.start(engine=engine)
    reach(graph, "ready")
    write(graph, "source", "edited\n")
    write(graph, "go", "")
    reach(graph, "read")
    write(graph, "source", "0\n")
    write(graph, "end", "")
    out, err = process.communicate(timeout=60)
    assert of(json.loads(out)["states"], "done") == {"x"}, err
    assert "source: edited before x had read it" in err
    assert (graph.folder / "x").read_text() == "0\n"
    assert runs(graph) == 4
    (graph.folder / "x").unlink()
    graph.dvc("repro")  # from the run cache
    assert (graph.folder / "x").read_text() == "0\n"
    assert runs(graph) == 4


@pytest.mark.parametrize("engine", [["local", 2], ["dask", 1]], ids=str)
def test_an_edit_of_what_was_read_costs_nothing(tmp_path: Path, engine: list[Any]) -> None:
    command = f"cat source > x; {SAYS_SO.format('')}; touch read; {TELL.format('end')}"
    graph = graph_of(tmp_path / "graph", command)
    process = graph.start(engine=engine)
    reach(graph, "read")
    time.sleep(0.5)  # until the worker has looked
    write(graph, "source", "edited\n")
    write(graph, "end", "")
    out, err = process.communicate(timeout=60)
    assert of(json.loads(out)["states"], "done") == {"x"}, err
    assert runs(graph) == 1
    assert (graph.folder / "x").read_text() == "0\n"
    assert of(graph.run(), "done") == {"x"}, "dvc.lock says that the command used the edit"
    assert (graph.folder / "x").read_text() == "edited\n"


@pytest.mark.parametrize(("edited", "expected"), [("source", 1), ("data/b", 2)])
def test_a_command_may_go_on_reading_some_inputs(
    tmp_path: Path, edited: str, expected: int
) -> None:
    command = f"{SAYS_SO.format('data')}; touch read; {TELL.format('end')}; cat data/* source > x"
    graph = graph_of(tmp_path / "graph", command, deps=["source", "data"])
    (graph.folder / "data").mkdir()
    write(graph, "data/a", "a\n")
    process = graph.start()
    reach(graph, "read")
    time.sleep(0.5)
    write(graph, edited, "edited\n")
    write(graph, "end", "")
    out, err = process.communicate(timeout=60)
    assert of(json.loads(out)["states"], "done") == {"x"}, err
    assert runs(graph) == expected


def test_a_folder_and_params_are_watched_too(tmp_path: Path) -> None:
    command = f"{TELL.format('end')}; cat data/a params.yaml > x"
    graph = graph_of(tmp_path / "graph", command, deps=["data"], params=["a"])
    (graph.folder / "data").mkdir()
    write(graph, "data/a", "a\n")
    for number, name in enumerate(("data/a", "params.yaml"), start=1):
        for file in ("ready", "end"):
            (graph.folder / file).unlink(missing_ok=True)
        process = graph.start(force=True)
        reach(graph, "ready")
        before = (graph.folder / name).read_text()
        write(graph, name, "a: 2\n")
        write(graph, name, before)
        write(graph, "end", "")
        assert "edited before x had read it" in process.communicate(timeout=60)[1]
        assert runs(graph) == 2 * number


def test_a_failure_by_an_edit_is_not_one_of_the_stage(tmp_path: Path) -> None:
    """The file was half saved, say, when the command read it."""
    command = "echo run >> runs; grep 0 source > x || { echo 0 > source; exit 1; }"
    graph = graph_of(tmp_path / "graph", command)
    write(graph, "source", "half a fi")
    assert of(graph.run(), "done") == {"x"}
    assert runs(graph) == 2


def test_what_is_edited_at_each_try_fails(tmp_path: Path) -> None:
    graph = graph_of(tmp_path / "graph", "cat source > x; echo run >> runs; echo more >> source")
    process = graph.start()
    out, err = process.communicate(timeout=60)
    assert of(json.loads(out)["states"], "failed") == {"x"}
    assert "source: edited before x had read it, 6 times; nothing is recorded" in err
    assert runs(graph) == 6
    assert not graph.lock()
    assert "source" not in (graph.folder / ".dvc/tmp/rwlock").read_text()


@pytest.mark.parametrize("seed", [1, 2])
def test_edits_at_any_moment(tmp_path: Path, seed: int) -> None:
    """Somebody saves a file again and again. What dvc.lock says was read is what was read."""
    draw = random.Random(seed)
    command = "sleep 0.1; cat source > {0}; sleep 0.1"
    stages: Stages = {
        f"s{n}": {"cmd": command.format(f"s{n}"), "deps": ["source"], "outs": [f"s{n}"]}
        for n in range(12)
    }
    graph = Graph(tmp_path / "graph", stages)
    write(graph, "source", "0\n")
    process = graph.start(keep_going=True)
    while process.poll() is None:
        write(graph, "source", draw.choice(["0\n", "1\n"]))
        time.sleep(draw.uniform(0, 0.8))
    out, err = process.communicate(timeout=60)
    states = json.loads(out)["states"]
    assert {*states.values()} <= {"done", "cached", "failed"}, err
    entries = YAML(typ="safe").load(graph.lock() or "stages: {}")["stages"]
    assert set(entries) == of(states, "done", "cached")
    for name, entry in entries.items():
        content = (graph.folder / name).read_bytes()
        assert entry["deps"][0]["md5"] == hashlib.md5(content).hexdigest(), name
