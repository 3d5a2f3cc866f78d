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
    kind: str, finished: Project, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = finished.copy(tmp_path / "project").folder
    url, endpoint = str(tmp_path / "store"), ""
    if kind == "s3":
        url = f"s3://{BUCKET}/store"
        endpoint = f"    endpointurl = {request.getfixturevalue('s3_server')}\n"
    with (folder / ".dvc/config").open("a") as file:
        file.write(f"    remote = store\n['remote \"store\"']\n    url = {url}\n{endpoint}")
    run(folder, "git", "commit", "--all", "--quiet", "--message", f"a remote: {kind}")
    assert "pushed" in run(folder, "dvc", "push")

    run(tmp_path, "git", "clone", "--quiet", str(folder), str(tmp_path / "clone"))
    clone = Project.at(tmp_path / "clone")
    assert not (clone.folder / "artifacts").exists()
    run(clone.folder, "dvc", "pull")
    assert clone.results() == finished.results()
    assert "Running stage" not in run(clone.folder, "dvc", "repro")
    if kind == "folder":  # what comes back is the same from both, and so what is made of it
        forced = ("measure@list_copy_10", "render@list_copy_10")
        printed = run(clone.folder, "dvc", "repro", "--force", "--single-item", *forced)
        assert printed.count("Running") == 2
        assert clone.results() == finished.results()
        app = "from toycircuits.cli import app; app()"
        run(clone.folder, sys.executable, "-c", app, "fresh")
