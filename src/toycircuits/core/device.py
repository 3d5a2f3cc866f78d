"""The device that computes. It is not in params.yaml: another device makes no result stale."""

import re
import warnings

import numpy as np
import torch
from torch import Tensor

from toycircuits.core.config import InputError
from toycircuits.core.messages import in_one_line, quoted

NAMES = r"auto|cpu|cuda(:[0-9]{1,3})?"
# On a CPU, torch lets MKL compute these. MKL starts from the processor's own approximation of
# 1/sqrt(x), which differs between AMD and Intel. No setting of MKL changes that.
APPROXIMATED = {
    **{"sqrt": np.sqrt, "log10": np.log10, "tan": np.tan},
    **{"asin": np.arcsin, "acos": np.arccos, "atan": np.arctan},
}
_replaced: list[torch.library.Library] = []  # torch uses the replacements as long as this lives


def prepare(name: str, is_portable: bool = False) -> torch.device:
    """Set torch up for reproducible work and return the device called `name`.

    Torch uses one thread. It then always splits sums in the same way, so that the bytes of a result
    do not depend on how many runs share the machine. Denormal numbers become zero: the gradients of
    a converged model are full of them, and they would double the time of a step. Torch's
    deterministic mode is on only for a GPU. On a CPU, one thread is deterministic without it.

    Args:
        name: "cpu", "cuda", "cuda:1" and so on; "auto" is CUDA if there is one and else the CPU.
        is_portable: whether every x86-64 machine has to compute the same bytes. Then "auto" is the
            CPU, and NumPy computes the functions in `APPROXIMATED`.

    Raises:
        InputError: there is no such device, or it cannot compute portably.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if is_portable:
        name = "cpu" if name == "auto" else name
        _replace_approximated()
    device = find_device(name)
    if device.type != "cpu":
        if is_portable:
            text = "results at this scale are portable, and a GPU computes other bytes"
            raise InputError(f"--device: found {quoted(name)}; {text}; allowed: auto, cpu")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return device


def _replace_approximated() -> None:
    """Let NumPy compute the functions in `APPROXIMATED` wherever torch computes on a CPU."""
    if _replaced:
        return
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        for name, function in APPROXIMATED.items():
            _replace(library, name, function)
    _replaced.append(library)


def _replace(library: torch.library.Library, name: str, function: np.ufunc) -> None:
    """Replace torch's function called `name` in its three forms: plain, in place, with `out`."""

    def plain(x: Tensor) -> Tensor:
        values, dtype = x.detach(), x.dtype
        if dtype not in (torch.float32, torch.float64):
            is_number = dtype.is_floating_point or dtype.is_complex
            dtype = dtype if is_number else torch.get_default_dtype()
            values = values.to(torch.complex128 if dtype.is_complex else torch.float64)
        with np.errstate(all="ignore"):
            result = function(values.numpy())
        return torch.from_numpy(np.asarray(result)).to(dtype)

    def in_place(x: Tensor) -> Tensor:
        return x.copy_(plain(x))

    def with_out(x: Tensor, *, out: Tensor) -> Tensor:
        return out.resize_(x.shape).copy_(plain(x))

    forms = {name: plain, f"{name}_": in_place, f"{name}.out": with_out}
    for form, kernel in forms.items():
        library.impl(form, kernel, "CPU", allow_override=True)


def find_device(name: str) -> torch.device:
    """The device called `name`; see `prepare`. Nothing is set up.

    Raises:
        InputError: there is no such device.
    """
    if not re.fullmatch(NAMES, name):
        raise InputError(f"--device: found {quoted(name)}; allowed: auto, cpu, cuda, cuda:0, ...")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = in_one_line(str(error).splitlines()[0])
        raise InputError(f"--device: found {name!r}: {reason}") from None
