"""Entries of dvc.lock that no stage has any more, and the files that all stages need."""

from collections.abc import Collection, Iterable
from pathlib import Path

from dvc.fs import localfs

from dvc_parallel.bookkeeping import Bookkeeping
from dvc_parallel.lock_file import edited_lock
from dvc_parallel.stage_status import Output


def entries_without_stage(book: Bookkeeping) -> list[str]:
    """Names of stages that dvc.lock has and dvc.yaml has not, sorted."""
    return sorted({*book.lock_entries()} - {stage.name for stage in book.stages()})


def drop_entries(book: Bookkeeping, names: Collection[str]) -> None:
    """Remove the entries `names` from dvc.lock. All other entries keep their bytes."""
    path = Path(book.repo.root_dir) / "dvc.lock"
    with book.locked(), edited_lock(path, book.repo.fs) as lock:
        for name in names:
            lock["stages"].pop(name, None)


def needed_files(book: Bookkeeping) -> set[str]:
    """Absolute paths of files that stages read, and of results in dvc.lock that DVC does not cache.

    A path that does not exist is among them. What a stage makes for another one, and empty folders,
    are not.
    """
    stages = book.stages()
    outputs = [out for stage in stages for out in stage.outs]
    needed = {out.fs_path: out for out in outputs if out.hash_info and not out.use_cache}
    inputs = {dep.fs_path: dep for stage in stages for dep in stage.deps}  # many stages share one
    for path, dep in inputs.items():
        if dep.fs.protocol == "local" and not _is_made(dep, outputs):
            needed[path] = dep
    return {file for item in needed.values() for file in _files(item)}


def _is_made(dep: Output, outputs: Iterable[Output]) -> bool:
    return any(localfs.overlaps(dep.fs_path, out.fs_path) for out in outputs)


def _files(item: Output) -> list[str]:
    """The files of an input or output, without those that DVC ignores."""
    if localfs.isdir(item.fs_path):
        return [*item.repo.dvcignore.find(localfs, item.fs_path)]
    is_empty_folder = item.meta is not None and item.meta.nfiles == 0  # as dvc.lock says
    return [] if is_empty_folder else [item.fs_path]
