"""Keys, with which only known peers come in over TCP."""

from pathlib import Path
from typing import Annotated

import typer

from fourstage.errors import SettingsError

app = typer.Typer()


@app.callback()
def keys() -> None:
    """Keys for TCP connections: made once, a folder for each role."""


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where the folders of the roles are made.")],
    if_missing: Annotated[bool, typer.Option("--if-missing", help="Whole keys that are there are no error.")] = False,
) -> None:
    """Make the keys of one service: of its loader, its trainer and all of its augmenters."""
    from fourstage.wire.keys import make_keys

    made = make_keys(directory)
    if not made and not if_missing:
        raise SettingsError(
            f"{directory} holds keys already", hint="--if-missing keeps them; for new ones remove the folders in it"
        )
    typer.echo(f"{'made' if made else 'kept'} the keys in {directory}; each process takes one folder:")
    for role, who in (
        ("loader", "the loader's machine or container"),
        ("trainer", "the trainer's, and whoever uses a BatchStream"),
        ("augmenter", "every augmenter's"),
    ):
        typer.echo(f"  FOURSTAGE_KEYS={directory / role}  for {who}")
    typer.echo("A *.key_secret opens its role's door to whoever has it: give no process more than its own folder.")
