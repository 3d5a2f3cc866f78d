"""What runs, experiments and stages leave behind when params.yaml or dvc.yaml loses them.

Summaries, figures and claims do not show it. `toycircuits repro` drops entries and records, and
names the files, which only a person removes. `toycircuits fresh` names all of it.
"""

import json
import os
import shlex
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from dvc_parallel.bookkeeping import Bookkeeping
from dvc_parallel.remnants import drop_entries, entries_without_stage
from toycircuits.core.config import InputError, runs_of
from toycircuits.core.paths import ARTIFACTS, REPORTS, WEIGHTS, exists
from toycircuits.core.replace import replacing
from toycircuits.core.report_paths import CLAIMS, RECORDS
from toycircuits.git import files_in_git
from toycircuits.report.provenance import read_records

ENTRY = "dvc.lock: entry without a stage"
RECORD = f"{RECORDS}: record without a stage"


def remnants(book: Bookkeeping, root: Path) -> list[str]:
    """Entries of dvc.lock and records in reports/stages.json whose stage is gone, one line each.

    Raises:
        InputError: the file of records is damaged.
    """
    entries, records = _gone(book, root)
    return [*(f"{ENTRY}: {name}" for name in entries), *(f"{RECORD}: {name}" for name in records)]


def drop_remnants(book: Bookkeeping, root: Path) -> None:
    """Remove what `remnants` names. The stage `report`, which reads the records, is stale then.

    Raises:
        InputError: the file of records is damaged.
        OSError: a file cannot be written.
    """
    entries, records = _gone(book, root)
    if entries:
        drop_entries(book, entries)
    if records:
        kept = read_records(root / RECORDS)
        kept = {name: record for name, record in kept.items() if name not in records}
        with replacing(root / RECORDS) as partial:
            partial.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def _gone(book: Bookkeeping, root: Path) -> tuple[list[str], list[str]]:
    """Names of stages that are gone: those in dvc.lock, and those in the file of records."""
    names = {stage.name for stage in book.stages()}
    records = read_records(root / RECORDS) if exists(root / RECORDS) else {}
    return entries_without_stage(book), sorted({*records} - names)


def leftovers(root: Path, params: Mapping[str, Any], carried: Collection[str]) -> list[str]:
    """Results and claims in git whose run or experiment is gone, each with how to remove it.

    Args:
        params: all of params.yaml.
        carried: the files that git carries, relative to `root`.

    Raises:
        OSError: a folder cannot be read.
    """
    return [_line(path, True) for path in _paths(root, params) if _is_in(path, carried)]


def all_leftovers(root: Path, params: Mapping[str, Any]) -> list[str]:
    """Like `leftovers`, and also what only DVC's cache or nobody carries.

    Raises:
        OSError: a folder cannot be read.
    """
    found = [*_paths(root, params)]
    try:
        carried = files_in_git(root) if found else set()
    except InputError:  # only the remedy depends on it, and a scale copy has no git
        carried = set()
    return [_line(path, _is_in(path, carried)) for path in found]


def _is_in(path: Path, carried: Collection[str]) -> bool:
    name = path.as_posix()
    return any(file == name or file.startswith(f"{name}/") for file in carried)


def _line(path: Path, is_in_git: bool) -> str:
    command = f"{'git rm' if is_in_git else 'rm'} -r {shlex.quote(path.as_posix())}"
    return f"of no run or experiment of params.yaml: {path}; `{command}` removes it"


def _paths(root: Path, params: Mapping[str, Any]) -> Iterator[Path]:
    """Files and folders of runs and experiments that params.yaml does not have."""
    experiments, runs = params["experiments"], params["runs"]
    for name in _names(root / REPORTS, folders=True):
        if name == WEIGHTS.name:
            continue
        if name not in experiments:
            yield REPORTS / name
            continue
        tables = REPORTS / name / "tables"
        strays = {*_names(root / tables, folders=True)} - {*runs_of(params, name)}
        yield from (tables / run for run in sorted(strays))
    for folder, suffix, allowed in (
        (WEIGHTS, ".safetensors", params["released"]),
        (CLAIMS, ".yaml", experiments),
        (ARTIFACTS / "data", ".safetensors", experiments),
        (ARTIFACTS / "trajectories", "", runs),
        (ARTIFACTS / "figures", "", experiments),
        (ARTIFACTS / "sections", "", experiments),
    ):
        for name in _names(root / folder, folders=not suffix):
            if name.endswith(suffix) and name.removesuffix(suffix) not in allowed:
                yield folder / name


def _names(folder: Path, folders: bool) -> list[str]:
    """Sorted names of the folders, or else of the files, in `folder`; none if it does not exist."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() == folders)
    except (FileNotFoundError, NotADirectoryError):
        return []
