"""The usual ways into the command: help, version, `python -m`; and arguments that do not fit."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from project import ROOT, environment_of
from typer.testing import CliRunner

import toycircuits
from toycircuits import cli
from toycircuits.core.config import InputError

SOURCE = {"PYTHONPATH": str(ROOT / "src")}
COMMANDS = [command.name or command.callback.__name__ for command in cli.app.registered_commands
            if command.callback is not None]  # fmt: skip


def call(*arguments: str, folder: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "toycircuits", *arguments],
        cwd=folder,
        env=environment_of(**SOURCE),
        capture_output=True,
        text=True,
        check=False,
    )


def refused(*arguments: str, folder: Path = ROOT) -> str:
    """The one line with which the command refuses `arguments`."""
    done = call(*arguments, folder=folder)
    assert (done.returncode, done.stdout) == (2, ""), done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_version_and_help_are_there_in_every_spelling() -> None:
    assert call("--version").stdout == f"toycircuits {toycircuits.__version__}\n"
    assert toycircuits.__version__[0].isdigit()
    whole = call("--help")
    assert whole.returncode == 0
    for same in (call("-h"), call()):
        assert (same.returncode, same.stdout, same.stderr) == (0, whole.stdout, "")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_both_options_of_help(name: str) -> None:
    short, long = (CliRunner().invoke(cli.app, [name, option]) for option in ("-h", "--help"))
    assert short.exit_code == long.exit_code == 0
    assert short.output == long.output
    assert f"toycircuits {name}" in short.output.replace("root", "toycircuits")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["lst"], "error: No such command 'lst'. Did you mean 'list'?; `toycircuits -h` shows"),
        (["--foo"], "error: No such option: --foo; `toycircuits -h` shows what is allowed"),
        (["--debug"], "error: Missing command; `toycircuits -h` shows what is allowed"),
        (["show"], "`toycircuits show -h` shows what is allowed"),
        (["compare", "a", "b", "c"], "unexpected extra argument"),
        (["repro", "--forse"], "error: No such option: --forse"),
        (["repro", "-j", "0"], "'-j' / '--jobs': "),
        (["repro", "-j", "two"], "'-j' / '--jobs': "),
        (["repro", "--scale"], "'--scale' requires an argument"),
        (["figures", "--format"], "'--format' requires an argument"),
        (["list", "everything"], "unexpected extra argument"),
        (["show", "a\nb"], "error: found 'a\\nb'; there are: "),
        (["new-experiment", "."], "error: found the name '.'; allowed: "),
        (["new-experiment", "../x"], "error: found the name '../x'; allowed: "),
        (["show", ".."], "error: found '..'; there are: "),
        (["figures", "/"], "error: /: found ''; allowed: "),
        (["compare", "HEAD", "--out", "/"], "error: --out: found the folder /; allowed: the name"),
    ],
)
def test_arguments_that_do_not_fit_are_one_line(arguments: list[str], text: str) -> None:
    assert text in refused(*arguments)


@pytest.mark.parametrize("empty", ["", " ", "\t\n"])
@pytest.mark.parametrize("name", COMMANDS)
def test_an_empty_argument_is_refused_and_not_taken_for_a_default(name: str, empty: str) -> None:
    """A person wrote `toycircuits compare $REVISION`, and the variable was not set."""
    done = CliRunner().invoke(cli.app, [name, empty])
    assert done.exit_code == 2
    assert f"found {empty!r}; is a shell variable unset?" in " ".join(done.output.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["repro", "--scale", ""],
        ["repro", "--scale="],
        ["repro", "--engine", ""],
        ["repro", "--scheduler="],
        ["repro", "-j", ""],
        ["repro", "train@list_copy_10", ""],
        ["repro", "--", ""],
        ["compare", "HEAD", ""],
        ["compare", "HEAD", "--out", ""],
        ["figures", "--out="],
        ["figures", "--width", " "],
        [""],
    ],
)
def test_options_are_not_empty_either(arguments: list[str]) -> None:
    assert "is a shell variable unset?" in refused(*arguments)


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    command = f"cd gone; rmdir ../gone; {sys.executable} -m toycircuits check"
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env=environment_of(**SOURCE), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    text = "error: the working folder does not exist any more; `cd` to another one\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", text)


def test_outside_a_project_it_says_which_one_it_means(tmp_path: Path) -> None:
    done = call("check", folder=tmp_path)
    assert done.returncode == 0
    assert done.stderr == f"note: there is no project around {tmp_path}; this is {ROOT}\n"
    assert call("check", folder=ROOT / "docs").stderr == ""


def test_without_git_one_line_says_what_works_and_what_to_do(tmp_path: Path) -> None:
    for name in ("params.yaml", "dvc.yaml", "stages/train.py", ".dvc/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for name in ("list", "fresh", "cost", "fsck", "repro"):
        text = refused(name, folder=tmp_path)
        assert text.startswith(f"error: {tmp_path}: this folder is not a git repository, ")
        assert "`git init && git add --all && git commit -m start`" in text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"name": ""}, "run: found ''; allowed: "),
        ({"name": "."}, "run: found '.'; allowed: "),
        ({"rev": ""}, "rev: found ''; allowed: "),
        ({"rev": " "}, "rev: found ' '; allowed: "),
        ({"rev": "\0"}, r"rev: found '\\x00'; allowed: "),
        ({"rev": "."}, "rev: found '.'; allowed: "),
        ({"rev": "--all"}, "rev: found '--all'; allowed: "),
        ({"model": ""}, "has no model ''; it has: "),
        ({"root": ""}, "root: found ''; allowed: "),
    ],
)
def test_load_run_takes_nothing_empty_for_a_default(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        toycircuits.load_run(**({"name": "list_copy_10"} | arguments))
