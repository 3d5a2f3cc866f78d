"""DVC's cache: which of its objects are damaged, and what a reproduction could not store.

DVC trusts an object because of its name, and goes on when the cache's disk is full.
"""

import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

from toycircuits.config import InputError


def cache_folder(root: Path) -> Path:
    """Where the cache of the project at `root` stands."""
    return Path(_dvc(root, "cache", "dir").strip())


def damaged(cache: Path) -> Iterator[Path]:
    """Objects whose content is not what their name, its MD5, says."""
    for path in sorted(cache.glob("files/md5/??/*")):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "md5").hexdigest()
        if digest != path.parent.name + path.name.removesuffix(".dir"):
            yield path


def not_stored(root: Path) -> list[str]:
    """Results that dvc.lock names and that stand in the workspace, but not in the cache."""
    status = json.loads(_dvc(root, "data", "status", "--json", "--granular"))
    missing: list[str] = status.get("not_in_cache", [])
    return [path for path in missing if (root / path).exists()]


def _dvc(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["dvc", *arguments], cwd=root, capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = " ".join(done.stderr.split())
        raise InputError(f"dvc {' '.join(arguments)}: {reason}")
    return done.stdout
