"""Our own results of the wrong shape: one line that names the file, or a result; never a crash.

Hypothesis changes what a stage wrote: it deletes a key, puts a value of another type at any depth,
cuts a file short, adds a column.
"""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from made_page import HOSTILE, made_page, record
from project import ROOT
from safetensors.torch import save_file
from wrong_shapes import mutated_csv, mutated_text

from toycircuits import load_run
from toycircuits.claims.verdict import read_metrics, read_verdicts
from toycircuits.commands.scale_copy import COPIED, copied
from toycircuits.core.checkpoints import METADATA_KEY, read_tensors
from toycircuits.core.config import InputError, read_text
from toycircuits.core.tables import read_table
from toycircuits.core.trained_models import load_final_models
from toycircuits.report import provenance, section
from toycircuits.revisions import READ_BY_DVC, check_files_of_dvc

RUN = "linear_regression_h1"
WEIGHTS = ROOT / f"reports/weights/{RUN}.safetensors"
TENSORS, METADATA = read_tensors(WEIGHTS)
TRAINING = (ROOT / f"reports/linear_regression/tables/{RUN}/training.csv").read_text()
METRICS = (ROOT / f"reports/linear_regression/tables/{RUN}/measure/metrics.csv").read_text()
CLAIMS = (ROOT / "reports/list_copy_10/claims.csv").read_text()
RECORD = record(
    cmd="true",
    deps=[{"path": "params.yaml", "md5": "0" * 32, "size": 1}],
    outs=[{"path": "artifacts", "md5": "0" * 32 + ".dir"}],
    params={"params.yaml": {"scale": "quick"}},
)
trials = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def refused_or_read(read: Callable[[], Any], path: Path) -> bool:
    """Whether `read` succeeds; what it raises must be one line that names the file `path`."""
    error = None
    try:
        read()
    except InputError as raised:
        error = str(raised)
    assert error is None or (str(path) in error and "\n" not in error), error
    return error is None


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with the results of one run."""
    for name in ("params.yaml", "dvc.yaml", "stages/train.py", f"reports/weights/{WEIGHTS.name}"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    tables = f"reports/linear_regression/tables/{RUN}"
    shutil.copytree(ROOT / tables, tmp_path / tables)
    return tmp_path


def test_what_is_not_changed_is_read(root: Path) -> None:
    """Otherwise, all tests below could be passed by readers that refuse everything."""
    path = root / "reports/weights" / WEIGHTS.name
    assert refused_or_read(lambda: [*load_final_models(path, torch.device("cpu"))], path)
    assert refused_or_read(lambda: load_run(RUN, root=root), root)
    for name, text, read in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text if isinstance(text, str) else json.dumps(text))
        assert refused_or_read(functools.partial(read, root / name), root), name


@trials
@given(text=mutated_text(METADATA))
def test_metadata_of_weights(root: Path, text: str) -> None:
    path = root / "reports/weights" / WEIGHTS.name
    save_file(TENSORS, path, {METADATA_KEY: text})
    loaded = refused_or_read(lambda: [*load_final_models(path, torch.device("cpu"))], path)
    assert refused_or_read(lambda: load_run(RUN, root=root), root) <= loaded


def read_page(path: Path) -> None:
    records = provenance.read_records(path)
    html = f"<p>{section.PROVENANCE}</p>"
    made_page({"e": html}, records)


def read_part(path: Path) -> None:
    (path.parent / "section.html").write_text(section.PROVENANCE)
    part = section.read_part(path.parent)
    assert isinstance(part.title, str)
    assert sum(part.counts.values()) >= 0


def read_claims(path: Path) -> None:
    verdicts = read_verdicts(path)
    section.section_html(
        section.Section("e", "title", "question", ["method"], {}, verdicts, [], [], {})
    )


def read_list_of_copies(path: Path) -> None:
    for name in copied(path.parent.parent):
        assert (path.parent / name).resolve().is_relative_to(path.parent)


figure = go.Figure([go.Scatter(x=[1], y=[2]), go.Scatter(x=[1], y=[2], xaxis="x2")])
figure.update_layout(title=HOSTILE, width=1000, height=300, meta={"order": 1}, margin={"t": 100})
figure.update_layout(xaxis2={"domain": [0.5, 1.0]})
FIGURE = json.loads(figure.to_json())
FIGURE["layout"].pop("template")
COUNTS = {"reproduced": 1, "not reproduced": 2, "not comparable": 3}
FILES: list[tuple[str, Any, Callable[[Path], Any]]] = [
    ("reports/stages.json", {"render@e": RECORD, "train@a": RECORD}, read_page),
    ("artifacts/sections/e/summary.json", {"title": "T", "counts": COUNTS}, read_part),
    ("reports/e/metrics.json", {"claims": {"reproduced": 1}, "a": 0.5, "b": None}, read_metrics),
    ("artifacts/figures/e/figure.json", FIGURE, section.read_figure),
    (f"quick/{COPIED}", {"src/a.py": "0" * 64, "folder": ""}, read_list_of_copies),
    (f"reports/e/tables/{RUN}/training.csv", TRAINING, read_table),
    (f"reports/e/tables/{RUN}/measure/metrics.csv", METRICS, read_table),
    ("reports/e/claims.csv", CLAIMS, read_claims),
]


@pytest.mark.parametrize(("name", "valid", "read"), FILES, ids=[name for name, *_ in FILES])
def test_files_of_the_wrong_shape(
    tmp_path: Path, name: str, valid: Any, read: Callable[[Path], Any]
) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    outcomes = set()

    @trials
    @given(text=mutated_csv(valid) if isinstance(valid, str) else mutated_text(valid))
    def check(text: str) -> None:
        path.write_text(text)
        outcomes.add(refused_or_read(lambda: read(path), path))

    check()
    assert False in outcomes


@trials
@given(text=mutated_csv(TRAINING))
def test_a_training_log_is_refused_or_holds_numbers(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tables" / RUN / "training.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if refused_or_read(lambda: read_table(path), path):
        table = read_table(path)
        assert {"variant", "seed", "step", "lr", "train_loss"} <= {*table}
        assert all(map(pd.api.types.is_numeric_dtype, table.drop(columns="variant").dtypes))
        assert len(table) >= 1


@pytest.mark.parametrize("name", [name for name, *_ in FILES] + [*READ_BY_DVC, "claims/e.yaml"])
@pytest.mark.parametrize("marker", ["<<<<<<< HEAD", "=======", ">>>>>>> branch", "||||||| base"])
def test_a_conflict_marker_is_named_with_its_line(tmp_path: Path, name: str, marker: str) -> None:
    """One of them is enough: people remove the first and forget the last."""
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"first line\n{marker}\nlast line\n")
    read = {name: read for name, _, read in FILES}.get(name, read_text)
    with pytest.raises(InputError) as error:
        check_files_of_dvc(tmp_path) if name in READ_BY_DVC else read(path)
    assert f"{path}: line 2: found the conflict marker {marker!r} of a git merge" in str(
        error.value
    )
    assert "docs/faq.md" in str(error.value)


@pytest.mark.parametrize("line", [" =======", "======", "========", "<<<<<<<<", "a <<<<<<< b"])
def test_other_lines_are_not_taken_for_conflicts(tmp_path: Path, line: str) -> None:
    (tmp_path / "file").write_text(f"{line}\n")
    assert read_text(tmp_path / "file") == f"{line}\n"


def test_the_docs_say_what_to_do_about_a_conflict() -> None:
    """The message about a conflict names this section."""
    assert "merge conflict" in (ROOT / "docs/faq.md").read_text()


BOMB = "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("name", ["dvc.lock", "dvc.yaml", "params.yaml"])
def test_aliases_that_would_keep_dvc_busy_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(f"a: &a [1, 2]\n{BOMB}")
    with pytest.raises(InputError, match=f"{tmp_path / name}: line .*found too many values"):
        check_files_of_dvc(tmp_path)
    (tmp_path / name).write_text("a: &a [1, 2]\nb: *a\n")  # DVC allows a few in dvc.yaml
    check_files_of_dvc(tmp_path)
