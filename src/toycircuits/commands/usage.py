"""Arguments that do not fit a command: what is refused for all commands, and the line about it."""

import sys
from typing import Any

import typer
from typer.core import TyperGroup

# typer exports only classes that inherit from it
USAGE_ERROR: Any = typer.BadParameter.__bases__[0]


class Commands(TyperGroup):
    """The commands. None of them takes an empty argument, which an unset shell variable leaves."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse empty arguments of all commands, and values such as in `--scale=`."""
        for argument in () if ctx.resilient_parsing else args:
            option, _, value = argument.rpartition("=")
            if not (value if option.startswith("--") else argument).strip():
                name = f"{option}: " if option.startswith("--") else ""
                raise USAGE_ERROR(f"{name}found {value!r}; is a shell variable unset?", ctx)
        return super().parse_args(ctx, args)


def explain(error: Any) -> int:
    """Print one line about arguments that do not fit; the exit code."""
    command = error.ctx.command_path if error.ctx else "toycircuits"
    text = in_words(error.format_message()).rstrip(".")
    print(f"error: {text}; `{command} -h` shows what is allowed", file=sys.stderr)
    return 2


def in_words(text: object) -> str:
    """What an error says, in one line."""
    return " ".join(str(text).split()) or "no message"
