"""`toycircuits cost`: stages that an edit makes stale, and their recorded times."""

import json
import re
import shutil
from io import StringIO
from pathlib import Path

import pytest
from dvc.repo import Repo
from project import ROOT
from rich.console import Console
from typer.testing import CliRunner

from toycircuits.cli import app
from toycircuits.commands.cost import Cost, as_markdown, as_table, costs
from toycircuits.core.config import InputError

#  task.py -> generate -> data -> train@a, train@b -> weights -> measure@a -> table -> page
#  model.py and settings/ are read by the trainings, metrics/ by measure@a
DVC_YAML = """\
stages:
  generate:
    cmd: python stages/train.py
    deps: [src/toycircuits/core/task.py]
    outs: [data]
  train:
    foreach: [a, b]
    do:
      cmd: python stages/train.py
      deps: [stages/train.py, data, src/toycircuits/core/model.py, settings]
      params: [quick.e.train.lr]
      outs: ["weights/${item}"]
  measure:
    foreach: [a]
    do:
      cmd: python stages/train.py
      deps: ["weights/${item}", src/toycircuits/experiments/x/metrics]
      outs: [table]
  page:
    cmd: python stages/train.py
    deps: [table, reports/stages.json, src/toycircuits/core/page.py]
    outs: [page]
"""
TIMES = {"generate": 1, "train@a": 10, "train@b": 100, "measure@a": None}  # None: not known
RECORD = {
    **{"cmd": "python", "commit": "", "edited": None, "seconds": None, "attempts": 1},
    **{"system": "Linux", "processor": "CPU", "cores": 2, "gpus": [], "python": "3", "torch": "2"},
}
FRAME = """\
scale: quick
portable: {quick: false}
experiments: {e: {slice: list_copy, runs: [a]}}
runs: {a: {experiment: e, slice: list_copy, final: artifacts/trajectories/a}}
released: []
quick: {e: {train: {lr: 1}}}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cost")
    core = [f"src/toycircuits/core/{name}.py" for name in ("task", "model", "page", "__init__")]
    metrics = "src/toycircuits/experiments/x/metrics/measure.py"
    for name in ("stages/train.py", *core, metrics, "settings/one.txt", "src/dvc_parallel/a.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "params.yaml").write_text(FRAME)
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "reports").mkdir()
    records = {name: RECORD | {"processor_seconds": seconds} for name, seconds in TIMES.items()}
    (root / "reports/stages.json").write_text(json.dumps(records))
    Repo.init(str(root), no_scm=True).close()
    return root


def cost_of(root: Path, name: str) -> Cost:
    (row,) = costs(root, [root / name])
    assert row.label == name
    (cost,) = row.costs
    return cost


@pytest.mark.parametrize(
    ("name", "readers", "stale", "trainings", "seconds", "untimed"),
    [
        ("src/toycircuits/core/task.py", "generate", "train@a train@b measure@a page", 2, 111, 2),
        ("src/toycircuits/core/model.py", "train@a train@b", "measure@a page", 2, 110, 2),
        ("src/toycircuits/core/page.py", "page", "", 0, 0, 1),
        ("src/toycircuits/core", "generate train@a train@b page", "measure@a", 2, 111, 2),
        ("settings/one.txt", "train@a train@b", "measure@a page", 2, 110, 2),
        ("src/toycircuits/experiments/x/metrics/measure.py", "measure@a", "page", 0, 0, 2),
        ("src/dvc_parallel", "", "", 0, 0, 0),
        ("reports/stages.json", "page", "", 0, 0, 1),
    ],
)
def test_readers_and_what_follows_them_are_counted(
    root: Path, name: str, readers: str, stale: str, trainings: int, seconds: float, untimed: int
) -> None:
    cost = cost_of(root, name)
    assert cost.readers == {*readers.split()}
    assert cost.stale == {*readers.split(), *stale.split()}
    assert cost.trainings == trainings
    assert (cost.seconds, cost.untimed) == (seconds, untimed)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("params.yaml", "params.yaml: the cost depends on what you edit in it; "),
        ("dvc.yaml", "dvc.yaml: the cost depends on what you edit in it; "),
        ("page", "page: stages write results there; name a file or folder of code or claims"),
        ("weights/a/1.txt", "a/1.txt: no such file or folder in the project "),
        ("..", ": no such file or folder in the project "),
    ],
)
def test_paths_without_a_cost_are_named(root: Path, name: str, message: str) -> None:
    (root / "page").touch()
    with pytest.raises(InputError, match=re.escape(message)) as error:
        costs(root, [root / name])
    assert "\n" not in str(error.value)


def test_by_default_files_that_cost_the_same_share_a_row(root: Path) -> None:
    rows = {row.label: row.costs for row in costs(root, [])}
    assert [*rows] == [
        "core/task.py",
        "core/model.py",
        "core/page.py",
        "stages/train.py",
        "experiments/*/metrics",
        "src/dvc_parallel",
    ]
    (root / "src/toycircuits/core/second.py").touch()
    (root / "src/toycircuits/core/third.py").touch()
    try:
        assert "core/second.py, core/third.py" in [row.label for row in costs(root, [])]
    finally:
        for name in ("second", "third"):
            (root / f"src/toycircuits/core/{name}.py").unlink()


def test_of_the_project_all_parts_are_counted_and_fit_80_columns() -> None:
    rows = costs(ROOT, [])
    labels = {name: row for row in rows for name in row.label.split(", ")}
    assert {*labels} >= {
        *("core/config.py", "core/training.py", "stages/report.py", "claims/*.yaml"),
        *(f"experiments/*/{name}.py" for name in ("task", "model", "ablations")),
        *("experiments/*/metrics", "experiments/*/figures", "src/toycircuits/commands"),
    }
    (nothing,) = labels["src/toycircuits/commands"].costs
    assert not nothing.stale
    assert labels["core/training.py"].costs[0].trainings > 20
    assert {cost.trainings for cost in labels["experiments/*/figures"].costs} == {0}
    text = StringIO()
    Console(file=text, width=80).print(as_table(rows))
    assert "…" not in text.getvalue()
    for word in (*labels, "edit of", "readers", "stale", "trainings", "untimed"):
        assert word in text.getvalue()


def test_the_command_prints_tables(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root / "src")
    monkeypatch.setenv("COLUMNS", "80")
    model = "toycircuits/core/model.py"  # as seen from the folder where the command is given
    done = CliRunner().invoke(app, ["cost", "--markdown", model, "dvc_parallel"])
    assert done.exit_code == 0, done.output
    lines = [
        "| edit of | readers | stale | trainings | processor time | untimed |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| `src/toycircuits/core/model.py` | 2 | 4 | 2 | 1 min 50 s | 2 |",
        "| `src/dvc_parallel` | 0 | 0 | 0 | 0.0 s | 0 |",
    ]
    assert done.stdout.splitlines() == lines
    (row,) = [row for row in costs(root, []) if row.label == "core/page.py"]
    assert as_markdown([row]).splitlines()[2] == "| `core/page.py` | 1 | 1 | 0 | not recorded | 1 |"
    monkeypatch.chdir(root)
    done = CliRunner().invoke(app, ["cost"])
    assert done.exit_code == 0, done.output
    assert re.search(r"core/model\.py +2 +4 +2 +1 min 50 s +2\n", done.stdout)


@pytest.mark.parametrize("command", ["cost", "fresh"])
def test_a_wrong_scale_is_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    shutil.copytree(root, tmp_path / "copy")
    params = FRAME.replace("scale: quick", "scale: qick")
    (tmp_path / "copy/params.yaml").write_text(params)
    monkeypatch.chdir(tmp_path / "copy")
    done = CliRunner().invoke(app, [command])
    assert done.exit_code == 2
    assert "error: scale: found 'qick'; allowed: quick" in done.output
