"""`toycircuits.analyse` and its command: tables as the stages make them, verdicts, page, errors."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from project import ROOT
from test_cli import toycircuits as command

import toycircuits
from toycircuits.claims.card import Claim
from toycircuits.core.config import InputError, read_params
from toycircuits.core.report_paths import claims_file
from toycircuits.foreign.analysis import RECORD, Analysis, read_weights
from toycircuits.foreign.page import figures, write_page
from toycircuits.foreign.verdicts import judge_one

WEIGHTS = ROOT / "reports/weights/order_by_scale_2l.safetensors"
RUNS = [
    "order_by_scale_2l",
    "modular_subtraction",
    "reverse_increment_sequential",
    "linear_regression_h2",
]
LABELS = ["run", "variant", "seed"]


@pytest.fixture(scope="module", params=RUNS)
def own(request: pytest.FixtureRequest) -> tuple[Any, Analysis]:
    """A released model, and the analysis of its weights as if they were somebody else's."""
    run = toycircuits.load_run(request.param)
    state = {name: value.clone() for name, value in run.model.state_dict().items()}
    return run, toycircuits.analyse(state, run=request.param, scale="quick")


def of_last_step(table: pd.DataFrame) -> pd.DataFrame:
    table = table.drop(columns=LABELS, errors="ignore")
    if "step" in table:
        table = table[table["step"] == table["step"].max()].drop(columns="step")
    return table.reset_index(drop=True)


def test_the_tables_are_those_of_the_stages(own: tuple[Any, Analysis]) -> None:
    """Of the last step: the stages pin the processor's instructions, so numbers round otherwise."""
    run, analysis = own
    seed, variant = run.settings["weight_seed"], run.settings["variant"]
    compared = 0
    for name in set(analysis.tables) & set(run.tables):
        table = run.tables[name]
        table = table[(table["seed"] == seed) & (table["variant"].fillna("") == variant)]
        ours, theirs = of_last_step(table), of_last_step(analysis.tables[name])
        if name == "metrics":
            ours = ours[ours["metric"].isin(theirs["metric"])].reset_index(drop=True)
        if "case" in ours and "untrained" in set(ours["case"]):
            ours = ours[ours["case"] != "untrained"].reset_index(drop=True)
            theirs = theirs[theirs["case"] != "untrained"].reset_index(drop=True)
        pd.testing.assert_frame_equal(
            ours[list(theirs)], theirs, rtol=2e-3, atol=2e-4, check_dtype=False, obj=name
        )
        compared += 1
    assert compared >= 4
    assert {"ablations", "metrics"} <= set(analysis.tables)


def test_nothing_is_told_about_steps_that_nobody_knows(own: tuple[Any, Analysis]) -> None:
    _, analysis = own
    metrics = set(analysis.tables["metrics"]["metric"])
    assert not [name for name in metrics if name.endswith(("_step", "_end")) or name == "step"]
    assert "training" not in analysis.tables
    assert "phases" not in analysis.tables


def test_every_claim_is_judged_or_left_out_for_a_reason(own: tuple[Any, Analysis]) -> None:
    from toycircuits.claims.card import read_card

    run, analysis = own
    card = read_card(ROOT / claims_file(run.settings["experiment"]))
    left_out = [claim for claims in analysis.left_out.values() for claim in claims]
    judged = [] if analysis.claims.empty else analysis.claims["id"].tolist()
    assert sorted([*judged, *left_out]) == sorted(claim.id for claim in card.claims)


def test_figures_of_the_experiment_are_drawn(own: tuple[Any, Analysis]) -> None:
    _, analysis = own
    drawn = figures(analysis)
    assert len(drawn) >= 3
    assert not {"loss", "accuracy", "restricted_excluded", "progress_measures"} & set(drawn)


# Verdicts, with planted tables.


