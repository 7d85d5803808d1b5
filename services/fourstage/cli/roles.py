"""One service alone, for containers and clusters."""

import os
from pathlib import Path
from typing import Annotated

import typer

from fourstage import rundir
from fourstage.cli.shared import DebugOption, RunDirOption, SetOption, StoreOption
from fourstage.resolve import load_settings, write_settings
from fourstage.services import Launch, run_augmenter, run_loader, run_trainer, trace_folder

SettingsOption = Annotated[
    str | None, typer.Option("--settings", help="TOML file or recipe; FOURSTAGE_* variables go over it.")
]
AnnounceOption = Annotated[Path | None, typer.Option("--announce", hidden=True)]
LifelineOption = Annotated[bool, typer.Option("--lifeline", hidden=True)]


def loader(
    store: StoreOption,
    settings: SettingsOption = None,
    set_: SetOption = None,
    announce: AnnounceOption = None,
    lifeline: LifelineOption = False,
    debug: DebugOption = False,
) -> None:
    """Stage 1 alone: serve a store to trainers and augmenters."""
    raise typer.Exit(run_loader(_launch(settings, set_, announce, lifeline, debug), store))


def augmenter(
    name: Annotated[str, typer.Option(help="Name in logs and traces.")] = "augmenter",
    settings: SettingsOption = None,
    set_: SetOption = None,
    announce: AnnounceOption = None,
    lifeline: LifelineOption = False,
    debug: DebugOption = False,
) -> None:
    """Stage 2 alone: one more worker for the loader at loader.address."""
    raise typer.Exit(run_augmenter(_launch(settings, set_, announce, lifeline, debug), name))


def trainer(
    run_dir: RunDirOption,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    settings: SettingsOption = None,
    set_: SetOption = None,
    announce: AnnounceOption = None,
    lifeline: LifelineOption = False,
    debug: DebugOption = False,
) -> None:
    """Stages 3 and 4 alone: train from the loader at loader.address."""
    launch = _launch(settings, set_, announce, lifeline, debug, trace_folder(run_dir))
    if not lifeline and os.environ.get("RANK", "0") == "0":
        rundir.create_run_directory(run_dir, resume=resume)
        rundir.write_whole(run_dir / rundir.SETTINGS, write_settings(launch.settings))
    raise typer.Exit(run_trainer(launch, run_dir, resume=resume))


def _launch(
    settings: str | None,
    overrides: list[str] | None,
    announce: Path | None,
    lifeline: bool,
    debug: bool,
    trace_dir: Path | None = None,
) -> Launch:
    resolved = load_settings(settings or "alexnet", overrides=overrides or ())
    if trace_dir is None and settings is not None and settings.endswith(".toml"):
        trace_dir = trace_folder(Path(settings).parent)
    return Launch(resolved, announce, lifeline, debug, trace_dir)
