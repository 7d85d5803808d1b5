"""Keys, with which only known peers come in over TCP."""

from pathlib import Path
from typing import Annotated

import typer

from fourstage.errors import SettingsError

app = typer.Typer()


@app.callback()
def keys() -> None:
    """Keys for TCP connections: a folder for each role, and one for each further peer."""


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


DirectoryArgument = Annotated[Path, typer.Argument(metavar="DIR", help="What fourstage keys init has made.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="augmenter-NAME or trainer-NAME.")]


@app.command()
def add(directory: DirectoryArgument, name: NameArgument) -> None:
    """Make a folder with a key of its own for one more augmenter or trainer."""
    from fourstage.wire.peer_keys import add_peer

    told = add_peer(directory, name)
    typer.echo(f"made {directory / name}: FOURSTAGE_KEYS for that one process or machine")
    _say_where("its public key is in; running services take it from there within seconds", told)


@app.command()
def revoke(directory: DirectoryArgument, name: NameArgument) -> None:
    """Take a peer's key back: it is let in no more, and what it says over an open connection is dropped."""
    from fourstage.wire.peer_keys import revoke_peer

    gone = revoke_peer(directory, name)
    typer.echo(f"{name} is let in no more")
    _say_where("its public key was removed from; running services notice within seconds", gone)


def _say_where(what: str, files: list[Path]) -> None:
    typer.echo(f"{what}:")
    for path in files:
        typer.echo(f"  {path}")
    typer.echo("Where a copy of one of these folders lies on another machine, do the same there.")
