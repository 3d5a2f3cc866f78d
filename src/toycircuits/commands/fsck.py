"""DVC's cache: which of its objects are damaged. DVC trusts an object because of its name."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from toycircuits.core.config import InputError


def cache_folder(root: Path) -> Path:
    """Where the cache of the project at `root` stands (`dvc cache dir`).

    Raises:
        InputError: DVC finds no repository there, or its settings are wrong.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            return Path(repo.cache.local_cache_dir)
    except DvcException as error:
        raise InputError(f"{root}: {' '.join(str(error).split())}") from None


def damaged(cache: Path) -> Iterator[Path]:
    """Objects whose content is not what their name, its MD5, says."""
    for path in sorted(cache.glob("files/md5/??/*")):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "md5").hexdigest()
        if digest != path.parent.name + path.name.removesuffix(".dir"):
            yield path
