"""Damaged and missing files, full disks and failing browsers: one line, and nothing is lost.

Bad input meets each stage once in a process of its own, and otherwise in this one, which saves the
seconds that a start takes.
"""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from made_failures import (
    DATA,
    RUN,
    TRAJECTORIES,
    WEIGHTS,
    Stage,
    change_training,
    one_line,
    project,
    stage,
)
from project import ROOT, Project
from ruamel.yaml import YAML
from safetensors.torch import save_file

from toycircuits.core.checkpoints import METADATA_KEY, MODELS, read_tensors, write_tensors

pytestmark = pytest.mark.slow


def test_nothing_is_unpickled_and_nobody_is_called(finished: Project) -> None:
    """The copy refuses calls that leave the machine, and the reproduction succeeded."""
    logs = {path.stem: json.loads(path.read_text()) for path in finished.audit.glob("*.json")}
    stages = YAML(typ="safe").load((finished.folder / "dvc.yaml").read_text())["stages"]
    assert {name.partition("@")[0] for name in logs} == {*stages}
    assert {name for name, log in logs.items() if log["unpickled"]} == set()
    code = "import socket; socket.create_connection(('192.0.2.1', 80), 1)"
    assert "no network here" in finished.run("python", "-c", code)[2]


UNPICKLES = r"torch\.load|\bpickle\b|joblib|allow_pickle"
# These load tensors alone, and name what is raised for anything else.
SAFE = r"torch\.load\([^()]*weights_only=True\)|from pickle import UnpicklingError\n"


def unpickles(code: str) -> bool:
    return bool(re.search(UNPICKLES, re.sub(SAFE, "", code)))


def test_no_code_of_ours_unpickles() -> None:
    code = [*ROOT.glob("src/**/*.py"), *ROOT.glob("stages/*.py")]
    assert len(code) > 30
    for path in code:
        assert not unpickles(path.read_text()), path
    assert not unpickles("torch.load(path, map_location='cpu', weights_only=True)")
    assert unpickles("torch.load(path)\ntorch.load(path, weights_only=True)")
    assert unpickles("torch.load(path, weights_only=False)")
    assert unpickles("import pickle\n")


# --- damaged files ---


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def damage_foreign(path: Path) -> None:
    save_file({"w": torch.zeros(2)}, path)


def damage_shape(path: Path) -> None:
    tensors, metadata = read_tensors(path)
    write_tensors(path, tensors | {"inputs": tensors["inputs"][:-1]}, metadata)


def damage_settings(path: Path) -> None:
    tensors, metadata = read_tensors(path)
    write_tensors(path, tensors, {"data": metadata["data"] | {"seed": 1}})


@pytest.mark.parametrize("name", ["train", "measure", "ablate"])
def test_a_stage_names_bad_input_and_ends_with_exit_code_2(project: Project, name: str) -> None:
    damage_truncate(project.folder / DATA)
    command = ("python", f"stages/{name}.py", RUN)
    code, out, err = project.run(*command, env=project.stage_environment)
    assert (code, out) == (2, "")
    assert one_line(err).startswith(f"error: {DATA}: not a readable safetensors file")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_truncate, "not a readable safetensors file"),
        (damage_foreign, "no metadata of toycircuits"),
        (damage_shape, "found (511, 5); expected"),
        (damage_settings, "made with other settings of `data`"),
        (Path.unlink, f"no such file; `toycircuits repro --force generate@{RUN}` makes it again"),
    ],
)
@pytest.mark.parametrize("name", ["train", "measure", "ablate"])
def test_damaged_data_are_named(
    project: Project, stage: Stage, name: str, damage: Callable[[Path], None], message: str
) -> None:
    damage(project.folder / DATA)
    code, err = stage(name, RUN)
    assert code == 2
    assert one_line(err).startswith(f"error: {DATA}: ")
    assert message in err


Metadata = dict[str, Any]


def rewrite_checkpoint(project: Project, change: Callable[[Metadata], Any]) -> None:
    """Give the last checkpoint of a model, which `measure` reads, other metadata."""
    path = sorted((project.folder / TRAJECTORIES / "seed0").iterdir())[-1]
    tensors, metadata = read_tensors(path)
    change(metadata)
    save_file(tensors, path, {METADATA_KEY: json.dumps(metadata)})


