"""What runs without a person: the target of make that looks for Chrome, and the jobs of CI."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from project import ROOT
from ruamel.yaml import YAML


@pytest.mark.parametrize("shell", ["dash", "bash"])
@pytest.mark.parametrize("name", ["chrome", "google-chrome-stable", "chromium", None])
def test_make_finds_chrome_under_any_of_its_names(
    tmp_path: Path, shell: str, name: str | None
) -> None:
    """And installs one only if there is none."""
    if not shutil.which(shell) or not shutil.which("make"):
        pytest.skip(f"no {shell} or no make")
    (tmp_path / "bin").mkdir()
    for tool in (shell, "make"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool) or "")
    scripts = {"id": "echo 0", "apt-get": 'echo "$@" >>installed'}
    for tool, script in (scripts | ({name: "true"} if name else {})).items():
        (tmp_path / "bin" / tool).write_text(f"#!{shutil.which(shell)}\n{script}\n")
        (tmp_path / "bin" / tool).chmod(0o755)
    shutil.copy(ROOT / "Makefile", tmp_path / "Makefile")
    environment = {"PATH": str(tmp_path / "bin"), "HOME": os.environ.get("HOME", "/")}
    done = subprocess.run(
        ["make", f"SHELL={shutil.which(shell)}", "chrome"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    asked = (tmp_path / "installed").read_text() if (tmp_path / "installed").exists() else ""
    assert ("chromium" in asked) == (name is None)


def steps_of_reproduce() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The job that runs a pull request's code on a machine with secrets, and its steps."""
    workflow = YAML(typ="safe").load((ROOT / ".github/workflows/reproduce.yml").read_text())
    job = workflow["jobs"]["reproduce"]
    return workflow | job, job["steps"]


def test_secrets_are_for_the_steps_that_need_them() -> None:
    whole, steps = steps_of_reproduce()
    assert "env" not in whole
    secret = [step["run"] for step in steps if "secrets." in str(step)]
    assert len(secret) == 1
    assert "dvc pull" in secret[0]
    token = [step["run"] for step in steps if "github.token" in str(step)]
    assert len(token) == 1
    assert "gh pr comment" in token[0]


def test_the_checkout_leaves_no_credentials_and_has_the_base_branch() -> None:
    checkout = steps_of_reproduce()[1][0]["with"]
    assert checkout["persist-credentials"] is False
    assert checkout["fetch-depth"] == 0
    assert "git fetch" not in str(steps_of_reproduce()[1])
