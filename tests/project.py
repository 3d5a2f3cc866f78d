"""A copy of the project at tiny settings, in which real DVC runs."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
PARAMS = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
# Runs that differ from another one in sizes, seeds or order alone: that one stands for them. Each
# run costs four stages, and of the unreleased ones, which form a grid, the first is enough.
ALIKE = {
    *{"linear_regression_h2", "linear_regression_h4", "linear_regression_h8"},
    *{"list_copy_100_reshuffle", "list_copy_100_2l_frozen", "reverse_increment_random"},
    *{"modular_subtraction_long"},
    *{name for name in PARAMS["runs"] if name.startswith("order_by_scale_2l_")},
    *{"order_by_scale_3l", "order_by_scale_3l_new_orders"},
    *[name for name in PARAMS["runs"] if name not in PARAMS["released"]][1:],
}
for name in ALIKE:
    PARAMS["experiments"][PARAMS["runs"].pop(name)["experiment"]]["runs"].remove(name)
PARAMS["released"] = [name for name in PARAMS["released"] if name not in ALIKE]

# Settings under which every stage of an experiment runs in about a second.
TINY: dict[str, dict[str, dict[str, Any]]] = {
    "modular_subtraction": {
        "data": {"modulus": 7},
        "model": {"d_model": 8, "d_head": 4, "d_mlp": 16},
        "train": {"length": 4, "log_every": 2, "checkpoint_every": 2},
        "measure": {"example": [1, 2]},
    },
    "list_copy_10": {
        "data": {"n_lists": 512, "n_sampled": 20},
        "train": {"length": 30, "checkpoint_every": 10},
        "ablate": {"mean_lists": 100},
    },
    "list_copy_100": {
        "data": {"n_symbols": 5},
        "model": {"d_model": 8, "d_head": 8},
        # The main run has a length of its own: here it stops as soon as one output is right.
        "train": {
            **{"batch_size": 8, "length": 4, "log_every": 2},
            "stop": {"metric": "accuracy", "at_least": 0.01},
        },
        "measure": {"sample": [2, 1]},
        "ablate": {"sample": [2, 1]},
    },
    "order_by_scale": {
        "data": {"n_symbols": 5},
        "model": {"d_model": 8, "d_head": 8},
        "train": {"batch_size": 8, "length": 4, "log_every": 2},
        "measure": {"sample": [2, 1]},
        "ablate": {"sample": [2, 1]},
    },
    "reverse_increment": {
        "data": {"length": 3, "n_train": 56, "n_sampled": 20},
        "train": {
            **{"batch_size": 16, "length": 4, "log_every": 2, "checkpoint_every": 2},
            "schedule": {"warmup": 1, "peak": 1.3},
        },
        "measure": {"n_samples": 2},
        "ablate": {"control_draws": 2},
    },
    "linear_regression": {
        "data": {"d": 2, "n_examples": 5, "n_validation": 20},
        "train": {"batch_size": 16, "length": 60, "log_every": 30, "checkpoint_every": 10},
        "measure": {
            **{"qk_steps": [0, 10, 60], "sequences": 20},
            "lengths": {"first": 1, "last": 6, "step": 5},
        },
        "ablate": {"sequences": 20},
    },
}

# Loaded by every Python that starts in the copy: notes which files of it a stage opens, what it
# imports and unpickles. It refuses connections that leave this machine.
AUDIT = """
import atexit, json, os, sys
stage, folder = os.environ.get("DVC_STAGE"), os.environ.get("TOYCIRCUITS_AUDIT")
local = ("127.", "localhost", "::1")

