"""DVC's part in a reproduction, for stages that run side by side: all of DVC's internals are here.

What `dvc repro` does to a stage, in the same order and under the same locks, cut in two: before its
command and after it. One process does it, one stage at a time; between the two halves of a stage
come those of others. Written for DVC 3.67; tests/executor/test_bookkeeping.py fails when what is
used here is not there any more.

Four things are done otherwise, and none shows in the results:

- params.yaml is parsed once, not once a stage, which is nine tenths of the time of a `dvc repro`
  that has nothing to do;
- dvc.lock is written once for several finished stages, and replaced in one step. Should this
  process be killed before, DVC's run cache has them;
- dvc.lock gets the inputs as they were when the command started. DVC looks again at the end, and
  would take a file edited meanwhile for what the results were made of;
- the run cache gets every stage. DVC leaves out those with results that git keeps and that are no
  plots or metrics, though it takes them from there as well as others.
"""

import contextlib
import copy
import json
import logging
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import dvc
from dvc.dependency import param
from dvc.dvcfile import PROJECT_FILE
from dvc.exceptions import DvcException
from dvc.fs import localfs
from dvc.repo import Repo
from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro
from dvc.rwlock import RWLOCK_FILE, rwlock
from dvc.stage import PipelineStage
from dvc.stage.cache import RunCacheNotFoundError
from dvc.stage.serialize import to_lockfile
from dvc.utils.serialize import modify_yaml

Stage: TypeAlias = Any  # dvc.stage.Stage, which has no types
Error = DvcException


