"""Outputs that only DVC's cache may hold can be absent: what the schedule does about them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from parallel.graphs import Graph, Stages

from dvc_parallel.bookkeeping import Bookkeeping
from dvc_parallel.engines import open_engine
from dvc_parallel.outcome import State
from dvc_parallel.schedule import Schedule

pytestmark = pytest.mark.slow

# data -> train -> study -> page, and data -> study. Git carries the table, which is the output of
# study. `page` reads a folder in which `page_a` and `page_b` have a folder each.
STAGES: Stages = {
    "data": {"cmd": "echo data > data; date +%N > time", "deps": ["d"], "outs": ["data", "time"]},
    "train": {"cmd": "cat data data > weights", "deps": ["data", "t"], "outs": ["weights"]},
    "study": {
        "cmd": "cat data weights s > table",
        "deps": ["data", "weights", "s"],
        "outs": [{"table": {"cache": False}}],
    },
    "page_a": {"cmd": "mkdir -p p/a; cat table > p/a/x", "deps": ["table"], "outs": ["p/a"]},
    "page_b": {"cmd": "mkdir -p p/b; cat b > p/b/x", "deps": ["b"], "outs": ["p/b"]},
    "page": {"cmd": "cat p/*/x > all", "deps": ["p"], "outs": [{"all": {"cache": False}}]},
}
CACHED = ("data", "time", "weights", "p")
NO_TRAINING = {"train": "it trains"}


class Observed:
    """Keeps what the schedule says of each stage."""

    def __init__(self) -> None:
        self.notes: dict[str, str] = {}

    def on_change(self, stage: str, state: State, note: str = "") -> None:
        self.notes[stage] = note

    def refresh(self) -> None:
        """Nothing is drawn."""


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all stages have run once."""
    graph = Graph(tmp_path_factory.mktemp("absent") / "graph", STAGES)
    for name in ("d", "t", "s", "b"):
        (graph.folder / name).write_text(name)
    graph.run()
    return graph.folder


