"""Do lock, code, params and committed results belong together? Answered without DVC's cache."""

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from toycircuits.commands.fsck import cache_folder
from toycircuits.commands.scale_copy import COPIED
from toycircuits.core.config import InputError, read_params

UP_TO_DATE = "Data and pipelines are up to date."  # as DVC says it


def stale(root: Path) -> list[str]:
    """What does not belong together in the project at `root`, a line each; empty if it is fresh.

    `dvc repro --dry --allow-missing` compares code, params, commands and the results that stand in
    git with dvc.lock. It misses two things, which are looked at here: lock entries without a
    stage, and committed results that are absent. Git does not know a scale copy: there the results
    are those in its folder.

    Raises:
        InputError: DVC cannot tell, as when dvc.yaml is wrong.
    """
    if not (root / "dvc.lock").exists():
        return ["dvc.lock: missing; nothing has been run"]
    problems = [f"Running stage '{name}':" for name in _would_run(root)]
    lock = _lock(root)
    listed = _run(root, "dvc", "stage", "list", "--name-only", "--all").stdout.split()
    problems += [f"dvc.lock: entry without a stage: {name}" for name in sorted({*lock} - {*listed})]
    problems += [f"never run: {name}" for name in sorted({*listed} - {*lock})]
    is_copy = (root / COPIED).exists()
    kept = _files(root) if is_copy else _run(root, "git", "ls-files", "reports").stdout.splitlines()
    outs = [out for stage in lock.values() for out in stage.get("outs", [])]
    for path in (out["path"] for out in outs if out.get("nfiles") != 0):  # git has no empty folders
        held = any(file == path or file.startswith(f"{path}/") for file in kept)
        if path.startswith("reports/") and not held:
            problems.append(f"{'not there' if is_copy else 'not in git'}: {path}")
    problems += [
        f"tables of no run: {folder}" for folder in orphans(root, read_params(root / "params.yaml"))
    ]
    undrawn = [file for file in kept if file.endswith("NOT_DRAWN.txt")]
    return problems + [f"pictures were not drawn: {file}" for file in undrawn]


def outdated(root: Path) -> set[str]:
    """Names of the stages that would run, were all results that only DVC's cache has there.

    A stage that is up to date but for the results of another is not among them.

    Raises:
        InputError: DVC cannot tell, as when dvc.yaml is wrong.
    """
    return {*_would_run(root)}


def absent(root: Path) -> list[Path]:
    """Trajectories of dvc.lock that are neither in the workspace nor in DVC's cache.

    Git does not carry them, and so a clone is fresh without. Looked at is whether they exist, not
    whether they are whole; those of runs that are gone from params.yaml do not count.

    Raises:
        InputError: params.yaml cannot be read, or there is no DVC repository.
    """
    runs = read_params(root / "params.yaml").get("runs") or {}
    lock = _lock(root) if (root / "dvc.lock").exists() else {}
    trained = [lock[stage] for run in runs if (stage := f"train@{run}") in lock]
    outs = [out for entry in trained for out in entry.get("outs", [])]
    trajectories = [out for out in outs if out["path"].startswith("artifacts/")]
    gone = [out for out in trajectories if not (root / out["path"]).exists()]
    if not gone:
        return []  # without a look at DVC's settings, which takes a second
    cache = cache_folder(root) / "files/md5"
    known_as = {out["path"]: str(out.get("md5")) for out in gone}
    return [
        Path(path) for path, md5 in known_as.items() if not (cache / md5[:2] / md5[2:]).exists()
    ]


def orphans(root: Path, params: Mapping[str, Any]) -> list[Path]:
    """Folders of tables whose run is gone from params.yaml; figures would go on showing them."""
    folders = sorted(path.relative_to(root) for path in root.glob("reports/*/tables/*/"))
    return [
        folder
        for folder in folders
        if params["runs"].get(folder.name, {}).get("experiment") != folder.parts[1]
    ]


def _would_run(root: Path) -> list[str]:
    """Stages that DVC would run, in its order."""
    dry = _run(root, "dvc", "repro", "--allow-missing", "--dry", "--keep-going")
    running = re.findall(r"^Running stage '([^']+)'", dry.stdout, re.MULTILINE)
    # Of a stage that would run, and reads what is not there yet, a dry run says that it fails.
    failing = re.findall(r"^ERROR: failed to reproduce (.*)", dry.stderr, re.MULTILINE)
    failed = [name for line in failing for name in re.findall(r"'([^']+)'", line)]
    if (dry.returncode and not failed) or not (running or failed or UP_TO_DATE in dry.stdout):
        lines = [line for line in dry.stderr.splitlines() if line.startswith("ERROR")]
        reason = " ".join((lines[-1] if lines else dry.stderr or dry.stdout).split())
        raise InputError(f"{root}: DVC cannot tell what is up to date: {reason[:300]}")
    return list(dict.fromkeys([*running, *failed]))


def _lock(root: Path) -> dict[str, Any]:
    """The entries of dvc.lock."""
    lock = YAML(typ="safe").load((root / "dvc.lock").read_text())
    return dict((lock or {}).get("stages") or {})


def _files(root: Path) -> list[str]:
    found = (path for path in (root / "reports").rglob("*") if path.is_file())
    return [path.relative_to(root).as_posix() for path in found]


def _run(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
