"""Output that nobody reads, that is full or closed, or that cannot hold every character."""

import codecs
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from project import ROOT, environment_of

from toycircuits.commands import streams

PYTHON = f"{sys.executable} -m toycircuits"
# Commands that print much, little, and on standard error; and their exit codes.
COMMANDS = {
    "show list_copy_10": 0,
    "compare linear_regression_h1 linear_regression_h2 --out {page} --markdown": 0,
    "repro --help": 0,
    "show nothing": 2,
    "--nothing": 2,
}
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def shell(command: str, page: Path, **variables: str) -> "subprocess.CompletedProcess[bytes]":
    """Run a line of bash in which `toycircuits` is the command."""
    line = "set -o pipefail; " + command.replace("toycircuits", PYTHON).replace("{page}", str(page))
    environment = environment_of(PYTHONPATH=str(ROOT / "src"), **variables)
    return subprocess.run(
        ["bash", "-c", line], cwd=ROOT, env=environment, capture_output=True, check=False
    )


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "end",
    [
        "| head -n 1",
        "| true",
        ">&-",
        ">&- 2>&-",
        "2>&-",
        "<&- >&- 2>&-",
        "2>/dev/full",
        "2>&1 | true",
    ],
)
def test_whoever_reads_the_exit_code_is_that_of_the_work(
    command: str, end: str, tmp_path: Path
) -> None:
    done = shell(f"toycircuits {command} {end}", tmp_path / "page.html")
    assert done.returncode == COMMANDS[command], done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert b"roken pipe" not in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_named(command: str, tmp_path: Path) -> None:
    done = shell(f"toycircuits {command} >/dev/full", tmp_path / "page.html")
    code = COMMANDS[command]
    assert done.returncode == (code or 1)
    if code == 0:
        line = b"error: standard output: No space left on device\n"
        assert done.stderr.endswith(line)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "variables",
    [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1:strict"}, ASCII, {"LC_ALL": "C"}],
    ids=str,
)
def test_a_terminal_without_a_character_shows_another(
    command: str, variables: dict[str, str], tmp_path: Path
) -> None:
    done = shell(f"toycircuits {command}", tmp_path / "page.html", **variables)
    assert done.returncode == COMMANDS[command], done.stderr
    assert b"Traceback" not in done.stderr
    if variables is ASCII or variables.get("PYTHONIOENCODING") == "ascii":
        assert done.stdout.isascii()
        assert b"\\u" not in done.stdout
        assert done.stderr.isascii()


def test_a_statement_is_readable_in_ascii(tmp_path: Path) -> None:
    """Or the trials above would hold for commands that print nothing but ASCII."""
    done = shell("toycircuits show list_copy_100", tmp_path, COLUMNS="300")
    assert not done.stdout.isascii()
    plain = shell("toycircuits show list_copy_100", tmp_path, COLUMNS="300", **ASCII)
    assert b"+/-" in plain.stdout


def characters() -> Iterator[str]:
    """Every character beyond ASCII in claims, settings and code: all may be printed."""
    for folder in ("claims", "src", "stages"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml"):
                yield from re.findall(r"[^\x00-\x7f]", path.read_text(encoding="utf-8"))


def test_each_character_of_the_project_has_a_plain_form() -> None:
    codecs.register_error("plain", streams._plain)
    assert {*characters()} >= {*"±≤≥"}
    for character in {*characters()}:
        plain = character.encode("ascii", "plain").decode()
        assert "\\" not in plain, f"{character} has no plain form in streams.PLAIN"
    assert "研\udcff".encode("ascii", "plain") == rb"\u7814\udcff"


def test_a_descriptor_that_does_not_block_is_waited_for() -> None:
    """A terminal that another program has made non-blocking loses no text."""
    code = (
        "import os, sys; from toycircuits.commands import streams; os.set_blocking(1, False);"
        "streams.prepare(); print('x' * 1_000_000); sys.exit(bool(streams.failure()))"
    )
    command = f'{sys.executable} -c "{code}" | (sleep 1; wc -c)'
    environment = environment_of(PYTHONPATH=str(ROOT / "src"))
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], env=environment,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "1000001", "")


def test_a_closed_stream_gets_no_file_of_the_command(tmp_path: Path) -> None:
    """The next file that is opened would get number 1, and what is printed would land in it."""
    code = (
        "import os; from pathlib import Path; from toycircuits.commands import streams;"
        "streams.prepare(); file = open('file', 'w'); print('lost'); os.system('echo lost');"
        "file.write('kept'); file.close()"
    )
    command = f'{sys.executable} -c "{code}" <&- >&- 2>&-'
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True,
                   env=environment_of(PYTHONPATH=str(ROOT / "src")))  # fmt: skip
    assert (tmp_path / "file").read_text() == "kept"


def test_names_of_any_language_work_in_any_locale(tmp_path: Path) -> None:
    """In an ASCII locale, Python itself would take the names of files for ASCII."""
    folder = tmp_path / "mødel 研究"
    folder.mkdir()
    for name in ("params.yaml", "dvc.yaml", "stages/train.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    environment = environment_of(PYTHONPATH=str(ROOT / "src"), **ASCII)
    done = subprocess.run([sys.executable, "-m", "toycircuits", "show", "list_copy_10"], cwd=folder,
                          env=environment, capture_output=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert os.environ.get(streams.ENCODING) is None