def rewrite_weights(project: Project, change: Callable[[Metadata], Any]) -> None:
    """Give the same model other metadata in the released weights, which `ablate` reads."""
    tensors, metadata = read_tensors(project.folder / WEIGHTS)
    change(metadata[MODELS]["seed0"])
    save_file(tensors, project.folder / WEIGHTS, {METADATA_KEY: json.dumps(metadata)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda meta: meta["model"].update(n_layers=3), "blocks.2.ln1.w: missing; the settings"),
        (lambda meta: meta["model"].update(n_layers=1), "Unexpected key(s) in state_dict"),
        (
            lambda meta: meta["model"].update(d_model=60_000, d_head=60_000),
            "W_E: found torch.float32",
        ),
        (lambda meta: meta["model"].update(freeze_W_O=True), "W_O: this model freezes it"),
        (lambda meta: meta["model"].update(depth=3), "model.depth: unknown key"),
        (lambda meta: meta.pop("model"), "model: missing key"),
        (lambda meta: meta.pop("data"), "data: missing key"),
        (lambda meta: meta.pop("slice"), "slice: missing key"),
        (lambda meta: meta.update(slice="../../x"), "slice: found '../../x'; "),
        (lambda meta: meta.update(slice="os"), "slice: found 'os'; there is no such folder"),
        (lambda meta: meta.update(experiment="../../etc"), "experiment: found '../../etc'; "),
        (lambda meta: meta.update(run="another"), "run: found 'another'; expected 'list_copy_10'"),
        (lambda meta: meta.update(weight_seed="0"), 'weight_seed: found "0"; '),
        (lambda meta: meta.update(weight_seed=1), "name of the model: found 'seed0'; "),
        (lambda meta: meta.update(version=2), "version: unknown key"),
        (lambda meta: meta["train"].update(lr="fast"), 'train.lr: found "fast"; '),
        (lambda meta: meta["data"].update(seed=0.5), "data.seed: found 0.5; "),
    ],
)
@pytest.mark.parametrize(
    ("name", "rewrite", "place"),
    [
        ("measure", rewrite_checkpoint, f"{TRAJECTORIES}/seed0"),
        ("ablate", rewrite_weights, f"{WEIGHTS}/seed0"),
    ],
)
def test_weights_of_another_architecture_are_named(
    project: Project,
    stage: Stage,
    name: str,
    rewrite: Callable[[Project, Callable[[Metadata], Any]], None],
    place: str,
    change: Callable[[Metadata], Any],
    message: str,
) -> None:
    rewrite(project, change)
    code, err = stage(name, RUN)
    assert code == 2
    assert message in one_line(err)
    assert place in err


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int32, torch.bool])
def test_weights_of_another_type_are_named(
    project: Project, stage: Stage, dtype: torch.dtype
) -> None:
    """PyTorch would convert them without a word."""
    tensors, metadata = read_tensors(project.folder / WEIGHTS)
    tensors["seed0/embed.W_E"] = tensors["seed0/embed.W_E"].to(dtype)
    write_tensors(project.folder / WEIGHTS, tensors, metadata)
    code, err = stage("ablate", RUN)
    assert code == 2
    assert f"{WEIGHTS}/seed0: embed.W_E: found {dtype} (" in one_line(err)


def drop_column(name: str) -> Callable[[Path], None]:
    def drop(path: Path) -> None:
        pd.read_csv(path).drop(columns=name).to_csv(path, index=False)

    return drop


def replace_text(old: str, new: str) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        path.write_text(path.read_text().replace(old, new, 1))

    return replace


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("training.csv", drop_column("accuracy"), "a table or column is missing: "),
        ("training.csv", drop_column("seed"), "training.csv: column seed: missing; `git checkout`"),
        ("training.csv", Path.unlink, "a table or column is missing: 'training'"),
        (
            "training.csv",
            lambda path: path.write_text(""),
            "training.csv: line 1: found ''; allowed",
        ),
        ("training.csv", replace_text(",0,", ",none,"), "training.csv: column seed: found "),
        (
            "training.csv",
            replace_text("\n", "\n<<<<<<< HEAD\n"),
            "line 2: found the conflict marker",
        ),
        (
            "measure/metrics.csv",
            lambda path: path.write_text(""),
            "metrics.csv: line 1: found ''; ",
        ),
        ("measure/metrics.csv", replace_text(",loss,", ",loss,x,"), "line 2: found 5 cells; the"),
    ],
)
def test_damaged_tables_are_named(
    project: Project, stage: Stage, file: str, damage: Callable[[Path], None], message: str
) -> None:
    figures = project.results(f"reports/{RUN}/figures")
    damage(project.folder / f"reports/{RUN}/tables/{RUN}/{file}")
    code, err = stage("render", RUN)
    assert code == 2
    assert message in one_line(err)
    assert project.results(f"reports/{RUN}/figures") == figures


# --- disks, folders, browsers ---


