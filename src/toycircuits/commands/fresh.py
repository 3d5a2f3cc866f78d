"""`toycircuits fresh`: do dvc.lock, code, params and the results in git belong together?

It works in a fresh clone: it needs neither DVC's cache nor the outputs that only the cache holds.
Everything else has to be there, because an absent file agrees with nothing.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dvc_parallel.bookkeeping import Bookkeeping, Error, LockError
from dvc_parallel.params_cache import params_parsed_once
from dvc_parallel.remnants import needed_files
from dvc_parallel.stage_status import is_absent
from toycircuits.commands.leftovers import leftovers, remnants
from toycircuits.commands.scale_copy import COPIED, copied
from toycircuits.commands.structure import read_project
from toycircuits.core import paths
from toycircuits.core.config import InputError, read_params
from toycircuits.git import files_in_git
from toycircuits.revisions import check_files_of_dvc, remedy_of_dvc

# No stage reads these, and yet results depend on them.
NEEDED = ("dvc.yaml", "dvc.lock", "params.yaml", ".dvc/config", ".dvcignore")
N_REASONS = 3  # that are shown of why a stage is stale


def stale(root: Path) -> list[str]:
    """What does not belong together in the project at `root`, one line each; empty if it is fresh.

    Most of it is what DVC finds: a stage whose code, params, command or results differ from
    dvc.lock. DVC does not find entries of dvc.lock without a stage, files that git carries and that
    are absent, or files that are here and that git does not carry. In a scale copy, which git
    ignores, the files to be there are those that were copied.

    Raises:
        InputError: params.yaml is wrong, or DVC or git cannot tell.
        OSError: a file or folder cannot be read.
    """
    params = read_project(root / "params.yaml")
    if not paths.exists(root / "dvc.lock"):
        return ["dvc.lock: missing; nothing has been run"]
    carried = _carried(root)
    with _project(root) as book:
        entries, names = book.lock_entries(), [stage.name for stage in book.stages()]
        problems = [
            line for name, line in _stale_stages(book) if name in entries or name not in names
        ]
        problems += [f"never run: {name}" for name in names if name not in entries]
        problems += remnants(book, root)
        places = [Path(file) for file in needed_files(book)]
    files = {place.relative_to(root.resolve()).as_posix() for place in places} | {*NEEDED}
    problems += _lost(root, carried | files)
    if not paths.exists(root / COPIED):
        problems += _unknown([file for file in files if paths.exists(root / file)], carried)
    problems += leftovers(root, params, carried)
    undrawn = sorted(file for file in carried | files if file.endswith("NOT_DRAWN.txt"))
    return problems + [f"pictures were not drawn: {file}" for file in undrawn]


def outdated(root: Path) -> set[str]:
    """Names of the stages whose command, params, inputs or results differ from dvc.lock.

    Stages of which git carries a result that is not there are among them, and stages that are not
    both in dvc.yaml and in dvc.lock. Stages that only read the results of such a stage are not.

    Raises:
        InputError: DVC cannot tell, for example because dvc.yaml is wrong.
        OSError: a file or folder cannot be read.
    """
    with _project(root) as book:
        names, entries = {stage.name for stage in book.stages()}, {*book.lock_entries()}
        changed = {name for name, _ in _stale_stages(book)}
        missing = {stage.name for stage in book.stages() if book.status(stage) == "missing"}
        return changed | missing | (names ^ entries)


def absent(root: Path) -> list[Path]:
    """Trajectories of dvc.lock that are neither in the workspace nor in DVC's cache.

    Git does not carry trajectories, so a clone is fresh without them.

    Raises:
        InputError: params.yaml cannot be read, or DVC cannot tell.
        OSError: a file or folder cannot be read.
    """
    runs = read_params(root / "params.yaml").get("runs") or {}
    if all(paths.exists(root / paths.trajectories(run)) for run in runs):
        return []  # asking DVC takes a second
    with _project(root) as book:
        trained = [stage for stage in book.stages() if stage.name.partition("@")[0] == "train"]
        outputs = [out for stage in trained for out in stage.outs if is_absent(out)]
        lost = [Path(out.fs_path) for out in outputs if not book.in_cache([out])]
    return [path.relative_to(root.resolve()) for path in lost]


@contextmanager
def _project(root: Path) -> Iterator[Bookkeeping]:
    """The DVC repository at `root`, locked. Errors of DVC become an InputError."""
    if not paths.exists(root / "dvc.yaml"):  # DVC would find no stages, and so nothing stale
        raise InputError(f"{root / 'dvc.yaml'}: missing; `git checkout dvc.yaml` restores it")
    check_files_of_dvc(root)
    try:
        with params_parsed_once(), Bookkeeping(str(root), wait=False) as book, book.locked():
            yield book
    except Error as error:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # without DVC's colours
        reason = " ".join(plain.split())[:300]
        text = f"DVC cannot tell what is up to date: {reason}{remedy_of_dvc(reason)}"
        raise InputError(f"{root}: {text}") from None


def _stale_stages(book: Bookkeeping) -> Iterator[tuple[str, str]]:
    """Names of the stages that differ from dvc.lock, each with a line that says in what.

    Absent and missing results do not count.
    """
    stages = book.stages()
    for stage in book.plan([]):
        try:
            reasons = book.differences(stage)
        except LockError:
            reasons = ["another process runs it at this moment"]
        if reasons:  # an address is relative to the working folder, and a name is not
            name = stage.name if stage in stages else stage.addressing
            more = len(reasons) - N_REASONS
            text = "; ".join(reasons[:N_REASONS]) + (f"; and {more} more" if more > 0 else "")
            yield name, f"stale: {name}: {text}"


def _carried(root: Path) -> set[str]:
    """Files that git carries, relative to `root`; in a scale copy, those that were copied."""
    return {*copied(root)} if paths.exists(root / COPIED) else files_in_git(root)


def _lost(root: Path, files: Iterable[str]) -> Iterator[str]:
    """A line for each of `files` that is not in the project, or for a folder of such files."""
    lost = [file for file in files if not paths.exists(root / file)]
    for path in _joined(lost, lambda folder: not paths.exists(root / folder)):
        yield f"not there: {path}"


def _unknown(files: Iterable[str], carried: Collection[str]) -> Iterator[str]:
    """A line for each of `files` that is not `carried` by git, or for a folder of such files."""
    folders = {folder for file in carried for folder in Path(file).parents}
    unknown = [file for file in files if file not in carried]
    for path in _joined(unknown, lambda folder: folder not in folders):
        yield f"not in git: {path}"


def _joined(files: Iterable[str], holds_all: Callable[[Path], bool]) -> list[str]:
    """The `files`, sorted, each replaced by its uppermost folder for which `holds_all` is true."""
    names = set()
    for file in map(Path, files):
        folders = [folder for folder in [*file.parents][-2::-1] if holds_all(folder)]
        names.add((folders or [file])[0].as_posix())
    return sorted(names)
