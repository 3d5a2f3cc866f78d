"""Whether a stage has to run, where outputs may be absent. This module reads DVC's objects.

`dvc repro` runs a stage whose outputs are not in the workspace. In a fresh clone that would be
every training. Here such a stage counts as done as long as its command, parameters and inputs are
those of dvc.lock. `dvc repro --allow-missing` has the same idea. Three points differ here:

- An output that git carries is never "merely absent": without it, its stage is not done.
- An input that is absent and that no stage makes has changed.
- A folder that joins the outputs of several stages is compared with these outputs.
"""

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

from dvc.fs import localfs
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.tree import Tree

from dvc_parallel.files import NO_INPUTS, raise_unless_gone

Stage: TypeAlias = Any  # dvc.stage.Stage, which has no types
Output: TypeAlias = Any  # dvc.output.Output; an input is one, too

# unchanged: everything is here and as dvc.lock says.
# absent: the same, but outputs that only DVC's cache may hold are not in the workspace.
# missing: an output that git carries is not in the workspace.
# changed: the command, a parameter, an input or an output differs from dvc.lock.
Status: TypeAlias = Literal["unchanged", "absent", "missing", "changed"]


def status(stage: Stage, outputs_at: Callable[[str], list[Output]]) -> Status:
    """The status of `stage`, provided that the stages before it are up to date.

    Args:
        outputs_at: from a path to the outputs of all stages that are, contain or lie in this path.
    """
    if next(differences(stage, outputs_at), None):
        return "changed"
    lost = [out for out in stage.outs if not exists(out)]
    absent = [out for out in lost if is_absent(out)]
    return "missing" if len(absent) < len(lost) else "absent" if absent else "unchanged"


def differences(stage: Stage, outputs_at: Callable[[str], list[Output]]) -> Iterator[str]:
    """What differs from dvc.lock, in words, provided that the stages before are up to date.

    Outputs that are not in the workspace do not count.

    Args:
        outputs_at: as for `status`.

    Raises:
        OSError: an input or an output cannot be read.
    """
    if stage.changed_stage():
        yield "the command" if stage.cmd else "the stage"
    if not stage.frozen:
        if stage.is_callback or stage.always_changed:
            yield "it always runs"
        for dep in stage.deps:
            if _has_changed(dep, outputs_at):
                yield from _in_words(dep, bool(outputs_at(dep.fs_path)))
    for out in stage.outs:
        if not exists(out):
            if not out.hash_info:
                yield f"{_name(out)} was never made"
        elif out.workspace_status():
            yield from _in_words(out, False)


def _in_words(item: Output, is_made: bool) -> Iterator[str]:
    """How an input, an output or parameters differ from what dvc.lock says of them.

    Args:
        is_made: whether a stage makes the input `item`.
    """
    states = {"new": "is not in dvc.lock", "modified": "was modified", "deleted": "is missing"}
    if is_made:
        states["deleted"] = "is not the one that was read"
    if not exists(item):
        yield f"{_name(item)} {states['deleted']}"
        return
    for how in item.workspace_status().values():
        if isinstance(how, dict):  # parameters
            yield from (f"{_name(item)}: {key} {states[state]}" for key, state in how.items())
        else:
            yield f"{_name(item)} {states[how]}"


def _name(item: Output) -> str:
    """The path of an input or output as messages show it: relative to the project folder."""
    is_inside = localfs.isin(item.fs_path, item.repo.root_dir)
    return localfs.relpath(item.fs_path, item.repo.root_dir) if is_inside else str(item)


def exists(item: Output) -> bool:
    """Whether the input or output `item` is in the workspace.

    Raises:
        OSError: nobody can tell, or a part of it cannot be read. DVC would say no, leave a folder
            out, or know the hash of a file from earlier.
    """
    if item.fs.protocol != "local":
        return bool(item.exists)
    try:
        Path(item.fs_path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    if not item.exists:  # .dvcignore names it
        return False
    _check_readable(item.fs_path)
    for folder, folders, files in os.walk(item.fs_path, onerror=raise_unless_gone):
        folders[:] = set(folders) - NO_INPUTS
        for name in files:
            _check_readable(f"{folder}/{name}")
    return True


def _check_readable(path: str) -> None:
    if Path(path).exists() and not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


def is_absent(out: Output) -> bool:
    """Whether dvc.lock knows `out`, only DVC's cache may hold it, and the workspace lacks it.

    Raises:
        OSError: as for `exists`.
    """
    return bool(out.use_cache and out.hash_info and not exists(out))


def _has_changed(dep: Output, outputs_at: Callable[[str], list[Output]]) -> bool:
    """Whether the input `dep` differs from what dvc.lock says of it.

    An absent input has not changed if dvc.lock gives it the hash that it gives to the output. In a
    folder of which parts are here, nothing tells whether the other parts are the same: it counts as
    changed. Whoever brings these parts may look again.
    """
    if exists(dep) and not dep.status():
        return False
    outputs = outputs_at(dep.fs_path)
    absent = [out for out in outputs if is_absent(out)]
    if not absent or not dep.hash_info or any(exists(out) for out in outputs):
        return True
    for out in absent:
        if out.fs_path == dep.fs_path:
            return bool(out.hash_info != dep.hash_info)
    joined = _joined(dep.fs_path, outputs)
    return joined is not None and joined != dep.hash_info


def _joined(folder: str, outputs: Iterable[Output]) -> HashInfo | None:
    """The hash of `folder` if these `outputs` are all it holds; None if the hash is not known.

    dvc.lock has the hash of an output that is a folder, but the list of its files is in the cache.
    """
    tree = Tree()
    for out in outputs:
        if not localfs.isin(out.fs_path, folder):
            return None
        place = localfs.relparts(out.fs_path, folder)
        if not out.hash_info.isdir:
            tree.add(place, None, out.hash_info)
        elif (listed := out.get_obj()) is None:
            return None
        else:
            for name, _, hash_info in listed:
                tree.add((*place, *name), None, hash_info)
    tree.digest()
    return tree.hash_info
