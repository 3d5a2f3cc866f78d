"""Reproduce a graph of stages, as many commands at a time as there are places for them."""

import contextlib
import heapq
import json
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from dvc_parallel.bookkeeping import Bookkeeping, Stage, commands
from dvc_parallel.engines import Engine
from dvc_parallel.records import Records
from dvc_parallel.worker import Job

LOOK_EVERY = 0.25  # seconds between looks at progress and signals
WRITE_EVERY = 30.0  # seconds between writes of dvc.lock
SAME_SIGNAL = 0.5  # seconds in which some programs send one signal twice
GIVE_UP_AFTER = 3.0  # seconds after which what should have been killed is left alone

State = Literal["unchanged", "cached", "running", "retried", "done", "failed", "stopped", "skipped"]


def log_file(folder: Path, stage: str) -> Path:
    """The file of `folder` that takes what the commands of `stage` print."""
    return folder / f"{stage.replace('/', '_')}.log"


@runtime_checkable
class Observer(Protocol):
    """Whom the schedule tells what happens."""

    def on_change(self, stage: str, state: State, note: str = "") -> None:
        """`stage` is now in `state`."""

    def refresh(self) -> None:
        """A moment has passed."""


@dataclass
class Outcome:
    """What became of the stages, by name.

    Attributes:
        signal: which one ended the reproduction early, if any did.
    """

    states: dict[str, State] = field(default_factory=dict)
    not_stored: list[str] = field(default_factory=list)
    signal: int | None = None

    def named(self, state: State) -> list[str]:
        """Stages that ended in `state`."""
        return [name for name, found in self.states.items() if found == state]


