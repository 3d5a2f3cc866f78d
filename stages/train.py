"""Train every model of one run and keep its trajectory."""

import functools
import hashlib
import importlib
import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # this tree's own code

import typer

from toycircuits import config, layout
from toycircuits.lean import import_transformer_lens

Device = Annotated[str, typer.Option(envvar="TOYCIRCUITS_DEVICE", help="auto, cpu, cuda, cuda:1")]


def main(run_name: str, device: Device = "auto") -> None:
    """Train RUN_NAME: one model for each of its variants and pairs of seeds."""
    with config.exit_on_bad_input():
        train_run(config.find_run(config.read_params(), run_name), device)


def train_run(run: config.Run, device: str) -> None:
    """Train the models of `run` one after the other; a killed run continues where it was."""
    experiment, code = run.entry.experiment, f"toycircuits.experiments.{run.entry.slice}"
    import_transformer_lens()
    task = importlib.import_module(f"{code}.task")
    architecture = importlib.import_module(f"{code}.model")
    data_settings = run.section("data", task.DataSettings)
    settings = run.section("train", task.TrainSettings)
    models = {v: run.section("model", architecture.ModelSettings, v) for v in run.variants}
    with config.at_key(run.key):
        settings.check(data_settings, settings)

    import pandas as pd
    import torch

    from toycircuits.checkpoints import read_data
    from toycircuits.device import prepare
    from toycircuits.training import (
        DivergedError,
        Objective,
        StoppedError,
        can_compile,
        only_process,
        train,
    )

    place = prepare(device)
    if settings.compile and not can_compile(place):  # then checkpoints say what was done
        settings = settings.model_copy(update={"compile": False})
    data_path = layout.data_file(experiment)
    data = settings.select(read_data(data_path, data_settings, place))
    rows, trajectories = [], {}
    with only_process(layout.RESUME / run.name):
        members = list(itertools.product(models, settings.members))
        for number, (variant, (weight_seed, batch_seed)) in enumerate(members, start=1):
            member = {"variant": variant, "weight_seed": weight_seed, "batch_seed": batch_seed}
            metadata = {
                **{"run": run.name, "experiment": experiment, "slice": run.entry.slice, **member},
                **{"data": data_settings.model_dump(), "model": models[variant].model_dump()},
                "train": settings.model_dump(),
            }
            key = result_key(metadata | {"device": str(place)}, data_path)
            weights = torch.Generator().manual_seed(weight_seed)
            with config.at_key(run.key):
                model = architecture.build(models[variant], data_settings, weights).to(place)
            order = weights if batch_seed is None else torch.Generator().manual_seed(batch_seed)
            objective = Objective(
                stream=task.batches(data, data_settings, settings, order),
                loss=task.loss,
                evaluate=functools.partial(task.evaluate, data=data),
            )
            name = layout.member_name(**member)
            folder = layout.RESUME / run.name / f"{name}-{key[:16]}"
            label = f"{run.name} {name} ({number} of {len(members)})"
            try:
                log = train(model, objective, settings, folder, key, metadata, label)
            except DivergedError as error:
                kept = f"its checkpoints up to there are in {folder / 'trajectory'}"
                print(f"error: {label}: {error}; {kept}", file=sys.stderr)
                raise SystemExit(1) from None
            except StoppedError as stop:
                hint = "its state is saved, and the same command goes on from there"
                print(f"{label}: {stop}; {hint}", file=sys.stderr)
                raise SystemExit(128 + stop.signal) from None
            rows += [{"variant": variant, "seed": weight_seed} | row for row in log]
            trajectories[name] = folder / "trajectory"
        out = layout.trajectories(experiment, run.name)
        shutil.rmtree(out, ignore_errors=True)  # what an older run by hand may have left
        for name, trajectory in trajectories.items():
            shutil.copytree(trajectory, out / name)
        table = layout.tables(experiment) / run.name / "training.csv"
        table.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(table, index=False, float_format=layout.FLOAT_FORMAT)
        shutil.rmtree(layout.RESUME / run.name)


def result_key(settings: dict[str, object], data_path: Path) -> str:
    """Hash of all that decides a result: settings, data, our code and torch's version."""
    modules = [m for n, m in sorted(sys.modules.items()) if n.split(".")[0] == "toycircuits"]
    code = [Path(module.__file__) for module in modules if module.__file__]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest.update(sys.modules["torch"].__version__.encode())
    for path in [data_path, Path(__file__), *code]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    typer.run(main)
