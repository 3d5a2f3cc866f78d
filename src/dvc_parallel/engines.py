"""Engines run the commands: processes of this machine, or the workers of a dask cluster."""

import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

from dvc_parallel.errors import UsageError
from dvc_parallel.fork_starter import ForkStarter, Preload
from dvc_parallel.worker import Job, execute

# The classes of dask-jobqueue. Their settings (partition, memory, time, ...) come from dask's
# configuration files, as always with dask-jobqueue.
QUEUES = {
    **{"slurm": "SLURMCluster", "pbs": "PBSCluster", "sge": "SGECluster", "lsf": "LSFCluster"},
    **{"oar": "OARCluster", "moab": "MoabCluster", "htcondor": "HTCondorCluster"},
}
NAMES = ("local", "dask", *QUEUES)
# Each numerical library reads its number of threads from another variable.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Engine:
    """A place where commands run.

    Attributes:
        submit: takes a job and returns the future of its exit status, negative for a signal. The
            future raises if the worker of the job was lost.
        places: returns how many jobs can run at a time now.
        environment: variables that every job needs there.
    """

    submit: Callable[[Job], "Future[int]"]
    places: Callable[[], int]
    environment: dict[str, str]


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@contextmanager
def open_engine(
    name: str,
    jobs: int | None,
    scheduler: str | None = None,
    preload: Preload | None = None,
    prefix: str | None = None,
) -> Iterator[Engine]:
    """The engine called `name`, one of `NAMES`.

    Args:
        jobs: number of places. None stands for the number of cores, or of the threads of a running
            dask scheduler's workers.
        scheduler: address of a running dask scheduler.
        preload: imports that Python commands on this machine share (on Linux). None shares none.
        prefix: workers on other machines get those of our environment variables whose names start
            with it.

    Raises:
        UsageError: a library is missing, the scheduler does not answer, or dask's configuration has
            no settings for the queue.
    """
    if scheduler and name != "dask":
        raise UsageError(f"--scheduler: found {scheduler!r}; allowed with --engine dask only")
    if name == "local":
        with _local(jobs or cores(), preload) as engine:
            yield engine
    else:
        with _dask(name, jobs, scheduler, _variables_elsewhere(prefix)) as engine:
            yield engine


@contextmanager
def _local(jobs: int, preload: Preload | None) -> Iterator[Engine]:
    share = str(max(1, cores() // jobs))  # each job would use all cores otherwise
    environment = {name: share for name in THREADS if name not in os.environ}
    run = execute
    with ExitStack() as stack:
        if preload and sys.platform == "linux":
            forks = stack.enter_context(closing(ForkStarter(preload, environment, after=jobs)))
            run = partial(execute, starter=forks.start)
        pool = stack.enter_context(ThreadPoolExecutor(jobs))
        yield Engine(lambda job: pool.submit(run, job), lambda: jobs, environment)


@contextmanager
def _dask(
    name: str, jobs: int | None, scheduler: str | None, environment: dict[str, str]
) -> Iterator[Engine]:
    distributed = _library("distributed", name)
    with ExitStack() as stack:
        try:
            cluster = scheduler or stack.enter_context(_cluster(name, jobs or cores(), distributed))
            client = stack.enter_context(distributed.Client(cluster))
        except (OSError, TimeoutError) as error:
            option = f"--scheduler: found {scheduler!r}" if scheduler else f"--engine {name}"
            raise UsageError(f"{option}: {error}") from None
        if not client.nthreads():
            print("waiting for the first worker", file=sys.stderr)
            client.wait_for_workers(1)
        executor = client.get_executor(pure=False)

        def places() -> int:
            return jobs or (sum(client.nthreads().values()) or 1 if scheduler else cores())

        yield Engine(lambda job: executor.submit(execute, job), places, environment)


def _cluster(name: str, jobs: int, distributed: ModuleType) -> Any:
    """A dask cluster with `jobs` workers."""
    if name == "dask":
        # Ctrl-C in a terminal reaches all its processes. Workers have to outlive their commands.
        with _ignored(signal.SIGINT):
            return distributed.LocalCluster(
                n_workers=jobs, threads_per_worker=1, dashboard_address=None
            )
    try:
        cluster = getattr(_library("dask_jobqueue", name), QUEUES[name])()
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"--engine {name}: dask's configuration: {reason}") from None
    # Unlike `scale`, this replaces jobs that are lost or have reached their time limit.
    cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs)
    return cluster


@contextmanager
def _ignored(number: signal.Signals) -> Iterator[None]:
    """Ignore a signal in this block; processes that start in it ignore it until they end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, handler)


def _library(name: str, engine: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        hint = "`pip install distributed dask-jobqueue` installs all that clusters need"
        raise UsageError(f"--engine {engine}: the library {name} is missing; {hint}") from None


def _variables_elsewhere(prefix: str | None) -> dict[str, str]:
    """The variables with which a command finds the same Python and code on another machine.

    Other variables differ from machine to machine, and a worker has its own.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if name in ("PATH", "SHELL") or (prefix and name.startswith(prefix))
    }
