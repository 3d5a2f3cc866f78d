"""The device that computes. It is not a param, because it must not make a result stale."""

import torch

from toycircuits.core.config import InputError


def prepare(name: str) -> torch.device:
    """Set torch up for reproducible work and return the device called `name`.

    Torch uses one thread. It then always splits sums in the same way, so that the bytes of a result
    do not depend on how many runs share the machine. Denormals are flushed to zero: the gradients
    of a converged training are full of them, and make a step take twice as long. On a CPU, one
    thread is deterministic by itself, and torch's deterministic mode would only load its compiler.

    Args:
        name: as torch names devices, or "auto" for CUDA if there is one and else the CPU.

    Raises:
        InputError: there is no such device.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device: found {name!r}: {str(error).splitlines()[0]}") from None
    if device.type != "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return device
