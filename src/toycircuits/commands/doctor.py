"""Is everything there that a reproduction needs? `toycircuits doctor`."""

import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from toycircuits.commands.fsck import cache_folder

GIB = 2**30
NEEDED = 5 * GIB  # what the paper scale leaves in DVC's cache and in artifacts/, and some room


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        mend: what to do about it, where there is something.
    """

    what: str
    state: Literal["ok", "warning", "failure"]
    found: str
    mend: str = ""


def examine(root: Path) -> Iterator[Finding]:
    """Look at everything; what cannot be looked at is a failure, and ends nothing."""
    for check in CHECKS:
        name = check.__name__.strip("_").replace("_", " ")
        try:
            yield check(root)
        except Exception as error:  # whatever is wrong, the other lines matter, too
            yield Finding(name, "failure", f"{type(error).__name__}: {error}")


def _python(root: Path) -> Finding:
    return Finding("Python", "ok", f"{platform.python_version()} ({sys.executable})")


def _git(root: Path) -> Finding:
    git = shutil.which("git")
    if git is None:
        mend = "`--scale`, `compare` and experiments need it: install git"
        return Finding("git", "failure", "none", mend)
    return Finding("git", "ok", git)


def _torch(root: Path) -> Finding:
    import torch

    pinned = (root / "constraints.txt").read_text() if (root / "constraints.txt").exists() else ""
    version = torch.__version__.partition("+")[0]
    cuda = torch.cuda.is_available()
    device = f"CUDA: {torch.cuda.get_device_name()}" if cuda else "on the CPU"
    found = f"{torch.__version__}, {device}"
    if "torch==" in pinned and f"torch=={version}\n" not in pinned + "\n":
        mend = "results in git are of the version in constraints.txt: `make setup`"
        return Finding("torch", "warning", found, mend)
    return Finding("torch", "ok", found)


def _compiler(root: Path) -> Finding:
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        mend = "without one, trainings run uncompiled, up to five times as long: install g++"
        return Finding("C++ compiler", "warning", "none", mend)
    return Finding("C++ compiler", "ok", compiler)


def _chrome(root: Path) -> Finding:
    from toycircuits.core.pictures import find_browser

    browser = find_browser()
    if shutil.which(browser) is None:  # none, or BROWSER_PATH names what cannot be run
        mend = "without one, no PNG is drawn: `make chrome`, or install Chrome or Chromium"
        return Finding("Chrome", "warning", browser or "none", mend)
    return Finding("Chrome", "ok", browser)


def _cache(root: Path) -> Finding:
    folder = cache_folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    same = folder.stat().st_dev == root.stat().st_dev
    found = f"{folder}, {size / GIB:.1f} GiB{'' if same else ', on another disk'}"
    probe = folder / ".toycircuits-doctor"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        return Finding("DVC cache", "failure", f"{found}: {error.strerror}", "make it writable")
    return Finding("DVC cache", "ok", found)


def _remote(root: Path) -> Finding:
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        name, remotes = repo.config["core"].get("remote"), repo.config["remote"]
    if not remotes:
        mend = "results stay on this machine; to share them: docs/remotes-and-ci.md"
        return Finding("DVC remote", "ok", f"none; {mend}")
    if name not in remotes:
        mend = "`dvc remote default NAME`"
        return Finding("DVC remote", "warning", f"{', '.join(remotes)}; none is the default", mend)
    return Finding("DVC remote", "ok", f"{name}: {remotes[name]['url']}")


def _free_disk(root: Path) -> Finding:
    free = shutil.disk_usage(cache_folder(root)).free
    found = f"{free / GIB:.1f} GiB"
    if free < NEEDED:
        mend = f"the paper scale needs {NEEDED / GIB:.0f} GiB; docs/faq.md says how to free some"
        return Finding("free disk", "warning", found, mend)
    return Finding("free disk", "ok", found)


def _results(root: Path) -> Finding:
    from toycircuits.commands.fresh import absent, stale

    problems = stale(root)
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        found = f"{problems[0].rstrip(':')}{more}"
        return Finding("results", "warning", found, "`toycircuits repro` brings them up to date")
    found = "belong to code and params"
    if absent(root):
        mend = "`dvc pull` brings them from a remote; `toycircuits repro` trains all again"
        return Finding("results", "ok", f"{found}; trajectories of weights are not here", mend)
    return Finding("results", "ok", found)


CHECKS: tuple[Callable[[Path], Finding], ...] = (
    *(_python, _git, _torch, _compiler, _chrome),
    *(_cache, _remote, _free_disk, _results),
)