def guard(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        if not str(arguments[1][0]).startswith(local):
            raise OSError("no network here: %r" % (arguments[1],))
    if event == "socket.getaddrinfo" and arguments[0] is not None:
        if not str(arguments[0]).startswith(local):
            raise OSError("no network here: %r" % (arguments[0],))

if folder:
    sys.addaudithook(guard)

if stage and folder and sys.argv[:1] and sys.argv[0] != "-m":
    root, read, written, unpickled = os.getcwd() + os.sep, set(), set(), set()

    def hook(event, arguments):
        # os.open gives no mode: it is how folders are walked, with names relative to a folder.
        if event == "open" and isinstance(arguments[0], str) and arguments[1] is not None:
            path = os.path.abspath(arguments[0])
            if path.startswith(root):
                target = written if set("wax+") & set(arguments[1]) else read
                target.add(path[len(root):])
        if event == "pickle.find_class":
            unpickled.add(".".join(map(str, arguments)))

    def save():
        name = os.path.join(folder, stage.replace("/", "_") + ".json")
        log = {"read": sorted(read), "written": sorted(written), "modules": sorted(sys.modules)}
        ours = [m for n, m in sys.modules.items() if n.partition(".")[0] == "toycircuits"]
        log["code"] = sorted(str(module.__file__) for module in ours)
        with open(name, "w") as file:
            json.dump(log | {"unpickled": sorted(unpickled)}, file)

    sys.addaudithook(hook)
    atexit.register(save)
"""


def environment_of(**changes: str) -> dict[str, str]:
    """Environment with this Python's commands first on the path, and no compiled files written."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONDONTWRITEBYTECODE": "1"} | changes


def python(folder: Path, *arguments: str, **environment: str) -> str:
    """Standard output of a Python that must succeed."""
    return output(folder, sys.executable, *arguments, **environment)


def output(folder: Path, *command: str, **environment: str) -> str:
    """Standard output of a command that must succeed; git is told who commits."""
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    command = ("git", *identity, *command[1:]) if command[0] == "git" else command
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment_of(**environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Project:
    """A copy of the project at tiny settings, in which real DVC runs.

    Args:
        experiments: the experiments to keep, all by default.
        scm: whether the copy is a git repository (without commits).
    """

    def __init__(
        self, folder: Path, experiments: Collection[str] | None = None, scm: bool = False
    ) -> None:
        self.folder = folder
        for name in ("claims", "src", "stages", "dvc.yaml", ".dvcignore", ".gitignore"):
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, folder / name)
        self._write_tiny_params(experiments)
        (folder / "reports").mkdir()
        (folder / "reports/stages.json").write_text("{}\n")  # records of stages: nothing ran yet
        (folder / "src/sitecustomize.py").write_text(AUDIT)  # for stages, which have PYTHONPATH=src
        self._make_audit()
        if scm:
            subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
            for key, value in {"name": "Test", "email": "test@example.org"}.items():
                subprocess.run(["git", "config", f"user.{key}", value], cwd=folder, check=True)
        # What `dvc init` does, without a start of DVC.
        (folder / ".dvc").mkdir()
        for name in ("config", ".gitignore") if scm else ("config",):
            shutil.copy(ROOT / ".dvc" / name, folder / ".dvc" / name)
        if not scm:
            with (folder / ".dvc/config").open("a") as file:
                file.write("    no_scm = true\n")

    def _write_tiny_params(self, experiments: Collection[str] | None) -> None:
        params = json.loads(json.dumps(PARAMS)) | {"scale": "quick"}
        for experiment in params["experiments"]:
            for section, values in TINY.get(experiment, {}).items():
                params["quick"][experiment][section] |= values
        if experiments is not None:
            for name, run in [*params["runs"].items()]:
                if run["experiment"] not in experiments:
                    del params["runs"][name]
            params["released"] = [name for name in params["released"] if name in params["runs"]]
            for tree in (params["experiments"], params["quick"], params["paper"]):
                for name in set(tree) - set(experiments):
                    del tree[name]
                    (self.folder / f"claims/{name}.yaml").unlink(missing_ok=True)
        self.write_params(params)

    def _make_audit(self) -> None:
        """A folder for what stages do; commands that start in the copy have it on their path."""
        self.audit = self.folder.parent / f"{self.folder.name}-audit"
        self.audit.mkdir(exist_ok=True)
        if not (self.audit / "sitecustomize.py").exists():
            (self.audit / "sitecustomize.py").write_text(AUDIT)

    @classmethod
    def at(cls, folder: Path) -> "Project":
        """The copy that is in `folder` already."""
        project = cls.__new__(cls)
        project.folder = folder
        project._make_audit()
        return project

    def copy(self, folder: Path) -> "Project":
        """A copy of this copy with its results and its cache, to change and to damage."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Project.at(folder)

    def commit(self, message: str = "results") -> None:
        """Commit all that git does not ignore."""
        output(self.folder, "git", "add", "--all")
        output(self.folder, "git", "commit", "--quiet", "--message", message)

    @property
    def environment(self) -> dict[str, str]:
        """Environment of commands that run in the copy."""
        code = os.pathsep.join([str(self.audit), str(ROOT / "src")])
        return environment_of(PYTHONPATH=code, TOYCIRCUITS_AUDIT=str(self.audit))

    @property
    def stage_environment(self) -> dict[str, str]:
        """Environment of a stage that a test starts by itself, as dvc.yaml does."""
        return self.environment | {"PYTHONPATH": "src"}

    def read_params(self) -> Any:
        return YAML(typ="safe").load((self.folder / "params.yaml").read_text())

    def write_params(self, params: Any) -> None:
        params = json.loads(json.dumps(params))  # else YAML writes aliases
        yaml = YAML()
        yaml.indent(sequence=4, offset=2)  # as in the project's own file
        with (self.folder / "params.yaml").open("w") as file:
            yaml.dump(params, file)

    def start(self, *command: str, **options: Any) -> "subprocess.Popen[str]":
        """A command in the copy, in a process group of its own; `python` is this one."""
        command = (sys.executable, *command[1:]) if command[0] == "python" else command
        pipe = subprocess.PIPE
        options = {"stdout": pipe, "stderr": pipe, "env": self.environment, **options}
        return subprocess.Popen(
            command, cwd=self.folder, text=True, start_new_session=True, **options
        )

    def run(self, *command: str, **options: Any) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of a command in the copy."""
        process = self.start(*command, **options)
        out, err = process.communicate(timeout=1500)
        return process.returncode, out, err

    def repro(self, *arguments: str, **environment: str) -> set[str]:
        """Run `dvc repro`; names of the stages that ran."""
        command = ("python", "-m", "dvc", "repro", *arguments)
        code, out, err = self.run(*command, env=self.environment | environment)
        assert code == 0, out + err
        return set(re.findall(r"^Running stage '([^']+)'", out, re.MULTILINE))

    def log(self, stage: str) -> dict[str, list[str]]:
        """What a stage did when it last ran: files read and written, modules, pickles."""
        log: dict[str, list[str]] = json.loads((self.audit / f"{stage}.json").read_text())
        return log

    def results(self, *folders: str) -> dict[str, str]:
        """Hash of every file under `folders`, by default of all results.

        Without the times that stages took and the page that shows them.
        """
        return {
            str(path.relative_to(self.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for folder in folders or ("artifacts", "reports")
            for path in sorted((self.folder / folder).rglob("*"))
            if path.is_file() and path.name not in (".gitignore", "stages.json", "index.html")
        }
