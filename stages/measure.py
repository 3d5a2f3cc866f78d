"""Measure every model of one run over its whole trajectory."""

import functools
import importlib
import sys
from collections import defaultdict
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # this tree's own code

import typer

from toycircuits import config, layout
from toycircuits.lean import import_transformer_lens

Device = Annotated[str, typer.Option(envvar="TOYCIRCUITS_DEVICE", help="auto, cpu, cuda, cuda:1")]


def main(run_name: str, device: Device = "auto") -> None:
    """Write the tables of RUN_NAME."""
    with config.exit_on_bad_input():
        run = config.find_run(config.read_params(), run_name)
        import_transformer_lens()
        metrics = importlib.import_module(f"toycircuits.experiments.{run.entry.slice}.metrics")
        settings = run.section("measure", metrics.MeasureSettings)

        import pandas as pd

        from toycircuits.checkpoints import read_data
        from toycircuits.device import prepare
        from toycircuits.loading import load_members

        place = prepare(device)
        experiment = run.entry.experiment
        data_file = layout.data_file(experiment)
        read = functools.lru_cache(1)(read_data)  # the models of a run have the same data settings
        parts = defaultdict(list)
        for member in load_members(layout.trajectories(experiment, run_name), place):
            data = read(data_file, member.data_settings, place)
            own = member.train_settings.select(data)
            with config.at_key(run.key):
                settings.check(member.data_settings, member.train_settings)
                tables, values = metrics.measure(
                    member.model, member.states(), own, member.data_settings, settings
                )
            if hasattr(metrics, "provenance"):
                start = (own, member.data_settings, member.train_settings, member.model)
                tables["provenance"] = metrics.provenance(*start)
            tables["metrics"] = pd.DataFrame({"metric": [*values], "value": [*values.values()]})
            for name, table in tables.items():
                parts[name].append(member.label(table))
        folder = layout.tables(experiment) / run_name / "measure"
        folder.mkdir(parents=True, exist_ok=True)
        for name, tables in parts.items():
            table = pd.concat(tables)
            table.to_csv(folder / f"{name}.csv", index=False, float_format=layout.FLOAT_FORMAT)


if __name__ == "__main__":
    typer.run(main)
