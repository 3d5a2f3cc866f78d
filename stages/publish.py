"""Publish the final weights of the runs that say so: one small file a run, kept in git."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # this tree's own code

import typer

from toycircuits import config, layout


def main() -> None:
    """Write the last checkpoint of each model of each run."""
    from torch import Tensor

    from toycircuits.checkpoints import Trajectory, write_tensors
    from toycircuits.members import member_folders

    with config.exit_on_bad_input():
        params = config.read_params()
        for name in params.get("runs", {}):
            run = config.find_run(params, name)
            if not run.entry.publish:
                continue
            tensors: dict[str, Tensor] = {}
            members: dict[str, dict[str, object]] = {}
            folder = layout.trajectories(run.entry.experiment, name)
            for path in member_folders(folder):
                state, members[path.name] = Trajectory(path).load()
                tensors |= {f"{path.name}/{key}": value for key, value in state.items()}
            metadata = {"names": [*members], "members": members}
            write_tensors(layout.weights_file(name), tensors, metadata)


if __name__ == "__main__":
    typer.run(main)
