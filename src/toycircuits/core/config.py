"""From `params.yaml` to validated, frozen settings.

The classes themselves stand beside their only users (`DataSettings` in a slice's `task.py`,
`TrainSettings` in `train_settings.py`, ...). This module has what they share: strictness, one clear
line for whatever is wrong, and how the values of a run are laid over those of its experiment.
"""

import io
import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from toycircuits.core.inputs import note, read_bytes
from toycircuits.core.messages import in_one_line, short
from toycircuits.core.messages import quoted as quoted
from toycircuits.core.plain_yaml import LARGEST as LARGEST_YAML
from toycircuits.core.plain_yaml import check_plain, parse_yaml

LARGEST_TEXT = 64_000_000  # bytes of a file; our own are far below
# The other top-level keys are scales.
STRUCTURE = ("scale", "portable", "experiments", "runs", "released")
SECTIONS = ("data", "model", "train", "measure", "ablate", "render")
NAME = r"[A-Za-z][A-Za-z0-9_]{0,99}"  # names become parts of paths, which may have 255 bytes
NAMES = "letters, digits and `_`, starting with a letter, at most 100 of them"


class InputError(Exception):
    """A user's input is wrong; the message is one line that names the key or file."""


@contextmanager
def exit_on_bad_input() -> Iterator[None]:
    """Turn an `InputError` into one line on standard error and exit code 2.

    An `OSError`, such as a full disk, becomes one line and exit code 1.
    """
    try:
        yield
    except InputError as error:
        print(f"error: {in_one_line(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        text = in_one_line(f"{where}{error.strerror or error}")
        print(f"error: {text}", file=sys.stderr)
        raise SystemExit(1) from None


@contextmanager
def at_key(prefix: str) -> Iterator[None]:
    """Prefix the key that an `InputError` of the body names with `prefix` and a dot."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{prefix}.{error}") from None


def check_name(name: object, key: str) -> str:
    """`name`, if it is safe as a part of a path, of a module's name and of a key of params.yaml.

    Call it for every name that comes from a file before you build a path or a module's name of it.

    Args:
        key: where the name was found, for the message.

    Raises:
        InputError: it has other characters, such as a dot or a slash, or is too long.
    """
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise InputError(f"{key}: found {quoted(name)}; allowed: {NAMES}")
    return name


class Settings(BaseModel):
    """Frozen settings in which every key is known, required unless it has a default, and typed.

    Types are strict because DVC cannot tell `2` from `2.0` or `1` from `true`: if both were valid,
    an edit could change a result without any stage running again.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    def check(self, data: Any, train: Any) -> None:
        """Raise an `InputError` if these settings conflict with those of task and training.

        Stages and `toycircuits check` call it for the sections train, measure and ablate. By
        default nothing conflicts.
        """

    @classmethod
    def parse(cls, values: Any, key: str) -> Self:
        """Validate `values`, which come from `key` of params.yaml or of a file's metadata.

        Raises:
            InputError: one line with the full key path, what was found and what is allowed.
        """
        _exact_literals(cls, values, key)
        _refuse_denormals(values, key)
        try:
            # Through JSON, because strict Python mode would refuse a YAML list for a tuple.
            return cls.model_validate_json(json.dumps(values))
        except ValidationError as error:
            raise InputError(_one_line(error, key, cls)) from None


class TaskSettings(Settings):
    """Settings of the section `data`. A task's own settings inherit from it.

    Attributes:
        seed: seed of the data.
    """

    seed: int = Field(ge=0, lt=2**63)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name -> shape of each tensor that the task's `generate` makes."""
        raise NotImplementedError

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the values that the task's `evaluate` returns."""
        raise NotImplementedError


def _exact_literals(cls: type[BaseModel], values: Any, key: str) -> None:
    """Raise an `InputError` for 0 where false is meant: Pydantic accepts it as `Literal[False]`."""
    for name, value in values.items() if isinstance(values, dict) else ():
        field = cls.model_fields.get(name)
        options = get_args(field.annotation) if field else ()
        if value in options and type(value) not in map(type, options):
            allowed = ", ".join(map(json.dumps, options))
            raise InputError(f"{key}.{name}: found {json.dumps(value)}; allowed: {allowed}")


def _refuse_denormals(values: Any, key: str) -> None:
    """Raise an `InputError` for a number that is so small that stages would read it as 0.

    Stages flush such numbers to zero (`core/device.py`) before they read settings from weights.
    """
    if isinstance(values, dict | list | tuple):
        pairs = values.items() if isinstance(values, dict) else enumerate(values)
        for name, value in pairs:
            _refuse_denormals(value, f"{key}.{name}")
    elif isinstance(values, float) and 0 < abs(values) < sys.float_info.min:
        raise InputError(f"{key}: found {values}; allowed: 0, or at least {sys.float_info.min}")


def _one_line(error: ValidationError, key: str, cls: type[BaseModel]) -> str:
    first, *others = error.errors()
    path = ".".join([key, *(str(part) for part in first["loc"])])
    value = short(first["input"])
    match first["type"]:
        case "extra_forbidden":
            top = len(first["loc"]) == 1
            text = "unknown key"
            text += f"; allowed keys: {', '.join(cls.model_fields)}" if top else ""
        case "missing":
            text = "missing key"
        case "value_error":
            text = str(first["ctx"]["error"])
        case _:
            text = f"found {value}; {first['msg'][0].lower()}{first['msg'][1:]}"
    return f"{path}: {text}" + (f" (and {len(others)} more)" if others else "")


SettingsT = TypeVar("SettingsT", bound=Settings)


class RunValues(Settings):
    """Values of a run that replace those in the sections of its experiment."""

    model: dict[str, Any] = {}
    train: dict[str, Any] = {}


class RunEntry(RunValues):
    """One entry under `runs:`: a trained variant of an experiment.

    Attributes:
        experiment: key of the experiment, in `experiments:` and in the tree of each scale.
        slice: folder of the experiment's code under `toycircuits/experiments/`.
        scales: scale -> further values, for that scale only.
        variants: name -> further values for `model`; all variants train in the run's one stage.
        final: path of the final weights: the file that git carries, if the run is one of
            `released:`, or the folder of the run's trajectories.
    """

    experiment: str
    slice: str
    final: str
    scales: dict[str, RunValues] = {}
    variants: dict[str, dict[str, Any]] = {}


@dataclass(frozen=True)
class Run:
    """A run at the chosen scale, its sections not yet validated."""

    name: str
    scale: str
    entry: RunEntry
    tree: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Key path of the experiment's sections."""
        return f"{self.scale}.{self.entry.experiment}"

    @property
    def variants(self) -> tuple[str, ...]:
        """Names of the variants; the empty name alone where the run has none."""
        return tuple(self.entry.variants) or ("",)

    @property
    def final(self) -> Path:
        """Where the final weights of the run are."""
        return Path(self.entry.final)

    def values(self, name: str, variant: str = "") -> tuple[dict[str, Any], str]:
        """The section `name` with the run's and the variant's values laid over it.

        Returns:
            The values, not yet validated, and the keys of params.yaml that they come from.

        Raises:
            InputError: the experiment has no such section.
        """
        key = f"{self.key}.{name}"
        merged = _mapping(_get(self.tree, name, key), key)
        at_scale = self.entry.scales.get(self.scale, RunValues())
        layers = {
            f"runs.{self.name}.{name}": getattr(self.entry, name, {}),
            f"runs.{self.name}.scales.{self.scale}.{name}": getattr(at_scale, name, {}),
        }
        if name == "model" and variant:
            layers[f"runs.{self.name}.variants.{variant}"] = self.entry.variants[variant]
        for origin, layer in layers.items():
            merged = merged | layer
            key = f"{key} with {origin}" if layer else key
        return merged, key

    def section(self, name: str, cls: type[SettingsT], variant: str = "") -> SettingsT:
        """The validated section `name`, with the run's and the variant's values laid over it.

        Raises:
            InputError: one line with the full key path, what was found and what is allowed.
        """
        return cls.parse(*self.values(name, variant))


def read_text(path: Path | str, hint: str = "", limit: int = LARGEST_TEXT) -> str:
    """The text of the file at `path`, which is UTF-8 without unresolved conflicts of a merge.

    Args:
        hint: how to get the file again: the end of the message.
        limit: the largest size that is allowed, in bytes.

    Raises:
        InputError: the file is absent, is too large, is no regular file or cannot be read, or it
            holds something else.
    """
    try:
        content = read_bytes(path, limit)
        note(path, content)
        text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig").read()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file{hint}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not text in UTF-8: {error}{hint}") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{path}: line {line}: found a NUL byte; the file is damaged{hint}")
    refuse_conflicts(text, path)
    return text


