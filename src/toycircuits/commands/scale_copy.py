"""The project at another scale, in a folder of its own: `toycircuits repro --scale quick`.

Git carries the results of one scale. `--scale` copies the project to a folder that is named like
the scale, and reproduces the copy, so that dvc.lock, tables and figures of the project stay as they
are. The copy has the files as they stand, with edits and new files. It differs only in `scale` in
params.yaml, and uses the same DVC cache.

The copy is brought up to date before anything is planned, also for `--dry`. It keeps a list of the
files that were copied to it, so that files which a person adds or edits there are neither removed
nor overwritten.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from toycircuits.core.config import InputError, read_params, scales
from toycircuits.core.json_text import read_json
from toycircuits.core.paths import ARTIFACTS, REPORTS, RESUME
from toycircuits.core.replace import replacing
from toycircuits.core.report_paths import LOGS, RECORDS
from toycircuits.git import files_in_git, git, has_git

# Each copy has these folders and files for itself, with two exceptions that are copied.
NOT_COPIED = (".dvc", "dvc.lock", *map(str, (ARTIFACTS, LOGS, REPORTS, RESUME)))
COPIED_ANYWAY = (".dvc/config", ".dvc/plots")
COPIED = Path(".dvc/copied.json")  # only in a scale copy: name of each copied file -> its SHA-256

# In DVC's settings, what stands before a path that is relative to their folder.
RELATIVE = re.compile(
    r"^[ \t]*(url|dir|\w*file\w*|\w*path)[ \t]*=[ \t]*[\"']?(?![\s/~\"']|\w+://)", re.MULTILINE
)

Original: TypeAlias = Path | str  # a file to copy, or the text to write


def scale_copy(root: Path, scale: str) -> Path:
    """Bring the copy of the project at `root` for `scale` up to date; the copy's folder.

    Raises:
        InputError: there is no such scale, git does not know the project, or a file is in the way
            that we did not write or that a person has edited. Nothing is written then.
    """
    params = read_params(root / "params.yaml")
    if scale not in (allowed := scales(params)):
        raise InputError(f"--scale: found {scale!r}; allowed: {', '.join(allowed)}")
    if (root / COPIED).exists():
        raise InputError(f"--scale {scale}: {root} is a copy; give it in the project's own folder")
    copy = root / scale
    if copy.exists() and not (copy / ".dvc").is_dir():
        raise InputError(f"{copy}: is in the way of the results of --scale {scale}; move it")
    originals: dict[str, Original] = {name: root / name for name in _files(root, allowed)}
    originals["params.yaml"] = _at_scale(root / "params.yaml", scale)
    if ".dvc/config" in originals:
        originals[".dvc/config"] = _one_deeper((root / ".dvc/config").read_text(encoding="utf-8"))
    _update(copy, originals)
    _configure(root, copy)
    if not (copy / RECORDS).exists():
        _put(copy, RECORDS.as_posix(), "{}\n")
    _warn_if_git_sees(copy)
    return copy


def _files(root: Path, folders: Iterable[str]) -> set[str]:
    """The files to copy: those that git has, or would add, and that are not results.

    It leaves out files in the `folders` of scales, because .gitignore may lack such a folder.
    """
    names = {name for name in _known(root) if (root / name).is_file()}
    names = {n for n in names if not _is_under(n, NOT_COPIED) or _is_under(n, COPIED_ANYWAY)}
    return {name for name in names if not _is_under(name, folders)} - {"params.yaml"}


def _known(root: Path) -> set[str]:
    """The files at `root` that git has or would add.

    Without a repository, as in a ZIP, git reads .gitignore with an empty repository elsewhere.
    """
    if has_git(root):
        return files_in_git(root, "--cached", "--others", "--exclude-standard")
    with tempfile.TemporaryDirectory() as empty:
        git(root, "init", "--quiet", empty)
        repository = f"--git-dir={empty}/.git", f"--work-tree={root}"
        _, listed = git(root, *repository, "ls-files", "-z", "--others", "--exclude-standard")
        return {name for name in listed.split("\0") if name}


def _is_under(name: str, folders: Iterable[str]) -> bool:
    return any(name == folder or name.startswith(f"{folder}/") for folder in folders)


def _at_scale(path: Path, scale: str) -> str:
    """The text of params.yaml with another scale."""
    text = path.read_text(encoding="utf-8")
    changed, count = re.subn(r"^scale:.*$", f"scale: {scale}", text, flags=re.MULTILINE)
    if count != 1:
        raise InputError(f"{path}: found {count} lines `scale: ...`; allowed: one")
    return changed


def _update(copy: Path, originals: Mapping[str, Original]) -> None:
    """Make the files of `copy` equal to `originals`, and remove those without an original.

    A file that is equal already keeps its time, by which DVC recognises it.

    Raises:
        InputError: a file to write or to remove is not as we copied it. Nothing is changed then.
    """
    before = copied(copy)
    wanted = {name: _digest(original) for name, original in originals.items()}
    names = [name for name in {**before, **wanted} if os.path.lexists(copy / name)]
    present = {name: _digest(copy / name) for name in names}
    to_remove = [name for name in present if name not in wanted]
    to_write = [name for name in wanted if present.get(name) != wanted[name]]
    _refuse_to_lose(copy, [*to_remove, *to_write], present, before)
    for name in to_remove:
        (copy / name).unlink()
        with contextlib.suppress(OSError):  # the folder is not empty
            for folder in (copy / name).relative_to(copy).parents:
                (copy / folder).rmdir()
    for name in to_write:
        _put(copy, name, originals[name])
    if wanted != before:
        _put(copy, COPIED.as_posix(), json.dumps(dict(sorted(wanted.items())), indent=1) + "\n")


def _refuse_to_lose(
    copy: Path, names: Iterable[str], present: Mapping[str, str], before: Mapping[str, str]
) -> None:
    """Raise an `InputError` if one of the files `names` of `copy` is not as we copied it."""
    edited = sorted(n for n in names if n in present and present[n] != before.get(n))
    if edited:
        others = f" (and {len(edited) - 1} more)" if edited[1:] else ""
        raise InputError(
            f"{copy / edited[0]}: this file was added or edited in the copy and would be lost now; "
            f"make the edit in the project's own folder, and move or remove this file{others}"
        )


def copied(copy: Path) -> dict[str, str]:
    """Name of each file that was copied to `copy` -> its SHA-256; empty in a new copy.

    Raises:
        InputError: the list cannot be read, or is not one. A name may not lead out of the copy,
            because files that are no longer wanted are removed.
    """
    path = copy / COPIED
    if not path.exists():
        return {}
    names = read_json(path, "; remove it")
    if isinstance(names, dict) and all(map(_is_copied, names.items())):
        return names
    raise InputError(f"{path}: not a list of copied files; remove it")


def _is_copied(entry: tuple[str, Any]) -> bool:
    name, digest = PurePosixPath(entry[0]), entry[1]
    is_inside = not name.is_absolute() and ".." not in name.parts
    return is_inside and isinstance(digest, str) and bool(re.fullmatch("([0-9a-f]{64})?", digest))


def _digest(original: Original) -> str:
    """SHA-256 of a text or of a file's content; the empty text for a folder."""
    if isinstance(original, str):
        return hashlib.sha256(original.encode()).hexdigest()
    if not original.is_file():
        return ""
    with original.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _put(copy: Path, name: str, original: Original) -> None:
    """Write the file `name` of `copy` in one step: half a file would look like a person's edit.

    The temporary file is in .dvc: left behind in a folder that a stage reads, it would make the
    stage stale.
    """
    with replacing(copy / name, copy / f".dvc/partial-{os.getpid()}") as partial:
        if isinstance(original, str):
            partial.write_text(original, encoding="utf-8")
        else:
            shutil.copy2(original, partial)


