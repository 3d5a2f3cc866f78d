"""Side by side, stages leave what they leave one after the other under `dvc repro`."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from parallel.graphs import Graph, Stages, random_stages
from ruamel.yaml import YAML

pytestmark = pytest.mark.slow
ROUNDS = int(os.environ.get("TOYCIRCUITS_ROUNDS", "2"))


def of(states: dict[str, str], *wanted: str) -> set[str]:
    return {stage for stage, state in states.items() if state in wanted}


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


@pytest.mark.parametrize("seed", range(ROUNDS))
@pytest.mark.parametrize("engine", [["local", 3], ["dask", 2]], ids=["local", "dask"])
def test_any_graph_with_failures_leaves_the_same_lock(
    tmp_path: Path, seed: int, engine: list[object]
) -> None:
    """At first; and again when a parameter has changed and one failure is mended."""
    stages = random_stages(seed)
    serial, parallel = Graph(tmp_path / "serial", stages), Graph(tmp_path / "parallel", stages)
    for number in (1, 2):
        if number == 2:
            text = "a: 2\n"
            for graph in (serial, parallel):
                (graph.folder / "params.yaml").write_text(text)
                pipeline = (graph.folder / "dvc.yaml").read_text()
                (graph.folder / "dvc.yaml").write_text(pipeline.replace("; exit 3", "", 1))
        serial.dvc("repro", "--keep-going", check=False)
        states = parallel.run(keep_going=True, engine=engine)
        assert serial.lock()
        assert parallel.lock() == serial.lock()
        failing = {name for name, stage in stages.items() if "exit 3" in str(stage["cmd"])}
        assert of(states, "failed") <= failing
    outs = [out for stage in stages.values() for out in stage["outs"]]
    for out in outs:
        ours, theirs = parallel.folder / out, serial.folder / out
        assert ours.exists() == theirs.exists()
        assert not ours.exists() or ours.read_bytes() == theirs.read_bytes()


def test_afterwards_dvc_has_nothing_to_do(tmp_path: Path) -> None:
    graph = Graph(tmp_path / "graph", random_stages(7, failing=0))
    assert set(graph.run().values()) == {"done"}
    assert "up to date" in graph.dvc("status")
    assert "Running stage" not in graph.dvc("repro")
    assert set(graph.run().values()) == {"unchanged"}


def test_what_was_run_before_comes_from_the_run_cache(tmp_path: Path) -> None:
    graph = Graph(tmp_path / "graph", random_stages(8, 8, failing=0))
    graph.run()
    first = graph.lock()
    for text in ("a: 2\n", "a: 1\n"):
        (graph.folder / "params.yaml").write_text(text)
        states = graph.run()
    assert set(states.values()) == {"cached"}
    assert graph.lock() == first
    (graph.folder / "out/0").unlink()
    assert of(graph.run(), "absent") == {"s0"}
    assert set(graph.run(force=True).values()) == {"done"}


WAIT = "for i in $(seq 600); do sleep 0.1; done"
CHAIN: Stages = {
    name: {"cmd": f"cat {before} params.yaml > {name}", "deps": [before], "outs": [name]}
    for before, name in [("source", "a"), ("a", "b"), ("b", "c"), ("source", "x"), ("x", "y")]
}


def chain(folder: Path, **commands: str) -> Graph:
    """source -> a -> b -> c, source -> x -> y; with other commands for some."""
    stages = {name: dict(stage) for name, stage in CHAIN.items()}
    for name, command in commands.items():
        stages[name]["cmd"] = command
    graph = Graph(folder, stages)
    (graph.folder / "source").write_text("0\n")
    return graph


@pytest.mark.parametrize(
    ("targets", "selection", "flags", "ran"),
    [
        (["b"], {}, ["b"], {"a", "b"}),
        (["b"], {"single_item": True}, ["-s", "b"], {"b"}),
        (["b"], {"downstream": True}, ["--downstream", "b"], {"b", "c"}),
        (["c", "x"], {}, ["c", "x"], {"a", "b", "c", "x"}),
    ],
)
def test_targets_select_what_they_select_for_dvc(
    tmp_path: Path, targets: list[str], selection: dict[str, bool], flags: list[str], ran: set[str]
) -> None:
    graphs = [chain(tmp_path / name) for name in ("serial", "parallel")]
    for graph in graphs:
        graph.run()
        (graph.folder / "source").write_text("1\n")
        (graph.folder / "a").write_text("edited by hand\n")
        (graph.folder / "b").unlink()
    graphs[0].dvc("repro", "--force", *flags)
    states = graphs[1].run(targets=targets, selection=selection, force=True)
    assert states == dict.fromkeys(ran, "done")
    assert graphs[1].lock() == graphs[0].lock()


def test_a_failure_ends_it_unless_told_to_keep_going(tmp_path: Path) -> None:
    begun = "while ! test -e on; do sleep 0.1; done"
    graph = chain(tmp_path / "graph", a=f"{begun}; exit 4", y="touch on; sleep 2; cat x > y")
    states = graph.run()
    assert of(states, "failed") == {"a"}
    assert of(states, "skipped") == {"b", "c"}
    assert of(states, "done") == {"x", "y"}, "what ran beside it was not let end"
    graph = chain(tmp_path / "other", x="exit 4", b="sleep 3; cat a > b")
    assert of(graph.run(), "skipped") >= {"y", "c"}
    assert of(graph.run(keep_going=True), "skipped") == {"y"}
    assert (graph.folder / "c").exists()


def test_a_missing_input_or_result_fails_its_stage(tmp_path: Path) -> None:
    graph = chain(tmp_path / "graph", x="true")
    states = graph.run(keep_going=True)
    assert of(states, "failed") == {"x"}
    assert of(states, "skipped") == {"y"}
    (graph.folder / "source").unlink()
    assert of(graph.run(keep_going=True), "failed") == {"a", "x"}


@pytest.mark.parametrize("jobs", [2, 4])
def test_as_many_at_a_time_as_there_are_places(tmp_path: Path, jobs: int) -> None:
    clock = "python3 -c 'import time; print(time.time())'"
    stages = {
        f"s{number}": {
            "cmd": f"({clock}; sleep 2; {clock}) > s{number}",
            "outs": [f"s{number}"],
        }
        for number in range(8)
    }
    graph = Graph(tmp_path / "graph", stages)
    graph.run(engine=["local", jobs])
    spans = [[float(x) for x in (graph.folder / name).read_text().split()] for name in stages]
    most = max(sum(a <= t <= b for a, b in spans) for t, _ in spans)
    assert most == jobs


def test_a_killed_command_is_tried_once_more(tmp_path: Path) -> None:
    graph = chain(
        tmp_path / "graph",
        a="test -e mark || { touch mark; echo half > a; kill -9 $$; }; cat source > a",
        x="kill -9 $$",
    )
    states = graph.run(keep_going=True)
    assert of(states, "done") == {"a", "b", "c"}
    assert of(states, "failed") == {"x"}
    assert (graph.folder / "a").read_text() == "0\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_commands_in_order_and_keeps_what_is_done(
    tmp_path: Path, number: int
) -> None:
    saves = f"trap 'echo saved > state; exit 143' TERM; touch on; {WAIT}"
    graph = chain(tmp_path / "graph", x=saves)
    process = graph.start(engine=["local", 2])
    until(lambda: (graph.folder / "on").exists() and (graph.folder / "c").exists())
    time.sleep(1)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number, err
    states = json.loads(out)["states"]
    assert of(states, "stopped") == {"x"}
    assert of(states, "skipped") == {"y"}
    assert (graph.folder / "state").read_text() == "saved\n"
    assert of(graph.run(targets=["c"]), "unchanged") == {"a", "b", "c"}
    assert not list((graph.folder / "logs").glob(".stop*"))


def test_a_second_signal_kills(tmp_path: Path) -> None:
    deaf = f"trap '' TERM; touch on; {WAIT}"
    graph = chain(tmp_path / "graph", x=deaf)
    process = graph.start(targets=["x"])
    until(lambda: (graph.folder / "on").exists())
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_when_it_is_killed_so_are_its_commands(
    tmp_path: Path, shell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELL", shell)
    command = "python3 -c 'import os,time; print(os.getpid(), flush=True); time.sleep(600)'; true"
    graph = chain(tmp_path / "graph", x=command)
    process = graph.start(targets=["x"])
    log = graph.folder / "logs/x.log"
    until(lambda: log.exists() and log.read_text().strip())
    stat = Path(f"/proc/{int(log.read_text())}/stat")
    process.kill()
    process.communicate()
    until(lambda: not stat.exists() or " Z " in stat.read_text())
    graph.dvc("status")  # its locks are those of a dead process
    assert of(graph.run(targets=["c"]), "done", "cached") == {"a", "b", "c"}


def test_killed_again_and_again_dvc_lock_stays_whole(tmp_path: Path) -> None:
    """It is written after every stage, each time from the start, and slowly."""
    stages = random_stages(11, 60, failing=0)
    graph, whole = Graph(tmp_path / "graph", stages), Graph(tmp_path / "whole", stages)
    whole.run()
    driver = (graph.folder / "drive.py").read_text()
    eager = "from dvc_parallel import schedule\nschedule.WRITE_EVERY = -1.0\n"
    (graph.folder / "drive.py").write_text(eager + driver)
    read = YAML(typ="safe").load
    sizes = []
    partial = graph.folder / ".dvc.lock.partial"
    for _ in range(4):
        partial.unlink(missing_ok=True)
        process = graph.start(engine=["local", 1])
        until(lambda: partial.exists() and partial.stat().st_size)  # in the middle of it
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        sizes.append(len(read(graph.lock() or "stages: {}")["stages"]))
    assert sizes == sorted(sizes)
    graph.run()
    assert not partial.exists()
    ours, theirs = read(graph.lock()), read(whole.lock())
    assert ours == theirs
    assert "Running stage" not in graph.dvc("repro")


def test_a_second_try_is_entered_with_what_it_read(tmp_path: Path) -> None:
    command = "test -e on && cat source > x || { touch on; sleep 2; kill -9 $$; }"
    graph = chain(tmp_path / "graph", x=command)
    process = graph.start(targets=["x"])
    until(lambda: (graph.folder / "on").exists())
    (graph.folder / "source").write_text("edited\n")
    process.communicate(timeout=60)
    assert (graph.folder / "x").read_text() == "edited\n"
    assert of(graph.run(targets=["x"]), "unchanged") == {"x"}


def test_two_in_one_workspace_do_not_touch_the_same_stage(tmp_path: Path) -> None:
    waits = "while ! test -e go; do sleep 0.1; done; cat source >"
    graph = chain(tmp_path / "graph", x=f"{waits} x", a=f"{waits} a")
    first = graph.start()
    until(lambda: (graph.folder / "logs/x.log").exists())
    second = graph.start(keep_going=True)
    out = second.communicate(timeout=60)
    (graph.folder / "go").touch()
    outs = [first.communicate(timeout=60), out]
    states = [json.loads(out)["states"] for out, _ in outs]
    assert set(states[0].values()) == {"done"}
    assert "failed" in states[1].values()
    assert "blocked" in outs[1][1]
    assert set(graph.run().values()) == {"unchanged"}
