"""The project at another scale, in a folder of its own: `toycircuits repro --scale quick`.

What git carries belongs to one scale. Another is reproduced in a copy of the project, so that lock,
tables and figures here stay as they are. The copy has the files as they stand, edits and new ones
included, but for `scale` in params.yaml, and shares DVC's cache.
"""

import re
import shutil
import subprocess
from pathlib import Path

from toycircuits.cache import cache_folder
from toycircuits.config import STRUCTURE, InputError, read_params

OWN = (".dvc", ".resume", "artifacts", "dvc.lock", "logs", "reports")  # of each tree, never copied
SHARED = (".dvc/config", ".dvc/plots")  # but for these


def side_tree(root: Path, scale: str) -> Path:
    """Bring the folder of `scale` up to date; `root` itself if it is of that scale.

    Raises:
        InputError: there is no such scale, git does not know the project, or a file that is not
            ours is in the way.
    """
    params = read_params(root / "params.yaml")
    if scale == params["scale"]:
        return root
    scales = [name for name in params if name not in STRUCTURE]
    if scale not in scales:
        raise InputError(f"--scale: found {scale!r}; allowed: {', '.join(scales)}")
    tree = root / scale
    if tree.exists() and not (tree / ".dvc").is_dir():
        raise InputError(f"{tree}: is in the way of the results of --scale {scale}; move it")
    names = _files(root, scale)
    for name in names:
        _copy(root / name, tree / name)
    for path in [path for path in tree.rglob("*") if path.is_file() or path.is_symlink()]:
        name = path.relative_to(tree).as_posix()
        if name not in names and not _is_under(name, OWN) and path.suffix != ".pyc":
            path.unlink()
    text = (root / "params.yaml").read_text()
    changed, count = re.subn(r"^scale:.*$", f"scale: {scale}", text, flags=re.MULTILINE)
    if count != 1:
        raise InputError(f"{root / 'params.yaml'}: found {count} lines `scale: ...`; allowed: one")
    _write(tree / "params.yaml", changed)
    settings = f"[core]\n    no_scm = true\n[cache]\n    dir = {cache_folder(root)}\n"
    _write(tree / ".dvc/config.local", settings)  # git does not see the copy
    if not (tree / "reports/stages.json").exists():
        _write(tree / "reports/stages.json", "{}\n")
    return tree


def _files(root: Path, scale: str) -> set[str]:
    """Files of the project that are no results: what git has, or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = " ".join(done.stderr.split())
        raise InputError(f"--scale {scale}: git lists the files to copy, and says: {reason}")
    names = {name for name in done.stdout.split("\0") if name and (root / name).is_file()}
    names = {name for name in names if not _is_under(name, OWN) or _is_under(name, SHARED)}
    return names - {"params.yaml"}


def _is_under(name: str, folders: tuple[str, ...]) -> bool:
    return any(name == folder or name.startswith(f"{folder}/") for folder in folders)


def _copy(source: Path, target: Path) -> None:
    """Copy a file if it has changed; an unchanged one keeps its time, by which DVC knows it."""
    if target.exists():
        ours, theirs = target.stat(), source.stat()
        if (ours.st_mtime_ns, ours.st_size) == (theirs.st_mtime_ns, theirs.st_size):
            return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
