"""A command whose worker is lost gives its GPU back."""

from concurrent.futures import Future
from pathlib import Path

import pytest
from parallel.graphs import Graph

from dvc_parallel.bookkeeping import Bookkeeping
from dvc_parallel.engines import Engine
from dvc_parallel.outcome import State
from dvc_parallel.schedule import Schedule
from dvc_parallel.worker import Job


class Silent:
    """Is told what happens, and does nothing about it."""

    def on_change(self, stage: str, state: State, note: str = "") -> None:
        """Nothing is drawn."""

    def refresh(self) -> None:
        """Nothing is drawn."""


@pytest.mark.slow
def test_a_lost_worker_gives_its_device_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = Graph(tmp_path / "graph", {name: {"cmd": f"echo {name}"} for name in ("a", "b")})
    monkeypatch.chdir(graph.folder)

    def lose(job: Job) -> "Future[int]":
        future: Future[int] = Future()
        future.set_exception(ConnectionError("lost"))
        return future

    engine = Engine(lose, lambda: 2, {})
    with Bookkeeping(".") as book:
        plan = book.plan([])
        schedule = Schedule(
            book, plan, engine, Silent(), Path("logs"), keep_going=True, devices=["0"]
        )
        outcome = schedule.run()
    assert outcome.states == {"a": "failed", "b": "failed"}
    assert not schedule._device_of