class Bookkeeping:
    """A project's DVC repository, opened for one reproduction.

    Args:
        root: folder of the project.

    Raises:
        Error: there is no DVC repository, or dvc.yaml is wrong.
    """

    def __init__(self, root: str) -> None:
        # What DVC says is said by us, and its bars would run through our table.
        for name in ("dvc", "dvc_data", "dvc_objects"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.repo: Any = Repo(root, _wait_for_lock=True)
        self._depth = 0
        self._locks: dict[str, ExitStack] = {}
        self._read_locks: dict[str, ExitStack] = {}
        self._readers: Counter[str] = Counter()
        self._unwritten: list[Stage] = []
        self._order: list[Stage] = []
        self._new: set[str] = set()  # stages whose entry was not there before
        with self.locked():
            self._repair_path_locks()
            index: Any = self.repo.index
            self._graph: Any = get_active_graph(index.graph)
        main = str(Path(self.repo.root_dir) / PROJECT_FILE)
        self._stages = [stage for stage in index.stages if stage.path == main]
        self._made = [out.fs_path for stage in self._graph for out in stage.outs]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold DVC's lock of the repository, for which others wait; it may be held already."""
        if self._depth == 0:
            self.repo.lock.lock()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self.repo.lock.unlock()

    def plan(
        self, targets: Sequence[str], single_item: bool = False, downstream: bool = False
    ) -> dict[Stage, set[Stage]]:
        """The stages that `dvc repro` would go through, in its order, and what each waits for."""
        with self.locked():
            # Those of dvc.yaml are loaded already; asked for by its name, they would be once more.
            wanted = collect_stages(self.repo, targets) if targets else [*self._stages]
        steps = wanted if single_item else plan_repro(self._graph, wanted, downstream=downstream)
        self._order = steps
        return {
            stage: {before for before in steps if before in self._graph.successors(stage)}
            for stage in steps
        }

    def names(self) -> set[str]:
        """Names of the stages, and of their groups, that stand in dvc.yaml."""
        names = {stage.name for stage in self._stages}
        return names | {name.partition("@")[0] for name in names}

    def changed(self, stage: Stage) -> bool:
        """Whether `stage` has to be reproduced, now that those before it have been."""
        with self.locked():
            return bool(stage.changed())

    def begin(self, stage: Stage, force: bool = False) -> bool:
        """First half: clear the results of `stage`, and take them from DVC's run cache if it can.

        Returns:
            Whether its command is to run; `end` must be called afterwards, or `abandon`.
        """
        with self.locked():
            if stage.frozen or stage.is_import or not stage.cmd:
                stage.run(force=force)  # no command: DVC's own way from end to end
                self._unwritten.append(stage)
                return False
            try:
                self._lock_paths(stage)
                stage.remove_outs(ignore_remove=False, force=False)
                if not force:
                    with contextlib.suppress(RunCacheNotFoundError):
                        self.repo.stage_cache.restore(stage)
                        self._save(stage)
                        return False
                stage.save_deps()
            except BaseException:
                self.abandon(stage)
                raise
        return True

    def clear(self, stage: Stage) -> None:
        """Make ready for one more run of a command that did not end well."""
        with self.locked():
            stage.remove_outs(ignore_remove=False, force=False)
            stage.save_deps()

    def end(self, stage: Stage, at_once: bool) -> None:
        """Second half: store the results of `stage`, whose command has succeeded.

        Args:
            at_once: the command started when `begin` had returned, so that an input edited since
                was not what it read. Otherwise nobody knows.

        Raises:
            Error: a result is missing or cannot be stored, or it is not known what it is made of.
        """
        with self.locked():
            try:
                if not at_once and (edited := [str(dep) for dep in stage.deps if dep.status()]):
                    raise Error(
                        f"{', '.join(edited)}: changed while it waited or ran; run it again"
                    )
                self._save(stage)
            except BaseException:
                self.abandon(stage)
                raise

    def abandon(self, stage: Stage) -> None:
        """Let go of a `stage` whose command has failed, or will not run."""
        if locks := self._locks.pop(stage.addressing, None):
            locks.close()

    def has_entry(self, stage: Stage) -> bool:
        """Whether dvc.lock is to have an entry of `stage`; a file of `dvc add` is its own."""
        return isinstance(stage, PipelineStage)

    def entry(self, stage: Stage) -> dict[str, Any]:
        """What dvc.lock says of `stage`, as plain values: commands, inputs, settings, results."""
        entry = to_lockfile(stage)[stage.name]
        return dict(json.loads(json.dumps(entry)))

    def readers(self, path: str) -> set[Stage]:
        """Stages that name the file `path` as an input."""
        whole = str(Path(path).resolve())
        return {s for s in self._stages if any(dep.fs_path == whole for dep in s.deps)}

    def not_stored(self, stage: Stage) -> list[str]:
        """Results of a finished `stage` that are not in the cache: DVC goes on when it is full."""
        return [str(out) for out in stage.outs if out.use_cache and out.changed_cache()]

    def write_lock(self) -> None:
        """Enter all finished stages in dvc.lock; new ones stand in the order of the plan."""
        with self.locked():
            for dvcfile in {stage.dvcfile for stage in self._unwritten}:
                own = [stage for stage in self._unwritten if stage.dvcfile == dvcfile]
                if self.has_entry(own[0]):
                    self._enter(own, dvcfile)
                else:
                    own[0].dump(update_pipeline=False)
        self._unwritten.clear()

    def _enter(self, stages: list[Stage], dvcfile: Any) -> None:
        """What DVC's `Lockfile.dump_stages` does, and in one step: it writes the file in place."""
        path = Path(dvcfile._lockfile.path)
        written = path.with_name(f".{path.name}.partial")
        written.unlink(missing_ok=True)
        if path.exists():
            shutil.copy(path, written)
        with modify_yaml(written, fs=self.repo.fs) as lock:
            if not lock:
                lock.update({"schema": "2.0"})
            entries = lock["stages"] = lock.get("stages", {})
            self._new |= {stage.addressing for stage in stages if stage.name not in entries}
            for stage in stages:
                entries.update(to_lockfile(stage))
            for stage in self._order:
                is_new = stage.addressing in self._new and stage.dvcfile == dvcfile
                if is_new and stage.name in entries:
                    entries[stage.name] = entries.pop(stage.name)  # to the end, one by one
        written.replace(path)
        self.repo.scm_context.track_file(str(path))

    def _save(self, stage: Stage) -> None:
        """What `Stage.run` does after the command, but for a second look at the inputs."""
        stage.save_outs()
        stage.md5 = stage.compute_md5()
        self.repo.stage_cache.save(stage)
        stage.commit()
        self._unwritten.append(stage)
        self.abandon(stage)

    def _lock_paths(self, stage: Stage) -> None:
        """Keep other DVC processes off the results of `stage`, and off the results it reads.

        DVC tells owners of such locks apart by process and command line. Two of our stages that
        read the same path are one owner, and the first to end would unlock it: hence the count.
        """
        written = [out.fs_path for out in stage.outs]
        read = [dep.fs_path for dep in stage.deps if self._is_made(dep.fs_path)]
        locks = self._locks[stage.addressing] = ExitStack()
        locks.enter_context(self._path_lock([], written))
        for path in read:
            if not self._readers[path]:
                self._read_locks[path] = ExitStack()
                self._read_locks[path].enter_context(self._path_lock([path], []))
            self._readers[path] += 1
            locks.callback(self._stop_reading, path)

    def _repair_path_locks(self) -> None:
        """Remove DVC's file of locks if its last writer was killed while it wrote.

        It is not written atomically, and DVC would refuse all work until somebody removes it.
        """
        path = Path(self.repo.tmp_dir) / RWLOCK_FILE
        for last in (False, True):
            try:
                json.loads(path.read_text())
            except FileNotFoundError:
                return
            except ValueError:
                if last:
                    path.unlink(missing_ok=True)
                else:
                    time.sleep(0.5)  # somebody may be writing it
            else:
                return

    def _stop_reading(self, path: str) -> None:
        self._readers[path] -= 1
        if not self._readers[path]:
            self._read_locks.pop(path).close()

    def _path_lock(self, read: list[str], written: list[str]) -> Any:
        repo, hardlink = self.repo, self.repo.config["core"].get("hardlink_lock", False)
        return rwlock(repo.tmp_dir, repo.fs, " ".join(sys.argv), read, written, hardlink)

    def _is_made(self, path: str) -> bool:
        return any(localfs.overlaps(path, made) for made in self._made)


def tried_with_this_dvc() -> bool:
    """Whether DVC is of the version whose code this module was written for."""
    return dvc.__version__.startswith("3.67.")


def commands(stage: Stage) -> tuple[str, ...]:
    """The commands of `stage`."""
    return tuple(stage.cmd if isinstance(stage.cmd, list) else stage.cmd.splitlines())


@contextmanager
def params_parsed_once() -> Iterator[None]:
    """Let DVC parse a file of params again only when it has changed.

    Lists of keys without wildcards are looked up here, too: dpath walks the whole tree for each.
    """
    original, parsed = param.read_param_file, {}

    def read(
        fs: Any, path: str, key_paths: Any = None, flatten: bool = False, **options: Any
    ) -> Any:
        plain = key_paths and flatten and not any(set(key) & set("*?[!") for key in key_paths)
        if not plain or options:
            return original(fs, path, key_paths, flatten, **options)
        state = Path(path).stat()
        known = (path, state.st_mtime_ns, state.st_size, state.st_ino)
        if known not in parsed:
            parsed[known] = original(fs, path)
        found = dict(_found(parsed[known], key_paths))
        # Perhaps it is not there; perhaps a place in a list, which DVC finds.
        return found if len(found) == len({*key_paths}) else original(fs, path, key_paths, flatten)

    param.read_param_file = read
    try:
        yield
    finally:
        param.read_param_file = original


def _found(tree: Any, keys: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Values at `keys`, as far as mappings with names for keys lead to them."""
    for key in keys:
        value = tree
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                break
            value = value[part]
        else:
            yield key, copy.deepcopy(value)  # of an object met twice YAML writes a reference
