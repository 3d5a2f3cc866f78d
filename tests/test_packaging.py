"""The wheel holds what it should and works outside the project; stated versions agree."""

import re
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from project import ROOT, output
from ruamel.yaml import YAML

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"].values()
REQUIREMENTS = [
    requirement
    for text in [*PROJECT["dependencies"], *(text for extra in EXTRAS for text in extra)]
    if (requirement := Requirement(text)).name != PROJECT["name"]
]


def run(folder: Path, *command: str | Path) -> str:
    """Standard output of a command that must succeed, and sees no code but what is installed."""
    return output(folder, *map(str, command), PYTHONPATH="")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    run(folder, sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", folder, ROOT)
    [file] = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the wheel, and the libraries of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    offline = ("--no-deps", "--no-index", "--quiet")
    run(folder, sys.executable, "-m", "pip", "--python", python, "install", *offline, wheel)
    [site] = folder.glob("lib/*/site-packages")
    # Paths of a .pth file come last, and their own .pth files (our editable install) are not read.
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "libraries.pth").write_text("\n".join(sorted(libraries)))
    return python.parent


def test_the_wheel_holds_both_packages_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    paths = [path for path in (ROOT / "src").rglob("*") if path.is_file()]
    files = {str(path.relative_to(ROOT / "src")) for path in paths if path.suffix != ".pyc"}
    assert names == files
    assert {"toycircuits/py.typed", "toycircuits/report/templates/page.html"} < names
    assert {"dvc_parallel/py.typed", "dvc_parallel/fork_server.py"} < names


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    info = f"{PROJECT['name']}-{PROJECT['version']}.dist-info"
    metadata = archive.read(f"{info}/METADATA").decode()
    for line in ("License-Expression: MIT", f"Requires-Python: {PROJECT['requires-python']}"):
        assert line in metadata.splitlines()
    assert "torch>=" in metadata
    assert archive.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert b"toycircuits = toycircuits.cli:run" in archive.read(f"{info}/entry_points.txt")


def test_the_installed_command_works_outside_the_project(installed: Path, tmp_path: Path) -> None:
    assert "repro" in run(tmp_path, installed / "toycircuits", "--help")


def test_the_installed_package_loads_a_run_of_a_project(installed: Path, tmp_path: Path) -> None:
    code = f"""
import toycircuits
run = toycircuits.load_run("list_copy_10", root={str(ROOT)!r})
_, cache = run.model.run_with_cache(run.data["all_inputs"][:1])
print(toycircuits.__file__, tuple(cache["blocks.0.attn.hook_pattern"].shape), sep="\\n")
"""
    file, shape = run(tmp_path, installed / "python", "-c", code).splitlines()
    assert Path(file).is_relative_to(installed.parent)
    assert shape == "(1, 1, 5, 5)"


def test_the_installed_package_says_that_it_finds_no_project(
    installed: Path, tmp_path: Path
) -> None:
    code = """
import toycircuits, toycircuits.core.config
try:
    toycircuits.load_run("list_copy_10")
except toycircuits.core.config.InputError as error:
    print(error)
"""
    assert "no toycircuits project" in run(tmp_path, installed / "python", "-c", code)


def test_the_citation_is_of_this_version() -> None:
    citation = YAML(typ="safe").load(ROOT / "CITATION.cff")
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]


def pins(name: str) -> dict[str, list[Version]]:
    """Versions that a file of constraints names, by package; more than one if platforms differ."""
    versions: dict[str, list[Version]] = {}
    for line in (ROOT / name).read_text().splitlines():
        if line and not line.startswith("#"):
            package, version = re.split("==", line.split(";")[0].strip())
            versions.setdefault(canonicalize_name(package), []).append(Version(version))
    return versions


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-lower.txt"])
def test_constraints_pin_every_dependency_within_its_range(file: str) -> None:
    pinned = pins(file)
    for requirement in REQUIREMENTS:
        versions = pinned[canonicalize_name(requirement.name)]
        assert all(version in requirement.specifier for version in versions), requirement
    # They belong to builds of torch for CUDA, and who has none should not get them.
    assert not [name for name in pinned if re.match("cuda|nvidia|triton", name)]


def test_lower_bounds_are_what_is_tested() -> None:
    pinned = pins("constraints-lower.txt")
    for requirement in REQUIREMENTS:
        [bound] = [Version(part.version) for part in requirement.specifier if part.operator == ">="]
        assert min(pinned[canonicalize_name(requirement.name)]) == bound, requirement


def test_the_image_is_made_of_files_that_exist() -> None:
    text = (ROOT / "Dockerfile").read_text()
    copied = re.findall(r"^COPY --chown=\S+ (.+) \S+$", text, re.MULTILINE)
    assert len(copied) == 4
    assert [name for line in copied for name in line.split() if not (ROOT / name).exists()] == []
