"""Reproduce a graph of stages, with as many commands at a time as the engine has places.

A stage is settled when nothing is left to do for it. A stage is looked at as soon as the stages
before it are settled. If it has to run and an input is absent, the schedule brings this input from
DVC's cache or from a remote. Otherwise it opens the stage that makes the input again, and this
stage runs first.
"""

import contextlib
import json
import os
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from contextlib import contextmanager
from graphlib import TopologicalSorter
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any

from dvc_parallel.bookkeeping import Bookkeeping, Error, NotAvailableError, commands
from dvc_parallel.engines import Engine
from dvc_parallel.outcome import Observer, Outcome, State, log_file
from dvc_parallel.records import Records
from dvc_parallel.stage_status import Output, Stage
from dvc_parallel.worker import READ, InputsEditedError, Job, ask_to_stop, read_file, stop_file

LOOK_EVERY = 0.25  # seconds between looks at progress and signals
WRITE_EVERY = 30.0  # seconds between writes of dvc.lock
SAME_SIGNAL = 0.5  # seconds in which some programs send one signal twice
MOST_EDITS = 5  # times that a stage starts again because its inputs were edited
GIVE_UP_AFTER = 3.0  # seconds after which a command that was to be killed is left alone


class Schedule:
    """One reproduction.

    Args:
        plan: stages in DVC's order, each with the stages that it waits for.
        logs: folder for what the commands print.
        before_first: called once, before the schedule touches the first stage that has to run.
        records: keeps where and in what time each stage ran.
        devices: GPUs, of which each stage gets one. This limits how many stages run at a time. None
            leaves the GPUs to the commands.
        why_not: from the name of a stage to the reason why it must not run only because an output
            of it is absent. An empty text means that it may.
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
        why_not: Callable[[str], str] = lambda stage: "",
    ) -> None:
        self._book, self._plan, self._engine, self._observer = book, plan, engine, observer
        self._logs, self._force, self._keep_going = logs, force, keep_going
        self._before_first: Callable[[], None] | None = before_first
        self._records, self._devices, self._why_not = records, devices, why_not
        self._order = _most_awaited_first(plan)
        self._unsettled = {*plan}
        self._to_run: set[Stage] = set()  # of the unsettled stages, those that have to run
        self._to_remake: set[Stage] = set()  # of these, those that are unchanged
        self._given_inputs: set[Stage] = set()  # stages for which absent inputs were brought
        self._running: dict[Future[int], Stage] = {}
        self._device_of: dict[Stage, str] = {}
        self._retried: set[Stage] = set()
        self._edits: Counter[Stage] = Counter()
        self._dead: set[Stage] = set()  # stages after a failed one
        self._stop = logs.absolute() / f".stop-{uuid.uuid4().hex[:8]}"
        self._written = time.monotonic()
        self._starts_no_more = False
        self._signalled, self._killed = 0.0, 0.0  # when the first and the second signal came
        self._markers: dict[Stage, list[Path]] = {}
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Reproduce all stages of the plan. Signals stop the commands, which may save their state.

        Raises:
            Exception: `before_first` raised it, and nothing has been touched.
            UsageError: results cannot be stored, and nothing has been touched.
            OSError: the folder of logs cannot be created, or dvc.lock cannot be written.
        """
        self._logs.mkdir(parents=True, exist_ok=True)
        with self._signals():
            try:
                self._go()
            except BaseException:
                self._ask_to_stop(SIGTERM)
                wait(self._running)
                raise
            finally:
                try:
                    self._book.write_lock()
                finally:
                    self._remove_files()
        return self.outcome

    def _go(self) -> None:
        while self._unsettled:
            while ready := [stage for stage in self._order if self._is_ready(stage)]:
                with self._book.locked():
                    for stage in ready:
                        if self._is_ready(stage):  # an earlier one may have opened its needs again
                            self._advance(stage)
            if self._running:
                self._look_after_ended()
            elif self._unsettled:
                time.sleep(LOOK_EVERY)  # the engine has lost its places

    def _is_ready(self, stage: Stage) -> bool:
        """Whether there is something to do for `stage` now."""
        running = self._running.values()
        if stage not in self._unsettled or stage in running or self._plan[stage] & self._unsettled:
            return False
        if stage in self._to_remake and any(stage in self._plan[reader] for reader in running):
            return False  # it would remove what they read
        return stage not in self._to_run or self._has_place() or self._is_skipped(stage)

    def _has_place(self) -> bool:
        places = self._engine.places()
        if self._devices is not None:
            places = min(places, len(self._devices))
        return len(self._running) < places

    def _is_skipped(self, stage: Stage) -> bool:
        return stage in self._dead or self._starts_no_more

    def _advance(self, stage: Stage) -> None:
        """Look at `stage`, which is ready, and start it if it has to run and there is a place."""
        if self._is_skipped(stage):
            self._settle(stage, "skipped")
            return
        try:
            if stage not in self._to_run:
                self._look_at(stage)
        except Exception as error:  # as in DVC, any error means that this stage has failed
            self._fail(stage, str(error))
        if stage not in self._to_run or not self._has_place():
            return
        if self._before_first:
            self._book.check_places(self._plan)
            self._before_first()
            self._before_first = None
        try:
            self._begin(stage)
        except NotAvailableError as error:  # this says nothing about the stages beside it
            self._fail(stage, str(error), ends_all=False)
        except Exception as error:
            self._book.abandon(stage)
            self._device_of.pop(stage, None)
            self._fail(stage, str(error))

    def _look_at(self, stage: Stage) -> None:
        """Settle `stage`, or find that it has to run."""
        if self._force:
            self._to_run.add(stage)
            return
        status = self._book.status(stage)
        if status in ("changed", "missing"):
            self._to_run.add(stage)
        elif stage.addressing in self.outcome.states:
            self._unsettled.discard(stage)  # it was settled before, and it still is
        else:
            self.outcome.not_stored += self._book.store(stage)
            self._settle(stage, "absent" if status == "absent" else "unchanged")

    def _begin(self, stage: Stage) -> None:
        """Start `stage`, unless the run cache has its outputs or an input has to be made first."""
        is_remake = stage in self._to_remake
        if not self._has_inputs(stage):
            return
        may_be_done = stage in self._given_inputs and not (self._force or is_remake)
        if may_be_done and self._book.status(stage) in ("unchanged", "absent"):
            self._settle(stage, "unchanged")  # all its inputs are here now, and it has not changed
            return
        if not self._book.begin(stage, self._force or is_remake):
            note = self._record(stage)
            self.outcome.not_stored += self._book.not_stored(stage)
            self._settle(stage, "cached", note)
            return
        if self._devices is not None:
            free = [*self._devices]
            for name in self._device_of.values():
                free.remove(name)
            self._device_of[stage] = free[0]
        log_file(self._logs, stage.addressing).write_bytes(b"")
        self._submit(stage)
        self._tell(stage, "running")

    def _has_inputs(self, stage: Stage) -> bool:
        """Bring the absent inputs of `stage`; False if stages have to run again to make them.

        Raises:
            NotAvailableError: an input cannot be brought, and the stage that makes it must not run.
        """
        absent, remakes = self._book.absent_inputs(stage), []
        for maker, outputs in absent.items():
            try:
                self._tell(maker, self._book.bring(outputs))
            except NotAvailableError as error:
                reason = self._why_not(maker.addressing)
                if not reason and maker not in self._plan:
                    reason = f"{maker.addressing} is not among the stages that were asked for"
                if reason:
                    text = needs(maker, outputs, f"{error}; {reason}")
                    raise NotAvailableError(text) from None
                remakes.append(maker)
        if absent:
            self._given_inputs.add(stage)
        for stages in (self._to_remake, self._to_run, self._unsettled):
            stages.update(remakes)
        return not remakes

    def _submit(self, stage: Stage) -> None:
        marker = self._stop.with_suffix(f".marker-{uuid.uuid4().hex[:8]}")
        self._markers.setdefault(stage, []).append(marker)
        paths = (log_file(self._logs, stage.addressing), self._stop, marker)
        log, stop, marker_path = (str(path.absolute()) for path in paths)
        environment = {
            **self._engine.environment,
            **{"DVC_STAGE": stage.addressing, "DVC_ROOT": stage.repo.root_dir},
            **{"TQDM_MININTERVAL": "1", READ: read_file(marker_path)},
        }
        if self._device_of.get(stage):
            environment["CUDA_VISIBLE_DEVICES"] = self._device_of[stage]
        if self._records is not None:
            self._records.begin(stage.addressing)
        job = Job(
            stage.addressing,
            commands(stage),
            stage.wdir,
            environment,
            *(log, stop, marker_path),
            inputs=self._book.inputs(stage),
            root=stage.repo.root_dir,
        )
        self._running[self._engine.submit(job)] = stage

    def _look_after_ended(self) -> None:
        """Wait a moment for commands that end, and settle or retry their stages."""
        ended, _ = wait(self._running, LOOK_EVERY, FIRST_COMPLETED)
        if self._killed and time.monotonic() - self._killed > GIVE_UP_AFTER:
            for future in self._running:
                future.cancel()  # its worker is lost, and nobody can end it
        for future in ended:
            stage = self._running.pop(future)
            error = CancelledError("given up") if future.cancelled() else future.exception()
            code = -SIGKILL if error else future.result()
            if isinstance(error, InputsEditedError):
                self._start_over(stage, error)
            elif error and not self.outcome.signal:
                self._device_of.pop(stage, None)
                self._book.abandon(stage)
                self._fail(stage, f"{type(error).__name__}: {error}")
            elif not self._is_retried(stage, code):
                self._conclude(stage, code)
        if time.monotonic() - self._written > WRITE_EVERY:
            self._book.write_lock()
            self._written = time.monotonic()
        self._observer.refresh()

    def _start_over(self, stage: Stage, error: InputsEditedError) -> None:
        """Let `stage` begin anew with the inputs as they are now, unless no stage may start."""
        self._device_of.pop(stage, None)
        self._book.abandon(stage)
        self._edits[stage] += 1
        names = [os.path.relpath(path, stage.repo.root_dir) for path in error.paths]
        more = f" and {len(names) - 3} more" if names[3:] else ""
        text = f"{', '.join(names[:3])}{more}: edited before {stage.addressing} had read it"
        if self._starts_no_more:
            self._fail(stage, f"{text}; nothing is recorded, run it again")
        elif self._edits[stage] > MOST_EDITS:
            self._fail(stage, f"{text}, {MOST_EDITS + 1} times; nothing is recorded, run it again")
        else:
            self._tell(stage, "retried", text)

    def _is_retried(self, stage: Stage, code: int) -> bool:
        """Whether `stage` runs again: it was killed, and it may go on from what it saved."""
        if code >= 0 or self._starts_no_more or stage in self._retried:
            return False
        self._retried.add(stage)
        try:
            self._book.clear(stage)
            self._submit(stage)
        except Exception as error:
            self._tell(stage, "retried", f"not possible: {error}")
            return False
        self._tell(stage, "retried", f"its process ended by signal {-code}")
        return True

    def _conclude(self, stage: Stage, code: int) -> None:
        """Store the outputs of `stage`, whose command has ended, or report its failure."""
        self._device_of.pop(stage, None)
        if code == 0:
            try:
                self._store(stage)
            except Exception as error:  # as in DVC, any error means that this stage has failed
                self._fail(stage, str(error))
            return
        warning = self._record(stage, ended=False)
        self._book.abandon(stage)
        if self.outcome.signal and code < 0:
            self._dead |= self._dependents(stage)
            self._settle(stage, "stopped", warning)
        else:
            how = f"exit code {code}" if code > 0 else f"signal {-code}"
            self._fail(stage, "; ".join(filter(None, [how, warning])))

    def _store(self, stage: Stage) -> None:
        """Store the outputs of `stage` and settle it.

        A stage that was only run again keeps its record, unless its outputs differ now.

        Raises:
            Error: they differ, and a settled stage that must not run depends on them.
        """
        differing = self._book.differing(stage) if stage in self._to_remake else []
        for later in self._settled_after(stage):
            reason = self._why_not(later.addressing)
            if reason and self._book.reads(later, differing):
                self._book.discard(stage)
                outputs = ", ".join(map(str, differing))
                text = f"it ran again and made another {outputs} than dvc.lock records"
                raise Error(f"{text}; {later.addressing} depends on it; {reason}")
        is_same = stage in self._to_remake and not differing
        self._book.end(stage)
        note = "" if is_same else self._record(stage)
        self.outcome.not_stored += self._book.not_stored(stage)
        self._settle(stage, "remade" if is_same else "done", note)

    def _record(self, stage: Stage, ended: bool = True) -> str:
        """Keep where and in what time `stage` ran.

        Returns:
            A warning if that failed. The results of the stage are valid without a record.
        """
        if self._records is None or not self._book.has_entry(stage):
            return ""
        try:
            entry = self._book.entry(stage)
            self._records.add(stage.addressing, entry, self._attempts(stage), ended)
        except Exception as error:
            return f"warning: no record kept of its run: {type(error).__name__}: {error}"
        return ""

    def _attempts(self, stage: Stage) -> list[dict[str, Any]]:
        """What the workers wrote about each attempt at `stage`."""
        attempts = []
        for marker in self._markers.get(stage, []):
            with contextlib.suppress(OSError, ValueError):  # lost with its worker
                attempt = json.loads(marker.read_text())
                if isinstance(attempt, dict):
                    attempts.append(attempt)
        return attempts

    def _fail(self, stage: Stage, why: str, ends_all: bool = True) -> None:
        self._dead |= self._dependents(stage)
        self._starts_no_more |= ends_all and not self._keep_going
        self._settle(stage, "failed", why)

    def _settle(self, stage: Stage, state: State, note: str = "") -> None:
        """Mark `stage` as settled. If its outputs are new, look again at what reads them."""
        for stages in (self._unsettled, self._to_run, self._to_remake):
            stages.discard(stage)
        if state in ("done", "cached") and not self._force:
            self._unsettled.update(self._settled_after(stage))
        self._tell(stage, state, note)

    def _settled_after(self, stage: Stage) -> list[Stage]:
        """Settled stages that wait for `stage`: there are some only if it was opened again."""
        later = {other for other, needed in self._plan.items() if stage in needed}
        return [*(later - self._unsettled - self._dead)]

    def _dependents(self, stage: Stage) -> set[Stage]:
        reached = {stage}
        for later in TopologicalSorter(self._plan).static_order():
            if self._plan[later] & reached:
                reached.add(later)
        return reached - {stage}

    def _tell(self, stage: Stage, state: State, note: str = "") -> None:
        self.outcome.states[stage.addressing] = state
        self._observer.on_change(stage.addressing, state, note)

    def _ask_to_stop(self, number: int) -> None:
        ask_to_stop(str(self._stop), number)

    def _remove_files(self) -> None:
        """Remove the files by which we talk to the workers."""
        markers = [marker for each in self._markers.values() for marker in each]
        stops = [Path(stop_file(str(self._stop), number)) for number in (SIGTERM, SIGKILL)]
        for file in (*stops, *markers, *(Path(f"{marker}.read") for marker in markers)):
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Pass signals on to all commands: the first as SIGTERM, a second one as SIGKILL."""

        def stop(number: int, frame: object) -> None:
            now = time.monotonic()
            if self.outcome.signal is None:
                self.outcome.signal, self._starts_no_more, self._signalled = number, True, now
                self._ask_to_stop(SIGTERM)
            elif not self._killed and now - self._signalled > SAME_SIGNAL:
                self._killed = now
                self._ask_to_stop(SIGKILL)

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handled = (signal.SIGINT, SIGTERM, signal.SIGHUP)
        # A signal that is ignored stays so: `nohup` ignores SIGHUP.
        active = [number for number in handled if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, stop) for number in active}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def needs(maker: Stage, outputs: list[Output], why: str) -> str:
    """Why a stage cannot run: it needs `outputs` of `maker`, and these cannot be brought."""
    return f"it needs {', '.join(map(str, outputs))} of {maker.addressing}; {why}"


def _most_awaited_first(plan: Mapping[Stage, set[Stage]]) -> list[Stage]:
    """Stages by the length of the longest chain that waits for them, and then as DVC has them."""
    depth: dict[Stage, int] = {}
    for stage in reversed([*TopologicalSorter(plan).static_order()]):
        depth.setdefault(stage, 0)
        for before in plan[stage]:
            depth[before] = max(depth.get(before, 0), depth[stage] + 1)
    return sorted(plan, key=lambda stage: -depth[stage])
