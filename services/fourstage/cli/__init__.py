"""Every command: parse, build, run, close; ``ending`` says what becomes of errors.

Only the modules of the command that is called are imported: each has what the others do without.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, NoReturn

import typer

from fourstage import __version__
from fourstage.ending import end_with
from fourstage.errors import SettingsError

_COMMANDS = {
    "prepare": "stores", "verify": "stores", "probe": "probe", "run": "runs", "demo": "runs", "status": "runs",
    "rate": "runs", "trace": "runs", "scale": "runs", "evaluate": "results", "figures": "results",
    "batch": "receipts", "loader": "roles", "augmenter": "roles", "trainer": "roles",
}  # fmt: skip
"""The module of each command, which has its name there."""
_GROUPS = {"keys": "keys", "receipt": "receipts"}
"""The module of each group of commands."""


def build(arguments: Sequence[str]) -> typer.Typer:
    """The command line for these arguments: of the command that they begin with, else, for help, of all."""
    app = typer.Typer(
        name="fourstage",
        help="AlexNet's four-stage pipeline as services: load, transform, copy, train.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    app.callback(invoke_without_command=True)(top)
    called = arguments[0] if arguments and arguments[0] in (*_COMMANDS, *_GROUPS) else None
    for name, module in _COMMANDS.items():
        if called in (None, name):
            app.command(name)(getattr(import_module(f"fourstage.cli.{module}"), name))
    for name, module in _GROUPS.items():
        if called in (None, name):
            app.add_typer(import_module(f"fourstage.cli.{module}").app, name=name)
    return app


def top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """The whole command line."""
    if version:
        typer.echo(f"fourstage {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> NoReturn:
    """The entry point."""
    end_with(lambda: _run(sys.argv[1:]), debug="--debug" in sys.argv)


def _run(arguments: Sequence[str]) -> int:
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
