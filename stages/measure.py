"""Measure every model of one run over its whole trajectory."""

import functools
from collections import defaultdict
from typing import Annotated

import typer

from toycircuits.core import config, paths
from toycircuits.core.fast_import import import_transformer_lens
from toycircuits.core.portable import pin
from toycircuits.core.stage import Name, all_read, stage

Device = Annotated[str, typer.Option(envvar="TOYCIRCUITS_DEVICE", help="auto, cpu, cuda, cuda:1")]


def main(run_name: Name, device: Device = "auto") -> None:
    """Write the tables of RUN_NAME."""
    with stage():
        params = config.read_params()
        is_portable = pin(params)  # before the libraries are imported
        import_transformer_lens()
        import pandas as pd

        from toycircuits.core.analyses import load_metrics
        from toycircuits.core.checkpoints import read_data
        from toycircuits.core.device import prepare
        from toycircuits.core.slices import load_model, load_task
        from toycircuits.core.trained_models import load_final_models

        run = config.find_run(params, run_name)
        metrics = load_metrics(run.entry.slice)
        settings = run.section("measure", metrics.MeasureSettings)
        torch_device = prepare(device, is_portable)
        data_file = paths.data_file(run.entry.experiment)
        folder = paths.trajectories(run_name)
        for load in (load_task, load_model):  # import what the models of the run need
            load(run.entry.slice)
        all_read(folder, data_file)
        read = functools.lru_cache(1)(read_data)  # the models of a run have the same data settings
        parts = defaultdict(list)
        for trained in load_final_models(folder, torch_device):
            task, train = trained.data_settings, trained.train_settings
            data = train.select(read(data_file, task, torch_device))
            with config.at_key(run.key):
                settings.check(task, train)
                states = trained.states(folder)
                tables, values = metrics.measure(trained.model, states, data, task, settings)
            if start := getattr(metrics, "training_start", None):
                tables["training_start"] = start(data, task, train, trained.model)
            tables["metrics"] = pd.DataFrame({"metric": [*values], "value": [*values.values()]})
            for name, table in tables.items():
                parts[name].append(trained.label(table))
        out = paths.tables(run.entry.experiment) / run_name / "measure"
        out.mkdir(parents=True, exist_ok=True)
        for name, labelled in parts.items():
            table = pd.concat(labelled)
            table.to_csv(out / f"{name}.csv", index=False, float_format=paths.FLOAT_FORMAT)


if __name__ == "__main__":
    typer.run(main)