def refuse_conflicts(text: str, path: Path | str) -> None:
    """Raise an `InputError` if `text`, from the file at `path`, has conflict markers of git."""
    if found := re.search(r"^(<{7}|\|{7}|={7}|>{7})( .*)?$", text, re.MULTILINE):
        line = text.count("\n", 0, found.start()) + 1
        marker = f"{found.group().strip():.40}"
        raise InputError(
            f"{path}: line {line}: found the conflict marker {marker!r} of a git merge; "
            'docs/faq.md, "merge conflict", says how to resolve it'
        )


def read_section(
    params: Mapping[str, Any], experiment: str, name: str, cls: type[SettingsT]
) -> SettingsT:
    """The validated section `name` of an experiment, at the scale that `params` chooses."""
    scale, tree = experiment_tree(params, experiment)
    key = f"{scale}.{experiment}.{name}"
    return cls.parse(_get(tree, name, key), key)


def read_params(path: Path | str = "params.yaml") -> dict[str, Any]:
    """Read params with DVC's own parser (YAML 1.2: `1e-3` is a number, `on` a string).

    Raises:
        InputError: as `read_yaml`, and for an alias: `dvc exp run -S` would change all its users,
            or none.
    """
    return _mapping(read_yaml(path, aliases=False), str(path))


