"""What several commands share: options, and how they speak."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fourstage.errors import SettingsError
from fourstage.settings import Settings

StoreOption = Annotated[Path, typer.Option("--store", help="Directory made by fourstage prepare.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, nothing else.")]
RunDirOption = Annotated[Path, typer.Option("--run-dir", help="Directory of the run.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Full log, and a traceback with an error.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting, for example batch_size=64."),
]


def augmenter_count(text: str, settings: Settings) -> int:
    """How many augmenters to start; ``auto``: one per core, less one for a trainer that computes here."""
    if text == "auto":
        cores = len(os.sched_getaffinity(0))
        return max(1, cores - (settings.model.name != "none"))
    if not text.isdigit() or not 1 <= int(text) <= 1024:
        raise SettingsError(f"--augmenters {text!r}", hint="a number from 1 to 1024, or auto")
    return int(text)


def say(text: str, *, quiet: bool) -> None:
    if not quiet:
        Console(stderr=True).print(text, soft_wrap=True, highlight=False)
