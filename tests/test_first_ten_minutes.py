"""The commands of docs/first-ten-minutes.md run, one after the other."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from project import ROOT, Project, environment_of

PAGE = (ROOT / "docs/first-ten-minutes.md").read_text()
BLOCKS = re.findall(r"^```(console|python)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
# The environment exists already. tests/test_scale_copy.py tests what `make reproduce` calls.
# Its results are there, too: the stages that run are those of `dvc exp run`.
SET_UP = {"make reproduce": "toycircuits repro", "source .venv/bin/activate": "true"}


@pytest.mark.slow
def test_first_ten_minutes(finished: Project, tmp_path: Path) -> None:
    copy = finished.copy(tmp_path / "project")
    shutil.copytree(ROOT / "tests/experiments", copy.folder / "tests/experiments")
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin/toycircuits"
    call = "from toycircuits.cli import run; run()"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{call}" "$@"\n')
    script.chmod(0o755)
    environment = environment_of(
        PYTHONPATH=str(copy.folder / "src"),
        DVC_STUDIO_OFFLINE="1",
        TOYCIRCUITS_AUDIT=str(copy.audit),
    )
    environment["PATH"] = f"{tmp_path / 'bin'}:{environment['PATH']}"

    def call_shell(command: str) -> str:
        done = subprocess.run(
            ["sh", "-ec", command],
            cwd=copy.folder,
            env=environment,
            text=True,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        return str(done.stdout)

    output = {}
    for language, block in BLOCKS:
        if language == "python":
            output["python"] = call_shell(f"{sys.executable} - <<'END'\n{block}END\n")
            continue
        for line in block.splitlines():
            command = line.removeprefix("$ ")
            assert command != line, f"not a command: {line}"
            output[command] = call_shell(SET_UP.get(command, command))
            if command == "make reproduce":
                call_shell("git add -A && git commit --quiet --message results")

    assert "torch.Size([1, 1, 5, 5])" in output["python"]
    assert "fresh" in output["toycircuits list"]
    assert (
        "quick.list_copy_10.model.freeze_W_V  True"
        in output["toycircuits compare HEAD free-values"]
    )
    assert (copy.folder / "compare.html").exists()
    assert "is valid" in output["toycircuits check"]

    # The experiment ran in a folder of its own, by the code of that folder.
    code = copy.log("train@list_copy_10")["code"]
    assert any(file.endswith("src/toycircuits/core/training.py") for file in code)
    assert all("/.dvc/tmp/exps/" in file for file in code)
