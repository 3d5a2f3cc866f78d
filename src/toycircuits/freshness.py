"""Do lock, code, params and committed results belong together? Answered without DVC's cache."""

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from toycircuits.config import read_params


def stale(root: Path) -> list[str]:
    """What does not belong together in the project at `root`, a line each; empty if it is fresh.

    `dvc repro --dry --allow-missing` compares code, params, commands and the results that stand in
    git with dvc.lock. Its exit code alone is not reliable, and it misses two things, which are
    looked at here: lock entries without a stage, and committed results that are absent.
    """
    dry = _dry_run(root)
    problems = [line for line in dry.stdout.splitlines() if line.startswith("Running stage")]
    if dry.returncode or "Data and pipelines are up to date." not in dry.stdout:
        problems = problems or (dry.stdout + dry.stderr).strip().splitlines()[-3:]
    if not (root / "dvc.lock").exists():
        return ["dvc.lock: missing; nothing has been run"]
    lock = YAML(typ="safe").load((root / "dvc.lock").read_text())["stages"]
    listed = _run(root, "dvc", "stage", "list", "--name-only", "--all").stdout.split()
    problems += [f"dvc.lock: entry without a stage: {name}" for name in sorted({*lock} - {*listed})]
    problems += [f"never run: {name}" for name in sorted({*listed} - {*lock})]
    tracked = _run(root, "git", "ls-files", "reports").stdout.splitlines()
    outs = [out["path"] for stage in lock.values() for out in stage.get("outs", [])]
    for path in (path for path in outs if path.startswith("reports/")):
        if not any(file == path or file.startswith(f"{path}/") for file in tracked):
            problems.append(f"not in git: {path}")
    problems += [
        f"tables of no run: {folder}" for folder in orphans(root, read_params(root / "params.yaml"))
    ]
    undrawn = [file for file in tracked if file.endswith("NOT_DRAWN.txt")]
    return problems + [f"pictures were not drawn: {file}" for file in undrawn]


def outdated(root: Path) -> set[str]:
    """Names of the stages that would run, were all results that only DVC's cache has there."""
    return set(re.findall(r"^Running stage '([^']+)'", _dry_run(root).stdout, re.MULTILINE))


def orphans(root: Path, params: Mapping[str, Any]) -> list[Path]:
    """Folders of tables whose run is gone from params.yaml; figures would go on showing them."""
    folders = sorted(path.relative_to(root) for path in root.glob("reports/*/tables/*/"))
    return [
        folder
        for folder in folders
        if params["runs"].get(folder.name, {}).get("experiment") != folder.parts[1]
    ]


def _dry_run(root: Path) -> subprocess.CompletedProcess[str]:
    return _run(root, "dvc", "repro", "--allow-missing", "--dry")


def _run(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
