"""Train every model of one run and keep its trajectory."""

import shutil
import sys
from typing import Annotated

import typer

from toycircuits.core import config, paths
from toycircuits.core.fast_import import import_transformer_lens
from toycircuits.core.portable import pin, refuse_compilation
from toycircuits.core.stage import Name, all_read, digest_of, refuse_edits, stage

Device = Annotated[str, typer.Option(envvar="TOYCIRCUITS_DEVICE", help="auto, cpu, cuda, cuda:1")]


def main(run_name: Name, device: Device = "auto") -> None:
    """Train RUN_NAME: one model for each of its variants and pairs of seeds."""
    with stage():
        params = config.read_params()
        is_portable = pin(params)  # before the libraries are imported
        import_transformer_lens()
        import pandas as pd

        from toycircuits.core.checkpoints import read_data
        from toycircuits.core.device import prepare
        from toycircuits.core.train_run import read_settings, train_run
        from toycircuits.core.training import DivergedError, StoppedError, only_process

        run = config.find_run(params, run_name)
        settings = read_settings(run)
        refuse_compilation(settings.train.compile, params, run.key)
        torch_device = prepare(device, is_portable)
        data_file = paths.data_file(run.entry.experiment)
        data = read_data(data_file, settings.data, torch_device)
        digest = digest_of(data_file)
        all_read()
        folder = paths.RESUME / run_name
        with only_process(folder):
            try:
                log, checkpoints = train_run(run, settings, data, digest, folder, torch_device)
            except DivergedError as error:
                print(f"error: {error}", file=sys.stderr)
                raise SystemExit(1) from None
            except StoppedError as stop:
                print(stop, file=sys.stderr)
                raise SystemExit(128 + stop.signal) from None
            out = paths.trajectories(run_name)
            shutil.rmtree(out, ignore_errors=True)  # what an older run by hand may have left
            for name, trajectory in checkpoints.items():
                shutil.copytree(trajectory, out / name)
            table = paths.training_table(run.entry.experiment, run_name)
            table.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(log).to_csv(table, index=False, float_format=paths.FLOAT_FORMAT)
            refuse_edits()  # the state stays then, for the case that the edit is taken back
            shutil.rmtree(folder)


if __name__ == "__main__":
    typer.run(main)
