"""Files of the project: as they are, or, of a revision or not in the workspace, through DVC."""

from functools import cached_property
from pathlib import Path
from typing import Any

from toycircuits.core.config import InputError


class Files:
    """Files of the project at `root`.

    Args:
        rev: a git revision or the name of a `dvc exp` experiment; None for the workspace.
        scratch: an empty folder, for copies.
    """

    def __init__(self, root: Path, rev: str | None, scratch: Path) -> None:
        self._root, self._rev, self._scratch = root, rev, scratch

    @cached_property
    def _dvc(self) -> Any:
        from dvc.api import DVCFileSystem  # here, because it loads slowly and few need it
        from dvc.scm import SCM, RevError, SCMError, resolve_rev

        if not (self._root / ".dvc").is_dir():
            raise InputError(f"{self._root}: no .dvc folder; `dvc init` makes one")
        if self._rev is not None:
            try:
                resolve_rev(SCM(str(self._root)), self._rev)
            except (RevError, SCMError):
                text = f"rev: found {self._rev!r}; no revision or experiment of {self._root}"
                raise InputError(text) from None
        return DVCFileSystem(str(self._root), rev=self._rev)

    def get(self, path: Path) -> Path | None:
        """A local copy of the file or folder at `path`, or None if there is none."""
        if self._rev is None and (self._root / path).exists():
            return self._root / path
        if not self._dvc.exists(path.as_posix()):
            return None
        copy = self._scratch / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        self._dvc.get(path.as_posix(), str(copy), recursive=True)
        return copy

    def names(self, folder: Path) -> list[str]:
        """Names of the files in `folder`, without what comes after the first dot."""
        if self._rev is None and (self._root / folder).exists():
            found = [path.name for path in (self._root / folder).iterdir()]
        elif self._dvc.exists(folder.as_posix()):
            found = [Path(path).name for path in self._dvc.ls(folder.as_posix(), detail=False)]
        else:
            found = []
        return sorted(name.partition(".")[0] for name in found)
