"""Standard output and error of a command, whatever is at their other end.

A reader that has gone (`toycircuits list | head`), a stream that the shell has closed and a
terminal that cannot show a character change what is seen. They never stop a command, and they never
change its exit code. A full disk is different: what was asked for is not there. So `failure` names
it at the end.
"""

import codecs
import errno
import io
import locale
import os
import select
import sys
from typing import Any

ENCODING = "TOYCIRCUITS_ENCODING"  # from a process to the one that replaces it: the terminal's
# What to print where the terminal's encoding does not have a character.
PLAIN = str.maketrans(
    {
        **{"±": "+/-", "≤": "<=", "≥": ">=", "≈": "~", "→": "->", "·": "*", "×": "x"},  # noqa: RUF001
        **{"²": "^2", "³": "^3", "ᵀ": "^T", "√": "sqrt", "✓": "yes", "✗": "no", "−": "-"},  # noqa: RUF001
        **{"“": '"', "”": '"', "‘": "'", "’": "'", "–": "-", "—": "-", "…": "..."},  # noqa: RUF001
        **{"α": "alpha", "β": "beta", "δ": "delta", "μ": "mu", "π": "pi", "σ": "sigma"},  # noqa: RUF001
    }
)


class _Descriptor(io.FileIO):
    """A file descriptor. Writing to it never fails; `failure` remembers a failure but EPIPE."""

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write as much as can be written; what is lost counts as written."""
        try:
            while (count := super().write(data)) is None:
                select.select([], [self], [])  # another process made the descriptor non-blocking
            return count
        except OSError as error:
            if error.errno != errno.EPIPE:
                self.failure = self.failure or error
            return memoryview(data).nbytes


def restart_in_utf8() -> None:
    """Replace this process by one in Python's UTF-8 mode, if the locale has another encoding.

    File names, DVC's files and the output of git are UTF-8 in any locale. Only what is printed has
    the encoding of the locale.
    """
    is_utf8 = sys.flags.utf8_mode or codecs.lookup(locale.getencoding()).name == "utf-8"
    if is_utf8 or ENCODING in os.environ or not sys.executable:
        return
    os.environ[ENCODING] = str(getattr(sys.stdout, "encoding", None) or "ascii")
    os.environ["PYTHONUTF8"] = "1"
    _open_closed()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def prepare() -> None:
    """Make `sys.stdout` and `sys.stderr` streams to which a command can always write."""
    _open_closed()
    encoding = os.environ.pop(ENCODING, None)
    codecs.register_error("plain", _plain)
    for name, number in (("stdout", 1), ("stderr", 2)):
        before = getattr(sys, name)  # None if the stream was closed
        stream = io.TextIOWrapper(
            io.BufferedWriter(_Descriptor(number, "w", closefd=False)),
            encoding=encoding or getattr(before, "encoding", None) or "utf-8",
            errors="plain",
            line_buffering=bool(before and (before.line_buffering or before.write_through)),
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def failure() -> str:
    """Why standard output could not be written, such as a full disk; empty if it could."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    error = raw.failure if isinstance(raw, _Descriptor) else None
    return f"standard output: {error.strerror}" if error else ""


def _open_closed() -> None:
    """Open the null device as each standard stream that is closed.

    Otherwise the next file that is opened gets its number, and what is printed lands in that file.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """What to print instead of characters that an encoding does not have, as `codecs` asks it."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(PLAIN)
    return text.encode("ascii", "backslashreplace").decode(), error.end