def table(
    metric: float, step_value: float = 3.0, seed: object = "theirs"
) -> dict[str, pd.DataFrame]:
    model = {"run": "r", "variant": "", "seed": seed}
    metrics = [
        {**model, "metric": "accuracy", "value": metric},
        {**model, "metric": "size", "value": 5.0},
        {**model, "metric": "grokked_step", "value": step_value},
    ]
    heads = [{**model, "step": step, "w": w} for step, w in ((0, 0.0), (9, metric))]
    return {"metrics": pd.DataFrame(metrics), "heads": pd.DataFrame(heads)}


def claim(measured: Mapping[str, Any], **changes: Any) -> Claim:
    values = {
        **{"id": "c", "statement": "s", "source": "x", "kind": "exact"},
        **{"measured": measured, "expected": {"at_least": 0.9}},
    }
    return Claim.parse(values | changes, "claim")


def metric(name: str, **where: Any) -> dict[str, Any]:
    return {"table": "metrics", "where": {"metric": name, **where}, "value": "value"}


UNDECIDED = {
    "they are about another scale": claim(metric("accuracy"), scales=["quick"]),
    "they are about all runs together": claim({"table": "summary/models", "value": "accuracy"}),
    "they are about the training": claim({"table": "training", "value": "loss"}),
    "they do not depend on the weights": claim(metric("size")),
    "they are about other runs, variants or models": claim(metric("accuracy", run="other")),
}
OF_TRAINING = {
    "metric of a step": metric("grokked_step"),
    "other metric of a step": metric("accuracy") | {"over": {"metric": "grokked_step"}},
    "first step": {"table": "heads", "where": {"step": "first"}, "value": "w"},
    "a step by number": {"table": "heads", "where": {"step": 9}, "value": "w"},
    "change over training": {"table": "heads", "where": {"step": "last"}, "value": "w"}
    | {"minus": {"step": "first"}},
    "all steps": {"table": "heads", "value": "w", "reduce": "max"},
    "value of a step": {"table": "heads", "where": {"step": "last"}, "value": "step"},
}


@pytest.mark.parametrize("reason", UNDECIDED)
def test_a_claim_that_the_tables_do_not_decide_is_left_out(reason: str) -> None:
    verdicts, left_out = judge_one([UNDECIDED[reason]], "paper", table(1.0), table(0.0))
    assert verdicts.empty
    assert left_out == {reason: ["c"]}


@pytest.mark.parametrize("measured", OF_TRAINING.values(), ids=OF_TRAINING)
def test_a_claim_about_the_course_of_training_is_left_out(measured: Mapping[str, Any]) -> None:
    _, left_out = judge_one([claim(measured)], "paper", table(1.0), table(0.0))
    assert left_out == {"they are about the training": ["c"]}


@pytest.mark.parametrize(
    ("theirs", "untrained", "outcomes"),
    [
        (1.0, 0.0, ("reproduced", "not reproduced")),
        (0.5, 0.0, ("not reproduced", "not reproduced")),
        (1.0, 0.95, ("reproduced", "reproduced")),
        (math.nan, 0.95, ("not reproduced", "reproduced")),
    ],
)
def test_the_untrained_network_is_the_control(
    theirs: float, untrained: float, outcomes: tuple[str, str]
) -> None:
    verdicts, _ = judge_one([claim(metric("accuracy"))], "paper", table(theirs), table(untrained))
    assert (*verdicts[["outcome", "untrained"]].iloc[0],) == outcomes


@pytest.mark.parametrize(("difference", "is_judged"), [(0.0, False), (1e-8, False), (1e-4, True)])
def test_rounding_does_not_make_a_value_one_of_the_weights(
    difference: float, is_judged: bool
) -> None:
    """As of a quotient of values that were scaled with the weights and then rounded."""
    theirs, untrained = table(0.77 * (1 + difference)), table(0.77)
    verdicts, left_out = judge_one([claim(metric("accuracy"))], "paper", theirs, untrained)
    assert (len(verdicts) == 1, not left_out) == (is_judged, is_judged)


def test_a_claim_about_a_random_matrix_is_not_about_the_weights() -> None:
    state = toycircuits.load_run("modular_subtraction").model.state_dict()
    analysis = toycircuits.analyse(state, run="modular_subtraction", scale="quick")
    left_out = analysis.left_out["they do not depend on the weights"]
    assert "gaussian_singular_values" in left_out
    assert "embedding_rank" in set(analysis.claims["id"])


