"""The project's DVC repository, for commands that ask DVC through its objects."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from toycircuits.core.config import InputError
from toycircuits.git import has_git
from toycircuits.revisions import check_files_of_dvc, remedy_of_dvc


@contextmanager
def open_repo(root: Path) -> Iterator[Any]:
    """The DVC repository at `root`: a `dvc.repo.Repo`, which has no types.

    Raises:
        InputError: DVC finds no repository there, or refuses its settings or dvc.yaml.
        OSError: the repository of git cannot be read.
    """
    from dvc.exceptions import DvcException  # here, because DVC loads slowly
    from dvc.repo import Repo

    check_files_of_dvc(root)
    has_git(root)  # for its error: DVC takes a repository that it cannot read for none
    try:
        with Repo(str(root)) as repo:
            yield repo
    except DvcException as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{root}: {reason}{remedy_of_dvc(reason)}") from None


def cache_folder(root: Path) -> Path:
    """The folder of the DVC cache that the project at `root` uses, as `dvc cache dir` prints it.

    Raises:
        InputError: DVC finds no repository there, or refuses its settings.
    """
    with open_repo(root) as repo:
        return Path(repo.cache.local_cache_dir)
