"""Portable results: every x86-64 machine computes the same bytes.

Numerical libraries choose their code by the processor, and different code rounds differently. They
take the choice from variables of the environment: torch, MKL and oneDNN (in torch), OpenBLAS (in
NumPy and SciPy), NumPy itself, and the C library for `exp`, `log` and their like. Each library
reads them once, and the C library before Python starts. docs/portable.md says what each one does.

On other processors than x86-64 nothing is pinned.
"""

import os
import platform
import sys
from collections.abc import Mapping
from typing import Any

from toycircuits.core.config import InputError, scales
from toycircuits.core.messages import quoted
from toycircuits.core.stage import READ

# All of these kernels run on every processor on which NumPy's wheels run (x86-64-v2).
PINS = {
    "ATEN_CPU_CAPABILITY": "default",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-FMA,-FMA4",
    "MKL_CBWR": "COMPATIBLE",
    "NPY_ENABLE_CPU_FEATURES": " ",  # none; the names of features differ between its versions
    "OMP_NUM_THREADS": "1",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OPENBLAS_CORETYPE": "Nehalem",
    "OPENBLAS_NUM_THREADS": "1",
}
STARTED_AGAIN = "TOYCIRCUITS_STARTED_AGAIN"  # the ID of the process that has started again


def is_portable(params: Mapping[str, Any]) -> bool:
    """Whether results at the scale that `params` chooses have to be portable.

    Raises:
        InputError: `portable` does not say it of this scale, or the scale is no name.
    """
    scale, portable = params.get("scale"), params.get("portable")
    if not isinstance(scale, str):
        allowed = ", ".join(scales(params))
        raise InputError(f"scale: found {quoted(scale)}; allowed: {allowed}")
    if not isinstance(portable, dict):
        raise InputError(f"portable: found {quoted(portable)}; allowed: true or false per scale")
    found = portable.get(scale)
    if not isinstance(found, bool):
        raise InputError(f"portable.{scale}: found {quoted(found)}; allowed: true or false")
    return found


def pin(params: Mapping[str, Any]) -> bool:
    """Have this process compute portably if its scale is portable; whether it is.

    Call this before you import torch, NumPy or SciPy. If the process was started without the pins,
    this function does not return: the process starts again with them. A process that was started
    with them, and whose scale is not portable, starts again without them.

    Raises:
        InputError: as `is_portable`, or the process cannot start again.
    """
    wanted = is_portable(params)
    is_script = sys._getframe(1).f_globals.get("__name__") == "__main__"
    if platform.machine() == "x86_64" and wanted != _has_pins():
        _start_again({**os.environ, **PINS} if wanted else _without_pins(), is_script)
    return wanted


def refuse_compilation(is_compiled: bool, params: Mapping[str, Any], key: str) -> None:
    """Check that nothing is compiled for this processor where results have to be portable.

    Args:
        is_compiled: the setting `compile` of a training.
        key: the sections that it belongs to, such as `quick.list_copy_10`.

    Raises:
        InputError: it is.
    """
    if is_compiled and is_portable(params):
        why = f"because portable.{params['scale']} is true"
        raise InputError(f"{key}.train.compile: found true; allowed is false, {why}")


def _has_pins() -> bool:
    return all(os.environ.get(name) == value for name, value in PINS.items())


def _without_pins() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in PINS}


def _start_again(environment: dict[str, str], is_script: bool) -> None:
    """Replace this process by one of the same command in `environment`."""
    if os.environ.get(STARTED_AGAIN) == str(os.getpid()):
        wrong = [name for name in PINS if os.environ.get(name) != PINS[name]]
        text = "something sets it whenever Python starts (sitecustomize?)"
        raise InputError(f"{wrong[0] if wrong else 'environment'}: {text}; remove that")
    command = [sys.executable, *_arguments(is_script)]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], command, environment | {STARTED_AGAIN: str(os.getpid())})


def _arguments(is_script: bool) -> list[str]:
    """The arguments of Python with which this process was started, or would have been."""
    if is_script and sys.orig_argv[-len(sys.argv) :] == sys.argv:
        return sys.orig_argv[1:]
    if is_script and READ in os.environ:  # a fork of the server of `toycircuits repro`
        return sys.argv
    text = "a portable stage needs a process of its own: `python stages/...`"
    raise InputError(f"{sys.argv[0]}: it runs within another program; {text}")
