"""The command line's parser. Only the modules of the command that is called are imported: each has what the others do
without."""

from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer

from fourstage import __version__

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
