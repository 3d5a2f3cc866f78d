"""`attest` tells the same bytes from others, others from missing ones, and whom to ask."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from project import Project

from toycircuits.commands import attest as attestation
from toycircuits.commands.attest import attest, find_place, hash_of, write_attestation
from toycircuits.core.checkpoints import read_tensors, write_tensors
from toycircuits.core.config import InputError

RUN = "list_copy_10"
WEIGHTS = f"reports/weights/{RUN}.safetensors"
TABLE = f"reports/{RUN}/tables/{RUN}/training.csv"


def test_the_hash_of_weights_is_that_of_names_types_shapes_and_values() -> None:
    a, b = torch.arange(6.0).reshape(2, 3), torch.ones(2)
    expected = hash_of({"a": a, "b": b})
    assert hash_of({"b": b.clone(), "a": a.t().contiguous().t()}) == expected
    others = (
        *({"a": a, "c": b}, {"a": b, "b": a}, {"a": a}, {"a": a.reshape(3, 2), "b": b}),
        *({"a": a.double(), "b": b}, {"a": a.nextafter(a + 1), "b": b}, {"a": a, "b": -(-b * 0)}),
    )
    assert expected not in {hash_of(tensors) for tensors in others}
    assert len({hash_of(tensors) for tensors in others}) == len(others)
    assert hash_of({"a": torch.tensor(0.0)}) != hash_of({"a": torch.tensor(-0.0)})


@pytest.fixture
def project(finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of a finished project with its file of hashes."""
    copy = finished.copy(tmp_path / "project")
    monkeypatch.chdir(copy.folder)
    assert write_attestation(find_place(copy.folder, None)) == Path("attest/quick.json")
    return copy


def compared(project: Project, capsys: pytest.CaptureFixture[str]) -> tuple[bool, list[str]]:
    """The answer, and the lines that are printed."""
    capsys.readouterr()
    is_same = attest(find_place(project.folder, None))
    return is_same, capsys.readouterr().out.splitlines()


