"""DVC's part in a reproduction of stages that run side by side.

For each stage this module does what `dvc repro` does, in the same order and under the same locks.
It does so in two halves: one before the command of the stage, one after it. A single process calls
both halves for all stages, and the halves of several stages may alternate. The module uses DVC's
internals. It was written for DVC 3.67, and tests/parallel/test_bookkeeping.py fails when DVC
changes one of them.

Five things differ from `dvc repro`:

- params.yaml is parsed once, not once for each stage. Parsing takes nine tenths of the time of a
  `dvc repro` that has nothing to do.
- dvc.lock is written once for several finished stages, and it is replaced in one step. If this
  process is killed before it writes, DVC's run cache still has these stages.
- dvc.lock records the inputs as they were when the command started. DVC reads them again at the
  end. It would record a file that somebody edited meanwhile, which the command has not read. The
  worker makes sure that nobody has edited them before the command had read them.
- The run cache takes every stage. DVC leaves out stages with a result that git carries, unless this
  result is a plot or a metric.
- A stage whose outputs are merely absent counts as done; see `dvc_parallel.stage_status`.
"""

import contextlib
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import dvc
from dvc.dvcfile import PROJECT_FILE, load_file
from dvc.exceptions import DvcException
from dvc.fs import localfs
from dvc.lock import LockError
from dvc.repo import Repo
from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro
from dvc.rwlock import RWLOCK_FILE, rwlock
from dvc.stage import PipelineStage
from dvc.stage.cache import RunCacheNotFoundError
from dvc.stage.serialize import to_lockfile

from dvc_parallel.files import State, settled_state_of
from dvc_parallel.lock_file import edited_lock
from dvc_parallel.places import check_outputs, check_writable
from dvc_parallel.stage_status import Output, Stage, Status, differences, is_absent, status

__all__ = [
    "Bookkeeping",
    "Error",
    "LockError",
    "NotAvailableError",
    "commands",
    "tried_with_this_dvc",
]
Error = DvcException


class NotAvailableError(DvcException):
    """Neither DVC's cache nor a remote gave an output; the message says why."""


