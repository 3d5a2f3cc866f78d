"""Malformed settings fail before any work, with one line that names the key, and exit code 2."""

import copy
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from typer.testing import CliRunner

from toycircuits.cli import app
from toycircuits.commands.check import validate, validate_claims
from toycircuits.core.config import STRUCTURE, InputError, read_params

ROOT = Path(__file__).resolve().parents[1]
PARAMS = read_params(ROOT / "params.yaml")
ABSENT = object()
HUGE = 10**30

MODULAR, COPY, GRID = "modular_subtraction", "list_copy_10", "list_copy_100"
CELL = "list_copy_100_2l"  # a run that is not released
REVERSE, REGRESSION = "reverse_increment", "linear_regression"

# Key path, the value there, and a part of the message, in which @ is the key path with dots.
TABLE: list[tuple[str, Any, str]] = [
    # The frame
    ("scale", "quik", "scale: found 'quik'; allowed: quick, paper"),
    ("scale", ABSENT, "scale: missing key"),
    ("scale", ["quick"], "scale: found ['quick']; allowed: quick, paper"),
    ("runs", ABSENT, "runs: missing key"),
    ("runs", [], "runs: found []; allowed is a mapping with entries"),
    ("experiments", {}, "experiments: found {}; allowed is a mapping with entries"),
    ("paper", 3, "paper: found 3; allowed is a mapping of keys to values"),
    ("quick/modular_subtration", {}, "@: no such experiment; allowed: modular_subtraction, "),
    (f"paper/{COPY}", ABSENT, "@: missing key"),
    (f"paper/{COPY}", None, "@: found None; allowed is a mapping"),
    (f"paper/{COPY}/render", ABSENT, "@: missing key"),
    (f"quick/{COPY}/tune", {}, "@: unknown key; allowed: data, model, train"),
    (f"experiments/{COPY}/slice", "list_coppy", "@: found 'list_coppy'; there is no such folder"),
    (f"experiments/{COPY}/slice", "../config", "@: found '../config'; allowed: letters"),
    (f"experiments/{COPY}/slize", "x", "@: unknown key; allowed keys: slice"),
    ("experiments/2", {"slice": "list_copy"}, "experiments: found '2'; allowed: letters"),
    ("runs/..", {"experiment": COPY, "slice": "list_copy"}, "runs: found '..'; allowed: letters"),
    (f"runs/{COPY}/model", {"a\nb": 1}, f"params.yaml: runs: {COPY}: model: found the key 'a"),
    ("experiments/a b", {"slice": "list_copy"}, "experiments: found 'a b'; allowed: letters"),
    # Runs
    (f"runs/{COPY}/slice", "modular_arithmetic", "@: found 'modular_arithmetic'; allowed is"),
    (f"runs/{COPY}/experiment", "list_copy", "@: found 'list_copy'; there are: modular_"),
    (f"runs/{COPY}/experiment", ABSENT, "@: missing key"),
    (f"runs/{COPY}", None, f"runs.{COPY}: found null"),
    (f"runs/{COPY}/modle", {}, "@: unknown key; allowed keys: model, train"),
    (f"runs/{COPY}/model", {"d_head": 3}, f"runs.{COPY}.model: d_head: found 3; allowed with"),
    (f"runs/{COPY}/model", {"d_heads": 3}, f"runs.{COPY}.model.d_heads: unknown key"),
    (f"runs/{COPY}/variants", {"a/b": {}}, "@: found 'a/b'; allowed: letters"),
    (f"runs/{COPY}/variants", {"a": {"depth": 2}}, "variants.a.depth: unknown key"),
    (f"runs/{COPY}/scales", {"papper": {}}, "@.papper: no such scale; there are: quick, paper"),
    (f"runs/{COPY}/scales", {"paper": {"train": {"lr": 0}}}, "@.paper.train.lr: found 0"),
    (f"runs/{COPY}/final", ABSENT, "@: missing key"),
    (f"runs/{COPY}/final", 1, "@: found 1; input should be a valid string"),
    (f"runs/{COPY}/final", f"artifacts/trajectories/{COPY}", "because `released` names the run"),
    (f"runs/{COPY}/final", f"./reports/weights/{COPY}.safetensors", "@: found './reports/weights"),
    (f"runs/{CELL}/final", f"reports/weights/{CELL}.safetensors", "`released` does not name"),
    (
        f"runs/{CELL}/final",
        "artifacts/trajectories/list_copy_100",
        f"trajectories/{CELL}', because",
    ),
    ("portable", ABSENT, "portable: missing key"),
    ("portable", True, "portable: found True; allowed: true or false per scale"),
    ("portable/quick", 1, "portable.quick: found 1; allowed: true or false"),
    ("portable/paper", ABSENT, "portable.paper: found None; allowed: true or false"),
    ("portable/papr", True, "portable.papr: no such scale; allowed: quick, paper"),
    (
        f"quick/{COPY}/train/compile",
        True,
        "@: found true; allowed is false, because portable.quick is true",
    ),
    ("released", ABSENT, "released: missing key"),
    ("released", COPY, f"released: found '{COPY}'; allowed is a list of runs"),
    (
        "released",
        [COPY, "list_copy"],
        "released: found 'list_copy'; allowed: modular_subtraction, ",
    ),
    ("released", [COPY, CELL, COPY], f"released: found '{COPY}' 2 times; allowed: once"),
    ("released", [[COPY]], f"released: found ['{COPY}']; allowed: modular_subtraction, "),
    ("released", [1], "released: found 1; allowed: modular_subtraction, "),
    # Types
    (f"quick/{COPY}/train/lr", "fast", '@: found "fast"'),
    (f"quick/{COPY}/train/lr", True, "@: found true"),
    (f"quick/{COPY}/train/lr", None, "@: found null"),
    (f"quick/{COPY}/train/lr", math.nan, "@: found NaN; input should be a finite number"),
    (f"quick/{COPY}/train/lr", math.inf, "@: found Infinity"),
    (f"quick/{COPY}/train/lr", -1, "@: found -1; input should be greater than 0"),
    (f"quick/{COPY}/train/lr", HUGE, "@: found 1000000000"),
    (f"paper/{COPY}/train/betas", [0.9], "@.1: missing key"),
    (f"paper/{COPY}/train/betas", [0.9, 1], "train: betas: found (0.9, 1.0); allowed are"),
    (f"paper/{COPY}/train/weight_seeds", 0, "@: found 0"),
    (f"paper/{COPY}/train/weight_seeds", [], "@: found []"),
    (f"paper/{COPY}/train/weight_seeds", [0, *range(19)], "weight_seeds: found (0, 0, 1, 2, 3, "),
    (f"paper/{COPY}/train/weight_seeds", [*range(19), -1], "weight_seeds: found -1; allowed"),
    (f"paper/{COPY}/train/batch_seeds", [*range(19), 2**63], "batch_seeds: found 922337203685"),
    (f"paper/{COPY}/train/batch_seeds", [0], "batch_seeds: found 1 seeds; allowed are as many"),
    (f"paper/{COPY}/train/optimizer", "SGD", "@: found \"SGD\"; input should be 'Adam' or"),
    (f"paper/{COPY}/train/optimizer", "Adam", "weight_decay: found 0.01; Adam takes 0 only"),
    (f"paper/{COPY}/train/unit", "batch", "@: found \"batch\"; input should be 'epoch' or"),
    (f"paper/{COPY}/train/length", 0, "@: found 0"),
    (f"paper/{COPY}/train/length", 2.0, "@: found 2.0; input should be a valid integer"),
    (f"paper/{COPY}/train/compile", "yes", '@: found "yes"'),
    (f"paper/{COPY}/train/schedule", {"warmup": 1}, "@.peak: missing key"),
    (f"quick/{COPY}/train/schedule/warmup", 600, "schedule.warmup: found 600; allowed is less"),
    (f"paper/{COPY}/train/clip_grad_norm", 0, "@: found 0"),
    (f"paper/{COPY}/train/momentum", 0.9, "@: unknown key; allowed keys: optimizer, "),
    (f"paper/{COPY}/train/log_every", ABSENT, "@: missing key"),
    # Modular subtraction
    (f"quick/{MODULAR}/data/modulus", 58, "data: modulus: found 58; allowed are odd numbers"),
    (f"quick/{MODULAR}/data/modulus", 1, "@: found 1"),
    (f"quick/{MODULAR}/data/modulus", HUGE, "@: found 1000000000"),
    (f"quick/{MODULAR}/data/train_fraction", 1, "@: found 1"),
    (f"quick/{MODULAR}/data/train_fraction", 1e-9, "train_fraction: found 1e-09; allowed are"),
    (f"quick/{MODULAR}/data/operation", "multiply", '@: found "multiply"'),
    (f"quick/{MODULAR}/data/seed", -1, "@: found -1"),
    (f"quick/{MODULAR}/train/batch_size", 64, "@: found 64"),
    (f"quick/{MODULAR}/train/stop", {"metric": "accuracy", "at_least": 1}, "@.metric: found"),
    (f"quick/{MODULAR}/model/use_bias", 0, "@: found 0; allowed: false"),
    (f"quick/{MODULAR}/model/n_layers", True, "@: found true; allowed: 1"),
    (f"quick/{MODULAR}/model/d_mlp", 262145, "d_mlp: found 262145; input should be less than"),
    (f"quick/{MODULAR}/measure/example", [7, 59], "@: found [7, 59]; allowed are numbers below"),
    (f"quick/{MODULAR}/measure/example", [7], "@.1: missing key"),
    (f"quick/{MODULAR}/ablate", {"heads": 1}, "@.heads: unknown key"),
    (f"quick/{MODULAR}/ablate", None, "@: found null"),
    (f"paper/{MODULAR}/render/published_phases", [1, 2], "@.2: missing key"),
    # List copy
    (f"quick/{COPY}/data/layout", "in_place", "data: n_lists: the layout in_place needs"),
    (f"quick/{COPY}/data/n_symbols", 1, "@: found 1"),
    (f"quick/{COPY}/model/n_layers", 0, "@: found 0"),
    (f"quick/{COPY}/model/d_head", 8, "model: d_head: found 8; allowed with a frozen W_V"),
    (f"quick/{COPY}/model/normalization", "RMS", '@: found "RMS"'),
    (f"quick/{COPY}/train/stop", {"metric": "acc", "at_least": 1.0}, "@.metric: found 'acc'"),
    (f"quick/{COPY}/measure/sample", [8, 10], "@: found [8, 10]; allowed are numbers from 0 to"),
    (f"quick/{COPY}/measure/sample", [8, -1], "@: found [8, -1]; allowed are numbers from 0"),
    (f"quick/{COPY}/measure/probe/folds", 11, "@: found 11; allowed: 2 to 10"),
    (f"quick/{COPY}/ablate/mean_lists", 10001, "@: found 10001; allowed is at most 10000"),
    (f"quick/{COPY}/ablate/sample", [10, 0], "@: found [10, 0]; allowed are numbers from 0"),
    (f"quick/{GRID}/data/train_fraction", 0.0001, "train_fraction: found 0.0001; a part would"),
    (f"quick/{GRID}/train/batch_size", 721, "@: found 721; allowed are at most the training"),
    (
        "runs/list_copy_100_2l/model",
        {"d_model": 65536, "d_head": 65536, "n_layers": 64},
        "quick.list_copy_100.model: training needs",
    ),
    (f"paper/{GRID}/render/grid/plateau", [0.4], "@.1: missing key"),
    # Reverse and increment
    (f"quick/{REVERSE}/data/length", 12, "data: length: found 12; allowed are at most"),
    (f"quick/{REVERSE}/data/n_train", 1024, "data: n_train: found 1024; allowed is less than"),
    (f"quick/{REVERSE}/data/n_sampled", 938, "data: n_sampled: found 938; allowed is at most"),
    (f"quick/{REVERSE}/model/act_fn", "tanh", '@: found "tanh"'),
    (f"quick/{REVERSE}/model/d_head", 0, "@: found 0"),
    (f"quick/{REVERSE}/train/batch_seeds", None, ".train.batch_seeds: found null"),
    ("runs/reverse_increment_random/train/split", "rnd", 'train.split: found "rnd"'),
    (f"paper/{REVERSE}/measure/n_samples", 21, "@: found 21"),
    (f"paper/{REVERSE}/ablate/control_draws", 0, "@: found 0"),
    (f"paper/{REVERSE}/render/success_at_least", 1.5, "@: found 1.5"),
    # In-context linear regression
    (f"quick/{REGRESSION}/data/d", 0, "@: found 0"),
    (f"quick/{REGRESSION}/data/delta", -0.1, "@: found -0.1"),
    (f"quick/{REGRESSION}/data/n_validation", 10**7, "n_validation: found 10000000; allowed are"),
    (f"quick/{REGRESSION}/train/batch_size", 100, ".batch_size: found 100; input should be a"),
    (f"quick/{REGRESSION}/train/batch_size", 16 * 10**9, "@: found 16000000000; allowed with"),
    (f"quick/{REGRESSION}/model/init", "zeros", '.model.init: found "zeros"'),
    ("runs/linear_regression_h1/model/init", "oppo_small_id", "n_heads: found 1; allowed with"),
    ("runs/linear_regression_stack/variants/tied/stack/n_layers", 1, "n_layers: found 1"),
    (f"quick/{REGRESSION}/measure/qk_steps", [0, 7], "@: found 7; allowed are steps with a"),
    (f"quick/{REGRESSION}/measure/lengths/last", 0, "@: found 0"),
    (f"quick/{REGRESSION}/measure/lengths/first", 101, "lengths: last: found 100; allowed is"),
    (f"quick/{REGRESSION}/measure/sequences", 10**7, "@: found 10000000; allowed are at most"),
    (f"quick/{REGRESSION}/measure/live_ratio", 0, "@: found 0"),
    (f"quick/{REGRESSION}/ablate/sequences", 2049, "@: found 2049; allowed is at most"),
    (f"paper/{REGRESSION}/render/published/linear_regression_h1/w", 1, "@: unknown key"),
]


