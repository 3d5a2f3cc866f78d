"""Whatever `check` accepts can run: names, the frame of params.yaml, and settings."""

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from project import ROOT
from ruamel.yaml import YAML
from typer.testing import CliRunner

from toycircuits.cli import app
from toycircuits.commands.check import validate
from toycircuits.commands.structure import RESERVED, STAGES, check_structure
from toycircuits.core import paths
from toycircuits.core.analyses import load_ablations, load_metrics
from toycircuits.core.checkpoints import read_tensors, write_tensors
from toycircuits.core.config import InputError, find_run, read_params
from toycircuits.core.slices import load_model, load_task
from toycircuits.core.train_run import read_settings

PARAMS = read_params(ROOT / "params.yaml")
EXPERIMENT = "list_copy_10"


def only(experiment: str = EXPERIMENT) -> dict[str, Any]:
    """The project's params with one experiment and its first run, which is released."""
    params = copy.deepcopy(PARAMS) | {"scale": "quick"}
    for key in ("experiments", "quick", "paper"):
        params[key] = {experiment: params[key][experiment]}
    runs = params["runs"].items()
    name, entry = next(pair for pair in runs if pair[1]["experiment"] == experiment)
    params["experiments"][experiment]["runs"] = [name]
    return params | {"runs": {name: entry}, "released": [name]}


def renamed(run: str, experiment: str, variant: str, scale: str) -> dict[str, Any]:
    """The params of `only` with other names."""
    params = only()
    entry = params["runs"][EXPERIMENT] | {
        "experiment": experiment,
        "final": f"reports/weights/{run}.safetensors",
        "variants": {variant: {}, "other": {}},
    }
    tree = {experiment: params["quick"][EXPERIMENT]}
    return {
        **{"scale": scale, "experiments": {experiment: {"slice": "list_copy", "runs": [run]}}},
        **{"runs": {run: entry}, "released": [run], scale: tree, "other": tree},
        "portable": {scale: True, "other": False},
    }


GOOD = {"run": "a_run", "experiment": "some", "variant": "free", "scale": "small"}


def write(folder: Path, params: dict[str, Any]) -> None:
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(json.loads(json.dumps(params)), file)