@pytest.mark.slow
def test_the_same_bytes(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads((project.folder / "attest/quick.json").read_text())
    n = len(told["results"])
    tables = [*project.folder.glob("reports/*/tables/**/*.csv")]
    tables += project.folder.glob("reports/*/summary/*.csv")
    assert n == len(tables) + 1
    assert not any("claims" in name for name in told["results"])
    assert told["versions"]["torch"] == torch.__version__
    is_same, (first, made_by, here) = compared(project, capsys)
    assert is_same
    assert first == f"same bytes: {n} of {n}"
    assert made_by.removeprefix("made by: ") == here.removeprefix("here: ")
    # Other metadata in the file of weights are no other weights.
    tensors, metadata = read_tensors(project.folder / WEIGHTS)
    for member in metadata["members"].values():
        member["anything"] = "else"
    write_tensors(project.folder / WEIGHTS, tensors, metadata)
    assert compared(project, capsys)[0]


@pytest.mark.slow
def test_what_differs_and_what_is_missing_are_told_apart(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    table = project.folder / TABLE
    content = table.read_bytes()
    table.write_bytes(content.replace(b"0", b"1", 1))
    is_same, lines = compared(project, capsys)
    assert not is_same
    n = int(lines[0].split()[-1])
    assert lines[0] == f"same bytes: {n - 1} of {n}"
    assert lines[3] == f"differs: 1: {TABLE}"
    assert re.fullmatch(r"likely reason: results are stale; .*", lines[4])

    table.unlink()
    is_same, lines = compared(project, capsys)
    assert not is_same
    assert lines[0] == f"same bytes: {n - 1} of {n}"
    made = f"; `toycircuits repro --force train@{RUN}` makes the first of them"
    assert lines[3:] == [f"missing: 1: {TABLE}{made}"]

    shutil.rmtree(project.folder / "reports" / RUN / "tables")
    _, lines = compared(project, capsys)
    found = re.fullmatch(
        r"missing: (\d+): (.*), and (\d+) more; `toycircuits repro --f.*", lines[3]
    )
    assert found
    assert int(found[1]) == int(found[3]) + len(found[2].split(", "))

    table.parent.mkdir(parents=True)
    table.write_bytes(content)
    (table.parent / "new.csv").write_text("x\n")
    _, lines = compared(project, capsys)
    assert lines[4].startswith("not in attest/quick.json: 1: ")


@pytest.mark.slow
def test_a_weight_that_differs_by_one_bit_and_other_versions_are_named(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = project.folder / "attest/quick.json"
    told = json.loads(file.read_text())
    told["versions"] |= {"torch": "1.0", "libc": "glibc 2.1"}
    told["processor"] = "another one"
    file.write_text(json.dumps(told))
    is_same, lines = compared(project, capsys)
    assert is_same, "other versions are no other results"
    assert lines[1].startswith("made by: another one; torch 1.0, numpy ")

    tensors, metadata = read_tensors(project.folder / WEIGHTS)
    name = min(tensors)
    tensors[name].view(-1)[0] = tensors[name].view(-1)[0].nextafter(torch.tensor(9.0))
    write_tensors(project.folder / WEIGHTS, tensors, metadata)
    monkeypatch.setattr(attestation, "outdated", lambda root: {"report"})
    is_same, lines = compared(project, capsys)
    assert not is_same
    assert lines[3] == f"differs: 1: final weights of {RUN}"
    assert lines[4].startswith(f"likely reason: other versions: torch is {torch.__version__}, and ")
    assert "; libc is glibc " in lines[4]
    assert lines[4].endswith(", and was glibc 2.1")
    told["versions"] = json.loads(json.dumps(attestation._this_machine()["versions"]))
    file.write_text(json.dumps(told))
    _, lines = compared(project, capsys)
    assert "neither results nor versions have changed" in lines[4]


@pytest.mark.slow
def test_stale_and_missing_results_are_not_written(project: Project) -> None:
    before = (project.folder / "attest/quick.json").read_text()
    params = project.read_params()
    params["quick"][RUN]["train"]["lr"] = 0.5
    project.write_params(params)
    with pytest.raises(InputError) as error:
        write_attestation(find_place(project.folder, None))
    assert re.fullmatch(
        r"section@list_copy_10: its results are stale \(and 1 more\); [^\n]*", str(error.value)
    )
    assert (project.folder / "attest/quick.json").read_text() == before


@pytest.mark.slow
def test_what_is_not_portable_is_neither_compared_nor_written(project: Project) -> None:
    params = project.read_params()
    params["portable"]["quick"] = False
    project.write_params(params)
    for write in ((), ("--write",)):
        code, out, err = project.run("toycircuits", "attest", *write)
        assert (code, out) == (2, "")
        why = "only portable results have the same bytes"
        assert err == f"error: portable.quick: found false; {why}\n"
    assert project.run("toycircuits", "attest", "--scale", "papr")[2] == (
        "error: --scale: found 'papr'; allowed: quick, paper\n"
    )


@pytest.mark.slow
def test_a_copy_of_a_scale_is_attested_by_the_file_of_the_project(project: Project) -> None:
    code, _, err = project.run("toycircuits", "attest", "--scale", "quick")
    assert code == 2
    assert err == (
        f"error: {project.folder}/quick: found no results there; "
        "`toycircuits repro --scale quick` makes them\n"
    )
    project.write_params(project.read_params() | {"scale": "paper"})
    code, _, err = project.run("toycircuits", "repro", "--scale", "quick")
    assert code == 0, err
    code, out, err = project.run("toycircuits", "attest", "--scale", "quick")
    assert code == 0, err
    assert re.match(r"same bytes: (\d+) of \1\n", out)
    before = (project.folder / "attest/quick.json").read_text()
    assert project.run("toycircuits", "attest", "--scale", "quick", "--write")[0] == 0
    assert (project.folder / "attest/quick.json").read_text() == before
    code, _, err = project.run("toycircuits", "attest")
    assert code == 2
    assert err.endswith("`toycircuits attest --scale quick` looks at others\n")


@pytest.mark.slow
@pytest.mark.parametrize("content", ["{}", "[]", '{"results": {}}', "", "{"])
def test_a_damaged_file_of_hashes_is_one_line(project: Project, content: str) -> None:
    (project.folder / "attest/quick.json").write_text(content)
    code, out, err = project.run("toycircuits", "attest")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: [^\n]*attest/quick\.json[^\n]+\n", err)