def changed(path: str, value: Any) -> dict[str, Any]:
    params = copy.deepcopy(PARAMS)
    *parents, last = path.split("/")
    place: Any = params
    for name in parents:
        place = place[name]
    if value is ABSENT:
        del place[last]
    else:
        place[last] = value
    return params


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What makes a folder a project, without code or data."""
    (tmp_path / "stages").mkdir()
    for name in ("dvc.yaml", "stages/train.py"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(project: Path) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `toycircuits check`."""
    result = CliRunner().invoke(app, ["check"])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stdout, result.stderr


def test_the_projects_own_params_are_valid(project: Path) -> None:
    (project / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    shutil.copytree(ROOT / "claims", project / "claims")
    assert check(project)[0] == 0


@pytest.mark.parametrize(
    ("path", "value", "message"), TABLE, ids=[f"{n}-{path}" for n, (path, _, _) in enumerate(TABLE)]
)
def test_malformed_settings_are_named_in_one_line(
    project: Path, path: str, value: Any, message: str
) -> None:
    with (project / "params.yaml").open("w") as file:
        YAML().dump(changed(path, value), file)
    before = sorted(project.rglob("*"))
    code, out, err = check(project)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message.replace("@", path.replace("/", "."), 1) in err
    assert sorted(project.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "params.yaml: found None; allowed is a mapping"),
        ("- 1\n", "params.yaml: found [1]; allowed is a mapping"),
        ("a: [1\n", "params.yaml: line 2: not valid YAML: "),
        ("a: 1\na: 2\n", "params.yaml: line 2: not valid YAML: "),
        ("a: 2001-02-30\n", "params.yaml: not valid YAML: "),
        ("1: 2\n", "params.yaml: found the key 1; allowed keys are printable text"),
        ("runs: {a: {? [1, 2] : 3}}\n", "params.yaml: runs: a: found the key "),
        (
            "quick: {b: [{2.5: 1}]}\n",
            "params.yaml: quick: b: found the key 2.5; allowed keys are printable text",
        ),
        ("\x00", "params.yaml: line 1: found a NUL byte"),
    ],
)
def test_a_file_that_is_no_mapping_of_names_is_refused(
    project: Path, text: str, message: str
) -> None:
    (project / "params.yaml").write_text(text)
    code, _, err = check(project)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err


