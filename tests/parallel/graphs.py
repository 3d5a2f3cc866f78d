"""Small graphs of shell commands for the executor, each in a folder with real DVC."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from project import ROOT, environment_of, python
from ruamel.yaml import YAML

Stages = dict[str, dict[str, Any]]

# Runs what is asked for on the command line, and prints what became of each stage.
DRIVER = """
import json, sys
from pathlib import Path
from dvc_parallel.bookkeeping import Bookkeeping
from dvc_parallel.engines import open_engine
from dvc_parallel.params_cache import params_parsed_once
from dvc_parallel.records import Records
from dvc_parallel.schedule import Schedule

RECORDS = Path("reports/stages.json")

class Silent:
    def on_change(self, stage, state, note=""):
        print(state, stage, note, file=sys.stderr, flush=True)
    def refresh(self):
        pass

if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    selection, engine = asked.pop("selection", {}), asked.pop("engine", ["local", 2])
    with params_parsed_once(), open_engine(*engine) as opened:
        book = Bookkeeping(".")
        plan = book.plan(asked.pop("targets", []), **selection)
        readers = {stage.addressing for stage in book.readers(str(RECORDS))}
        if readers:
            unfinished = Path(".resume/spent")
            known = json.loads(RECORDS.read_text()) if RECORDS.exists() else {}
            asked["records"] = Records(RECORDS, known, unfinished, readers, ["dvc.yaml"], Path())
        outcome = Schedule(book, plan, opened, Silent(), Path("logs"), **asked).run()
    print(json.dumps({"states": outcome.states, "not_stored": outcome.not_stored}))
    sys.exit(128 + outcome.signal if outcome.signal else 0)
"""


class Graph:
    """A folder in which DVC has `stages`."""

    def __init__(self, folder: Path, stages: Stages, params: Any = None) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        with (folder / "dvc.yaml").open("w") as file:
            YAML().dump({"stages": stages}, file)
        with (folder / "params.yaml").open("w") as file:
            YAML().dump(params or {"a": 1}, file)
        (folder / ".dvcignore").write_text("/logs/\n")
        (folder / "drive.py").write_text(DRIVER)
        python(folder, "-m", "dvc", "init", "--quiet", "--no-scm")
        python(folder, "-m", "dvc", "config", "core.analytics", "false")

    def command(self, **asked: Any) -> list[str]:
        """A reproduction by us, as a command."""
        return [sys.executable, "drive.py", json.dumps(asked)]

    @property
    def environment(self) -> dict[str, str]:
        return environment_of(PYTHONPATH=os.pathsep.join([str(ROOT / "src"), str(self.folder)]))

    def start(self, **asked: Any) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.command(**asked),
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def run(self, **asked: Any) -> dict[str, str]:
        """Reproduce by us; what became of each stage."""
        process = self.start(**asked)
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, out + err
        states: dict[str, str] = json.loads(out)["states"]
        return states

    def dvc(self, *arguments: str, check: bool = True) -> str:
        """Output of a command of DVC."""
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=self.folder,
            env=self.environment,
            text=True,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done.stdout + done.stderr

    def lock(self) -> str:
        path = self.folder / "dvc.lock"
        return path.read_text() if path.exists() else ""


def random_stages(seed: int, n_stages: int = 30, failing: float = 0.1) -> Stages:
    """Stages that each join some earlier ones' results and a parameter; some fail."""
    draw = random.Random(seed)
    stages: Stages = {}
    for number in range(n_stages):
        earlier = draw.sample(range(number), min(number, draw.randint(0, 3)))
        deps = [f"out/{other}" for other in earlier]
        command = f"mkdir -p out && cat {' '.join(deps)} params.yaml > out/{number}"
        if draw.random() < 0.2:
            command = f"sleep 0.{draw.randint(1, 5)}; {command}"
        if draw.random() < failing:
            command = f"{command}; exit 3"
        stage: dict[str, Any] = {"cmd": command, "outs": [f"out/{number}"], "params": ["a"]}
        if deps:
            stage["deps"] = deps
        if draw.random() < 0.3:
            stage["cmd"] = [stage["cmd"], f"mkdir -p tables && echo {number} > tables/{number}.csv"]
            stage["plots"] = [{f"tables/{number}.csv": {"cache": False}}]
        stages[f"s{number}"] = stage
    names = list(stages)
    draw.shuffle(names)
    return {name: stages[name] for name in names}