@pytest.fixture
def folder(reproduced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone of it: the working folder, without cache and without what only the cache holds."""
    clone = tmp_path / "clone"
    shutil.copytree(reproduced, clone)
    monkeypatch.chdir(clone)
    shutil.rmtree(clone / ".dvc/cache")
    remove(clone, *CACHED)
    return clone


def remove(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def run(
    targets: list[str] | None = None,
    single_item: bool = False,
    refused: dict[str, str] = NO_TRAINING,
) -> tuple[dict[str, State], dict[str, str]]:
    """Reproduce the working folder; the state of each stage, and what was said of it."""
    observed = Observed()
    with Bookkeeping(".") as book, open_engine("local", 2) as engine:
        plan = book.plan(targets or [], single_item)
        schedule = Schedule(
            book, plan, engine, observed, Path("logs"), why_not=lambda name: refused.get(name, "")
        )
        return schedule.run().states, observed.notes


def test_what_is_merely_absent_is_done_and_stays_absent(folder: Path) -> None:
    absent = dict.fromkeys(("data", "train", "page_a", "page_b"), "absent")
    for _ in range(2):
        assert run()[0] == absent | {"study": "unchanged", "page": "unchanged"}
    assert not any((folder / name).exists() for name in CACHED)


def test_what_only_the_cache_lacks_is_stored_in_it(folder: Path, reproduced: Path) -> None:
    shutil.copy(reproduced / "weights", folder / "weights")
    assert run()[0]["train"] == "unchanged"
    remove(folder, "weights")
    (folder / "s").write_text("edited")
    assert run()[0]["train"] == "restored"


def test_a_deleted_output_that_git_carries_is_not_merely_absent(folder: Path) -> None:
    remove(folder, "all")
    states, _ = run()
    assert states["page"] == "done"
    assert (states["page_a"], states["page_b"]) == ("remade", "remade")
    assert (folder / "all").read_text() == "data\ndata\ndata\nsb"


@pytest.mark.parametrize("has_cache", [True, False])
def test_needed_inputs_come_from_the_cache_or_are_made_again(
    folder: Path, reproduced: Path, has_cache: bool
) -> None:
    """`data` also made `time`, which is different when it is made again, and nobody reads it."""
    if has_cache:
        shutil.copytree(reproduced / ".dvc/cache", folder / ".dvc/cache")
    (folder / "b").write_text("edited")
    states, _ = run()
    brought = "restored" if has_cache else "remade"
    assert states == {
        "data": "absent",
        "train": "absent",
        "study": "unchanged",
        "page_a": brought,
        "page_b": "done",
        "page": "done",
    }
    assert (folder / "all").read_text() == "data\ndata\ndata\nsedited"
    assert not (folder / "data").exists()


def test_a_training_does_not_run_because_its_output_is_absent(folder: Path) -> None:
    (folder / "s").write_text("edited")
    states, notes = run()
    assert states["study"] == "failed"
    assert notes["study"] == (
        "it needs weights of train; DVC's cache does not have it, and no remote is set; it trains"
    )
    assert {state for name, state in states.items() if state != "absent"} == {"failed", "skipped"}
    assert (folder / "table").read_text() == "data\ndata\ndata\ns"
    assert not (folder / "weights").exists()
    (folder / "t").write_text("edited")
    assert run()[0]["train"] == "done", "a training that has changed runs"


def test_a_stage_without_its_inputs_keeps_no_other_from_running(folder: Path) -> None:
    for name in ("s", "b"):
        (folder / name).write_text("edited")
    states, _ = run()
    assert (states["study"], states["page_b"]) == ("failed", "done")
    assert (states["page_a"], states["page"]) == ("skipped", "skipped")


def test_without_a_reason_any_stage_runs_again(folder: Path) -> None:
    (folder / "s").write_text("edited")
    states, notes = run(refused={})
    assert states["train"] == "remade"
    # It ran again, and `time` is another one now.
    assert (states["data"], notes["data"]) == ("done", "")
    assert states["study"] == states["page_a"] == states["page"] == "done"


def pull_from(remote: Path, folder: Path) -> None:
    with (folder / ".dvc/config").open("a") as file:
        file.write(f"    remote = r\n['remote \"r\"']\n    url = {remote}\n")


def lose_weights(remote: Path) -> None:
    shutil.rmtree(remote / "files")
    (remote / "files").mkdir()


def lose_remote(remote: Path) -> None:
    shutil.rmtree(remote)
    remote.write_text("no folder")


@pytest.mark.parametrize(
    ("damage", "state", "said"),
    [
        (lambda remote: None, "done", ""),
        (lose_weights, "failed", "; neither DVC's cache nor the remote has it; it trains"),
        (lose_remote, "failed", "and the remote could not be asked: "),
    ],
)
def test_a_remote_is_asked_for_what_the_cache_lacks(
    folder: Path,
    reproduced: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    state: str,
    said: str,
) -> None:
    remote = tmp_path / "remote"
    shutil.copytree(reproduced / ".dvc/cache", remote)
    pull_from(remote, folder)
    damage(remote)
    (folder / "s").write_text("edited")
    states, notes = run()
    assert states["study"] == state
    assert said in notes["study"]
    if state == "done":
        assert (states["data"], states["train"], states["page_b"]) == ("pulled",) * 3


def test_a_remade_output_that_differs_fails_if_a_training_read_it(folder: Path) -> None:
    """`data` is another one now: dvc.lock keeps what the weights were trained on."""
    lock = (folder / "dvc.lock").read_text()
    pipeline = folder / "dvc.yaml"
    command = "echo data > data"
    assert command in pipeline.read_text()
    for path in (pipeline, folder / "dvc.lock"):
        path.write_text(path.read_text().replace(command, "cat /proc/uptime > data"))
    (folder / "weights").write_text("data\ndata\n")
    (folder / "s").write_text("edited")
    states, notes = run()
    assert states["data"] == "failed"
    assert "made another data, time than dvc.lock records; train depends on it" in notes["data"]
    assert states["study"] == "skipped"
    assert not (folder / "data").exists()
    assert (folder / "dvc.lock").read_text() == lock.replace(command, "cat /proc/uptime > data")


def test_a_single_item_makes_no_other_stage_run(folder: Path) -> None:
    (folder / "b").write_text("edited")
    states, notes = run(["page"], single_item=True)
    assert states == {"page": "unchanged"}
    remove(folder, "all")
    states, notes = run(["page"], single_item=True)
    assert states == {"page": "failed"}
    assert notes["page"].endswith("; page_a is not among the stages that were asked for")


def test_a_folder_of_which_a_part_was_made_alone_has_changed(
    folder: Path, reproduced: Path
) -> None:
    """dvc.lock has another hash of the part than when the folder was read."""
    shutil.copytree(reproduced / ".dvc/cache", folder / ".dvc/cache")
    (folder / "b").write_text("edited")
    assert run(["page_b"])[0] == {"page_b": "done"}
    remove(folder, "p")
    assert run()[0]["page"] == "done"
    assert (folder / "all").read_text() == "data\ndata\ndata\nsedited"
