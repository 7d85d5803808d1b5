"""Every command: parse, build, run, close.

Exit 0 done, 1 failed, 2 wrong usage or settings, 130 interrupted. A failure is one line on standard error that says
what and what to do; ``--debug`` adds the traceback.
"""

import sys
import traceback
from typing import Annotated

import typer

from fourstage import __version__
from fourstage.cli import keys, probe, receipts, results, roles, runs, stores
from fourstage.engine.processes import ERROR_PREFIX
from fourstage.errors import FourstageError

app = typer.Typer(
    name="fourstage",
    help="AlexNet's four-stage pipeline as services: load, transform, copy, train.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for _command in (
    stores.prepare, stores.verify, probe.probe, runs.run, runs.demo, runs.status, runs.rate, runs.trace, runs.scale,
    results.evaluate, results.figures, receipts.batch, roles.loader, roles.augmenter, roles.trainer,
):  # fmt: skip
    app.command()(_command)
app.add_typer(keys.app, name="keys")
app.add_typer(receipts.receipt, name="receipt")


@app.callback(invoke_without_command=True)
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


def main() -> None:
    """The entry point: runs a command and turns every error into one line and an exit code."""
    debug = "--debug" in sys.argv
    try:
        code = app(standalone_mode=False)
    except FourstageError as error:
        _fail(str(error), error.exit_code, debug)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except Exception as error:
        if hasattr(error, "format_message"):
            context = getattr(error, "ctx", None)
            command = context.command_path if context else "fourstage"
            _fail(f"{error.format_message().rstrip('.')}; {command} --help lists what it takes", 2, debug)
        _fail(f"internal error: {error!r}; run again with --debug and report it", 1, debug)
    # Without click's standalone mode an Exit is a returned code.
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(ERROR_PREFIX + " ".join(message.splitlines()), file=sys.stderr)  # noqa: T201
    sys.exit(code)
