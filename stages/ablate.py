"""Ablate the components of every final model of one run."""

import functools
from typing import Annotated

import typer

from toycircuits.core import config, paths
from toycircuits.core.fast_import import import_transformer_lens
from toycircuits.core.portable import pin
from toycircuits.core.stage import Name, all_read, stage

Device = Annotated[str, typer.Option(envvar="TOYCIRCUITS_DEVICE", help="auto, cpu, cuda, cuda:1")]


def main(run_name: Name, device: Device = "auto") -> None:
    """Write one tidy table of RUN_NAME: component, layer, head, method, loss, accuracy."""
    with stage():
        params = config.read_params()
        is_portable = pin(params)  # before the libraries are imported
        import_transformer_lens()
        import pandas as pd

        from toycircuits.core.analyses import load_ablations
        from toycircuits.core.checkpoints import read_data
        from toycircuits.core.device import prepare
        from toycircuits.core.slices import load_model, load_task
        from toycircuits.core.trained_models import load_final_models

        run = config.find_run(params, run_name)
        ablations = load_ablations(run.entry.slice)
        settings = run.section("ablate", ablations.AblateSettings)
        torch_device = prepare(device, is_portable)
        data_file = paths.data_file(run.entry.experiment)
        for load in (load_task, load_model):  # import what the models of the run need
            load(run.entry.slice)
        all_read(run.final, data_file)
        read = functools.lru_cache(1)(read_data)  # the models of a run have the same data settings
        tables = []
        for trained in load_final_models(run.final, torch_device):
            task, train = trained.data_settings, trained.train_settings
            data = train.select(read(data_file, task, torch_device))
            with config.at_key(run.key):
                settings.check(task, train)
                table = ablations.ablate(trained.model, data, task, settings)
            tables.append(trained.label(table))
        path = paths.tables(run.entry.experiment) / run_name / "ablations.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.concat(tables).to_csv(path, index=False, float_format=paths.FLOAT_FORMAT)


if __name__ == "__main__":
    typer.run(main)