def _configure(root: Path, copy: Path) -> None:
    """Let DVC use the cache of `root` in `copy`, and no git; all other settings stay as they are.

    The path of the cache is relative to DVC's file of settings: an absolute one would be wrong
    after the project has moved, and DVC can write ASCII only.
    """
    from dvc.config import Config, ConfigError

    dvc_folder = (copy / ".dvc").resolve()  # DVC takes `..` literally, also after a link
    try:
        cache = Path(Config(str(root / ".dvc"))["cache"].get("dir") or root / ".dvc/cache")
        relative = os.path.relpath(cache.resolve(), dvc_folder)
        config = Config(str(dvc_folder))
        written = config.load_one("local")["cache"].get("dir")  # a `str` if it is absolute
        is_same = os.path.realpath(config["cache"].get("dir") or "") == os.path.realpath(cache)
        if config["core"].get("no_scm") and is_same and type(written) is not str:
            return
        with config.edit("local") as settings:
            settings["core"]["no_scm"] = True
            settings["cache"]["dir"] = os.path.relpath(cache.resolve())  # from the working folder
    except UnicodeEncodeError:
        text = "DVC can write ASCII only into its settings; move or link the cache"
        raise InputError(f"cache.dir: found {relative}; {text}") from None
    except ConfigError as error:
        raise InputError(f"{copy / '.dvc'}: {' '.join(str(error).split())}") from None


def _one_deeper(config: str) -> str:
    """The text of DVC's settings with the same places as seen from the copy's `.dvc` folder."""
    return RELATIVE.sub(r"\g<0>../../.dvc/", config)


def _warn_if_git_sees(copy: Path) -> None:
    if not has_git(copy.parent):
        return
    name = copy.name if copy.is_symlink() else f"{copy.name}/"  # a link is no folder for git
    code, _ = git(copy.parent, "check-ignore", "--quiet", name, codes=(0, 1))
    if code == 1:
        line = f"/{name}"
        text = f"note: git does not ignore {line}; add it to .gitignore and .dvcignore"
        print(text, file=sys.stderr)
