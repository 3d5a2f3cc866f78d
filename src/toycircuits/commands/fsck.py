"""Find damaged objects in DVC's cache: DVC trusts an object by its name, and never reads it again.

`toycircuits fsck` runs this.
"""

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from toycircuits.commands.dvc_repo import cache_folder
from toycircuits.core.paths import exists


def fsck(root: Path, remove: bool) -> bool:
    """Print the damaged objects in the cache of the project at `root`; True if there are none.

    Args:
        remove: also delete them, so that DVC makes them anew.
    """
    objects = list(damaged(cache_folder(root)))
    for path in objects:
        print(f"damaged: {os.path.relpath(path)}", file=sys.stderr)
        if remove:
            path.unlink()
    if objects and remove:
        hint = "removed; `toycircuits repro --force STAGE` makes the outputs of a stage again"
    else:
        hint = "`toycircuits fsck --remove` removes them"
    if objects:
        print(f"{len(objects)} damaged; {hint}", file=sys.stderr)
    else:
        print("the cache is sound")
    return not objects


def damaged(cache: Path) -> Iterator[Path]:
    """Objects of `cache` whose content does not have the MD5 sum that is their name.

    Raises:
        OSError: an object or a folder cannot be read.
    """
    for path in _objects(cache / "files/md5"):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "md5").hexdigest()
        if digest != path.parent.name + path.name.removesuffix(".dir"):
            yield path


def _objects(folder: Path) -> list[Path]:
    """The objects in `folder`, sorted; none if there is no such folder."""
    if not exists(folder):
        return []
    prefixes = [prefix for prefix in folder.iterdir() if len(prefix.name) == 2]
    return sorted(path for prefix in prefixes for path in prefix.iterdir())
