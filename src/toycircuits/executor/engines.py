"""Who runs the commands: processes of this machine, or the workers of a dask cluster."""

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from toycircuits.config import InputError
from toycircuits.executor.warm import Warm
from toycircuits.executor.worker import Job, execute

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
        places: how many jobs can run at a time.
        environment: variables that every job needs there.
    """

    submit: Callable[[Job], "Future[int]"]
    places: int
    environment: dict[str, str]


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
    arguments = [server.start] if server else []
    with ThreadPoolExecutor(jobs) as pool:
        try:
            yield Engine(lambda job: pool.submit(execute, job, *arguments), jobs, environment)
        finally:
            if server:
                server.close()


@contextmanager
def _dask(name: str, jobs: int | None, scheduler: str | None) -> Iterator[Engine]:
    distributed = _library("distributed", name)
    # A command that is still to run when its worker dies is given to another by dask itself; once,
    # as everywhere.
    importlib.import_module("dask").config.set({"distributed.scheduler.allowed-failures": 1})
    try:
        with (
            _cluster(name, jobs, scheduler, distributed) as cluster,
            distributed.Client(cluster) as client,
        ):
            client.wait_for_workers(1)
            places = jobs or sum(client.nthreads().values())
            executor = client.get_executor(pure=False)
            # Workers have the variables of whoever started them, on a machine of their own.
            yield Engine(lambda job: executor.submit(execute, job), places, _shared())
    except (OSError, TimeoutError) as error:
        raise InputError(f"--scheduler: found {scheduler!r}: {error}") from None


@contextmanager
def _cluster(
    name: str, jobs: int | None, scheduler: str | None, distributed: ModuleType
) -> Iterator[Any]:
    if scheduler:
        yield scheduler
        return
    if name == "dask":
        cluster = distributed.LocalCluster(
            n_workers=jobs or cores(), threads_per_worker=1, dashboard_address=None
        )
    else:
        kind = getattr(_library("dask_jobqueue", name), QUEUES[name])
        try:
            cluster = kind()
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"--engine {name}: dask's configuration: {reason}") from None
        wanted = jobs or cores()
        # Unlike `scale`, this makes up for jobs that are lost, or whose time is over.
        cluster.adapt(minimum_jobs=wanted, maximum_jobs=wanted)
    with cluster:
        yield cluster


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
