"""What in a command's environment lets nothing run: it is named before anything does."""

import getpass
import importlib
import os
import re
import subprocess
from pathlib import Path

from dvc_parallel.engines import THREADS
from toycircuits.core.config import InputError
from toycircuits.core.paths import RESUME, exists
from toycircuits.git import MAKE_REPOSITORY, has_git


def check_environment(root: Path, is_local: bool = True, is_portable: bool = False) -> None:
    """Check whatever every command of a reproduction needs from its environment.

    Args:
        root: the project folder.
        is_local: whether the commands run on this machine. If not, its devices do not matter.
        is_portable: whether the results have to be portable, for which a GPU is of no use.

    Raises:
        InputError: one line names the variable or the folder, what was found, and what to do.
    """
    check_device(os.environ.get("TOYCIRCUITS_DEVICE") or "auto", is_local, is_portable)
    check_threads()
    check_shell()
    check_cache(root)
    if exists(root / RESUME) and not (root / RESUME).is_dir():
        text = "found a file; trainings keep their state in a folder there: remove it"
        raise InputError(f"{RESUME}: {text}")


def check_device(name: str, is_local: bool = True, is_portable: bool = False) -> None:
    """Check that `name` means a device, and that the device is there if `is_local`.

    Only a CPU computes results that have to be portable.

    Raises:
        InputError: it does not, or it is not, or it cannot compute portably.
    """
    import torch  # here, because it loads slowly

    from toycircuits.core.device import NAMES

    key = f"TOYCIRCUITS_DEVICE: found {name!r}"
    if not re.fullmatch(NAMES, name):
        raise InputError(f"{key}; allowed: auto, cpu, cuda, cuda:0, ...")
    if is_portable and name.startswith("cuda"):
        text = "results at this scale are portable, and a GPU computes other bytes"
        raise InputError(f"{key}; {text}; allowed: auto, cpu")
    if is_local and name.startswith("cuda"):
        there = torch.cuda.device_count()  # starts nothing on them
        if int(name.partition(":")[2] or 0) >= there:
            text = f"torch finds {there} CUDA devices here; `auto` takes what is there"
            raise InputError(f"{key}; {text}")


def check_threads() -> None:
    """Check the variables that limit the threads of numerical libraries.

    The libraries ignore what they cannot read. Each command would then use all cores.

    Raises:
        InputError: one of them is not a number.
    """
    for name in THREADS:
        value = os.environ.get(name)
        if value is not None and not re.fullmatch(r"\s*[1-9]\d*(\s*,\s*[1-9]\d*)*\s*", value):
            raise InputError(f"{name}: found {value!r}; allowed: a number of threads, from 1")


def check_shell() -> None:
    """Check that the user's shell, in which the commands run, runs commands.

    Raises:
        InputError: it does not, like `nologin`, the shell of accounts of services.
    """
    shell = os.environ.get("SHELL") or "/bin/sh"
    text = f"SHELL: found {shell!r}, which runs no commands; allowed: a shell, such as /bin/sh"
    try:
        command = [shell, "-c", "exit 7"]
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    except OSError as error:
        raise InputError(f"{text} ({error.strerror})") from None
    if done.returncode != 7:
        raise InputError(text)


def check_cache(root: Path) -> None:
    """Check that DVC can work with the path of the project.

    Raises:
        InputError: the path has a brace, at which DVC's progress bars fail.
    """
    if {*"{}"} & {*str(root)}:
        raise InputError(f"{root}: DVC cannot work in a folder whose path has {{ or }}; rename it")


def check_git(root: Path) -> None:
    """Check that there is a git repository, unless DVC's settings say that it needs none.

    Raises:
        InputError: there is none, as in a ZIP of the project.
    """
    if has_git(root):
        return
    from dvc.config import Config  # here, because DVC loads slowly

    if not Config(str(root / ".dvc"))["core"].get("no_scm"):
        text = "this folder is not a git repository, and only `toycircuits repro --scale` and what "
        text += "reads results work without one"
        raise InputError(f"{root}: {text}; {MAKE_REPOSITORY} makes it one")


def check_bars() -> None:
    """Check the variables of tqdm, the library of progress bars: DVC and trainings import it.

    Raises:
        InputError: it does not start with them.
    """
    if names := sorted(name for name in os.environ if name.startswith("TQDM_")):
        try:
            importlib.import_module("tqdm")
        except ValueError as error:
            found = ", ".join(f"{name}={os.environ[name]!r}" for name in names)
            raise InputError(f"found {found}: tqdm does not start: {error}") from None


def mend_home() -> None:
    """Remove HOME if it is not a folder. Without it, programs ask the system for the home folder.

    DVC fails if HOME is a file, and where nobody has set a user's name, it fails without HOME.
    """
    if not os.path.isdir(os.environ.get("HOME", "")):  # noqa: PTH112 (an error is an answer)
        os.environ.pop("HOME", None)
    try:
        getpass.getuser()
    except (KeyError, OSError):  # a container with a number for a user
        os.environ["USER"] = str(os.getuid())