def test_a_claim_about_one_seed_is_about_any_model() -> None:
    measured = metric("accuracy", seed=999)
    verdicts, _ = judge_one([claim(measured)], "paper", table(1.0), table(0.0))
    assert verdicts["outcome"].tolist() == ["reproduced"]


def test_the_last_step_is_that_of_the_weights() -> None:
    measured = {"table": "heads", "where": {"step": "last"}, "value": "w"}
    verdicts, _ = judge_one([claim(measured)], "paper", table(1.0), table(0.0))
    assert verdicts["outcome"].tolist() == ["reproduced"]


# Files, the page and the command.


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return toycircuits.analyse(WEIGHTS, run="order_by_scale_2l", scale="quick")


def test_tables_are_written_and_replaced(analysis: Analysis, tmp_path: Path) -> None:
    out = tmp_path / "deep/tables"
    written = analysis.write(out)
    assert {path.name for path in written} == {path.name for path in out.iterdir()}
    record = json.loads((out / RECORD).read_text())
    assert record["foreign"] is True
    assert record["file"] == WEIGHTS.name
    assert len(record["sha256"]) == 64
    record["files"].append("stale.csv")
    (out / RECORD).write_text(json.dumps(record))
    for name in ("stale.csv", "index.html"):
        (out / name).write_text("of an earlier analysis\n")
    analysis.write(out)
    assert {path.name for path in written} == {path.name for path in out.iterdir()}


def test_files_of_the_user_stay_in_the_folder(analysis: Analysis, tmp_path: Path) -> None:
    out = tmp_path / "out"
    analysis.write(out)
    outside = tmp_path / "outside.csv"
    for path in (out / "notes.csv", outside):
        path.write_text("mine\n")
    record = json.loads((out / RECORD).read_text())
    record["files"].append("../outside.csv")
    (out / RECORD).write_text(json.dumps(record))
    analysis.write(out)
    assert (out / "notes.csv").read_text() == outside.read_text() == "mine\n"
    for broken in ("[", "[]", "{}"):
        (out / RECORD).write_text(broken)
        with pytest.raises(InputError, match=RECORD):
            analysis.write(out)
    assert (out / "notes.csv").exists()


def test_other_folders_are_not_touched(analysis: Analysis, tmp_path: Path) -> None:
    (tmp_path / "thesis.csv").write_text("mine\n")
    with pytest.raises(InputError, match=r"found 'thesis\.csv' of something else"):
        analysis.write(tmp_path)
    with pytest.raises(InputError, match="found a file"):
        analysis.write(tmp_path / "thesis.csv")
    assert (tmp_path / "thesis.csv").read_text() == "mine\n"


def test_the_page_works_offline_and_escapes_names(analysis: Analysis, tmp_path: Path) -> None:
    from dataclasses import replace

    odd = replace(analysis, name="<b>&", notes=("<script>",))
    odd.write(tmp_path)
    page = write_page(odd, tmp_path / "index.html").read_text()
    assert "<b>&" not in page
    assert page.count("<figure ") == len(figures(analysis))
    assert "&lt;b&gt;&amp;, analysed as order_by_scale_2l" in page
    assert ' src="' not in page.split("<script", 1)[0]


def test_a_state_dict_works_under_inference_mode_and_can_be_trained() -> None:
    state = toycircuits.load_run("order_by_scale_2l").model.state_dict()
    with torch.inference_mode():
        model = toycircuits.analyse(state, run="order_by_scale_2l", scale="quick").model
    model(torch.tensor([[1, 2, 31, 30, 30]])).sum().backward()


def test_defaults_of_pytorch_do_not_matter(analysis: Analysis) -> None:
    state = toycircuits.load_run("order_by_scale_2l").model.state_dict()
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            other = toycircuits.analyse(state, run="order_by_scale_2l", scale="quick")
        assert torch.get_default_dtype() == torch.float64
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    for name, table in analysis.tables.items():
        columns = [column for column in table if column != "seed"]
        pd.testing.assert_frame_equal(table[columns], other.tables[name][columns])


