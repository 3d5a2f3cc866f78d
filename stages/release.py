"""Copy the final weights of one run into the small file that git carries."""

import typer

from toycircuits.core import paths
from toycircuits.core.checkpoints import write_final_weights
from toycircuits.core.stage import Name, stage


def main(run_name: Name) -> None:
    """Write the last checkpoint of each model of RUN_NAME."""
    with stage():
        write_final_weights(paths.weights_file(run_name), paths.trajectories(run_name))


if __name__ == "__main__":
    typer.run(main)