def test_bytes_that_are_no_text_are_refused(project: Path) -> None:
    (project / "params.yaml").write_bytes(b"\xff\xfe\x00")
    code, _, err = check(project)
    assert (code, err.count("\n")) == (2, 1)
    assert "params.yaml" in err


def places(values: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Path of every value in nested mappings and lists."""
    inner = values.items() if isinstance(values, dict) else enumerate(values)
    paths = [at] if at else []
    for name, value in inner:
        nested = isinstance(value, dict | list)
        paths += places(value, (*at, name)) if nested else [(*at, name)]
    return paths


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from([0, 1, -1, 2**63, HUGE, 1e300, "1", "auto", "null"]),
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_value_anywhere_is_valid_or_named_in_one_line(data: st.DataObject) -> None:
    params = copy.deepcopy(PARAMS)
    for _ in range(data.draw(st.integers(1, 3), label="changes")):
        *parents, last = data.draw(st.sampled_from(places(params)), label="at")
        place: Any = params
        for name in parents:
            place = place[name]
        place[last] = data.draw(ANYTHING, label="value")
    message = None
    try:
        validate(params)
    except InputError as error:
        message = str(error)
    assert message is None or (": " in message and "\n" not in message)


@settings(max_examples=100, deadline=None)
@given(params=st.dictionaries(st.text(max_size=8), ANYTHING, max_size=4))
def test_any_mapping_is_refused_in_one_line(params: dict[str, Any]) -> None:
    for name in STRUCTURE:
        params.setdefault(name, PARAMS[name])
    with pytest.raises(InputError) as caught:
        validate(params)
    assert "\n" not in str(caught.value)


CARD = (ROOT / "claims/list_copy_10.yaml").read_text()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": CARD}, None),
        ({}, r"claims/a\.yaml: missing"),
        ({"a": CARD, "b": CARD}, r"claims/b\.yaml: no such experiment; allowed: a"),
        ({"a": CARD.replace("question:", "questions:")}, r"claims/a\.yaml\.question: missing key"),
        (
            {"a": CARD.replace("scales: [quick, paper]", "scales: [papr]", 1)},
            "scales: found 'papr'",
        ),
    ],
)
def test_files_of_claims(tmp_path: Path, files: dict[str, str], message: str | None) -> None:
    (tmp_path / "claims").mkdir()
    for name, text in files.items():
        (tmp_path / f"claims/{name}.yaml").write_text(text)
    params = {"scale": "paper", "experiments": {"a": {}}, "runs": {}, "paper": {}, "quick": {}}
    if message is None:
        validate_claims(params, tmp_path / "claims")
        return
    with pytest.raises(InputError, match=message) as error:
        validate_claims(params, tmp_path / "claims")
    assert "\n" not in str(error.value)
