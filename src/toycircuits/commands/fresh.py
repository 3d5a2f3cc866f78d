"""`toycircuits fresh`: do dvc.lock, code, params and the results in git belong together?

It works in a fresh clone: it needs neither DVC's cache nor the outputs that only the cache holds.
"""

import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dvc_parallel.bookkeeping import Bookkeeping, Error, LockError
from dvc_parallel.params_cache import params_parsed_once
from dvc_parallel.stage_status import is_absent
from toycircuits.commands.scale_copy import COPIED
from toycircuits.core import paths
from toycircuits.core.config import InputError, read_params


def stale(root: Path) -> list[str]:
    """What does not belong together in the project at `root`, one line each; empty if it is fresh.

    Most of it is what DVC finds: a stage whose code, params, command or results differ from
    dvc.lock. DVC does not find entries of dvc.lock without a stage, or results that git does not
    carry. In a scale copy, which git ignores, the results are the files in its folder.

    Raises:
        InputError: DVC or git cannot tell.
    """
    if not (root / "dvc.lock").exists():
        return ["dvc.lock: missing; nothing has been run"]
    with _project(root) as book:
        problems = [f"Running stage '{name}':" for name in _would_run(book)]
        entries, names = book.lock_entries(), {stage.name for stage in book.stages()}
    problems += [f"dvc.lock: entry without a stage: {name}" for name in sorted({*entries} - names)]
    problems += [f"never run: {name}" for name in sorted(names - {*entries})]
    files = _files(root)
    carried = files if (root / COPIED).exists() else _files_in_git(root)
    for path in _results(entries):
        if not _holds(carried, path):
            problems.append(f"{'not there' if carried is files else 'not in git'}: {path}")
        elif not _holds(files, path):
            problems.append(f"not there: {path}")
    params = read_params(root / "params.yaml")
    problems += [f"tables of no run: {folder}" for folder in orphans(root, params)]
    undrawn = [file for file in carried if file.endswith("NOT_DRAWN.txt")]
    return problems + [f"pictures were not drawn: {file}" for file in undrawn]


def outdated(root: Path) -> set[str]:
    """Names of the stages whose command, params, inputs or results differ from dvc.lock.

    Stages that only read the results of such a stage are not among them.

    Raises:
        InputError: DVC cannot tell, for example because dvc.yaml is wrong.
    """
    with _project(root) as book:
        return {*_would_run(book)}


def absent(root: Path) -> list[Path]:
    """Trajectories of dvc.lock that are neither in the workspace nor in DVC's cache.

    Git does not carry trajectories, so a clone is fresh without them.

    Raises:
        InputError: params.yaml cannot be read, or DVC cannot tell.
    """
    runs = read_params(root / "params.yaml").get("runs") or {}
    if all((root / paths.trajectories(run)).exists() for run in runs):
        return []  # asking DVC takes a second
    with _project(root) as book:
        trained = [stage for stage in book.stages() if stage.name.partition("@")[0] == "train"]
        outputs = [out for stage in trained for out in stage.outs if is_absent(out)]
        lost = [Path(out.fs_path) for out in outputs if not book.in_cache([out])]
    return [path.relative_to(root.resolve()) for path in lost]


def orphans(root: Path, params: Mapping[str, Any]) -> list[Path]:
    """Folders of tables whose run is no longer in params.yaml. Figures would still show them."""
    folders = sorted(path.relative_to(root) for path in root.glob("reports/*/tables/*/"))
    return [
        folder
        for folder in folders
        if params["runs"].get(folder.name, {}).get("experiment") != folder.parts[1]
    ]


@contextmanager
def _project(root: Path) -> Iterator[Bookkeeping]:
    """The DVC repository at `root`, locked. Errors of DVC become an InputError."""
    try:
        with params_parsed_once(), Bookkeeping(str(root), wait=False) as book, book.locked():
            yield book
    except Error as error:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # without DVC's colours
        reason = " ".join(plain.split())[:300]
        raise InputError(f"{root}: DVC cannot tell what is up to date: {reason}") from None


def _would_run(book: Bookkeeping) -> Iterator[str]:
    """Stages that differ from dvc.lock, in DVC's order. Absent and missing results do not count."""
    stages = book.stages()
    for stage in book.plan([]):
        try:
            changed = book.status(stage) == "changed"
        except LockError:
            changed = True  # another process runs it at this moment
        if changed:  # an address is relative to the working folder, and a name is not
            yield stage.name if stage in stages else stage.addressing


def _results(entries: Mapping[str, Any]) -> list[str]:
    """Paths under reports/ that dvc.lock names as results; git cannot carry empty folders."""
    outs = [out for entry in entries.values() for out in entry.get("outs", [])]
    named = [out["path"] for out in outs if out.get("nfiles") != 0]
    return [path for path in named if path.startswith(f"{paths.REPORTS}/")]


def _holds(files: list[str], path: str) -> bool:
    """Whether `path` is one of `files`, or a folder with one of them."""
    return any(file == path or file.startswith(f"{path}/") for file in files)


def _files(root: Path) -> list[str]:
    """Files under reports/, relative to `root`."""
    files = [path for path in (root / paths.REPORTS).rglob("*") if path.is_file()]
    return [path.relative_to(root).as_posix() for path in files]


def _files_in_git(root: Path) -> list[str]:
    """Files under reports/ that git carries, relative to `root`.

    Raises:
        InputError: git is not installed, or it fails.
    """
    command = ["git", "ls-files", "-z", str(paths.REPORTS)]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    except OSError as error:
        raise InputError(f"{root}: git cannot list the results: {error}") from None
    if done.returncode:
        reason = " ".join(done.stderr.split())
        raise InputError(f"{root}: git cannot list the results: {reason}")
    return [name for name in done.stdout.split("\0") if name]
