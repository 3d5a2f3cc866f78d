"""DVC's internals that we use are there, and do what we take them to do."""

import importlib.metadata
import inspect
import json
from pathlib import Path

import pytest
from dvc.data_cloud import DataCloud
from dvc.dependency import param
from dvc.dvcfile import Lockfile, ProjectFile, load_file
from dvc.fs import LocalFileSystem, localfs
from dvc.output import Output
from dvc.repo import Repo
from dvc.repo import reproduce as reproduction
from dvc.rwlock import RWLOCK_FILE, rwlock
from dvc.stage import PipelineStage, Stage, run
from dvc.stage.cache import StageCache
from dvc.stage.serialize import to_lockfile
from dvc.utils.serialize import modify_yaml
from dvc_data.hashfile.tree import Tree
from parallel.graphs import Graph, Stages, random_stages

from dvc_parallel.bookkeeping import Bookkeeping, Error
from dvc_parallel.params_cache import params_parsed_once

READ = "if you upgrade DVC, read docs/parallel.md first"


def test_dvc_is_the_version_that_was_read() -> None:
    assert importlib.metadata.version("dvc").startswith("3.67."), READ


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (Stage.changed, "self allow_missing upstream"),
        (Stage.save_deps, "self allow_missing"),
        (Stage.save_outs, "self allow_missing"),
        (Stage.remove_outs, "self ignore_remove force"),
        (Stage.commit, "self allow_missing filter_info kwargs"),
        (Stage.compute_md5, "self"),
        (Stage.run, "self dry no_commit force allow_missing no_download kwargs"),
        (StageCache.restore, "self stage run_cache pull dry"),
        (StageCache.save, "self stage"),
        (Stage.changed_stage, "self"),
        (Output.changed_cache, "self filter_info"),
        (Output.workspace_status, "self"),
        (Output.get_obj, "self filter_info kwargs"),
        (
            Output.checkout,
            "self force progress_callback relink filter_info allow_missing kwargs",
        ),
        (DataCloud.pull, "self objs jobs remote odb"),
        (load_file, "repo path kwargs"),
        (Tree.add, "self key meta oid"),
        (Tree.digest, "self with_meta name"),
        (rwlock, "tmp_dir fs cmd read write hardlink"),
        (param.read_param_file, "fs path key_paths flatten load_kwargs"),
        (reproduction.collect_stages, "repo targets recursive glob"),
        (reproduction.get_active_graph, "graph"),
        (reproduction.plan_repro, "graph stages pipeline downstream"),
        (modify_yaml, "path fs"),
        (to_lockfile, "stage kwargs"),
        (localfs.overlaps, "left right"),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_signatures_are_as_they_were_read(function: object, parameters: str) -> None:
    assert callable(function)
    assert [*inspect.signature(function).parameters] == parameters.split(), READ


# What follows a command in DVC 3.67, which `Bookkeeping._save` does, too.
SAVE = """
    def save(self, allow_missing: bool = False, run_cache: bool = True):
        self.save_deps(allow_missing=allow_missing)

        self.save_outs(allow_missing=allow_missing)

        self.md5 = self.compute_md5()

        if run_cache:
            self.repo.stage_cache.save(self)
"""


# What decides in DVC 3.67 whether a stage has changed, as `stage_status.status` does.
CHANGED = """
        is_changed = (
            # Short-circuit order: stage md5 is fast,
            # deps are expected to change
            self.changed_stage()
            or self.changed_deps(allow_missing=allow_missing, upstream=upstream)
            or self.changed_outs(allow_missing=allow_missing)
        )
"""


def test_the_code_that_ours_stands_for_is_unchanged() -> None:
    assert CHANGED.strip() in inspect.getsource(Stage.changed), READ
    assert inspect.getsource(Stage.save).strip() == SAVE.strip(), READ
    assert PipelineStage.save is Stage.save
    restoring = inspect.getsource(run.run_stage)
    first, second = restoring.index("stage_cache.restore("), restoring.index("save_deps()")
    assert first < second < restoring.index("cmd_run"), READ
    whole = inspect.getsource(Stage.run)
    steps = ["self.remove_outs(", "self._run_stage(", "self.save(", "self.commit("]
    places = [whole.index(step) for step in steps]
    assert places == sorted(places), READ
    assert "_wait_for_lock" in inspect.signature(Repo.__init__).parameters
    assert "_lockfile" in vars(ProjectFile), READ
    assert "to_lockfile(stage" in inspect.getsource(Lockfile.dump_stages), READ


