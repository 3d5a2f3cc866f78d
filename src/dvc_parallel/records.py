"""Keep a record of how each stage was made: its inputs, its code, the machine and the time.

DVC does not record times and machines. They cannot be results of the stage, because DVC would take
the results for changed after every run. So they are in a file of their own beside the results.
"""

import hashlib
import json
import math
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dvc_parallel.files import State, replacing, state_of

SUMMED = ("seconds", "processor_seconds")


class Records:
    """The file of records of one project.

    Args:
        file: holds a record for each stage, by name. A record is the stage's entry of dvc.lock
            (`cmd`, `deps`, `params`, `outs`), the `commit` of the code and whether it was `edited`
            since (null if git does not tell), the machine, and the `seconds` and
            `processor_seconds` of all attempts together.
        records: what the file holds now; nothing, if there is no file.
        unfinished: folder for what is known of the attempts at stages that have not ended yet.
        left_out: stages that get no record, because they read this file.
        code: paths of the project in which an uncommitted edit counts as one of the code.
        source: the folder of the git repository.
    """

    def __init__(
        self,
        file: Path,
        records: Mapping[str, Any],
        unfinished: Path,
        left_out: set[str],
        code: Sequence[str],
        source: Path,
    ) -> None:
        self._file, self._unfinished, self._left_out = file, unfinished, left_out
        self._records = dict(records)
        self._paths, self._source = code, source
        self._state = self._state_of_code()
        self._code = self._ask_git()
        self._code_of: dict[str, dict[str, Any]] = {}

    def begin(self, stage: str) -> None:
        """Note the commit of the code with which the command of `stage` is about to start."""
        if (state := self._state_of_code()) != self._state:
            self._state, self._code = state, self._ask_git()
            if Path.cwd() != self._source.resolve():  # in a copy, whose edits git does not see
                self._code["edited"] = True
        self._code_of[stage] = self._code

    def _state_of_code(self) -> list[State]:
        return [state_of(str(Path(path).absolute()), str(Path.cwd())) for path in self._paths]

    def _ask_git(self) -> dict[str, Any]:
        """The commit of the code, and whether it was edited since; None if git cannot tell."""
        status = _git(self._source, "status", "--porcelain", "--", *self._paths)
        commit = _git(self._source, "rev-parse", "--verify", "--quiet", "HEAD")
        return {
            "commit": (commit or "").strip(),
            "edited": None if status is None else bool(status),
        }

    def add(
        self, stage: str, entry: dict[str, Any], attempts: list[dict[str, Any]], ended: bool
    ) -> None:
        """Record that `stage` has run, or that its results came from the cache.

        Args:
            entry: what dvc.lock says of the stage.
            attempts: where and how long each of its attempts ran; none if its results came from
                the cache.
            ended: whether the last attempt has ended well. Otherwise its time is added to that of
                later attempts with the same inputs.

        Raises:
            OSError: the file cannot be written.
        """
        if stage in self._left_out:
            return
        if not attempts:
            if _lock_entry(self._records.get(stage, {})) != entry:
                self._records.pop(stage, None)  # we do not know how these results were made
                self._write()
            return
        file = self._unfinished / f"{stage.replace('/', '_')}.json"
        inputs = {name: value for name, value in entry.items() if name != "outs"}
        digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
        attempts = [*_earlier(file, digest), *attempts]
        if not ended:
            self._unfinished.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"of": digest, "attempts": attempts})
            with replacing(file) as partial:
                partial.write_text(text, encoding="utf-8")
            return
        file.unlink(missing_ok=True)
        sums = {name: _sum([attempt[name] for attempt in attempts]) for name in SUMMED}
        last = attempts[-1] | sums | {"attempts": len(attempts)}
        self._records[stage] = entry | self._code_of.get(stage, self._code) | last
        self._write()

    def _write(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self._file) as partial:
            text = json.dumps(dict(sorted(self._records.items())), indent=1) + "\n"
            partial.write_text(text, encoding="utf-8")


def _earlier(file: Path, digest: str) -> list[dict[str, Any]]:
    """The attempts in `file` at a stage with these inputs; none if it is absent or damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        attempts = content["attempts"] if content["of"] == digest else []
        times = [attempt[name] for attempt in attempts for name in SUMMED]
        return [*attempts] if all(time is None or 0 <= time < math.inf for time in times) else []
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return []


def _sum(values: list[float | None]) -> float | None:
    """The sum, or None if a value is unknown."""
    known = [value for value in values if value is not None]
    return round(sum(known), 1) if len(known) == len(values) else None


def _lock_entry(record: dict[str, Any]) -> dict[str, Any]:
    """The part of a record that is also in dvc.lock."""
    return {k: record[k] for k in ("cmd", "deps", "params", "outs") if k in record}


def _git(folder: Path, *words: str) -> str | None:
    """The output of a git command in the repository around `folder`.

    None if it fails or there is no git.
    """
    # In its hooks, git names a repository, which may be another one.
    named = {"GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_PREFIX"}
    named |= {"GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_NAMESPACE"}
    environment = {name: value for name, value in os.environ.items() if name not in named}
    try:
        done = subprocess.run(
            ["git", *words],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return None if done.returncode else done.stdout
