"""What the trainings of the paper scale depend on stays as it is while they are computed.

They take days, and an edit of a file that they import, even of a comment, makes all of them stale.
If an edit is worth that, put the new digest here.
"""

import hashlib
import json

from project import ROOT
from ruamel.yaml import YAML
from test_pipeline import closure

EXPERIMENTS = {
    **{"modular_subtraction": "modular_arithmetic", "reverse_increment": "reverse_increment"},
    **dict.fromkeys(("list_copy_10", "list_copy_100", "order_by_scale"), "list_copy"),
    "linear_regression": "linear_regression",
}
CODE = "5a4ecfe66d80ae7a"
SETTINGS = "5ce01e19cd2997f4"


def test_code_of_the_trainings_is_settled() -> None:
    stages = ("stages/generate.py", "stages/train.py")
    files = {
        file for stage in stages for name in EXPERIMENTS.values() for file in closure(stage, name)
    }
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.encode() + hashlib.sha256((ROOT / file).read_bytes()).digest())
    assert digest.hexdigest()[:16] == CODE


def test_settings_of_the_trainings_are_settled() -> None:
    params = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    sections = {
        name: {section: params["paper"][name][section] for section in ("data", "model", "train")}
        for name in EXPERIMENTS
    }
    runs = {name: run for name, run in params["runs"].items() if run["experiment"] in sections}
    settled = json.dumps([sections, runs, params["portable"]["paper"]], sort_keys=True)
    assert hashlib.sha256(settled.encode()).hexdigest()[:16] == SETTINGS
