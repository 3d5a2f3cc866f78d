"""Which GPUs a reproduction may use: nvidia-smi lists them, CUDA_VISIBLE_DEVICES selects."""

import os
import re
import subprocess
import sys

from dvc_parallel.worker import ANSWER_WITHIN

NO_DEVICES = 6  # exit code of nvidia-smi: there is a driver, and no GPU
# For example "GPU 0: NVIDIA H100 (UUID: GPU-5e..)" and "  MIG 1g.10gb Device 0: (UUID: MIG-2b..)".
LISTED = re.compile(r"^(GPU \d+|\s+MIG ).*?(?:\(UUID: (\S+)\))?$", re.MULTILINE)


class UnknownError(Exception):
    """Nobody can say which GPUs there are; the message says why."""


def devices(per_device: int, jobs: int | None = None) -> list[str] | None:
    """Names of GPUs, each as often as commands may use it at a time; None if there are no GPUs.

    An empty name stands for the device that TOYCIRCUITS_DEVICE names for all commands. A note says
    what a person may not expect: GPUs that nobody can count, or fewer places than `jobs`.
    """
    asked = os.environ.get("TOYCIRCUITS_DEVICE") or "auto"
    if asked.startswith("cuda:"):
        return [""] * per_device
    if asked not in ("auto", "cuda"):
        return None
    try:
        listed = _listed()
    except UnknownError as error:
        _note(
            f"nvidia-smi does not say which GPUs there are: {error}; commands share what they find"
        )
        return None
    names = _visible(listed, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if names and jobs and jobs > len(names) * per_device:
        places = len(names) * per_device
        text = f"commands run {places} at a time, because there are {len(names)} GPUs"
        _note(f"-j {jobs}: {text}; `--per-device` allows more on each")
    return names * per_device or None


def _listed() -> dict[str, tuple[str, ...]]:
    """Number of each GPU -> its UUID and those of its MIG devices, as far as nvidia-smi says them.

    Raises:
        UnknownError: nvidia-smi hangs or fails.
    """
    command = ["nvidia-smi", "-L"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=ANSWER_WITHIN
        )
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UnknownError(error.strerror or str(error)) from None
    except subprocess.TimeoutExpired:
        raise UnknownError(f"no answer within {ANSWER_WITHIN:g} seconds") from None
    if done.returncode == NO_DEVICES:
        return {}
    if done.returncode:
        words = " ".join(f"{done.stdout} {done.stderr}".split())
        raise UnknownError(words[:200] or f"exit code {done.returncode}")
    gpus: list[tuple[str, ...]] = []
    for kind, uuid in LISTED.findall(done.stdout):
        found = (uuid,) if uuid else ()
        if kind.startswith("GPU"):
            gpus.append(found)
        elif gpus:
            gpus[-1] += found
    return {str(number): uuids for number, uuids in enumerate(gpus)}


def _visible(listed: dict[str, tuple[str, ...]], wanted: str | None) -> list[str]:
    """The GPUs that CUDA uses if CUDA_VISIBLE_DEVICES is `wanted`; None if it is not set.

    As CUDA does, the list ends before the first entry that names no GPU, and a GPU that is named
    twice makes all of it invalid.
    """
    if wanted is None:
        return [name for number, uuids in listed.items() for name in _parts(number, uuids)]
    names: list[str] = []
    for entry in map(str.strip, wanted.split(",")):
        uuids = [uuid for all_of_one in listed.values() for uuid in all_of_one]
        is_there = entry in listed or sum(uuid.startswith(entry) for uuid in uuids) == 1
        if not entry or not is_there:
            break
        names.append(entry)
    names = names if len({*names}) == len(names) else []
    if listed and len(names) < len(wanted.split(",")) and wanted.strip() not in ("", "-1"):
        text = f"CUDA_VISIBLE_DEVICES: found {wanted!r}; this machine has {len(listed)} GPUs"
        _note(f"{text}, and CUDA uses {', '.join(names) or 'none of them'}")
    return names


def _parts(number: str, uuids: tuple[str, ...]) -> list[str]:
    """The parts of a GPU that is divided (MIG), or its number."""
    return [uuid for uuid in uuids if uuid.startswith("MIG-")] or [number]


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
