"""`toycircuits attest`: are these the bytes that another machine computed?

`attest/SCALE.json`, which git carries, has the hashes of the results of a portable scale, and the
machine and the libraries that computed them. `--write` makes it.
"""

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import Tensor

from dvc_parallel.worker import machine
from toycircuits.commands.fresh import outdated
from toycircuits.commands.scale_copy import COPIED
from toycircuits.commands.structure import read_project
from toycircuits.core import paths, report_paths
from toycircuits.core.checkpoints import Trajectory, model_folders, read_final_weights
from toycircuits.core.config import InputError, Run, Settings, find_run, runs_of, scales
from toycircuits.core.json_text import read_json
from toycircuits.core.portable import is_portable
from toycircuits.core.replace import replacing

LIBRARIES = ("torch", "numpy", "scipy", "pandas", "scikit-learn")  # they compute
N_SHOWN = 5  # names of results, of each kind


class Attestation(Settings):
    """What is in `attest/SCALE.json`.

    Attributes:
        processor: its name, as the system says it.
        versions: library -> version; Python and the C library are among them.
        results: name of a result -> SHA-256 of its content, in hexadecimal.
    """

    processor: str
    versions: dict[str, str]
    results: dict[str, str] = Field(min_length=1)

    @property
    def made_by(self) -> str:
        """The machine and the libraries, for a message."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"{self.processor}; {versions}"


@dataclass(frozen=True)
class Place:
    """Where the results of a scale are.

    Attributes:
        root: the project.
        folder: the project or its copy for the scale.
        params: those of `folder`.
    """

    root: Path
    folder: Path
    params: dict[str, Any]

    @property
    def scale(self) -> str:
        """The scale of the results."""
        return str(self.params["scale"])

    @property
    def file(self) -> Path:
        """The file of hashes."""
        return report_paths.ATTEST / f"{self.scale}.json"

    @property
    def command(self) -> str:
        """The command that makes the results."""
        return "toycircuits repro" + (f" --scale {self.scale}" if self.folder != self.root else "")


def find_place(root: Path, scale: str | None) -> Place:
    """Where the results are that a person means.

    Args:
        root: a project folder.
        scale: the results are those of this scale, in the copy that `toycircuits repro --scale`
            makes; None stands for the results of `root` itself.

    Raises:
        InputError: there is no such scale or copy, or the scale is not portable.
    """
    params, folder = read_project(root / "params.yaml"), root
    if scale is not None:
        if scale not in (allowed := scales(params)):
            raise InputError(f"--scale: found {scale!r}; allowed: {', '.join(allowed)}")
        folder, params = root / scale, params | {"scale": scale}
    if not is_portable(params):
        portable = [name for name, value in params["portable"].items() if value]
        hint = f"; `toycircuits attest --scale {portable[0]}` looks at others" if portable else ""
        key = f"portable.{params['scale']}"
        raise InputError(f"{key}: found false; only portable results have the same bytes{hint}")
    if not paths.exists(folder / "params.yaml"):
        hint = f"`toycircuits repro --scale {scale}` makes them"
        raise InputError(f"{folder}: found no results there; {hint}")
    return Place(root, folder, read_project(folder / "params.yaml") if scale else params)


def attest(place: Place) -> bool:
    """Compare the results at `place` with the file of hashes; print what differs, if anything.

    Returns:
        Whether all results are there and have the same bytes.

    Raises:
        InputError: there is no file of hashes, or it is damaged, or a result is.
    """
    recorded = read_attestation(place.root / place.file)
    here = Attestation(**_this_machine(), results=_hashes(place))
    missing = [name for name in recorded.results if name not in here.results]
    unknown = [name for name in here.results if name not in recorded.results]
    differing = [
        n for n, digest in here.results.items() if recorded.results.get(n, digest) != digest
    ]
    n_same = len(here.results) - len(unknown) - len(differing)
    print(f"same bytes: {n_same} of {len(recorded.results)}")
    print(f"made by: {recorded.made_by}")
    print(f"here: {here.made_by}")
    _list("differs", differing)
    _list("missing", missing, _how_to_make(missing, place))
    _list(f"not in {place.file}", unknown, "; `toycircuits attest --write` makes the file again")
    if differing:
        print(f"likely reason: {_reason(place, recorded, here)}")
    return not (missing or unknown or differing)


def write_attestation(place: Place) -> Path:
    """Write the file of hashes of the results at `place`; its path.

    Raises:
        InputError: results are missing or stale, or `place` is a copy, whose file git does not
            carry.
    """
    if paths.exists(place.root / COPIED):
        text = "it is a copy; give the command in the project's own folder, with --scale"
        raise InputError(f"{place.root}: {text}")
    if stale := _outdated(place):
        others = f" (and {len(stale) - 1} more)" if len(stale) > 1 else ""
        text = f"its results are stale{others}; `{place.command}` brings them up to date"
        raise InputError(f"{min(stale)}: {text}")
    found = _hashes(place)
    for run in _runs(place.params):
        if _weights_name(run) not in found:
            raise InputError(f"{run.final}: missing{paths.remedy(place.folder / run.final)}")
    content = Attestation(**_this_machine(), results=found).model_dump()
    target = place.root / place.file
    target.parent.mkdir(exist_ok=True)
    with replacing(target) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return place.file


def read_attestation(path: Path) -> Attestation:
    """What is in the file of hashes at `path`.

    Raises:
        InputError: it is absent, or it is something else.
    """
    hint = "; `toycircuits attest --write` makes it"
    return Attestation.parse(read_json(path, hint), str(path))


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values of `tensors`, in hexadecimal.

    The order of the tensors and what else is in their file do not matter.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous().numpy()
        head = json.dumps([name, str(values.dtype.newbyteorder("<")), values.shape])
        digest.update(head.encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _hashes(place: Place) -> dict[str, str]:
    """Name of each result at `place` -> its hash: final weights of the runs, then tables."""
    hashes = {}
    for run in _runs(place.params):
        if (tensors := _final_weights(place.folder / run.final)) is not None:
            hashes[_weights_name(run)] = hash_of(tensors)
    for experiment in place.params["experiments"]:
        for folder in (paths.tables(experiment), report_paths.summary(experiment)):
            for path in sorted((place.folder / folder).rglob("*.csv")):
                name = path.relative_to(place.folder).as_posix()
                hashes[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return hashes


def _runs(params: Mapping[str, Any]) -> Iterator[Run]:
    for experiment in params["experiments"]:
        for name in runs_of(params, experiment):
            yield find_run(params, name)


def _weights_name(run: Run) -> str:
    return f"final weights of {run.name}"


def _final_weights(path: Path) -> dict[str, Tensor] | None:
    """Model and parameter -> value, from the file of a released run or the folder of another."""
    if not paths.exists(path):
        return None
    if path.is_dir():
        states = {folder.name: Trajectory(folder).load()[0] for folder in model_folders(path)}
    else:
        states = {name: state for name, (state, _) in read_final_weights(path).items()}
    return {f"{model}/{key}": state[key] for model, state in states.items() for key in state}


def _this_machine() -> dict[str, Any]:
    here = machine()
    versions = {name: metadata.version(name) for name in LIBRARIES}
    system = {"python": here["python"], "libc": " ".join(platform.libc_ver()).strip()}
    return {"processor": f"{here['processor']} ({here['system']})", "versions": versions | system}


def _list(what: str, names: list[str], hint: str = "") -> None:
    """Print how many `names` there are, and the first of them; nothing if there are none."""
    if names:
        more = f", and {len(names) - N_SHOWN} more" if len(names) > N_SHOWN else ""
        print(f"{what}: {len(names)}: {', '.join(names[:N_SHOWN])}{more}{hint}")


def _how_to_make(missing: list[str], place: Place) -> str:
    """The command that makes results that are `missing`: the end of a message."""
    if missing and paths.exists(place.folder / "dvc.lock"):
        # Without --force, a stage counts as done if its results are merely absent.
        finals = {_weights_name(run): run.final for run in _runs(place.params)}
        if stage := paths.stage_of(finals.get(missing[0], Path(missing[0]))):
            return f"; `{place.command} --force {stage}` makes the first of them"
    return f"; `{place.command}` makes them"


def _reason(place: Place, recorded: Attestation, here: Attestation) -> str:
    """Why results differ, as far as anybody can tell."""
    if stale := _outdated(place):
        return f"results are stale; `{place.command}` brings {len(stale)} stages up to date"
    others = [
        f"{name} is {here.versions.get(name, 'absent')}, and was {version}"
        for name, version in recorded.versions.items()
        if here.versions.get(name) != version
    ]
    if others:
        return f"other versions: {'; '.join(others)}"
    if platform.machine() != "x86_64":
        return f"this is {platform.machine()}; results are portable between x86-64 machines"
    return "none found: neither results nor versions have changed; it is a fault of the pins"


def _outdated(place: Place) -> set[str]:
    """Names of the stages that are stale at `place`; the page does not count, nor does its time."""
    here = Path.cwd()
    os.chdir(place.folder)  # DVC takes paths from the working folder
    try:
        return outdated(place.folder) - {"report"}
    finally:
        os.chdir(here)
