"""Run the stages that compute, one after the other in this process, in the working folder.

    python portable_steps.py RUN...

Under an emulator, imports take most of the time, so that one process serves all stages.
"""

import runpy
import sys
from pathlib import Path

from ruamel.yaml import YAML

STAGES = ("train", "release", "measure", "ablate")  # each of these once for each run

if __name__ == "__main__":
    runs = YAML(typ="safe").load(Path("params.yaml").read_text())["runs"]
    names = {f"generate {runs[run]['experiment']}": None for run in sys.argv[1:]}
    names |= {f"{stage} {run}": None for run in sys.argv[1:] for stage in STAGES}
    for name in names:
        stage, _, argument = name.partition(" ")
        runpy.run_path(f"stages/{stage}.py")["main"](argument)
