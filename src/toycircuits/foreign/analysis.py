"""Put somebody's own weights through the analysis of a run, as if the run had trained them."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformer_lens import HookedRootModule

from toycircuits.claims.card import read_card
from toycircuits.core import paths, report_paths
from toycircuits.core.config import InputError, at_key, find_run, read_params, scales
from toycircuits.core.inputs import digest_of
from toycircuits.core.json_text import read_json
from toycircuits.core.messages import in_one_line, quoted
from toycircuits.foreign.fit import State, fit_run
from toycircuits.foreign.subject import Subject
from toycircuits.foreign.verdicts import judge_one
from toycircuits.foreign.weights import read_state_dict

PAPER = "paper"  # the scale with the settings of the published studies
RECORD = "analysis.json"  # the file that says what the tables beside it were made from
PAGE = "index.html"  # the page beside them


@dataclass(frozen=True)
class Analysis:
    """The results of an analysis of somebody's own weights.

    Attributes:
        name: of the weights; in the tables it stands in the column `seed`.
        run, scale, variant: whose settings were used.
        model: the model with the weights, on the CPU, in evaluation mode, with TransformerLens's
            hooks.
        data: the tensors of the task, generated from the settings of the run.
        tables: name -> table, as of the run: `ablations`, and those of the stage `measure`. In
            tables over training, the first step is an untrained network, and the last has the
            weights.
        untrained: the same tables of a network with initial weights of the run, as a control.
        claims: the verdicts on the claims that these tables decide. The column `untrained` has the
            outcome for the untrained network.
        left_out: reason -> the claims of the experiment that these tables do not decide.
        notes: what a reader has to know about the weights.
        source: where the weights come from: file and SHA-256, or nothing.
    """

    name: str
    run: str
    scale: str
    variant: str
    model: HookedRootModule
    data: Mapping[str, Tensor] = field(repr=False)
    tables: Mapping[str, pd.DataFrame] = field(repr=False)
    untrained: Mapping[str, pd.DataFrame] = field(repr=False)
    claims: pd.DataFrame = field(repr=False)
    left_out: Mapping[str, list[str]] = field(repr=False)
    notes: tuple[str, ...]
    source: Mapping[str, str]

    @property
    def metrics(self) -> pd.DataFrame:
        """Each metric of the weights (`value`) and of the untrained network (`untrained`)."""
        control = self.untrained["metrics"].set_index("metric")["value"]
        table = self.tables["metrics"][["metric", "value"]]
        return table.assign(untrained=table["metric"].map(control))

    def write(self, folder: Path | str) -> list[Path]:
        """Write the tables and what they were made from to `folder`; the paths of all files.

        What an earlier analysis wrote there is removed first: its tables and its page.

        Raises:
            InputError: `folder` is not a folder, has other files, or cannot be written.
        """
        folder = Path(folder)
        try:
            _clear(folder)
            written = [folder / f"{name}.csv" for name in self.tables]
            for path, table in zip(written, self.tables.values(), strict=True):
                table.to_csv(path, index=False, float_format=paths.FLOAT_FORMAT)
            claims, record = folder / "claims.csv", folder / RECORD
            self.claims.assign(foreign=True).to_csv(
                claims, index=False, float_format=paths.FLOAT_FORMAT
            )
            record.write_text(json.dumps(self._record([*written, claims]), indent=1) + "\n")
        except OSError as error:
            raise InputError(f"{folder}: cannot be written: {error.strerror}") from None
        return [*written, claims, record]

    def _record(self, files: Iterable[Path]) -> dict[str, Any]:
        """What the tables were made from."""
        return {
            **{"weights": self.name, **self.source, "foreign": True},
            **{"run": self.run, "scale": self.scale, "variant": self.variant},
            **{"notes": [*self.notes], "claims_not_decided": dict(self.left_out)},
            "files": [path.name for path in files],
        }


def check_folder(folder: Path) -> None:
    """Raise an `InputError` if `folder` has something else than an earlier analysis."""
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: found a file; allowed: a folder for the tables")
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from None
    if names and RECORD not in names:
        raise InputError(
            f"{folder}: found {quoted(min(names))} of something else; allowed: a new or empty "
            f"folder, or one of an earlier analysis, with {RECORD}"
        )


def _clear(folder: Path) -> None:
    """Make `folder`, or remove what an earlier analysis wrote there: its tables and its page."""
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / RECORD
    if not record.exists():
        return
    earlier = read_json(record)
    files = earlier.get("files") if isinstance(earlier, dict) else None
    if not isinstance(files, list):
        raise InputError(f"{record}: found no list `files`; remove the folder, or name another one")
    for name in [*map(str, files), PAGE]:
        if Path(name).name == name:  # nothing outside the folder
            (folder / name).unlink(missing_ok=True)


@contextmanager
def _usual_defaults() -> Iterator[None]:
    """PyTorch as the analyses expect it, whatever the caller has set.

    Tensors are then made on the CPU and in float32, and the model can be trained.
    """
    dtype = torch.get_default_dtype()
    elsewhere = torch.get_default_device().type != "cpu"
    with (
        torch.inference_mode(False),
        torch.autocast("cpu", enabled=False),
        torch.device("cpu") if elsewhere else nullcontext(),
    ):
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


@_usual_defaults()
def analyse(
    weights: Path | str | State,
    run: str,
    *,
    scale: str = PAPER,
    variant: str | None = None,
    model: str | None = None,
    root: Path | str | None = None,
) -> Analysis:
    """Measure and ablate `weights` as if they were a model of `run`, and judge claims by that.

    Data, sizes and masks are those of the run's settings. The parameters may have the names of
    TransformerLens 1 to 4. Floating-point weights of any type become float32.

    Args:
        weights: a state dict, or its file: safetensors, or one of `torch.save` (which is read with
            `weights_only=True`).
        run: a run of params.yaml.
        scale: the scale whose settings to use; "paper" has those of the published studies.
        variant: a variant of the run; by default the one that the weights fit.
        model: the model in a file of several, as those in reports/weights are.
        root: the project folder; by default the one around the working folder or this code.

    Raises:
        InputError: there is no such file, run, scale, variant or model, or the weights do not fit.

    >>> import toycircuits
    >>> theirs = toycircuits.load_run("list_copy_10").model.state_dict()
    >>> analysis = toycircuits.analyse(theirs, run="list_copy_10")
    >>> analysis.tables["ablations"][["component", "layer", "accuracy"]].shape
    (20, 3)
    """
    folder = paths.find_root(root)
    params = read_params(folder / "params.yaml")
    if scale not in scales(params):
        raise InputError(f"scale: found {quoted(scale)}; allowed: {', '.join(scales(params))}")
    found = find_run(params | {"scale": scale}, run)
    state, name, source = read_weights(weights, model)
    with at_key(name):
        fit = fit_run(state, found, variant, params)
    subject = Subject.of(found, fit.settings, fit.variant, name)
    tables = subject.tables(fit.model)
    untrained = subject.tables(subject.untrained())
    card = read_card(folder / report_paths.claims_file(found.entry.experiment))
    claims, left_out = judge_one(card.claims, scale, tables, untrained)
    identity = (name, run, scale, fit.variant)
    return Analysis(
        *identity, fit.model, subject.data, tables, untrained, claims, left_out, fit.notes, source
    )


def read_weights(weights: Any, model: str | None) -> tuple[State, str, dict[str, str]]:
    """The state dict, a name for it, and where it comes from; the arguments are as of `analyse`.

    Raises:
        InputError: `weights` are neither a file nor a state dict, or as `read_state_dict`.
    """
    if isinstance(weights, Mapping):
        if model is not None:
            raise InputError("model: found a name beside a state dict; it is for files of several")
        return weights, "weights", {}
    if not isinstance(weights, str | PathLike):
        remedy = "; give `model.state_dict()`" if isinstance(weights, torch.nn.Module) else ""
        allowed = f"allowed: a file or a state dict{remedy}"
        raise InputError(f"weights: found {type(weights).__name__}; {allowed}")
    path = Path(weights)
    state = read_state_dict(path, model)
    stem = in_one_line(path.stem)
    name = stem if model is None else f"{stem}/{model}"
    return state, name, {"file": in_one_line(path.name), "sha256": digest_of(path)}
