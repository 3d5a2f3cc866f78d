"""Ablate the components of every final model of one run."""

import functools
import importlib
import sys
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # this tree's own code

import typer

from toycircuits import config, layout
from toycircuits.lean import import_transformer_lens

Device = Annotated[str, typer.Option(envvar="TOYCIRCUITS_DEVICE", help="auto, cpu, cuda, cuda:1")]


def main(run_name: str, device: Device = "auto") -> None:
    """Write one tidy table of RUN_NAME: component, layer, head, method, loss, accuracy."""
    with config.exit_on_bad_input():
        run = config.find_run(config.read_params(), run_name)
        import_transformer_lens()
        ablations = importlib.import_module(f"toycircuits.experiments.{run.entry.slice}.ablations")
        settings = run.section("ablate", ablations.AblateSettings)

        import pandas as pd

        from toycircuits.checkpoints import read_data
        from toycircuits.device import prepare
        from toycircuits.loading import load_members

        place = prepare(device)
        experiment = run.entry.experiment
        data_file = layout.data_file(experiment)
        read = functools.lru_cache(1)(read_data)  # the models of a run have the same data settings
        tables = []
        for member in load_members(layout.trajectories(experiment, run_name), place):
            data = read(data_file, member.data_settings, place)
            own = member.train_settings.select(data)
            with config.at_key(run.key):
                settings.check(member.data_settings, member.train_settings)
                table = ablations.ablate(member.model, own, member.data_settings, settings)
            tables.append(member.label(table))
        path = layout.tables(experiment) / run_name / "ablations.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.concat(tables).to_csv(path, index=False, float_format=layout.FLOAT_FORMAT)


if __name__ == "__main__":
    typer.run(main)
