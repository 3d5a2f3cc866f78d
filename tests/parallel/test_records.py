"""The records of how each stage was made."""

import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from parallel.graphs import Graph, Stages
from parallel.test_schedule import until
from project import output
from ruamel.yaml import YAML

from dvc_parallel.files import replacing
from dvc_parallel.records import Records, _git

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


def test_inputs_time_and_machine_are_recorded(graph: Graph) -> None:
    assert set(graph.run().values()) == {"done"}
    recorded = records(graph)
    assert [*recorded] == ["a", "b"], "what reads the file cannot be in it"
    entry = YAML(typ="safe").load(graph.lock())["stages"]["a"]
    assert {name: recorded["a"][name] for name in entry} == entry
    assert recorded["a"]["processor_seconds"] == pytest.approx(1, abs=0.9)
    assert recorded["a"]["seconds"] >= 0.9
    assert recorded["a"]["cores"] == len(os.sched_getaffinity(0))
    assert recorded["a"]["attempts"] == 1
    assert recorded["a"]["torch"]
    assert set(graph.run().values()) == {"unchanged"}, "the records made their reader stale"
    assert "up to date" in graph.dvc("status")


def test_a_record_is_removed_with_the_results_that_it_describes(graph: Graph) -> None:
    """It stays while they are merely absent. It goes when other results come from DVC's cache."""
    graph.run()
    first = records(graph)
    (graph.folder / "b").unlink()
    assert graph.run()["b"] == "absent"
    assert records(graph) == first
    (graph.folder / "source").write_text("1\n")
    graph.run()
    second = records(graph)
    assert second["a"]["deps"] != first["a"]["deps"]
    (graph.folder / "source").write_text("0\n")
    assert graph.run()["a"] == "cached"
    assert not {"a", "b"} & {*records(graph)}


def test_an_edit_of_the_code_is_recorded_for_the_stages_that_start_after_it(
    tmp_path: Path,
) -> None:
    stages = json.loads(json.dumps(STAGES))
    stages["a"]["cmd"] = "cat source > a; echo '# edited' >> dvc.yaml"
    graph = Graph(tmp_path / "graph", stages)
    (graph.folder / "source").write_text("0\n")
    for command in (("init", "--quiet"), ("add", "--all"), ("commit", "--quiet", "-m", "code")):
        output(graph.folder, "git", *command)
    commit = output(graph.folder, "git", "rev-parse", "HEAD").strip()
    graph.run()
    found = {name: (r["commit"], r["edited"]) for name, r in records(graph).items()}
    assert found == {"a": (commit, False), "b": (commit, True)}


def test_what_git_does_not_tell_is_recorded_as_not_known(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository of another user is one that git refuses to read."""
    output(graph.folder, "git", "init", "--quiet")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    graph.run()
    assert {(r["commit"], r["edited"]) for r in records(graph).values()} == {("", None)}


def test_variables_of_git_hooks_name_no_other_repository(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (graph.folder, tmp_path):
        output(folder, "git", "init", "--quiet")
        output(folder, "git", "commit", "--quiet", "--allow-empty", "-m", str(folder))
    commit = output(graph.folder, "git", "rev-parse", "HEAD")
    with monkeypatch.context() as patch:
        patch.setenv("GIT_DIR", str(tmp_path / ".git"))
        patch.setenv("GIT_INDEX_FILE", str(tmp_path / ".git/index"))
        assert _git(graph.folder, "rev-parse", "HEAD") == commit


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
    record = records(graph)["a"]
    assert record["attempts"] == 2
    assert record["processor_seconds"] == pytest.approx(2, abs=0.9)


def test_a_failure_to_record_is_a_warning(graph: Graph) -> None:
    """It changes neither the state of a stage nor the reason for which one failed."""
    driver = (graph.folder / "drive.py").read_text()
    broken = "def broken(*arguments): raise KeyError('seconds')\nRecords.add = broken\n"
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


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "3", "{}", "null", "[" * 5000, '{"of": 1}', "\0", '"text"'),
        *(
            f'{{"of": "DIGEST", "attempts": {attempts}}}'
            for attempts in ("3", "[3]", '"ab"', '{"a": 1}', '[{"seconds": 1}]', "[null]")
        ),
        '{"of": "DIGEST", "attempts": [{"seconds": "1", "processor_seconds": null}]}',
        '{"of": "DIGEST", "attempts": [{"seconds": NaN, "processor_seconds": null}]}',
    ],
)
def test_a_damaged_file_of_attempts_is_ignored(tmp_path: Path, text: str) -> None:
    entry = {"cmd": "true", "deps": [], "outs": []}
    digest = hashlib.sha256(json.dumps({"cmd": "true", "deps": []}, sort_keys=True).encode())
    (tmp_path / "spent").mkdir()
    (tmp_path / "spent/a.json").write_text(text.replace("DIGEST", digest.hexdigest()))
    kept = Records(tmp_path / "records.json", {}, tmp_path / "spent", set(), [], tmp_path)
    kept.add("a", entry, [{"seconds": 2.0, "processor_seconds": None}], True)
    record = json.loads((tmp_path / "records.json").read_text())["a"]
    assert (record["attempts"], record["seconds"]) == (1, 2.0)
    assert not (tmp_path / "spent/a.json").exists()


def test_earlier_attempts_at_the_same_inputs_count(tmp_path: Path) -> None:
    """The counterpart of the test above: what is not damaged is not ignored."""
    entry = {"cmd": "true", "deps": [], "outs": []}
    kept = Records(tmp_path / "records.json", {}, tmp_path / "spent", set(), [], tmp_path)
    kept.add("a", entry, [{"seconds": 2.0, "processor_seconds": None}], False)
    kept.add("a", entry, [{"seconds": 3.0, "processor_seconds": 1.0}], True)
    record = json.loads((tmp_path / "records.json").read_text())["a"]
    assert (record["attempts"], record["seconds"], record["processor_seconds"]) == (2, 5.0, None)


def test_replacing_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for text in ("1", "2"):
        with replacing(file) as partial:
            assert not partial.exists()
            partial.write_text(text)
            assert not file.exists() or file.read_text() == "1"
        assert file.read_text() == text

    def fail() -> None:
        with replacing(file) as partial:
            partial.write_text("3")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert file.read_text() == "2"
    assert [*tmp_path.iterdir()] == [file]
