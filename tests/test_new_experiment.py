"""A new experiment takes one folder and a params section; dvc.yaml stays as it is."""

import json
import shutil
from pathlib import Path

import pytest
from project import ROOT, python
from ruamel.yaml import YAML

SECTIONS = {
    "data": {"n_tokens": 7, "seed": 0},
    "model": {"d_model": 8},
    "train": {
        **{"optimizer": "AdamW", "lr": 0.01, "betas": [0.9, 0.999], "weight_decay": 0.0},
        **{"batch_size": None, "unit": "step", "length": 150, "log_every": 50},
        **{
            "checkpoint_every": 50,
            "schedule": None,
            "clip_grad_norm": None,
            "stop": None,
            "compile": False,
        },
        **{"weight_seeds": [0], "batch_seeds": None},
    },
    **{"measure": {}, "ablate": {}, "render": {}},
}


@pytest.mark.slow
def test_a_new_slice_runs_end_to_end(tmp_path: Path) -> None:
    for name in ("src", "stages"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, tmp_path / name)
    slice_folder = tmp_path / "src/toycircuits/experiments/say_again"
    shutil.copytree(ROOT / "tests/toy_slice", slice_folder)
    (slice_folder / "__init__.py").touch()
    params = {
        "scale": "quick",
        "experiments": {"new": {"slice": "say_again"}},
        "runs": {"new_run": {"experiment": "new", "slice": "say_again"}},
        "quick": {"new": SECTIONS},
    }
    with (tmp_path / "params.yaml").open("w") as file:
        YAML().dump(params, file)
    python(tmp_path, "-m", "dvc", "init", "--no-scm", "--quiet")
    own_code = {"PYTHONPATH": str(tmp_path / "src")}
    python(tmp_path, "-c", "from toycircuits.cli import app; app()", "repro", **own_code)
    tables = tmp_path / "reports/new/tables/new_run"
    last = (tables / "training.csv").read_text().splitlines()[-1]
    assert last.endswith(",1")  # it has learned to say every token again
    ablated = (tables / "ablations.csv").read_text().splitlines()[-1]
    assert float(ablated.rsplit(",", 1)[1]) < 0.5
    assert "final_norm" in json.loads((tables / "metrics.json").read_text())["seed0"]
    assert (tmp_path / "artifacts/figures/new/accuracy.json").exists()
    assert (tmp_path / "reports/weights/new_run.safetensors").exists()
