"""What each stage was made from, where, and in what time: the report's source of provenance.

They stand beside the results, in git. DVC knows nothing of times and machines, and would take a
stage's outs for changed if they were in them.
"""

import contextlib
import hashlib
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toycircuits.core.config import InputError

RECORDS = Path("reports/stages.json")
SUMMED = ("seconds", "processor_seconds")


class Records:
    """The file of records of one project.

    Args:
        file: where they stand: stages by name. Each has its entry of dvc.lock (`cmd`, `deps`,
            `params`, `outs`), `commit` and `edited` of the code, and of its run `seconds`,
            `processor_seconds` and the machine, summed over attempts that were interrupted.
        spent: folder for what unfinished attempts have taken so far.
        left_out: stages that read this file, which cannot be in it.
        code: paths of the project whose edits count as such.
        source: the folder that git knows.

    Raises:
        InputError: the file holds something else; it is left as it is.
    """

    def __init__(
        self, file: Path, spent: Path, left_out: set[str], code: Sequence[str], source: Path
    ) -> None:
        self._file, self._spent, self._left_out = file, spent, left_out
        self._records = _read(file)
        edited = bool(_git(source, "status", "--porcelain", "--", *code))
        self._code = {"commit": _git(source, "rev-parse", "HEAD").strip(), "edited": edited}

    def add(
        self, stage: str, entry: dict[str, Any], told: list[dict[str, Any]], ended: bool
    ) -> None:
        """Enter that `stage` has run, or has been taken from the cache, with nothing `told`.

        Raises:
            OSError: the file cannot be written.
        """
        if stage in self._left_out:
            return
        if not told:
            if _made_of(self._records.get(stage, {})) != entry:
                self._records.pop(stage, None)  # made by somebody who kept no record
                self._write()
            return
        kept = self._spent / f"{stage.replace('/', '_')}.json"
        source = {name: value for name, value in entry.items() if name != "outs"}
        digest = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # of no use
            before = json.loads(kept.read_text())
            told = [*before["told"], *told] if before["of"] == digest else told
        if not ended:
            self._spent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps({"of": digest, "told": told}))
            return
        kept.unlink(missing_ok=True)
        known = {name: [t[name] for t in told] for name in SUMMED}
        sums = {name: None if None in all_ else round(sum(all_), 1) for name, all_ in known.items()}
        self._records[stage] = entry | self._code | told[-1] | sums | {"attempts": len(told)}
        self._write()

    def _write(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        partial = self._file.with_name(f".{self._file.name}.partial")
        partial.write_text(json.dumps(dict(sorted(self._records.items())), indent=1) + "\n")
        partial.replace(self._file)


def _read(file: Path) -> dict[str, Any]:
    """The records in `file`; none where there is no file."""
    hint = "`git checkout` brings the last ones back, `{}` begins anew"
    try:
        records = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(f"{file}: not valid JSON: {error}; {hint}") from None
    if not isinstance(records, dict):
        found = f"found {type(records).__name__}"
        raise InputError(f"{file}: {found}; allowed is an object of records by stage; {hint}")
    for stage, record in records.items():
        if not isinstance(record, dict):
            found = f"found {json.dumps(record)[:80]}"
            raise InputError(f"{file}: {stage}: {found}; allowed is an object; {hint}")
    return records


def _made_of(record: dict[str, Any]) -> dict[str, Any]:
    """The part of a record that dvc.lock has, too."""
    return {k: record[k] for k in ("cmd", "deps", "params", "outs") if k in record}


def _git(folder: Path, *words: str) -> str:
    """What git answers; nothing where there is no git."""
    try:
        done = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout
