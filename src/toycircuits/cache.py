"""DVC's cache: which of its objects are damaged. DVC trusts an object because of its name."""

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from toycircuits.config import InputError


def cache_folder(root: Path) -> Path:
    """Where the cache of the project at `root` stands."""
    done = subprocess.run(
        ["dvc", "cache", "dir"], cwd=root, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise InputError(f"dvc cache dir: {' '.join(done.stderr.split())}")
    return Path(done.stdout.strip())


def damaged(cache: Path) -> Iterator[Path]:
    """Objects whose content is not what their name, its MD5, says."""
    for path in sorted(cache.glob("files/md5/??/*")):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "md5").hexdigest()
        if digest != path.parent.name + path.name.removesuffix(".dir"):
            yield path
