"""The only place that calls git. An error of git is never taken for an empty answer."""

import errno
import os
import re
import subprocess
from collections.abc import Collection
from pathlib import Path

from toycircuits.core.config import InputError
from toycircuits.core.paths import exists

MAKE_REPOSITORY = "`git init && git add --all && git commit -m start`"
# Git sets them for its hooks. They name a repository, which may be another one than ours.
PLACES = (
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_IMPLICIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE"),
    *("GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_PREFIX", "GIT_GRAFT_FILE"),
    *("GIT_SHALLOW_FILE", "GIT_REPLACE_REF_BASE", "GIT_NO_REPLACE_OBJECTS", "GIT_NAMESPACE"),
)


def git(root: Path, *arguments: str, codes: Collection[int] = (0,)) -> tuple[int, str]:
    """The exit code and the standard output of git in the folder `root`.

    The repository is the one around `root`, also where variables such as GIT_DIR name another one.

    Args:
        codes: the exit codes that are answers. All others are errors.

    Raises:
        InputError: git is not installed or fails. The message has git's own words and remedy.
    """
    command = ["git", *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in PLACES}
    environment |= {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, check=False)
    except OSError as error:
        hint = "; install git" if isinstance(error, FileNotFoundError) and root.is_dir() else ""
        raise InputError(f"{root}: git cannot be started: {error.strerror}{hint}") from None
    if done.returncode not in codes:
        has_git(root)  # for its error
        raise InputError(f"{root}: {_reason(os.fsdecode(done.stderr))}")
    return done.returncode, os.fsdecode(done.stdout)


def has_git(root: Path) -> bool:
    """Whether the folder `root` is in a git repository. A ZIP of the project is not.

    Raises:
        OSError: nobody can tell.
    """
    places = [folder / ".git" for folder in (root, *root.absolute().parents)]
    place = next(filter(exists, places), None)
    if place and not os.access(place, os.R_OK):  # git and DVC would say that it is no repository
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
    return place is not None


def _reason(words: str) -> str:
    """What went wrong and what to do, in one line, from what git printed."""
    if found := re.search(r"git config --global --add safe\.directory \S.*", words):
        owner = "git refuses a repository that belongs to another user"
        return f"{owner}; `{found[0].strip()}` allows it"
    reason = " ".join(words.split()) or "it does not say why"
    if "not a git repository" in words:
        return f"git finds no repository here ({reason}); {MAKE_REPOSITORY} makes one"
    return f"git fails: {reason}"


def files_in_git(root: Path, *options: str) -> set[str]:
    """Files of the project in the folder `root` that git carries, relative to `root`.

    Git does not carry the content of a file after `git add --intent-to-add`: it is left out.

    Args:
        options: of `git ls-files`, for other files. Then nothing is left out.

    Raises:
        InputError: git cannot list them, or its repository does not hold this project.
    """
    _, listed = git(root, "ls-files", "-z", *options)
    names = {name for name in listed.split("\0") if name}
    if not options:
        intended = ("--diff-filter=A", "--name-only", "--relative", "--ignore-submodules", "-z")
        names -= {*git(root, "diff-files", *intended)[1].split("\0")}
    if (
        not names
    ):  # the folder lies in a repository of something else, which knows none of its files
        _, top = git(root, "rev-parse", "--show-toplevel")
        text = f"the git repository in {top.strip()} has no file of this folder"
        raise InputError(f"{root}: {text}; `git add` the project, or clone it")
    return names
