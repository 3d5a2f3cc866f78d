"""Whether a stage has to run, where outputs may be absent. This module reads DVC's objects.

`dvc repro` runs a stage whose outputs are not in the workspace. In a fresh clone that would be
every training. Here such a stage counts as done as long as its command, parameters and inputs are
those of dvc.lock. `dvc repro --allow-missing` has the same idea. Three points differ here:

- An output that git carries is never "merely absent": without it, its stage is not done.
- An input that is absent and that no stage makes has changed.
- A folder that joins the outputs of several stages is compared with these outputs.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeAlias

from dvc.fs import localfs
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.tree import Tree

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
    if stage.changed_stage():
        return "changed"
    if not stage.frozen:
        if stage.is_callback or stage.always_changed:
            return "changed"
        if any(_has_changed(dep, outputs_at) for dep in stage.deps):
            return "changed"
    absent = [out for out in stage.outs if is_absent(out)]
    missing = [out for out in stage.outs if not out.exists and out not in absent]
    here = [out for out in stage.outs if out not in absent and out not in missing]
    if any(out.workspace_status() for out in here) or any(not out.hash_info for out in missing):
        return "changed"
    return "missing" if missing else "absent" if absent else "unchanged"


def is_absent(out: Output) -> bool:
    """Whether dvc.lock knows `out`, only DVC's cache may hold it, and the workspace lacks it."""
    return bool(out.use_cache and out.hash_info and not out.exists)


def _has_changed(dep: Output, outputs_at: Callable[[str], list[Output]]) -> bool:
    """Whether the input `dep` differs from what dvc.lock says of it.

    An absent input has not changed if dvc.lock gives it the hash that it gives to the output. In a
    folder of which parts are here, nothing tells whether the other parts are the same: it counts as
    changed. Whoever brings these parts may look again.
    """
    if not dep.status():
        return False
    outputs = outputs_at(dep.fs_path)
    absent = [out for out in outputs if is_absent(out)]
    if not absent or not dep.hash_info or any(out.exists for out in outputs):
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
