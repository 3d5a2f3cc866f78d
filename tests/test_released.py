"""`load_run` loads the models that git carries."""

import subprocess
from pathlib import Path

import pytest
from project import Project

from toycircuits import load_run
from toycircuits.core.config import InputError, find_run, read_params

ROOT = Path(__file__).resolve().parents[1]
PARAMS = read_params(ROOT / "params.yaml")
RELEASED = PARAMS["released"]


@pytest.mark.parametrize("name", RELEASED)
def test_the_first_seed_comes_first(name: str) -> None:
    """Settings decide which seed is first. By name, "seed1000" would come before "seed999"."""
    train = find_run(PARAMS, name).values("train")[0]
    assert load_run(name, root=ROOT).settings["weight_seed"] == train["weight_seeds"][0]


def test_another_model_is_named() -> None:
    run = load_run("linear_regression_h2", model="seed1025", root=ROOT)
    assert run.settings["weight_seed"] == 1025
    message = "has no model 'seed7'; it has: seed1024, seed1025, "
    with pytest.raises(InputError, match=message):
        load_run("linear_regression_h2", model="seed7", root=ROOT)
    with pytest.raises(
        InputError, match="no released weights; runs with them: linear_regression_h1, "
    ):
        load_run("modular", root=ROOT)


def test_tables_are_those_of_the_run() -> None:
    tables = load_run("list_copy_10", root=ROOT).tables
    assert {"training", "ablations", "metrics", "patterns"} <= {*tables}
    assert tables["training"]["accuracy"].max() == 1


def test_outside_the_project_the_root_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_run("list_copy_10", root=ROOT).settings["run"] == "list_copy_10"
    with pytest.raises(InputError, match="no toycircuits project"):
        load_run("list_copy_10", root=tmp_path)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy with two commits, whose data have different seeds."""
    copy = Project(tmp_path_factory.mktemp("released") / "project", ["list_copy_10"], scm=True)
    for seed in (0, 1):
        params = copy.read_params()
        params["quick"]["list_copy_10"]["data"]["seed"] = seed
        copy.write_params(params)
        copy.repro("release@list_copy_10")
        for command in (["add", "-A"], ["commit", "--quiet", "--message", f"seed {seed}"]):
            subprocess.run(["git", *command], cwd=copy.folder, check=True)
    return copy


@pytest.mark.slow
def test_steps_and_revisions(project: Project) -> None:
    root = project.folder
    now, before = (load_run("list_copy_10", rev=rev, root=root) for rev in (None, "HEAD~1"))
    assert (now.settings["data"]["seed"], before.settings["data"]["seed"]) == (1, 0)
    assert not now.tables["training"].equals(before.tables["training"])
    for rev, final in ((None, now), ("HEAD~1", before)):
        steps = [load_run("list_copy_10", step, rev, root=root) for step in (10, 30)]
        assert [run.settings["step"] for run in steps] == [10, 30]
        for name, value in final.model.state_dict().items():
            assert value.equal(steps[1].model.state_dict()[name])
        assert not steps[0].model.embed.W_E.equal(steps[1].model.embed.W_E)
    with pytest.raises(InputError, match="no checkpoint of step 19; the nearest: 10, 20, 30"):
        load_run("list_copy_10", 19, root=root)
    with pytest.raises(
        InputError, match="rev: found 'HEAD~9'; allowed: a git revision or the name of"
    ):
        load_run("list_copy_10", rev="HEAD~9", root=root)


@pytest.mark.slow
def test_without_checkpoints_it_says_how_to_get_them(project: Project, tmp_path: Path) -> None:
    root = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(project.folder), str(root)], check=True)
    assert load_run("list_copy_10", root=root).settings["step"] == 30
    for rev in (None, "HEAD~1"):
        with pytest.raises(InputError, match=r"`toycircuits repro --force train@list_copy_10`"):
            load_run("list_copy_10", 10, rev, root=root)
