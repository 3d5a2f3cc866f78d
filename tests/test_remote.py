"""Results go to a DVC remote and come back: a local folder, and a server that speaks S3."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from project import Project, output

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
BUCKET = "toycircuits"


def run(folder: Path, *command: str) -> str:
    """Standard output of a command that must succeed, with the code in `folder`."""
    return output(folder, *command, **KEYS, PYTHONPATH=str(folder / "src"))


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project of one run, reproduced and committed; it has no remote yet."""
    project = Project(tmp_path_factory.mktemp("project"), ["list_copy_10"], scm=True)
    project.repro()
    run(project.folder, "git", "add", ".")
    run(project.folder, "git", "commit", "--quiet", "--message", "reproduced")
    return project


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """Address of a server on this machine with an empty bucket."""
    import boto3

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    keys = {name.lower(): value for name, value in KEYS.items()}
    client = boto3.client("s3", endpoint_url=address, region_name="us-east-1", **keys)
    client.create_bucket(Bucket=BUCKET)
    yield address
    server.stop()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_results_come_back_from_a_remote(
    kind: str, reproduced: Project, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder, clone = reproduced.folder, tmp_path / "clone"
    url = f"s3://{BUCKET}/store" if kind == "s3" else str(tmp_path / "store")
    run(folder, "dvc", "remote", "add", "--default", "--force", "store", url)
    if kind == "s3":
        address = request.getfixturevalue("s3_server")
        run(folder, "dvc", "remote", "modify", "store", "endpointurl", address)
    run(folder, "git", "commit", "--all", "--quiet", "--message", f"a remote: {kind}")
    pushed = run(folder, "dvc", "push")
    assert "pushed" in pushed

    run(tmp_path, "git", "clone", "--quiet", str(folder), str(clone))
    assert not (clone / "artifacts").exists()
    run(clone, "dvc", "pull")
    copy = Project.__new__(Project)
    copy.folder = clone
    assert copy.results() == reproduced.results()
    # All is up to date; and what is measured and drawn from the pulled weights is what was.
    assert "Running stage" not in run(clone, "dvc", "repro")
    forced = ("measure@list_copy_10", "render@list_copy_10")
    assert run(clone, "dvc", "repro", "--force", "--single-item", *forced).count("Running") == 2
    assert copy.results() == reproduced.results()
    app = "from toycircuits.cli import app; app()"
    run(clone, sys.executable, "-c", app, "fresh")