class Bookkeeping:
    """A project's DVC repository, opened for one reproduction.

    Args:
        root: folder of the project.
        wait: whether to wait when another DVC process holds the lock of the repository.

    Raises:
        Error: there is no DVC repository, dvc.yaml is wrong, or the repository is locked.
    """

    def __init__(self, root: str, wait: bool = True) -> None:
        # The callers print what matters. Messages and bars of DVC would run through the table.
        for name in ("dvc", "dvc_data", "dvc_objects"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.repo: Any = Repo(root, _wait_for_lock=wait)
        self._depth = 0
        self._locks: dict[str, ExitStack] = {}
        self._inputs: dict[str, dict[str, State]] = {}
        self._read_locks: dict[str, ExitStack] = {}
        self._readers: Counter[str] = Counter()
        self._unwritten: list[Stage] = []
        self._order: list[Stage] = []
        self._new: set[str] = set()  # stages whose entry was not there before
        with self.locked():
            self._repair_path_locks()
            index: Any = self.repo.index
            self._graph: Any = get_active_graph(index.graph)
        self._main = str(Path(self.repo.root_dir) / PROJECT_FILE)
        self._stages = [stage for stage in index.stages if stage.path == self._main]
        self._outputs: list[Output] = [out for stage in self._graph for out in stage.outs]
        self._remote_error = ""

    def __enter__(self) -> "Bookkeeping":
        return self

    def __exit__(self, *error: object) -> None:
        for locks in [*self._locks.values()]:
            locks.close()
        self._locks.clear()
        self.repo.close()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold DVC's lock of the repository. The calls may be nested."""
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
            wanted = collect_stages(self.repo, targets) if targets else [*self._stages]
        steps = wanted if single_item else plan_repro(self._graph, wanted, downstream=downstream)
        # `collect_stages` loads stages again. Later steps compare hashes of the graph's objects.
        loaded = {stage: stage for stage in self._graph}
        steps = [loaded[stage] for stage in steps]
        self._order = steps
        return {
            stage: {before for before in steps if before in self._graph.successors(stage)}
            for stage in steps
        }

    def names(self) -> set[str]:
        """Names of the stages of dvc.yaml, and of their groups (the part before `@`)."""
        names = {stage.name for stage in self._stages}
        return names | {name.partition("@")[0] for name in names}

    def stages(self) -> list[Stage]:
        """All stages of dvc.yaml, in its order."""
        return [*self._stages]

    def lock_entries(self) -> dict[str, Any]:
        """What dvc.lock says of each stage, including stages that dvc.yaml no longer has."""
        with self.locked():
            lock = load_file(self.repo, self._main)._lockfile.load()
        return dict(lock.get("stages") or {})

    def status(self, stage: Stage) -> Status:
        """Whether `stage` has to run, now that the stages before it are up to date."""
        paths = [item.fs_path for item in (*stage.deps, *stage.outs)]
        with self.locked(), self._path_lock(paths, []):
            return status(stage, self._outputs_at)

    def differences(self, stage: Stage) -> list[str]:
        """In what `stage` differs from dvc.lock, in words; see `stage_status.differences`."""
        paths = [item.fs_path for item in (*stage.deps, *stage.outs)]
        with self.locked(), self._path_lock(paths, []):
            return [*differences(stage, self._outputs_at)]

    def absent_inputs(self, stage: Stage) -> dict[Stage, list[Output]]:
        """Absent outputs that `stage` reads, by the stage that makes them."""
        absent: dict[Stage, list[Output]] = {}
        for out in self._outputs:
            if is_absent(out) and any(localfs.overlaps(out.fs_path, d.fs_path) for d in stage.deps):
                absent.setdefault(out.stage, []).append(out)
        return absent

    def in_cache(self, outputs: Sequence[Output]) -> bool:
        """Whether DVC's cache has all these outputs."""
        return not any(out.changed_cache() for out in outputs)

    def has_remote(self, outputs: Sequence[Output]) -> bool:
        """Whether a remote is set that may have these outputs."""
        return all(out.remote or self.repo.config["core"].get("remote") for out in outputs)

    def bring(self, outputs: Sequence[Output]) -> Literal["restored", "pulled"]:
        """Put absent outputs of one stage into the workspace: from DVC's cache, else from a remote.

        DVC's run cache is of no use here. For the same inputs it has either the same files, which
        are in the cache, or other files than dvc.lock records.

        Raises:
            NotAvailableError: neither has all of them, or the remote could not be asked.
        """
        with self.locked():
            pulled = not self.in_cache(outputs)
            if pulled:
                self._pull(outputs)
            with self._path_lock([], [out.fs_path for out in outputs]):
                for out in outputs:
                    out.checkout()
        return "pulled" if pulled else "restored"

    def _pull(self, outputs: Sequence[Output]) -> None:
        """Fetch outputs from their remote into DVC's cache."""
        if not self.has_remote(outputs):
            raise NotAvailableError("DVC's cache does not have it, and no remote is set")
        try:
            for out in outputs if not self._remote_error else []:
                self._fetch([out.hash_info], out.remote)
                if out.hash_info.isdir and (listed := out.get_obj()):
                    self._fetch([hash_info for _, _, hash_info in listed], out.remote)
        except Exception as error:  # a library's own, for each kind of remote
            self._remote_error = " ".join(str(error).split()) or type(error).__name__
        if self._remote_error:
            text = "DVC's cache does not have it, and the remote could not be asked"
            raise NotAvailableError(f"{text}: {self._remote_error}")
        if not self.in_cache(outputs):
            raise NotAvailableError("neither DVC's cache nor the remote has it")

    def _fetch(self, hashes: Sequence[Any], remote: str | None) -> None:
        """Fetch what `remote` has of these objects; None is the default remote."""
        failed = self.repo.cloud.pull(hashes, remote=remote).failed
        if failed:
            raise Error(f"{len(failed)} files could not be fetched")

    def differing(self, stage: Stage) -> list[Output]:
        """Outputs of `stage` in the workspace that are not what dvc.lock records."""
        with self.locked():
            return [out for out in stage.outs if out.workspace_status()]

    def discard(self, stage: Stage) -> None:
        """Let go of `stage`, and remove the outputs that only DVC's cache may hold."""
        with self.locked():
            for out in stage.outs:
                if out.use_cache:
                    out.remove()
        self.abandon(stage)

    def reads(self, stage: Stage, outputs: Iterable[Output]) -> bool:
        """Whether one of `outputs` is an input of `stage`, or overlaps one."""
        return any(localfs.overlaps(o.fs_path, dep.fs_path) for o in outputs for dep in stage.deps)

    def begin(self, stage: Stage, force: bool = False) -> bool:
        """First half: remove the outputs of `stage`, and take them from DVC's run cache if it can.

        Args:
            force: run the command, whatever the run cache has.

        Returns:
            Whether the command has to run. The caller must call `end` or `abandon` afterwards.
        """
        with self.locked():
            if stage.frozen or stage.is_import or not stage.cmd:
                stage.run(force=force)  # there is no command: DVC does all of it
                self._unwritten.append(stage)
                return False
            try:
                self._lock_paths(stage)
                self._note_inputs(stage)
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
        """Prepare one more run of a command that failed."""
        with self.locked():
            self._note_inputs(stage)
            stage.remove_outs(ignore_remove=False, force=False)
            stage.save_deps()

    def inputs(self, stage: Stage) -> dict[str, State]:
        """Path of each input of `stage` -> its `files.state_of` just before DVC took its hash."""
        return self._inputs[stage.addressing]

    def _note_inputs(self, stage: Stage) -> None:
        """Call it before DVC takes the hashes: a later write to an input will be noticed."""
        paths = sorted({dep.fs_path for dep in stage.deps})
        root = str(self.repo.root_dir)
        self._inputs[stage.addressing] = {path: settled_state_of(path, root) for path in paths}

    def end(self, stage: Stage) -> None:
        """Second half: store the outputs of `stage`, whose command has succeeded.

        Raises:
            Error: an output is missing or cannot be stored.
        """
        with self.locked():
            try:
                self._save(stage)
            except BaseException:
                self.abandon(stage)
                raise

    def abandon(self, stage: Stage) -> None:
        """Release the path locks of a `stage` whose command has failed, or will not run."""
        if locks := self._locks.pop(stage.addressing, None):
            locks.close()

    def has_entry(self, stage: Stage) -> bool:
        """Whether `stage` has an entry in dvc.lock. A file of `dvc add` has none."""
        return isinstance(stage, PipelineStage)

    def entry(self, stage: Stage) -> dict[str, Any]:
        """What dvc.lock says of `stage`, as plain values: commands, inputs, parameters, outputs."""
        entry = to_lockfile(stage)[stage.name]
        return dict(json.loads(json.dumps(entry)))

    def check_places(self, stages: Iterable[Stage]) -> None:
        """Make sure that DVC can store the outputs of `stages`, before a command runs for hours.

        Raises:
            UsageError: it cannot, as far as one can see now.
        """
        root, cache = Path(self.repo.root_dir), self.repo.cache.local
        check_outputs(root, [Path(out.fs_path) for stage in stages for out in stage.outs])
        for folder in (root, Path(self.repo.tmp_dir), *([Path(cache.path)] if cache else [])):
            check_writable(folder)

    def readers(self, path: str) -> set[Stage]:
        """Stages that name the file `path` as an input."""
        full = str(Path(path).resolve())
        return {s for s in self._stages if any(dep.fs_path == full for dep in s.deps)}

    def not_stored(self, stage: Stage) -> list[str]:
        """Outputs of a finished `stage` that DVC's cache lacks: DVC ignores a full disk."""
        return [str(out) for out in stage.outs if out.use_cache and out.changed_cache()]

    def store(self, stage: Stage) -> list[str]:
        """Put outputs that are in the workspace, but not in DVC's cache, into the cache.

        Call it for an unchanged `stage` only, because dvc.lock keeps its entry.

        Returns:
            The outputs that could not be stored.
        """
        outputs = [o for o in stage.outs if o.use_cache and o.exists and o.changed_cache()]
        if outputs:
            with self.locked(), self._path_lock([], [out.fs_path for out in outputs]):
                for out in outputs:
                    with contextlib.suppress(DvcException, OSError):  # looked for below
                        out.commit()
        return [str(out) for out in outputs if out.changed_cache()]

    def write_lock(self) -> None:
        """Enter all finished stages in dvc.lock. New stages stand in the order of the plan."""
        with self.locked():
            for dvcfile in {stage.dvcfile for stage in self._unwritten}:
                stages = [stage for stage in self._unwritten if stage.dvcfile == dvcfile]
                if self.has_entry(stages[0]):
                    self._enter(stages, dvcfile)
                else:
                    stages[0].dump(update_pipeline=False)
        self._unwritten.clear()

    def _enter(self, stages: list[Stage], dvcfile: Any) -> None:
        """Like DVC's `Lockfile.dump_stages`, which writes in place. This replaces the file."""
        path = Path(dvcfile._lockfile.path)
        with edited_lock(path, self.repo.fs) as lock:
            if not lock:
                lock.update({"schema": "2.0"})
            entries = lock["stages"] = lock.get("stages", {})
            self._new |= {stage.addressing for stage in stages if stage.name not in entries}
            for stage in stages:
                entries.update(to_lockfile(stage))
            for stage in self._order:
                is_new = stage.addressing in self._new and stage.dvcfile == dvcfile
                if is_new and stage.name in entries:
                    entries[stage.name] = entries.pop(stage.name)  # move it to the end
        self.repo.scm_context.track_file(str(path))

    def _save(self, stage: Stage) -> None:
        """Like `Stage.run` after the command, but without reading the inputs again."""
        stage.save_outs()
        stage.md5 = stage.compute_md5()
        self.repo.stage_cache.save(stage)
        stage.commit()
        self._unwritten.append(stage)
        self.abandon(stage)

    def _lock_paths(self, stage: Stage) -> None:
        """Keep other DVC processes off the outputs of `stage`, and off the outputs it reads.

        DVC tells owners of such locks apart by process and command line. Two stages of this process
        that read the same path are one owner, and the first to end would unlock it. So their number
        is counted.
        """
        written = [out.fs_path for out in stage.outs]
        read = [dep.fs_path for dep in stage.deps if self._outputs_at(dep.fs_path)]
        locks = self._locks[stage.addressing] = ExitStack()
        locks.enter_context(self._path_lock([], written))
        for path in read:
            if not self._readers[path]:
                self._read_locks[path] = ExitStack()
                self._read_locks[path].enter_context(self._path_lock([path], []))
            self._readers[path] += 1
            locks.callback(self._stop_reading, path)

    def _repair_path_locks(self) -> None:
        """Remove DVC's file of path locks if a process was killed while it wrote the file.

        DVC does not write it atomically, and refuses all work until somebody removes it.
        """
        path = Path(self.repo.tmp_dir) / RWLOCK_FILE
        for is_last_try in (False, True):
            try:
                json.loads(path.read_text())
            except FileNotFoundError:
                return
            except ValueError:
                if is_last_try:
                    path.unlink(missing_ok=True)
                else:
                    time.sleep(0.5)  # another process may be writing it
            else:
                return

    def _stop_reading(self, path: str) -> None:
        self._readers[path] -= 1
        if not self._readers[path]:
            self._read_locks.pop(path).close()

    def _path_lock(self, read: list[str], written: list[str]) -> Any:
        repo, hardlink = self.repo, self.repo.config["core"].get("hardlink_lock", False)
        return rwlock(repo.tmp_dir, repo.fs, " ".join(sys.argv), read, written, hardlink)

    def _outputs_at(self, path: str) -> list[Output]:
        """Outputs that are, contain or lie in `path`."""
        return [out for out in self._outputs if localfs.overlaps(path, out.fs_path)]


def tried_with_this_dvc() -> bool:
    """Whether this module was written for the installed version of DVC."""
    return dvc.__version__.startswith("3.67.")


def commands(stage: Stage) -> tuple[str, ...]:
    """The commands of `stage`."""
    return tuple(stage.cmd if isinstance(stage.cmd, list) else stage.cmd.splitlines())
