"""The device that computes. It is not a param, because it must not make a result stale."""

import re

import torch

from toycircuits.core.config import InputError
from toycircuits.core.messages import in_one_line, quoted

NAMES = r"auto|cpu|cuda(:[0-9]{1,3})?"


def prepare(name: str) -> torch.device:
    """Set torch up for reproducible work and return the device called `name`.

    Torch uses one thread. It then always splits sums in the same way, so that the bytes of a result
    do not depend on how many runs share the machine. Denormals are flushed to zero: the gradients
    of a converged training are full of them, and make a step take twice as long. On a CPU, one
    thread is deterministic by itself, and torch's deterministic mode would only load its compiler.

    Args:
        name: "cpu", "cuda", "cuda:1" and so on; "auto" is CUDA if there is one and else the CPU.

    Raises:
        InputError: there is no such device.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    device = find_device(name)
    if device.type != "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return device


def find_device(name: str) -> torch.device:
    """The device called `name`, as `prepare` takes it; nothing is set up.

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
