"""`toycircuits doctor`: is everything there that a reproduction needs, and if not, what to do?"""

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from toycircuits.commands.dvc_repo import cache_folder, open_repo
from toycircuits.commands.scale_copy import COPIED
from toycircuits.core.config import InputError
from toycircuits.core.paths import exists
from toycircuits.git import files_in_git

GIB = 2**30
NEEDED = 5 * GIB  # what the paper scale writes to DVC's cache and to artifacts/, with some reserve


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        what: the thing that was examined.
        state: a failure must be mended, a warning should be.
        detail: what is there.
        advice: how to mend it; empty if nothing is to do.
    """

    what: str
    state: Literal["ok", "warning", "failure"]
    detail: str
    advice: str = ""


def doctor(root: Path) -> bool:
    """Print a report on this machine and the project at `root`; True if there is no failure."""
    is_well = True
    for finding in examine(root):
        is_well &= finding.state != "failure"
        print(f"{finding.state:8} {finding.what}: {finding.detail}")
        if finding.advice:
            print(f"{'':8} {finding.advice}")
    return is_well


def examine(root: Path) -> Iterator[Finding]:
    """Examine everything, one finding after the other. A check that crashes is a failure, too."""
    for check in CHECKS:
        name = check.__name__.strip("_").replace("_", " ")
        try:
            yield check(root)
        except InputError as error:
            yield Finding(name, "failure", str(error))
        except Exception as error:  # whatever is wrong, the other findings are still of use
            yield Finding(name, "failure", f"{type(error).__name__}: {error}")


def _python(root: Path) -> Finding:
    return Finding("Python", "ok", f"{platform.python_version()} ({sys.executable})")


def _git(root: Path) -> Finding:
    if (place := shutil.which("git")) is None:
        advice = "`--scale`, `compare` and experiments need it: install git"
        return Finding("git", "failure", "none", advice)
    if not exists(root / COPIED):  # git does not know a scale copy
        files_in_git(root)
    return Finding("git", "ok", place)


def _torch(root: Path) -> Finding:
    import torch

    pinned = pins.read_text() if exists(pins := root / "constraints.txt") else ""
    version = torch.__version__.partition("+")[0]
    cuda = torch.cuda.is_available()
    device = f"CUDA: {torch.cuda.get_device_name()}" if cuda else "on the CPU"
    detail = f"{torch.__version__}, {device}"
    if "torch==" in pinned and f"torch=={version}\n" not in pinned + "\n":
        advice = "results in git come from the version in constraints.txt: `make setup` installs it"
        return Finding("torch", "warning", detail, advice)
    return Finding("torch", "ok", detail)


def _compiler(root: Path) -> Finding:
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        advice = "without a compiler, trainings take up to five times as long: install g++"
        return Finding("C++ compiler", "warning", "none", advice)
    return Finding("C++ compiler", "ok", compiler)


def _chrome(root: Path) -> Finding:
    from toycircuits.core.pictures import find_browser

    browser = find_browser()
    if shutil.which(browser) is None:  # no browser, or BROWSER_PATH names none
        advice = "without Chrome, no PNG is drawn: `make chrome`, or install Chrome or Chromium"
        return Finding("Chrome", "warning", browser or "none", advice)
    return Finding("Chrome", "ok", browser)


def _cache(root: Path) -> Finding:
    folder = cache_folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    size = _size(folder)
    same = folder.stat().st_dev == root.stat().st_dev
    detail = f"{folder}, {size / GIB:.1f} GiB{'' if same else ', on another disk'}"
    probe = folder / ".toycircuits-doctor"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        return Finding("DVC cache", "failure", f"{detail}: {error.strerror}", "make it writable")
    return Finding("DVC cache", "ok", detail)


def _size(folder: Path) -> int:
    """Bytes of all files in `folder`. A folder that cannot be read raises an OSError."""

    def refuse(error: OSError) -> None:
        raise error

    places = os.walk(folder, onerror=refuse)
    return sum((Path(at) / name).lstat().st_size for at, _, names in places for name in names)


def _remote(root: Path) -> Finding:
    with open_repo(root) as repo:
        name, remotes = repo.config["core"].get("remote"), repo.config["remote"]
        place = repo.cloud.get_remote(name) if name in remotes else None
    if not remotes:
        advice = "results stay on this machine; docs/remotes-and-ci.md says how to share them"
        return Finding("DVC remote", "ok", "none", advice)
    if name not in remotes:
        detail = f"{', '.join(remotes)}; none is the default"
        return Finding("DVC remote", "warning", detail, "`dvc remote default NAME` chooses one")
    detail = f"{name}: {remotes[name]['url']}"
    if place is not None and place.fs.protocol == "local" and not exists(Path(place.path)):
        advice = "mount its disk, or let `dvc push` create the folder"
        return Finding("DVC remote", "warning", f"{detail}; there is no such folder", advice)
    return Finding("DVC remote", "ok", detail)


def _free_disk(root: Path) -> Finding:
    free = shutil.disk_usage(cache_folder(root)).free
    detail = f"{free / GIB:.1f} GiB"
    if free < NEEDED:
        advice = f"the paper scale needs {NEEDED / GIB:.0f} GiB; docs/faq.md says how to free some"
        return Finding("free disk", "warning", detail, advice)
    return Finding("free disk", "ok", detail)


def _results(root: Path) -> Finding:
    from toycircuits.commands.fresh import absent, stale

    problems = stale(root)
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        detail = f"{problems[0].rstrip(':')}{more}"
        return Finding("results", "warning", detail, "`toycircuits repro` brings them up to date")
    detail = "belong to code and params"
    if absent(root):
        advice = (
            "`dvc pull` brings them from a remote; `toycircuits repro --force train@RUN` trains"
        )
        detail += "; checkpoints of the trainings are not here"
        return Finding("results", "ok", detail, advice)
    return Finding("results", "ok", detail)


CHECKS: tuple[Callable[[Path], Finding], ...] = (
    *(_python, _git, _torch, _compiler, _chrome),
    *(_cache, _remote, _free_disk, _results),
)
