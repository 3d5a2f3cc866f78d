"""Where the computing happens. Never a param: it must not decide whether a result is stale."""

import torch

from toycircuits.core.config import InputError


def prepare(name: str) -> torch.device:
    """The device called `name` ("auto": CUDA if there is one), ready for reproducible work.

    One thread: sums are then always split the same way, so that the bytes of a result do not
    depend on how many runs share the machine. Denormals are flushed to zero: once a training has
    converged, its gradients are full of them, and a step then takes twice as long. On a CPU, one
    thread is deterministic by itself: torch's deterministic mode would only load its compiler.
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