@pytest.fixture(scope="session")
def dvc_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which DVC reads our dvc.yaml; tests write params.yaml."""
    folder = tmp_path_factory.mktemp("names")
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    (folder / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    return folder


def stages_of(folder: Path) -> dict[str, Any]:
    """The stages that DVC makes of the project in `folder`, by name, with their params read."""
    from dvc.repo import Repo

    with Repo(str(folder)) as repo:
        stages = {stage.name: stage for stage in repo.index.stages}
        for stage in stages.values():
            for dep in stage.deps:
                if hasattr(dep, "params"):
                    assert dep.params, stage.name
                    assert set(dep.params) <= set(dep.read_params()), stage.name
        return stages


def accepts(params: dict[str, Any]) -> bool:
    try:
        check_structure(params)
    except InputError:
        return False
    return True


NAMES = st.one_of(
    st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,99}", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9_.\-/ @$;]{1,12}", fullmatch=True),
    st.text(min_size=1, max_size=6),
    st.integers(95, 260).map("x".__mul__),
    st.sampled_from([*RESERVED, "null", "true", "CON", "a.b", "a-b", "..", "-x", "_x", "a" * 100]),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.sampled_from(["run", "experiment", "variant", "scale"]), name=NAMES)
def test_dvc_and_disks_take_every_name_that_check_accepts(
    dvc_project: Path, place: str, name: str
) -> None:
    names = GOOD | {place: name}
    params = renamed(**names)
    if not accepts(params):
        return
    write(dvc_project, params)
    run, experiment = names["run"], names["experiment"]
    stages = stages_of(dvc_project)
    assert set(stages) == {
        *(f"{stage}@{run}" for stage in ("train", "release", "measure", "ablate")),
        *(f"{stage}@{experiment}" for stage in ("generate", "render", "judge", "section")),
        "report",
    }
    model = paths.model_name(names["variant"], 2**63 - 1, 2**63 - 2)
    files = [dvc_project / f"logs/{stage}.log" for stage in stages]
    files += [Path(out.fs_path) for stage in stages.values() for out in stage.outs]
    files += [dvc_project / paths.trajectories(run) / model]
    files += [dvc_project / paths.RESUME / run / f"{model}-{'0' * 16}"]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        assert file.resolve().is_relative_to(dvc_project.resolve())
        partial = file.with_name(f".{file.name}.partial")
        partial.touch()
        partial.unlink()


@pytest.mark.parametrize("place", GOOD)
@pytest.mark.parametrize(
    "name",
    [
        *(
            "a.b",
            "a/b",
            "../x",
            "/tmp/x",
            "",
            " ",
            "a b",
            "-x",
            "_x",
            ".x",
            "1",
            "é",
            "\uff41",
            "a\n",
        ),
        *("$(touch x)", "a;b", "a'b", "a@b", "${scale}", "x" * 101, "\x1b[31m", "a\u202eb"),
    ],
)
def test_names_that_cannot_run_are_refused(place: str, name: str) -> None:
    allowed = "allowed: letters, digits and `_`, starting with|allowed: no control|allowed keys are"
    with pytest.raises(InputError, match=allowed):
        check_structure(renamed(**GOOD | {place: name}))


@pytest.mark.parametrize("name", RESERVED)
@pytest.mark.parametrize("place", ["run", "experiment"])
def test_names_with_another_use_are_refused(place: str, name: str) -> None:
    with pytest.raises(InputError, match=f"found the name '{name}', which has another use"):
        check_structure(renamed(**GOOD | {place: name}))


@pytest.mark.parametrize("name", ["src", "artifacts", "reports", "logs", "stages"])
def test_scales_are_not_called_like_folders_of_the_project(name: str) -> None:
    with pytest.raises(InputError, match=f"found the name '{name}', which has another use"):
        check_structure(renamed(**GOOD | {"scale": name}))


@pytest.mark.parametrize("place", ["variant", "scale"])
def test_names_that_differ_in_capitals_only_are_refused(place: str) -> None:
    with pytest.raises(InputError, match=r"found the names '(Other|other)' and '(Other|other)'"):
        check_structure(renamed(**GOOD | {place: "Other"}))


def test_the_stages_are_those_of_dvc_yaml() -> None:
    assert {*STAGES} == set(YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"])


def test_no_name_of_params_is_in_a_command(dvc_project: Path) -> None:
    """A shell runs commands, also for plain `dvc repro`, which validates no name."""
    write(dvc_project, renamed(**GOOD))
    for name, stage in stages_of(dvc_project).items():
        assert not any(given in stage.cmd for given in (*GOOD.values(), "list_copy")), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["$(touch planted)", "x; touch planted", "x'; touch planted; '"])
def test_plain_dvc_runs_no_name(dvc_project: Path, tmp_path: Path, name: str) -> None:
    write(tmp_path, renamed(**GOOD | {"run": name}))
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    stage = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]["train"]
    command = stage["do"]["cmd"].replace("python stages/train.py", "echo")
    stages = {"train": {"foreach": stage["foreach"], "do": {"cmd": command}}}
    (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    done = subprocess.run(
        ["dvc", "repro"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert f"\ntrain@{name}\n" in done.stdout, done.stderr  # the argument, as echo printed it
    assert not (tmp_path / "planted").exists()


SHAPES: list[tuple[str, Any, str]] = [  # key, value, what the message says
    ("runs", 3, "runs: found 3; allowed is a mapping with entries"),
    ("runs", [EXPERIMENT], "runs: found ['list_copy_10']; allowed is a mapping"),
    (f"runs/{EXPERIMENT}", "text", f"runs.{EXPERIMENT}: found"),
    (f"runs/{EXPERIMENT}/experiment", None, f"runs.{EXPERIMENT}.experiment: missing key"),
    (f"runs/{EXPERIMENT}/experiment", "nosuch", f"runs.{EXPERIMENT}.experiment: found 'nosuch'"),
    (f"runs/{EXPERIMENT}/experiment", "../../etc", f"runs.{EXPERIMENT}.experiment: found '../"),
    (f"runs/{EXPERIMENT}/slice", "../../etc", f"runs.{EXPERIMENT}.slice: found '../../etc'"),
    (f"runs/{EXPERIMENT}/final", None, f"runs.{EXPERIMENT}.final: missing key"),
    (f"runs/{EXPERIMENT}/final", "/etc/passwd", f"runs.{EXPERIMENT}.final: found '/etc/passwd'"),
    (f"runs/{EXPERIMENT}/variants", {"a.b": {}}, f"runs.{EXPERIMENT}.variants: found 'a.b'"),
    ("experiments", [], "experiments: found []; allowed is a mapping with entries"),
    (f"experiments/{EXPERIMENT}", None, f"experiments.{EXPERIMENT}: found null"),
    (f"experiments/{EXPERIMENT}/slice", 3, f"experiments.{EXPERIMENT}.slice: found 3"),
    (f"experiments/{EXPERIMENT}/runs", 3, f"experiments.{EXPERIMENT}.runs: found 3"),
    (
        f"experiments/{EXPERIMENT}/runs",
        [],
        f"experiments.{EXPERIMENT}.runs: found 'list_copy_10' 0",
    ),
    (f"experiments/{EXPERIMENT}/runs", ["x"], f"experiments.{EXPERIMENT}.runs: found 'x'; allowed"),
    ("released", "text", "released: found 'text'; allowed is a list of runs"),
    ("released", {EXPERIMENT: 1}, "released: found {'list_copy_10': 1}; allowed is a list"),
    ("scale", None, "params.yaml: scale: missing key"),
    ("scale", {}, "scale: found {}; allowed: quick, paper"),
    ("quick", [1], "quick: found [1]; allowed is a mapping"),
    (f"quick/{EXPERIMENT}", None, f"quick.{EXPERIMENT}: missing key"),
    (f"paper/{EXPERIMENT}", 1, f"paper.{EXPERIMENT}: found 1; allowed is a mapping"),
]
COMMANDS = ["list", f"show {EXPERIMENT}", "figures", "fresh", "cost", "repro", "repro --dry"]
COMMANDS += ["repro --scale paper", "compare HEAD", "check", "new-experiment say_again"]


@pytest.mark.parametrize(("path", "value", "message"), SHAPES, ids=[row[2] for row in SHAPES])
def test_params_of_the_wrong_shape_end_every_command_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, value: Any, message: str
) -> None:
    params = only()
    *parents, last = path.split("/")
    place: Any = params
    for name in parents:
        place = place[name]
    if value is None and not path.startswith("experiments/"):
        del place[last]
    else:
        place[last] = value
    write(tmp_path, params)
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/train.py").touch()
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for command in COMMANDS:
        result = CliRunner().invoke(app, command.split())
        assert isinstance(result.exception, SystemExit), (command, result.exception)
        assert (result.exit_code, result.stdout) == (2, ""), (command, result.stderr)
        assert result.stderr.startswith(f"error: {message}"), (command, result.stderr)
        assert result.stderr.count("\n") == 1, command
    assert sorted(tmp_path.rglob("*")) == before


NUMBERS = st.one_of(
    st.floats(allow_nan=False),
    st.floats(-1e-300, 1e-300),
    st.integers(-2, 12),
    st.integers(),
    st.sampled_from([5e-324, 1e-310, 2.3e-308, -0.0, 1e400, 1e3, 2**53 + 1, 2**63 - 1, 2**63]),
)
SECTIONS_OF_TRAINING = ("data", "model", "train", "measure", "ablate")


def numbers_in(values: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Path of every number in nested mappings and lists."""
    if isinstance(values, dict | list):
        pairs = values.items() if isinstance(values, dict) else enumerate(values)
        return [path for name, value in pairs for path in numbers_in(value, (*at, name))]
    return [at] if type(values) in (int, float) else []


