"""Files of the project as of any revision, also those that only DVC's cache or remote has."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from toycircuits.core.config import InputError, read_text
from toycircuits.core.paths import exists
from toycircuits.core.plain_yaml import parse_yaml
from toycircuits.git import git

# DVC parses these, and says of whatever is wrong with them only that they are corrupted.
CONFIG = (".dvc/config", ".dvc/config.local")
READ_BY_DVC = ("params.yaml", "dvc.yaml", "dvc.lock", *CONFIG)


def check_files_of_dvc(root: Path, names: Sequence[str] = READ_BY_DVC) -> None:
    """Call this before DVC is opened in the project folder `root`.

    Args:
        names: the files that DVC will read.

    Raises:
        InputError: one of them is not text, has conflict markers of a git merge, or has aliases
            that would keep DVC busy for ever.
    """
    for name in names:
        if os.path.lexists(root / name):
            text = read_text(root / name)
            if name.endswith((".yaml", ".lock")) and re.search(r"[:\[,-]\s*&\w", text):
                try:
                    parse_yaml(text, aliases=True)
                except ValueError as error:
                    raise InputError(f"{root / name}: {error}") from None


def remedy_of_dvc(reason: str) -> str:
    """What to do when DVC refuses dvc.lock, for the end of a message; empty if it does not.

    Args:
        reason: what DVC says.
    """
    if not re.search(r"dvc\.lock.* (validation failed|structure is corrupted)", reason):
        return ""
    return "; `git checkout dvc.lock` restores what git has, then `toycircuits repro`"


class Files:
    """The files of a project as of one revision.

    Args:
        root: the project folder.
        rev: a git revision or the name of a `dvc exp` experiment. None means the workspace: the
            files as they are.
        scratch: an empty folder, for copies of files that are not in the workspace.
    """

    def __init__(self, root: Path, rev: str | None, scratch: Path) -> None:
        self._root, self._rev, self._scratch = root, rev, scratch

    @cached_property
    def _dvc(self) -> Any:
        from dvc.api import DVCFileSystem  # here, because DVC loads slowly and is rarely needed

        if not exists(self._root / ".dvc"):
            raise InputError(f"{self._root}: found no folder .dvc; `dvc init` creates it")
        check_files_of_dvc(self._root, READ_BY_DVC if self._rev is None else CONFIG)
        if self._rev is not None:
            _check_revision(self._root, self._rev)
        return DVCFileSystem(str(self._root), rev=self._rev)

    def get(self, path: Path) -> Path | None:
        """Where the file or folder `path` of the project can be read; None if it does not exist.

        Raises:
            InputError: there is no such revision, or nobody can tell, for example because a folder
                cannot be read or a remote does not answer.
            FileNotFoundError: DVC knows `path`, but neither its cache nor a remote has it.
        """
        with self._looking_for(path):
            if self._is_in_workspace(path):
                return self._root / path
            if not self._is_in_dvc(path):
                return None
            copy = self._scratch / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            self._dvc.get(path.as_posix(), str(copy), recursive=True)
            return copy

    def names(self, folder: Path) -> list[str]:
        """Names of the files in `folder` of the project, each cut at its first dot.

        Raises:
            InputError: as for `get`.
        """
        names: list[str] = []
        with self._looking_for(folder):
            if self._is_in_workspace(folder):
                names = [path.name for path in (self._root / folder).iterdir()]
            elif self._is_in_dvc(folder):
                names = [Path(path).name for path in self._dvc.ls(folder.as_posix(), detail=False)]
        return sorted(name.partition(".")[0] for name in names)

    def _is_in_workspace(self, path: Path) -> bool:
        return self._rev is None and exists(self._root / path)

    def _is_in_dvc(self, path: Path) -> bool:
        """Like DVC's `exists`, which takes every error for a no."""
        try:
            self._dvc.info(path.as_posix())
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    @contextmanager
    def _looking_for(self, path: Path) -> Iterator[None]:
        """Turn what keeps us from an answer into an InputError."""
        try:
            yield
        except (InputError, FileNotFoundError):
            raise
        except Exception as error:  # DVC, git, a disk and remotes raise many kinds
            reason = " ".join(str(error).split()) or type(error).__name__
            where = "" if self._rev is None else f" as of {self._rev}"
            raise InputError(f"{path}{where}: cannot be looked up: {reason}") from None


def _check_revision(root: Path, rev: str) -> None:
    """Raise an `InputError` if `rev` is no revision, or if git cannot tell."""
    from dvc.scm import SCM, RevError, resolve_rev

    if not rev.strip() or "\0" in rev:  # git would take it for another one
        raise InputError(f"rev: found {rev!r}; allowed: a git revision or a `dvc exp` name")
    _refuse_other_objects(root, rev)
    _, answer = git(root, "rev-parse", "--is-shallow-repository")
    try:
        with closing(SCM(str(root))) as scm:
            resolve_rev(scm, rev)
    except RevError:
        allowed = "allowed: a git revision or the name of a `dvc exp` experiment"
        hint = "; this clone lacks old revisions, and `git fetch --unshallow` brings them"
        hint = hint if answer.strip() == "true" else ""
        raise InputError(f"rev: found {rev!r}; {allowed} of {root}{hint}") from None


def _refuse_other_objects(root: Path, rev: str) -> None:
    """Raise an `InputError` if `rev` names a file or a folder in git, such as HEAD:params.yaml."""
    kinds = {"blob": "a file", "tree": "a folder"}
    for name in (rev, f"{rev}^{{}}"):  # what a tag stands for
        _, answer = git(root, "cat-file", "-t", "--end-of-options", name, codes=(0, 128))
        if found := kinds.get(answer.strip()):
            text = f"found {rev!r}, which is {found} in git and no commit"
            raise InputError(f"rev: {text}; allowed: a git revision or a `dvc exp` name")
