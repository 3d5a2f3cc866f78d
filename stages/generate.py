"""Make the data of one experiment."""

import torch
import typer

from toycircuits.core import config, paths
from toycircuits.core.checkpoints import write_tensors
from toycircuits.core.slices import load_task
from toycircuits.core.stage import stage


def main(experiment: str, slice_name: str) -> None:
    """Write the tensors of EXPERIMENT, whose code is the slice SLICE_NAME."""
    with stage():
        task = load_task(slice_name)
        params = config.read_params()
        settings = config.read_section(params, experiment, "data", task.DataSettings)
        tensors = task.generate(settings, torch.Generator().manual_seed(settings.seed))
        write_tensors(paths.data_file(experiment), tensors, {"data": settings.model_dump()})


if __name__ == "__main__":
    typer.run(main)
