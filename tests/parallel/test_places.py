"""A place where logs or results cannot be written is named; nothing hangs and nothing is lost."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from parallel.graphs import Graph
from parallel.test_schedule import chain, of

from dvc_parallel.bookkeeping import Bookkeeping
from dvc_parallel.errors import UsageError
from dvc_parallel.places import check_outputs, check_writable

pytestmark = pytest.mark.slow
SmallDisk = Callable[[Path, str], None]


def locked_paths(graph: Graph) -> set[str]:
    """Paths that are still locked. DVC's file of locks exists only after a command has run."""
    file = graph.folder / ".dvc/tmp/rwlock"
    locks = json.loads(file.read_text()) if file.exists() else {}
    return {path for paths in locks.values() for path in paths}


def test_a_log_that_cannot_be_created_fails_its_stage(tmp_path: Path) -> None:
    graph = chain(tmp_path / "graph")
    (graph.folder / "logs/x.log").mkdir(parents=True)
    process = graph.start(keep_going=True)
    out, err = process.communicate(timeout=60)
    states = json.loads(out)["states"]
    assert of(states, "failed") == {"x"}
    assert of(states, "done") == {"a", "b", "c"}
    assert "logs/x.log" in err
    assert not locked_paths(graph)


def test_a_name_that_is_too_long_for_a_log_fails_its_stage(tmp_path: Path) -> None:
    name = "n" * 252
    graph = Graph(tmp_path / "graph", {name: {"cmd": "echo x > x", "outs": ["x"]}})
    out, err = graph.start().communicate(timeout=60)
    assert json.loads(out)["states"] == {name: "failed"}
    assert "File name too long" in err
    assert not locked_paths(graph)


def test_a_file_in_place_of_the_folder_of_logs_is_named(tmp_path: Path) -> None:
    graph = chain(tmp_path / "graph")
    (graph.folder / "logs").touch()
    process = graph.start()
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "File exists: 'logs'" in err
    assert not locked_paths(graph)


@pytest.mark.parametrize("limit", ["nr_inodes=6", "size=4k"])
def test_a_full_disk_under_the_logs(tmp_path: Path, small_disk: SmallDisk, limit: str) -> None:
    """Nothing hangs. What failed is named, and runs as soon as there is room."""
    graph = chain(tmp_path / "graph", x="yes | head -c 100000; cat source > x; exit 3")
    small_disk(graph.folder / "logs", limit)
    process = graph.start(keep_going=True)
    out, err = process.communicate(timeout=60)
    states = json.loads(out)["states"]
    assert "x" in of(states, "failed")
    assert "No space left on device" in err or "exit code 3" in err
    assert not locked_paths(graph)


def test_a_signal_stops_commands_whose_logs_are_on_a_full_disk(
    tmp_path: Path, small_disk: SmallDisk
) -> None:
    graph = chain(tmp_path / "graph", x="yes | head -c 100000; touch on; sleep 600")
    small_disk(graph.folder / "logs", "size=8k")
    process = graph.start(targets=["x"])
    while not (graph.folder / "on").exists():
        assert process.poll() is None
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 128 + 15


@pytest.mark.parametrize("kind", ["a link", "a file"])
def test_a_place_that_cannot_store_results_is_named_before_any_command(
    tmp_path: Path, kind: str
) -> None:
    """DVC would only notice after a training of hours, and the results would be lost."""
    stages = {"x": {"cmd": "touch ran; echo x > out/deep/x", "outs": ["out/deep/x"]}}
    graph = Graph(tmp_path / "graph", stages)
    if kind == "a link":
        (tmp_path / "elsewhere/deep").mkdir(parents=True)
        (graph.folder / "out").symlink_to(tmp_path / "elsewhere")
    else:
        (graph.folder / "out").touch()
    process = graph.start()
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert f"UsageError: out: found {kind}" in err
    assert not (graph.folder / "ran").exists()
    assert not graph.lock()


def test_the_cache_must_be_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = chain(tmp_path / "graph")
    monkeypatch.chdir(graph.folder)
    with Bookkeeping(".") as book:
        book.check_places(book.plan([]))
        cache = graph.folder / ".dvc/cache"
        cache.rename(graph.folder / "moved")
        cache.touch()
        with pytest.raises(UsageError, match=r"\.dvc/cache.*: DVC cannot write there"):
            book.check_places(book.plan([]))


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere, so the answer of the system is made up."""
    (tmp_path / "out").mkdir()
    check_outputs(tmp_path, [tmp_path / "out/x"])
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "out" and may(path, mode))
    with pytest.raises(UsageError, match=r"^out: not writable"):
        check_outputs(tmp_path, [tmp_path / "out/x"])


def test_a_folder_on_a_full_disk(tmp_path: Path, small_disk: SmallDisk) -> None:
    disk = tmp_path / "disk"
    small_disk(disk, "size=4k")
    check_writable(disk)
    (disk / "large").write_bytes(b"x" * 4096)
    with pytest.raises(UsageError, match="No space left on device"):
        check_writable(disk)


def test_another_disk_mounted_in_the_project_is_fine(tmp_path: Path, small_disk: SmallDisk) -> None:
    stages = {"x": {"cmd": "echo x > out/x", "outs": ["out/x"]}}
    graph = Graph(tmp_path / "graph", stages)
    small_disk(graph.folder / "out", "size=1M")
    assert graph.run() == {"x": "done"}
    (graph.folder / "out/x").unlink()
    graph.dvc("checkout")
    assert (graph.folder / "out/x").read_text() == "x\n"