class Schedule:
    """One reproduction.

    Args:
        plan: stages in DVC's order, and which of them each waits for.
        logs: folder that takes what each command prints.
        before_first: called once, before the first stage that is not up to date is touched.
        records: told where and in what time each stage ran.
        devices: GPUs that stages are given, one each, which limits how many run at a time; None
            leaves that to the commands.
    """

    def __init__(
        self,
        book: Bookkeeping,
        plan: Mapping[Stage, set[Stage]],
        engine: Engine,
        observer: Observer,
        logs: Path,
        force: bool = False,
        keep_going: bool = False,
        before_first: Callable[[], None] = lambda: None,
        records: Records | None = None,
        devices: list[str] | None = None,
    ) -> None:
        self._book, self._plan, self._engine, self._observer = book, plan, engine, observer
        self._logs, self._force, self._keep_going = logs, force, keep_going
        self._before_first: Callable[[], None] | None = before_first
        self._records, self._devices = records, devices
        self._place = {stage: number for number, stage in enumerate(self._order())}
        self._running: dict[Future[int], Stage] = {}
        self._used: dict[Stage, str] = {}
        self._retried: set[Stage] = set()
        self._dead: set[Stage] = set()  # failed, or waiting for what has failed
        self._stop = logs / f".stop-{uuid.uuid4().hex[:8]}"
        self._written = time.monotonic()
        self._no_more = False
        self._signalled, self._killed = 0.0, 0.0  # when the first and the second signal came
        self._claims: dict[Stage, list[Path]] = {}
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Reproduce all stages of the plan; signals stop the commands, which may save their state.

        Raises:
            InputError: `before_first` does; nothing has been touched.
        """
        self._logs.mkdir(parents=True, exist_ok=True)
        sorter = TopologicalSorter(self._plan)
        sorter.prepare()
        with self._signals():
            try:
                self._go(sorter)
            except BaseException:
                self._ask_to_stop(signal.SIGTERM)
                wait(self._running)
                raise
            finally:
                self._book.write_lock()
                for file in (
                    self._stop,
                    *(claim for own in self._claims.values() for claim in own),
                ):
                    file.unlink(missing_ok=True)
        return self.outcome

    def _go(self, sorter: "TopologicalSorter[Stage]") -> None:
        changed: list[tuple[int, Stage]] = []
        while sorter.is_active():
            ready = sorted(sorter.get_ready(), key=self._place.__getitem__)
            if ready or (changed and self._has_place()):
                with self._book.locked():
                    for stage in ready:
                        if self._is_to_do(stage):
                            heapq.heappush(changed, (self._place[stage], stage))
                        else:
                            sorter.done(stage)
                    while changed and self._has_place():
                        stage = heapq.heappop(changed)[1]
                        if not self._begin(stage):
                            sorter.done(stage)
            if self._running:
                for stage in self._finished():
                    sorter.done(stage)

    def _order(self) -> list[Stage]:
        """Stages by how many others wait for them one after the other, and then as DVC has them."""
        depth: dict[Stage, int] = {}
        for stage in reversed([*TopologicalSorter(self._plan).static_order()]):
            depth.setdefault(stage, 0)
            for before in self._plan[stage]:
                depth[before] = max(depth.get(before, 0), depth[stage] + 1)
        return sorted(self._plan, key=lambda stage: -depth[stage])

    def _has_place(self) -> bool:
        places = self._engine.places()
        if self._devices is not None:
            places = min(places, len(self._devices))
        return len(self._running) < places

    def _is_to_do(self, stage: Stage) -> bool:
        if stage in self._dead or self._no_more:
            self._tell(stage, "skipped")
            return False
        try:
            if self._force or self._book.changed(stage):
                return True
        except Exception as error:  # as in DVC, whatever it is: this stage has failed
            self._fail(stage, str(error))
            return False
        self._tell(stage, "unchanged")
        return False

    def _begin(self, stage: Stage) -> bool:
        """Start `stage`; whether its command runs now."""
        if self._no_more:
            self._tell(stage, "skipped")
            return False
        if self._before_first:
            self._before_first()
            self._before_first = None
        try:
            if not self._book.begin(stage, self._force):
                self._tell(stage, "cached", self._record(stage))
                self.outcome.not_stored += self._book.not_stored(stage)
                return False
        except Exception as error:  # as in DVC, whatever it is: this stage has failed
            self._fail(stage, str(error))
            return False
        if self._devices is not None:
            free = [*self._devices]
            for name in self._used.values():
                free.remove(name)
            self._used[stage] = free[0]
        log_file(self._logs, stage.addressing).write_bytes(b"")
        self._submit(stage)
        self._tell(stage, "running")
        return True

    def _submit(self, stage: Stage) -> None:
        environment = {
            **self._engine.environment,
            **{"DVC_STAGE": stage.addressing, "DVC_ROOT": stage.repo.root_dir},
            **{"TQDM_MININTERVAL": "1"},
        }
        if self._used.get(stage):
            environment["CUDA_VISIBLE_DEVICES"] = self._used[stage]
        log = str(log_file(self._logs, stage.addressing).resolve())
        stop = str(self._stop.resolve())
        claim = self._stop.with_suffix(f".claim-{uuid.uuid4().hex[:8]}")
        self._claims.setdefault(stage, []).append(claim)
        told = (log, stop, str(claim.resolve()))
        job = Job(stage.addressing, commands(stage), stage.wdir, environment, *told)
        self._running[self._engine.submit(job)] = stage

    def _finished(self) -> Iterator[Stage]:
        """Stages whose command has ended since the last look, looked after."""
        ended, _ = wait(self._running, LOOK_EVERY, FIRST_COMPLETED)
        if self._killed and time.monotonic() - self._killed > GIVE_UP_AFTER:
            for future in self._running:
                future.cancel()  # nobody is there to end it: the worker is lost
        for future in ended:
            stage = self._running.pop(future)
            error = CancelledError("given up") if future.cancelled() else future.exception()
            status = -signal.SIGKILL if error else future.result()
            if error and not self.outcome.signal:
                self._book.abandon(stage)
                self._fail(stage, f"{type(error).__name__}: {error}")
            elif self._tried_again(stage, status):
                continue
            else:
                self._settle(stage, status)
            yield stage
        if time.monotonic() - self._written > WRITE_EVERY:
            self._book.write_lock()
            self._written = time.monotonic()
        self._observer.refresh()

    def _tried_again(self, stage: Stage, status: int) -> bool:
        """Whether `stage` runs once more: it was killed, and what it saved of its work is there."""
        if status >= 0 or self._no_more or stage in self._retried:
            return False
        self._retried.add(stage)
        try:
            self._book.clear(stage)
        except Exception as error:
            self._tell(stage, "retried", f"not possible: {error}")
            return False
        self._submit(stage)
        self._tell(stage, "retried", f"its process ended by signal {-status}")
        return True

    def _settle(self, stage: Stage, status: int) -> None:
        """Store the results of `stage`, or let go of it."""
        self._used.pop(stage, None)
        if status == 0:
            try:
                self._book.end(stage, self._engine.at_once)
                unkept = self._record(stage)
                self.outcome.not_stored += self._book.not_stored(stage)
            except Exception as error:  # as in DVC, whatever it is: this stage has failed
                self._fail(stage, str(error))
            else:
                self._tell(stage, "done", unkept)
            return
        unkept = self._record(stage, ended=False)
        self._book.abandon(stage)
        if self.outcome.signal and status < 0:
            self._tell(stage, "stopped", unkept)
            self._dead |= self._dependents(stage)
        else:
            how = f"exit code {status}" if status > 0 else f"signal {-status}"
            self._fail(stage, "; ".join(filter(None, [how, unkept])))

    def _record(self, stage: Stage, ended: bool = True) -> str:
        """Keep what is told of the run of `stage`.

        Returns:
            A warning where that failed, whatever the reason: the stage is what it is without.
        """
        if self._records is None or not self._book.has_entry(stage):
            return ""
        try:
            entry = self._book.entry(stage)
            self._records.add(stage.addressing, entry, self._told(stage), ended)
        except Exception as error:
            return f"warning: no record kept of its run: {type(error).__name__}: {error}"
        return ""

    def _told(self, stage: Stage) -> list[dict[str, Any]]:
        """What the workers say of the attempts at `stage`."""
        told = []
        for claim in self._claims.get(stage, []):
            with contextlib.suppress(OSError, ValueError):  # lost with its worker
                said = json.loads(claim.read_text())
                if isinstance(said, dict):
                    told.append(said)
        return told

    def _fail(self, stage: Stage, why: str) -> None:
        self._dead |= self._dependents(stage)
        self._no_more |= not self._keep_going
        self._tell(stage, "failed", why)

    def _dependents(self, stage: Stage) -> set[Stage]:
        found = {stage}
        for later in TopologicalSorter(self._plan).static_order():
            if self._plan[later] & found:
                found.add(later)
        return found - {stage}

    def _tell(self, stage: Stage, state: State, note: str = "") -> None:
        self.outcome.states[stage.addressing] = state
        self._observer.on_change(stage.addressing, state, note)

    def _ask_to_stop(self, number: int) -> None:
        partial = self._stop.with_suffix(".partial")
        with contextlib.suppress(OSError):  # on a full disk the commands go on to their end
            partial.write_text(str(int(number)))
            partial.replace(self._stop)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Hand signals on to all commands: the first as SIGTERM, a second one as SIGKILL."""

        def stop(number: int, frame: object) -> None:
            now = time.monotonic()
            if self.outcome.signal is None:
                self.outcome.signal, self._no_more, self._signalled = number, True, now
                self._ask_to_stop(signal.SIGTERM)
            elif not self._killed and now - self._signalled > SAME_SIGNAL:
                self._killed = now
                self._ask_to_stop(signal.SIGKILL)

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        ours = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        heard = [number for number in ours if signal.getsignal(number) != signal.SIG_IGN]  # nohup
        before = {number: signal.signal(number, stop) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
