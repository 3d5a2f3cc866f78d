"""Make the data of one experiment."""

import typer

from toycircuits.core import config, paths
from toycircuits.core.portable import pin
from toycircuits.core.stage import Name, stage


def main(experiment: Name) -> None:
    """Write the tensors of EXPERIMENT."""
    with stage():
        params = config.read_params()
        is_portable = pin(params)  # before the libraries are imported
        import torch

        from toycircuits.core.checkpoints import write_tensors
        from toycircuits.core.device import prepare
        from toycircuits.core.slices import load_task

        prepare("cpu", is_portable)
        task = load_task(config.find_slice(params, experiment))
        settings = config.read_section(params, experiment, "data", task.DataSettings)
        tensors = task.generate(settings, torch.Generator().manual_seed(settings.seed))
        write_tensors(paths.data_file(experiment), tensors, {"data": settings.model_dump()})


if __name__ == "__main__":
    typer.run(main)