def test_the_weights_of_the_caller_are_neither_changed_nor_shared() -> None:
    state = toycircuits.load_run("order_by_scale_2l").model.state_dict()
    state = {name: value.clone() for name, value in state.items()}
    before = {name: value.clone() for name, value in state.items()}
    model = toycircuits.analyse(state, run="order_by_scale_2l", scale="quick").model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(torch.equal(state[name], before[name]) for name in state)


@pytest.mark.parametrize("weights", [torch.nn.Linear(1, 1), [1], None])
def test_what_is_neither_file_nor_state_dict_is_named(weights: Any) -> None:
    with pytest.raises(InputError, match="allowed: a file or a state dict"):
        read_weights(weights, None)


def test_the_command_refuses_a_folder_before_it_analyses(tmp_path: Path) -> None:
    (tmp_path / "thesis.csv").write_text("mine\n")
    arguments = ("absent.pt", "--run", "order_by_scale_2l", "--out", ".")
    assert "found 'thesis.csv'" in command(tmp_path, "analyse", *arguments, code=2)


def test_names_of_files_do_not_reach_the_terminal_as_they_are(tmp_path: Path) -> None:
    shutil.copy(WEIGHTS, tmp_path / "a\n\x1b[31m.safetensors")
    arguments = ("a\n\x1b[31m.safetensors", "--run", "order_by_scale_2l", "--scale", "quick")
    text = command(tmp_path, "analyse", *arguments)
    assert "a \\x1b[31m as order_by_scale_2l" in text
    assert "\x1b" not in text


def test_each_model_of_a_file_has_its_folder(tmp_path: Path) -> None:
    arguments = ("--run", "order_by_scale_2l", "--scale", "quick", "--model", "seed0")
    text = command(tmp_path, "analyse", str(WEIGHTS), *arguments)
    assert "files: analysis/order_by_scale_2l_seed0/" in text


def test_the_command_writes_tables_and_a_page(tmp_path: Path) -> None:
    shutil.copy(WEIGHTS, tmp_path / "theirs.safetensors")
    arguments = ("theirs.safetensors", "--run", "order_by_scale_2l", "--scale", "quick", "--page")
    text = command(tmp_path, "analyse", *arguments)
    assert "theirs as order_by_scale_2l, at the scale quick" in text
    assert "page: analysis/theirs/index.html" in text
    out = tmp_path / "analysis/theirs"
    assert {"ablations.csv", "metrics.csv", "claims.csv", RECORD, "index.html"} <= {
        path.name for path in out.iterdir()
    }


WRONG = {
    "run": (["--run", "x"], "runs.x: no such run; there are: "),
    "scale": (["--run", "order_by_scale_2l", "--scale", "x"], "scale: found 'x'; allowed: "),
    "size": (["--run", "order_by_scale_2l"], "they fit --run order_by_scale_2l --scale quick"),
    "own results": (
        ["--run", "order_by_scale_2l", "--out", str(ROOT / "reports/order_by_scale")],
        "reports/ is for the project's own results; allowed: another folder",
    ),
    "model": (
        ["--run", "order_by_scale_2l", "--scale", "quick", "--model", "x"],
        "found 'x'; name one of its models: seed0",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_the_command_says_in_one_line_what_is_wrong(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    text = command(tmp_path, "analyse", str(WEIGHTS), *arguments, code=2)
    errors = [line for line in text.splitlines() if not line.startswith("note: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "analysis").exists()


def test_every_released_run_fits_its_own_settings() -> None:
    """The quick scale is in git, so that the weights of all released runs are at hand."""
    params = read_params()
    if params["scale"] != "quick":
        pytest.skip("the released weights are of another scale")
    from toycircuits.core.config import find_run
    from toycircuits.foreign.fit import fit_run

    for name in params["released"]:
        run = toycircuits.load_run(name)
        fit = fit_run(
            run.model.state_dict(), find_run(params, name), run.settings["variant"] or None, params
        )
        assert fit.variant == run.settings["variant"]
