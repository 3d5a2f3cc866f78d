"""The project at another scale, in a folder of its own: `toycircuits repro --scale quick`.

What git carries belongs to one scale. Another is reproduced in a copy of the project, so that lock,
tables and figures here stay as they are. The copy has the files as they stand, edits and new ones
included, but for `scale` in params.yaml, and shares DVC's cache.

It is brought up to date before anything is planned, for `--dry`, too. What a person puts or edits
there is neither removed nor overwritten: the copy keeps a list of what was copied to it.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

from toycircuits.commands.fsck import cache_folder
from toycircuits.core.config import InputError, read_params, scales

OWN = (".dvc", ".resume", "artifacts", "dvc.lock", "logs", "reports")  # of each tree, never copied
SHARED = (".dvc/config", ".dvc/plots")  # but for these
COPIED = Path(".dvc/copied.json")  # in a scale copy alone: names of copied files, and their SHA-256

Original: TypeAlias = Path | str  # a file to copy, or the text to write


def scale_copy(root: Path, scale: str) -> Path:
    """Bring the folder of `scale` up to date.

    Raises:
        InputError: there is no such scale, git does not know the project, or a file that is not
            ours, or not as we left it, is in the way. Nothing is written then.
    """
    params = read_params(root / "params.yaml")
    if scale not in (allowed := scales(params)):
        raise InputError(f"--scale: found {scale!r}; allowed: {', '.join(allowed)}")
    if (root / COPIED).exists():
        raise InputError(f"--scale {scale}: {root} is a copy; give it in the project's own folder")
    tree = root / scale
    if tree.exists() and not (tree / ".dvc").is_dir():
        raise InputError(f"{tree}: is in the way of the results of --scale {scale}; move it")
    originals: dict[str, Original] = {name: root / name for name in _files(root, scale, allowed)}
    originals["params.yaml"] = _at_scale(root / "params.yaml", scale)
    _bring(tree, originals)
    _settle(tree, cache_folder(root))
    if not (tree / "reports/stages.json").exists():
        _put(tree, "reports/stages.json", "{}\n")
    _tell_if_git_sees(tree)
    return tree


def _files(root: Path, scale: str, folders: Iterable[str]) -> set[str]:
    """Files of the project that are no results: what git has, or would add.

    Those in the `folders` of scales are left out: git may not have been told to ignore them.
    """
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = " ".join(done.stderr.split())
        raise InputError(f"--scale {scale}: git lists the files to copy, and says: {reason}")
    names = {name for name in done.stdout.split("\0") if name and (root / name).is_file()}
    names = {name for name in names if not _is_under(name, OWN) or _is_under(name, SHARED)}
    return {name for name in names if not _is_under(name, folders)} - {"params.yaml"}


def _is_under(name: str, folders: Iterable[str]) -> bool:
    return any(name == folder or name.startswith(f"{folder}/") for folder in folders)


def _at_scale(path: Path, scale: str) -> str:
    """The text of params.yaml with another scale."""
    text = path.read_text(encoding="utf-8")
    changed, count = re.subn(r"^scale:.*$", f"scale: {scale}", text, flags=re.MULTILINE)
    if count != 1:
        raise InputError(f"{path}: found {count} lines `scale: ...`; allowed: one")
    return changed


def _bring(tree: Path, originals: Mapping[str, Original]) -> None:
    """Make files of `tree` what their `originals` are, and remove those that have none any more.

    A file that is as it should be keeps its time, by which DVC knows it.

    Raises:
        InputError: a file to be written or removed is not what was copied. Nothing is changed.
    """
    before = _copied(tree)
    wanted = {name: _digest(original) for name, original in originals.items()}
    names = [name for name in {**before, **wanted} if os.path.lexists(tree / name)]
    there = {name: _digest(tree / name) for name in names}
    old = [name for name in there if name not in wanted]
    new = [name for name in wanted if there.get(name) != wanted[name]]
    touched = sorted(n for n in (*old, *new) if n in there and there[n] != before.get(n))
    if touched:
        others = f" (and {len(touched) - 1} more)" if touched[1:] else ""
        what = "is not what was copied there, which would be lost now"
        mend = "make such an edit in the project's own folder, and move or remove this file"
        raise InputError(f"{tree / touched[0]}: {what}; {mend}{others}")
    for name in old:
        (tree / name).unlink()
        with contextlib.suppress(OSError):  # it is not empty
            for folder in (tree / name).relative_to(tree).parents:
                (tree / folder).rmdir()
    for name in new:
        _put(tree, name, originals[name])
    if wanted != before:
        _put(tree, COPIED.as_posix(), json.dumps(dict(sorted(wanted.items())), indent=1) + "\n")


def _copied(tree: Path) -> dict[str, str]:
    """What was copied to `tree`; where nobody knows, it is taken for a person's own."""
    try:
        return dict(json.loads((tree / COPIED).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (TypeError, ValueError):
        raise InputError(
            f"{tree / COPIED}: not the list of what was copied there; remove it"
        ) from None


def _digest(original: Original) -> str:
    """SHA-256 of a content; of what is no file, the empty text."""
    if isinstance(original, str):
        return hashlib.sha256(original.encode()).hexdigest()
    if not original.is_file():
        return ""
    with original.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _put(tree: Path, name: str, original: Original) -> None:
    """Write a file of `tree` in one step: half of it would be taken for a person's edit."""
    partial = tree / f".dvc/partial-{os.getpid()}"
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        if isinstance(original, str):
            partial.write_text(original, encoding="utf-8")
        else:
            shutil.copy2(original, partial)
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        partial.replace(tree / name)
    finally:
        partial.unlink(missing_ok=True)


def _settle(tree: Path, cache: Path) -> None:
    """Let DVC use `cache` in `tree`, which git does not see, beside what a person has set there."""
    from dvc.config import Config, ConfigError

    try:
        config = Config(str(tree / ".dvc"))
        if config["core"].get("no_scm") and config["cache"].get("dir") == str(cache):
            return
        with config.edit("local") as settings:
            settings["core"]["no_scm"] = True
            settings["cache"]["dir"] = str(cache)
    except ConfigError as error:
        raise InputError(f"{tree / '.dvc'}: {' '.join(str(error).split())}") from None


def _tell_if_git_sees(tree: Path) -> None:
    command = ["git", "check-ignore", "--quiet", f"{tree.name}/"]
    if subprocess.run(command, cwd=tree.parent, capture_output=True, check=False).returncode == 1:
        line = f"/{tree.name}/"
        print(
            f"note: git does not ignore {line}; add it to .gitignore, .dvcignore", file=sys.stderr
        )
