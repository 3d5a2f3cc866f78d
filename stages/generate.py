"""Make the data of one experiment."""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # this tree's own code

import typer

from toycircuits import config, layout


def main(experiment: str, slice_name: str) -> None:
    """Write the tensors of EXPERIMENT, whose code is the slice SLICE_NAME."""
    with config.exit_on_bad_input():
        task = importlib.import_module(f"toycircuits.experiments.{slice_name}.task")
        params = config.read_params()
        settings = config.read_section(params, experiment, "data", task.DataSettings)

        import torch

        from toycircuits.checkpoints import write_tensors

        tensors = task.generate(settings, torch.Generator().manual_seed(settings.seed))
        write_tensors(layout.data_file(experiment), tensors, {"data": settings.model_dump()})


if __name__ == "__main__":
    typer.run(main)