def test_a_file_of_params_is_parsed_once_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, parsed, load = tmp_path / "params.yaml", [], param.load_path

    def counted(*arguments: object, **options: object) -> object:
        parsed.append(arguments)
        return load(*arguments, **options)

    monkeypatch.setattr(param, "load_path", counted)
    fs, keys = LocalFileSystem(), ["a.b", "a.c", "l"]
    for text in ("a: {b: 1, c: {d: [1, 2]}}\nl: [x]\n", "a: {b: 1.0, c: {}}\nl: {0: y}\n"):
        path.write_text(text)
        expected = param.read_param_file(fs, str(path), keys, flatten=True)
        parsed.clear()
        with params_parsed_once():
            for _ in range(3):
                assert param.read_param_file(fs, str(path), keys, flatten=True) == expected
        assert len(parsed) == 1
    assert expected == {"a.b": 1.0, "a.c": {}, "l": {0: "y"}}
    odd = ["a.b", "no.such", "a.b.c", "l.0"]
    expected = param.read_param_file(fs, str(path), odd, flatten=True)
    with params_parsed_once():
        assert param.read_param_file(fs, str(path), odd, flatten=True) == expected
        values = param.read_param_file(fs, str(path), ["a.*"], flatten=False)
    assert values == {"a": {"b": 1.0, "c": {}}}


@pytest.mark.slow
def test_a_damaged_file_of_locks_is_removed(tmp_path: Path) -> None:
    """DVC does not write it atomically: a SIGKILL may leave half of it, or nothing."""
    graph = Graph(tmp_path / "graph", random_stages(0, 2, failing=0))
    path = graph.folder / ".dvc/tmp" / RWLOCK_FILE
    path.write_text('{"read": {"x')
    assert "corrupted" in graph.dvc("repro", check=False), "DVC mends it itself now"
    assert set(graph.run().values()) == {"done"}


@pytest.mark.slow
def test_files_of_dvc_add_and_pipelines_elsewhere_are_inputs_as_for_dvc(tmp_path: Path) -> None:
    """Their stages have no name in dvc.lock, or one that a stage of another file has, too."""
    stages: Stages = {
        "b": {"cmd": "cat data.txt sub/out > b", "deps": ["data.txt", "sub/out"], "outs": ["b"]},
        "a": {"cmd": "cat b > a", "deps": ["b"], "outs": ["a"]},
        "page": {"cmd": "cat a > page", "deps": ["a", "reports/stages.json"], "outs": ["page"]},
    }
    serial, graph = Graph(tmp_path / "serial", stages), Graph(tmp_path / "graph", stages)
    for each in (serial, graph):
        (each.folder / "reports").mkdir()
        (each.folder / "reports/stages.json").write_text("{}\n")
        (each.folder / "sub").mkdir()
        text = "stages: {a: {cmd: cat ../data.txt > out, deps: [../data.txt], outs: [out]}}\n"
        (each.folder / "sub/dvc.yaml").write_text(text)
    first: dict[str, str] = {}
    for number in (1, 2):
        for each in (serial, graph):
            (each.folder / "data.txt").write_text(f"{number}\n")
            if number == 1:
                each.dvc("add", "data.txt")
        serial.dvc("repro", "a")
        states = graph.run(targets=["a"])
        first = first or states
        for name in ("dvc.lock", "sub/dvc.lock", "data.txt.dvc"):
            assert (graph.folder / name).read_text() == (serial.folder / name).read_text()
    names = ["data.txt.dvc", "sub/dvc.yaml:a", "b", "a"]
    assert first == dict(zip(names, ["unchanged", "done", "done", "done"], strict=True))
    assert states == dict(zip(names, ["cached", "done", "done", "done"], strict=True))
    assert graph.run()["page"] == "done"
    recorded = json.loads((graph.folder / "reports/stages.json").read_text())
    assert {*recorded} == {"sub/dvc.yaml:a", "a", "b"}
    assert "up to date" in graph.dvc("status")


def test_a_repository_is_needed(tmp_path: Path) -> None:
    with pytest.raises(Error, match="not inside of a DVC repository"):
        Bookkeeping(str(tmp_path))
