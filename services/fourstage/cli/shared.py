"""What several commands share: options, and how they speak."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fourstage.by_hand import LARGEST_SCALE
from fourstage.engine.cores import Cores
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
        return max(1, Cores().usable - (settings.model.name != "none"))
    if not text.isdecimal() or not 1 <= int(text) <= LARGEST_SCALE:
        raise SettingsError(f"--augmenters {text!r}", hint=f"a number from 1 to {LARGEST_SCALE}, or auto")
    return int(text)


def first_augmenters(text: str, settings: Settings) -> tuple[int, bool]:
    """How many augmenters to begin with, and whether their number adapts: ``N``, ``auto`` or ``auto:N``.

    A trainer that decodes itself needs none, which ``auto`` then means; more are started where they are asked for.
    """
    auto, colon, count = text.partition(":")
    if settings.decode == "device":
        if colon:
            raise SettingsError(f"--augmenters {text!r} with decode = 'device'", hint="leave it out")
        return (0 if text in ("auto", "0") else augmenter_count(text, settings)), False
    if auto == "auto" and colon:
        return augmenter_count(count, settings), True
    return augmenter_count(text, settings), text == "auto"


def say(text: str, *, quiet: bool) -> None:
    if not quiet:
        Console(stderr=True).print(text, soft_wrap=True, highlight=False)
