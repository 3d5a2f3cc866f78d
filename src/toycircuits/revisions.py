"""Files of the project as of any revision, also those that only DVC's cache or remote has."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from toycircuits.core.config import InputError, read_text

# DVC parses these, and says of a conflict in them only that they are corrupted.
CONFIG = (".dvc/config", ".dvc/config.local")
READ_BY_DVC = ("params.yaml", "dvc.yaml", "dvc.lock", *CONFIG)


def check_files_of_dvc(root: Path, names: Sequence[str] = READ_BY_DVC) -> None:
    """Call this before DVC is opened in the project folder `root`.

    Args:
        names: the files that DVC will read.

    Raises:
        InputError: one of them is not text, or has conflict markers of a git merge.
    """
    for name in names:
        if os.path.lexists(root / name):
            read_text(root / name)


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
        from dvc.scm import SCM, RevError, SCMError, resolve_rev

        if not (self._root / ".dvc").is_dir():
            raise InputError(f"{self._root}: found no folder .dvc; `dvc init` creates it")
        check_files_of_dvc(self._root, READ_BY_DVC if self._rev is None else CONFIG)
        if self._rev is not None:
            try:
                resolve_rev(SCM(str(self._root)), self._rev)
            except (RevError, SCMError):
                allowed = "allowed: a git revision or the name of a `dvc exp` experiment"
                raise InputError(f"rev: found {self._rev!r}; {allowed} of {self._root}") from None
        return DVCFileSystem(str(self._root), rev=self._rev)

    def get(self, path: Path) -> Path | None:
        """Where the file or folder `path` of the project can be read; None if it does not exist."""
        if self._rev is None and (self._root / path).exists():
            return self._root / path
        if not self._dvc.exists(path.as_posix()):
            return None
        copy = self._scratch / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        self._dvc.get(path.as_posix(), str(copy), recursive=True)
        return copy

    def names(self, folder: Path) -> list[str]:
        """Names of the files in `folder` of the project, each cut at its first dot."""
        names: list[str] = []
        if self._rev is None and (self._root / folder).exists():
            names = [path.name for path in (self._root / folder).iterdir()]
        elif self._dvc.exists(folder.as_posix()):
            names = [Path(path).name for path in self._dvc.ls(folder.as_posix(), detail=False)]
        return sorted(name.partition(".")[0] for name in names)
