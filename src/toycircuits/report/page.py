"""The whole page: sections of experiments, and how each result was made."""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from toycircuits.core.config import InputError
from toycircuits.report.section import MARKS, PROVENANCE, environment, script_json


def belonging(records: Mapping[str, Any], params: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """Records whose files and settings are those that stand in the project now.

    Whole folders are not looked at, nor files that are absent, as git does not carry all.
    """
    return {
        stage: record
        for stage, record in records.items()
        if all(
            value == _at(params, key)
            for key, value in record.get("params", {}).get("params.yaml", {}).items()
        )
        and all(
            _is_as_recorded(root / entry["path"], entry["md5"])
            for entry in [*record.get("deps", []), *record.get("outs", [])]
        )
    }


def _at(params: Mapping[str, Any], key: str) -> Any:
    """The setting at a key with dots."""
    value: Any = params
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


@cache
def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _is_as_recorded(path: Path, md5: str) -> bool:
    return md5.endswith(".dir") or not path.is_file() or _md5(path) == md5


def stages_of(experiment: str, params: Mapping[str, Any]) -> list[str]:
    """Names of the stages that lead to the figures of `experiment`, in their order."""
    runs = [name for name, run in params["runs"].items() if run["experiment"] == experiment]
    verbs = ("train", "measure", "ablate")
    middle = [f"{verb}@{run}" for verb in verbs for run in runs]
    return [f"generate@{experiment}", *middle, f"render@{experiment}", f"judge@{experiment}"]


def seeds_of(stage: str, params: Mapping[str, Any]) -> str:
    """Seeds of initial weights of a stage that trains, of data of one that generates."""
    verb, _, name = stage.partition("@")
    tree = params[params["scale"]]
    if verb == "generate":
        return f"data {tree[name]['data'].get('seed', '')}"
    if verb != "train":
        return ""
    run = params["runs"][name]
    own = run.get("scales", {}).get(params["scale"], {}).get("train", {})
    train = tree[run["experiment"]]["train"] | run.get("train", {}) | own
    text = "weights " + ", ".join(map(str, train["weight_seeds"]))
    batches = train.get("batch_seeds")
    return text + ("; batches " + ", ".join(map(str, batches)) if batches else "")


def duration(seconds: float | None) -> str:
    """Seconds as people read them.

    >>> duration(4.21), duration(75), duration(7384), duration(None)
    ('4.2 s', '1 min 15 s', '2 h 3 min', 'not recorded')
    """
    if seconds is None:
        return "not recorded"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def read_records(path: Path) -> dict[str, Any]:
    """What is known of the run of each stage.

    Raises:
        InputError: the file is not what `toycircuits repro` writes.
    """
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSON's, and that of bytes that are no text
        raise InputError(f"{path}: not valid JSON: {' '.join(str(error).split())}") from None
    if not isinstance(records, dict):
        found = type(records).__name__
        raise InputError(f"{path}: found a {found}; allowed is an object of stages")
    for stage, record in records.items():
        if not isinstance(record, dict):
            raise InputError(f"{path}: {stage}: found {record!r:.80}; allowed is an object")
    return records


def totals(stages: Mapping[str, Any]) -> dict[str, Any]:
    """Time of all stages together, and the machines that it was measured on.

    Args:
        stages: stage -> its record, or None; one without a time is counted apart.
    """
    records = [record for record in stages.values() if record]
    used = [record["processor_seconds"] for record in records]
    used = [seconds for seconds in used if seconds is not None]
    machines = {
        f"{record['processor']}, {record['cores']} cores, {record['system']}, "
        f"Python {record['python']}, torch {record['torch']}"
        + "".join(f", {gpu}" for gpu in record["gpus"])
        for record in records
        if record["processor_seconds"] is not None
    }
    told = {"processor": duration(sum(used)), "machines": "; ".join(sorted(machines))}
    return {**told, "timed": len(used), "untimed": len(stages) - len(used)}


def page(
    sections: Mapping[str, str],
    titles: Mapping[str, str],
    counts: Mapping[str, Mapping[str, int]],
    records: Mapping[str, Any],
    params: Mapping[str, Any],
    plotly: str,
    template: Mapping[str, Any],
) -> str:
    """The page as one text.

    Args:
        sections: experiment -> its HTML.
        titles: experiment -> its heading.
        counts: experiment -> outcome -> number of claims.
        records: stage -> what is known of its run.
        params: all of params.yaml.
        plotly: the library's source.
        template: Plotly template of all figures.
    """
    templates = environment()
    known = belonging(records, params, Path())
    filled, everything = {}, dict(known)
    for name, text in sections.items():
        stages = {stage: known.get(stage) for stage in stages_of(name, params)}
        everything |= stages
        seeds = {stage: seeds_of(stage, params) for stage in stages}
        provenance = templates.get_template("provenance.html").render(
            experiment=name, stages=stages, seeds=seeds, duration=duration
        )
        filled[name] = Markup(text.replace(PROVENANCE, provenance))
    folder = Path(__file__).parent / "templates"
    outcomes = next(iter(counts.values()))
    return templates.get_template("page.html").render(
        scale=params["scale"],
        sections=filled,
        titles=titles,
        counts=counts,
        marks=MARKS,
        sums={outcome: sum(own[outcome] for own in counts.values()) for outcome in outcomes},
        totals=totals(everything),
        style=Markup((folder / "page.css").read_text()),
        script=Markup((folder / "page.js").read_text()),
        plotly=Markup(plotly.replace("</script", "<\\/script")),
        template=Markup(script_json(template)),
    )