def small_files() -> None:
    """In the child: writing more than 4 KiB to one file fails, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def test_what_cannot_be_written_is_named_and_nothing_half_written_stays(project: Project) -> None:
    before = project.results("artifacts/data")
    code, _, err = project.run(
        *("python", "stages/generate.py", RUN),
        env=project.stage_environment,
        preexec_fn=small_files,
    )
    assert code == 1
    assert one_line(err).startswith(f"error: {DATA}: not written: ")
    assert project.results("artifacts/data") == before


def test_a_disk_that_is_full_while_training_loses_nothing(
    project: Project, stage: Stage, tmp_path: Path, small_disk: Callable[[Path, str], None]
) -> None:
    small_disk(tmp_path / "disk", "size=256k")
    before = project.results(TRAJECTORIES)
    shutil.rmtree(project.folder / ".resume")
    (project.folder / ".resume").symlink_to(tmp_path / "disk")
    change_training(project, checkpoint_every=1)
    code, err = stage("train", RUN)
    assert code == 1
    assert re.match(rf"error: \.resume/{RUN}/\S+: not written: .*[Nn]o space left", one_line(err))
    assert project.results(TRAJECTORIES) == before
    (project.folder / ".resume").unlink()
    assert stage("train", RUN)[0] == 0


def test_a_folder_that_cannot_be_written_is_named(project: Project, stage: Stage) -> None:
    shutil.rmtree(project.folder / ".resume")
    (project.folder / ".resume").touch()  # root may write everywhere, but not below a file
    code, err = stage("train", RUN)
    assert code == 1
    assert ".resume" in one_line(err)


DYING = """#!/bin/sh
{chrome} "$@" &
sleep 0.3
kill -9 $!
"""


@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 1\n", DYING], ids=["at-once", "while-drawing"])
def test_a_browser_that_dies_loses_no_number(
    project: Project,
    stage: Stage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
) -> None:
    chrome = shutil.which("chromium") or shutil.which("google-chrome")
    if chrome is None:
        pytest.skip("no browser to start")
    browser = tmp_path / "browser"
    browser.write_text(script.format(chrome=chrome))
    browser.chmod(0o755)
    numbers = project.results(f"artifacts/figures/{RUN}", f"reports/{RUN}/summary")
    for folder in ("artifacts/figures", f"reports/{RUN}/figures", f"reports/{RUN}/summary"):
        shutil.rmtree(project.folder / folder)
    monkeypatch.setenv("BROWSER_PATH", str(browser))
    code, err = stage("render", RUN)
    assert code == 0
    assert "tables and interactive figures are safe" in err
    assert project.results(f"artifacts/figures/{RUN}", f"reports/{RUN}/summary") == numbers
    assert [path.name for path in (project.folder / f"reports/{RUN}/figures").iterdir()] == [
        "NOT_DRAWN.txt"
    ]


def test_a_loss_that_is_no_number_stops_the_training(project: Project, stage: Stage) -> None:
    change_training(project, lr=1000.0, weight_decay=1000.0, schedule=None)
    change_training(project, log_every=1, checkpoint_every=1)
    code, err = stage("train", RUN)
    assert code == 1
    folder = r"the checkpoints before it are in (\S+); "
    stopped = re.search(
        rf"error: {RUN} seed0 .*: the loss is nan at step (\d+), and was .*; {folder}", err
    )
    assert stopped, err
    checkpoints = sorted((project.folder / stopped[2]).glob("*.safetensors"))
    assert len(checkpoints) == int(stopped[1])


# --- DVC and git ---


def test_a_deleted_cache_costs_no_more_than_computing(project: Project) -> None:
    before = project.results()
    shutil.rmtree(project.folder / ".dvc/cache")
    shutil.rmtree(project.folder / "artifacts")
    assert f"train@{RUN}" in project.repro()
    assert project.results() == before
    assert project.repro() == set()


def test_a_damaged_object_of_the_cache_is_found_and_mended(project: Project) -> None:
    before = project.results()
    assert project.run("toycircuits", "fsck")[0] == 0
    objects = sorted(project.folder.glob(".dvc/cache/files/md5/??/*"))
    victim = next(path for path in objects if path.stat().st_size > 10_000)
    victim.chmod(0o644)
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    code, _, err = project.run("toycircuits", "fsck")
    assert code == 1
    assert str(victim.relative_to(project.folder)) in err
    assert project.run("toycircuits", "fsck", "--remove")[0] == 1
    assert not victim.exists()
    shutil.rmtree(project.folder / "artifacts")
    project.repro()
    assert project.results() == before
    assert project.run("toycircuits", "fsck")[0] == 0


def test_a_full_cache_is_an_error(
    project: Project, tmp_path: Path, small_disk: Callable[[Path, str], None]
) -> None:
    """DVC says so, but ends with exit code 0 and a lock in which all is well."""
    small_disk(tmp_path / "disk", "size=256k")
    with (project.folder / ".dvc/config").open("a") as file:
        file.write(f"[cache]\n    dir = {tmp_path / 'disk/cache'}\n")
    change_training(project, lr=0.001, checkpoint_every=1)
    code, _, err = project.run("toycircuits", "repro", f"train@{RUN}")
    assert code == 1
    assert "not stored in the cache (is its disk full?)" in err
    assert project.run("toycircuits", "repro", f"train@{RUN}")[0] != 0  # and it stays one
