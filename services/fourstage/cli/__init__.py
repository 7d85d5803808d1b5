"""Every command: parse, build, run, close; ``ending`` says what becomes of errors and of Ctrl-C, at any moment."""

import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from fourstage.ending import end_with
from fourstage.errors import SettingsError


def main() -> NoReturn:
    """The entry point."""
    # All like Ctrl-C: whoever is ended gives back what it has made. Runs and services have a handler of their own.
    signal.signal(signal.SIGTERM, _interrupt)
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    end_with(lambda: _run(sys.argv[1:]), debug="--debug" in sys.argv)


class _Interrupted(KeyboardInterrupt):
    """A plain one that goes through code made of a string, such as a dataclass's, ends CPython by SIGINT whoever has
    caught it and whatever the exit code (run_eval_code_obj in pythonrun.c)."""


def _interrupt(_: int, __: FrameType | None) -> NoReturn:
    raise _Interrupted


def _run(arguments: Sequence[str]) -> int:
    import typer

    from fourstage.cli.commands import build

    try:
        code = build(arguments)(args=arguments, standalone_mode=False)
    except typer.Abort:
        return 130
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "fourstage"
        raise SettingsError(error.format_message().rstrip("."), hint=f"{command} --help lists what it takes") from error
    # Without click's standalone mode an Exit is a returned code.
    return code if isinstance(code, int) else 0
