"""The device is found, or its absence said in one line."""

import pytest
import torch

from toycircuits.core.config import InputError
from toycircuits.core.device import prepare

pytestmark = pytest.mark.usefixtures("restored_torch")


def test_auto_is_cuda_where_there_is_one() -> None:
    assert prepare("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_the_work_is_reproducible() -> None:
    torch.set_num_threads(2)
    assert prepare("cpu") == torch.device("cpu")
    assert torch.get_num_threads() == 1
    assert torch.tensor(1e-300, dtype=torch.float64) * 1e-10 == 0  # a denormal


def test_an_absent_device_is_named() -> None:
    with pytest.raises(InputError, match=r"^--device: found 'cuda:99': [^\n]+$"):
        prepare("cuda:99")


@pytest.mark.parametrize(
    "name", ["gpu", "", "mps", "meta", "cuda:", "cuda:-1", "cpu\n", "cuda:1\n2"]
)
def test_what_names_no_device_is_told_what_does(name: str) -> None:
    with pytest.raises(InputError) as caught:
        prepare(name)
    allowed = "allowed: auto, cpu, cuda, cuda:0, ..."
    assert str(caught.value) == f"--device: found {name!r}; {allowed}"