def read_yaml(path: Path | str, aliases: bool = True) -> Any:
    """What the YAML file at `path` holds: text, numbers, true, false, null, lists and mappings.

    Args:
        aliases: whether anchors, aliases and merge keys are allowed.

    Raises:
        InputError: one line with the file and the line or key: the file cannot be read, is not
            valid, is too large or nested too deeply, or has something else in it.
    """
    text = read_text(path, limit=4 * LARGEST_YAML)  # a character has at most 4 bytes
    try:
        values = parse_yaml(text, aliases)
        check_plain(values)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return values


def find_run(params: Mapping[str, Any], name: str) -> Run:
    """The run called `name`, at the scale that `params` chooses.

    Raises:
        InputError: there is no such run, or its entry is wrong.
    """
    runs = _mapping(_get(params, "runs", "params.yaml: runs"), "runs")
    if name not in runs:
        raise InputError(f"runs.{name}: no such run; there are: {', '.join(map(str, runs))}")
    check_name(name, "runs")
    entry = RunEntry.parse(runs[name], f"runs.{name}")
    check_name(entry.experiment, f"runs.{name}.experiment")
    check_name(entry.slice, f"runs.{name}.slice")
    for variant in entry.variants:
        check_name(variant, f"runs.{name}.variants")
    if unknown := set(entry.scales) - set(scales(params)):
        allowed = ", ".join(scales(params))
        raise InputError(f"runs.{name}.scales.{min(unknown)}: no such scale; there are: {allowed}")
    if entry.experiment not in (experiments := _experiments(params)):
        text = f"found {quoted(entry.experiment)}; there are: {', '.join(experiments)}"
        raise InputError(f"runs.{name}.experiment: {text}")
    scale, tree = experiment_tree(params, entry.experiment)
    return Run(name, scale, entry, tree)


def runs_of(params: Mapping[str, Any], experiment: str) -> list[str]:
    """Names of the runs of an experiment, in their order.

    Its entry lists them, so that DVC runs a stage about all of them again when one comes or goes,
    and not when one is edited.

    Raises:
        InputError: there is no such experiment, or its entry lists no names.
    """
    key = f"experiments.{experiment}.runs"
    runs = _get(_entry(params, experiment), "runs", key)
    if not isinstance(runs, list) or not all(isinstance(name, str) for name in runs):
        raise InputError(f"{key}: found {quoted(runs)}; allowed is a list of runs")
    return [check_name(name, key) for name in runs]


def find_slice(params: Mapping[str, Any], experiment: str) -> str:
    """Name of the slice that has the code of `experiment`.

    Raises:
        InputError: there is no such experiment, or its entry names no slice.
    """
    experiment_tree(params, experiment)
    key = f"experiments.{experiment}.slice"
    return check_name(_get(_entry(params, experiment), "slice", key), key)


def scales(params: Mapping[str, Any]) -> list[str]:
    """Names of the scales: all top-level keys but the structural ones."""
    return [str(name) for name in params if name not in STRUCTURE]


def experiment_tree(params: Mapping[str, Any], experiment: str) -> tuple[str, dict[str, Any]]:
    """The name of the chosen scale, and the sections that `experiment` has there.

    Raises:
        InputError: there is no such scale, experiment or section.
    """
    scale = _get(params, "scale", "params.yaml: scale")
    if scale not in scales(params):
        raise InputError(f"scale: found {quoted(scale)}; allowed: {', '.join(scales(params))}")
    _entry(params, experiment)
    check_name(experiment, "experiments")
    _mapping(params[scale], scale)
    key = f"{scale}.{experiment}"
    tree = _mapping(_get(params[scale], experiment, key), key)
    if unknown := set(tree) - set(SECTIONS):
        raise InputError(
            f"{key}.{min(map(str, unknown))}: unknown key; allowed: {', '.join(SECTIONS)}"
        )
    return scale, tree


def _entry(params: Mapping[str, Any], experiment: str) -> dict[str, Any]:
    """The entry of `experiment` under `experiments:`."""
    if experiment not in (experiments := _experiments(params)):
        listed = ", ".join(experiments)
        raise InputError(f"found the experiment {quoted(experiment)}; there are: {listed}")
    return _mapping(experiments[experiment], f"experiments.{experiment}")


def _experiments(params: Mapping[str, Any]) -> dict[str, Any]:
    return _mapping(_get(params, "experiments", "params.yaml: experiments"), "experiments")


def _get(values: Mapping[str, Any], name: str, key: str) -> Any:
    if name not in values:
        raise InputError(f"{key}: missing key")
    return values[name]


def _mapping(values: Any, key: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise InputError(f"{key}: found {quoted(values)}; allowed is a mapping of keys to values")
    return values