def stages_accept(params: dict[str, Any], folder: Path) -> bool:
    """Whether the stages of all runs can parse their settings, also as weights carry them."""
    torch.set_flush_denormal(False)  # a stage parses its settings before it sets this
    try:
        for name in params["runs"]:
            run = find_run(params, name)
            code = run.entry.slice
            task, architecture = load_task(code), load_model(code)
            read = read_settings(run)
            given = {"data": read.data, "train": read.train, **read.models}
            for model in read.models.values():
                with torch.device("meta"):
                    architecture.build(model, read.data, torch.Generator(device="cpu"))
            file, tensors = folder / "weights.safetensors", {"x": torch.zeros(1)}
            write_tensors(file, tensors, {key: value.model_dump() for key, value in given.items()})
            torch.set_flush_denormal(True)  # as `prepare` does before weights are read
            metadata = read_tensors(file)[1]
            data = task.DataSettings.parse(metadata["data"], "data")
            train = task.TrainSettings.parse(metadata["train"], "train")
            assert (data, train) == (read.data, read.train)
            for key, model in read.models.items():
                assert architecture.ModelSettings.parse(metadata[key], "model") == model
            for load, section in ((load_metrics, "measure"), (load_ablations, "ablate")):
                cls = getattr(load(code), f"{section.capitalize()}Settings")
                run.section(section, cls).check(data, train)
    except InputError:
        return False
    finally:
        torch.set_flush_denormal(False)
    return True


@pytest.mark.parametrize("experiment", PARAMS["experiments"])
@settings(max_examples=80, deadline=None, suppress_health_check=[*HealthCheck])
@given(data=st.data())
def test_check_accepts_what_the_stages_accept(
    tmp_path: Path, experiment: str, data: st.DataObject
) -> None:
    params = only(experiment)
    tree = {name: params["quick"][experiment][name] for name in SECTIONS_OF_TRAINING}
    *parents, last = data.draw(st.sampled_from(numbers_in(tree)), label="at")
    place: Any = params["quick"][experiment]
    for name in parents:
        place = place[name]
    place[last] = data.draw(NUMBERS, label="value")
    try:
        validate(params, ["quick"])
        message = ""
    except InputError as error:
        message = str(error)
    if "of memory" in message:  # `check` alone looks at this machine
        return
    assert stages_accept(params, tmp_path) == (not message), message


def test_check_can_refuse_what_a_stage_would_read_as_zero(tmp_path: Path) -> None:
    """Not vacuous: such a number once passed, trained, and failed in `ablate`."""
    params = only()
    params["quick"][EXPERIMENT]["train"]["lr"] = 5e-324
    with pytest.raises(InputError, match=r"train\.lr: found 5e-324; allowed: 0, or at least 2\.2"):
        validate(params, ["quick"])
    assert not stages_accept(params, tmp_path)
    params["quick"][EXPERIMENT]["train"]["lr"] = 1e-300
    validate(params, ["quick"])
    assert stages_accept(params, tmp_path)
