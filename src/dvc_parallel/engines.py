"""Who runs the commands: processes of this machine, or the workers of a dask cluster."""

import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

from dvc_parallel.warm import Warm
from dvc_parallel.worker import Job, execute
from toycircuits.core.config import InputError

# Names of dask-jobqueue's clusters. Their settings (partition, memory, time, ...) stand where all
# who use dask-jobqueue put them: in dask's configuration.
QUEUES = {
    **{"slurm": "SLURMCluster", "pbs": "PBSCluster", "sge": "SGECluster", "lsf": "LSFCluster"},
    **{"oar": "OARCluster", "moab": "MoabCluster", "htcondor": "HTCondorCluster"},
}
NAMES = ("local", "dask", *QUEUES)
# Each library has a variable of its own for the same thing.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Engine:
    """Where commands run.

    Attributes:
        submit: from a job to the future of its exit status, negative for a signal. A future that
            raises belongs to a job whose worker was lost.
        places: how many jobs can run at a time, by now.
        environment: variables that every job needs there.
        at_once: whether a job that has a place starts when it is submitted.
    """

    submit: Callable[[Job], "Future[int]"]
    places: Callable[[], int]
    environment: dict[str, str]
    at_once: bool


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@contextmanager
def open_engine(
    name: str, jobs: int | None, scheduler: str | None = None, warm: bool = True
) -> Iterator[Engine]:
    """The engine called `name`, one of `NAMES`.

    Args:
        jobs: places; as many as there are cores, or threads of dask's workers, if None.
        scheduler: address of a running dask scheduler.
        warm: start Python commands in forks of an interpreter that has imported all (on Linux).

    Raises:
        InputError: a library is missing, nobody answers, or the queue has no settings.
    """
    if scheduler and name != "dask":
        raise InputError(f"--scheduler: found {scheduler!r}; allowed with --engine dask only")
    if name == "local":
        with _local(jobs or cores(), warm) as engine:
            yield engine
    else:
        with _dask(name, jobs, scheduler) as engine:
            yield engine


@contextmanager
def _local(jobs: int, warm: bool) -> Iterator[Engine]:
    share = str(max(1, cores() // jobs))  # jobs side by side must not each take all cores
    environment = {name: share for name in THREADS if name not in os.environ}
    server = Warm(environment, after=jobs) if warm and sys.platform == "linux" else None
    run = partial(execute, starter=server.start) if server else execute
    with ThreadPoolExecutor(jobs) as pool:
        try:
            yield Engine(lambda job: pool.submit(run, job), lambda: jobs, environment, True)
        finally:
            if server:
                server.close()


@contextmanager
def _dask(name: str, jobs: int | None, scheduler: str | None) -> Iterator[Engine]:
    distributed = _library("distributed", name)
    with ExitStack() as stack:
        try:
            cluster = scheduler or stack.enter_context(_cluster(name, jobs or cores(), distributed))
            client = stack.enter_context(distributed.Client(cluster))
        except (OSError, TimeoutError) as error:
            found = f"--scheduler: found {scheduler!r}" if scheduler else f"--engine {name}"
            raise InputError(f"{found}: {error}") from None
        if not client.nthreads():
            print("waiting for the first worker", file=sys.stderr)
            client.wait_for_workers(1)
        executor = client.get_executor(pure=False)

        def places() -> int:
            return jobs or (sum(client.nthreads().values()) or 1 if scheduler else cores())

        # Workers have the variables of whoever started them, on a machine of their own.
        yield Engine(lambda job: executor.submit(execute, job), places, _shared(), False)


def _cluster(name: str, jobs: int, distributed: ModuleType) -> Any:
    """A cluster of dask's with `jobs` workers."""
    if name == "dask":
        # Ctrl-C in a terminal reaches all its processes; workers must outlive their commands.
        with _ignored(signal.SIGINT):
            return distributed.LocalCluster(
                n_workers=jobs, threads_per_worker=1, dashboard_address=None
            )
    try:
        cluster = getattr(_library("dask_jobqueue", name), QUEUES[name])()
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"--engine {name}: dask's configuration: {reason}") from None
    # Unlike `scale`, this makes up for jobs that are lost, or whose time is over.
    cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs)
    return cluster


@contextmanager
def _ignored(number: signal.Signals) -> Iterator[None]:
    """Processes started meanwhile ignore a signal."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


def _library(name: str, engine: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        hint = "`pip install 'toycircuits[cluster]'` brings it"
        raise InputError(f"--engine {engine}: the library {name} is missing; {hint}") from None


def _shared() -> dict[str, str]:
    """Variables that make a command find the same Python and code on another machine."""
    own = {name: os.environ[name] for name in ("PATH", "SHELL") if name in os.environ}
    return own | {k: v for k, v in os.environ.items() if k.startswith("TOYCIRCUITS_")}
