"""Portable results: every x86-64 machine computes the same bytes.

Numerical libraries choose their code by the processor, and different code rounds differently.
Environment variables can fix this choice for torch, MKL and oneDNN (in torch), OpenBLAS (in NumPy
and SciPy), NumPy itself, and the C library (`exp`, `log` and so on). Here they are called *pins*.
Each library reads its variables once, and the C library does so before Python starts.
docs/portable.md says what each pin does.

On processors other than x86-64, nothing is pinned.
"""

import os
import platform
import sys
from collections.abc import Mapping
from typing import Any

from toycircuits.core.config import InputError, scales
from toycircuits.core.messages import quoted
from toycircuits.core.stage import READ

# They choose code that runs on every processor on which NumPy's wheels run (x86-64-v2).
PINS = {
    "ATEN_CPU_CAPABILITY": "default",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-FMA,-FMA4",
    "MKL_CBWR": "COMPATIBLE",
    "NPY_ENABLE_CPU_FEATURES": " ",  # none; their names differ between versions of NumPy
    "OMP_NUM_THREADS": "1",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OPENBLAS_CORETYPE": "Nehalem",
    "OPENBLAS_NUM_THREADS": "1",
}
STARTED_AGAIN = "TOYCIRCUITS_STARTED_AGAIN"  # the ID of the process that has started again


def is_portable(params: Mapping[str, Any]) -> bool:
    """Whether results at the scale that `params` chooses have to be portable.

    Args:
        params: the contents of params.yaml.

    Raises:
        InputError: `scale` is no text, or `portable` has no true or false for it.
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
    """Make this process compute portably if its scale is portable. Returns whether it is.

    Call this before you import torch, NumPy or SciPy. If the scale is portable and the process was
    started without the pins, this function does not return: the process starts again with them. If
    the scale is not portable and the process was started with them, it starts again without them.

    Raises:
        InputError: as `is_portable`, or the process cannot start again.
    """
    wanted = is_portable(params)
    is_script = sys._getframe(1).f_globals.get("__name__") == "__main__"
    if platform.machine() == "x86_64" and wanted != _has_pins():
        _start_again({**os.environ, **PINS} if wanted else _without_pins(), is_script)
    return wanted


def refuse_compilation(is_compiled: bool, params: Mapping[str, Any], key: str) -> None:
    """Refuse compiled training at a portable scale: compiled code depends on the processor.

    Args:
        is_compiled: the setting `compile` of a training.
        params: the contents of params.yaml.
        key: where in params.yaml the training's settings are, such as `quick.list_copy_10`.

    Raises:
        InputError: `is_compiled` is true and the scale is portable.
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
