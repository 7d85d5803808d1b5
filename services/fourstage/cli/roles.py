"""One service alone, for containers and clusters."""

import logging
import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fourstage import rundir
from fourstage.cli.shared import DebugOption, RunDirOption, SetOption, StoreOption
from fourstage.engine.lock import is_looked_after
from fourstage.errors import SettingsError
from fourstage.logs import configure_logging
from fourstage.resolve import load_settings, write_settings
from fourstage.services import Launch, run_augmenter, run_loader, run_trainer
from fourstage.settings import Settings
from fourstage.wire.addresses import AUTO, check_reach
from fourstage.wire.security import load

log = logging.getLogger(__name__)

SettingsOption = Annotated[
    str | None, typer.Option("--settings", help="TOML file or recipe; FOURSTAGE_* variables go over it.")
]
AnnounceOption = Annotated[Path | None, typer.Option("--announce", hidden=True)]


def loader(
    store: StoreOption,
    settings: SettingsOption = None,
    set_: SetOption = None,
    announce: AnnounceOption = None,
    debug: DebugOption = False,
) -> None:
    """Stage 1 alone: serve a store to trainers and augmenters."""
    raise typer.Exit(run_loader(_launch(settings, set_, announce, debug), store))


def augmenter(
    name: Annotated[str, typer.Option(help="Name in logs and traces.")] = "augmenter",
    settings: SettingsOption = None,
    set_: SetOption = None,
    announce: AnnounceOption = None,
    debug: DebugOption = False,
) -> None:
    """Stage 2 alone: one more worker for the loader at loader.address."""
    raise typer.Exit(run_augmenter(_launch(settings, set_, announce, debug), name))


def trainer(
    run_dir: RunDirOption,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    continue_: Annotated[
        bool, typer.Option("--continue", help="Begin, or go on where the directory holds a run that is not done.")
    ] = False,
    settings: SettingsOption = None,
    set_: SetOption = None,
    announce: AnnounceOption = None,
    debug: DebugOption = False,
) -> None:
    """Stages 3 and 4 alone: train from the loader at loader.address."""
    if continue_ and resume:
        raise SettingsError("--continue with --resume", hint="--continue begins as well: leave --resume out")
    launch = _launch(settings, set_, announce, debug)
    configure_logging("trainer", debug=debug)
    if continue_ and rundir.is_done(run_dir):
        log.info("the run in %s is done: nothing is left to train; another --run-dir begins another run", run_dir)
        raise typer.Exit
    resume = resume or (continue_ and (run_dir / rundir.SETTINGS).is_file())
    # Before the run's directory is taken: wrong keys leave it as it was.
    has_keys = load(launch.settings.keys, "trainer", warn=False) is not None
    where = {"loader.address": launch.settings.loader.address, "loader.trainers": launch.settings.loader.trainers}
    for what, address in (where | {"receiver": launch.settings.receiver}).items():
        if address != AUTO and not address.startswith("file:"):
            check_reach(address, role="trainer", has_keys=has_keys, what=what)
    if os.environ.get("RANK", "0") == "0":
        rundir.create_run_directory(run_dir, resume=resume)
        if is_looked_after(run_dir):
            raise SettingsError(
                f"fourstage run looks after {run_dir}", hint="wait for its end, or name another directory"
            )
    take_over = partial(_take_over, run_dir, launch.settings, resume=resume)
    raise typer.Exit(run_trainer(launch, run_dir, resume=resume, take_over=take_over))


def _take_over(run_dir: Path, settings: Settings, *, resume: bool) -> None:
    """Make the run's directory this trainer's. Raises FourstageErrors where that would be another run."""
    from fourstage.trainer.resume import changed_settings

    # Once more: who wrote to it until now may have begun a run there.
    rundir.create_run_directory(run_dir, resume=resume)
    if resume:
        # Before anything is written: what is refused leaves the run as it was.
        for change in changed_settings(settings, run_dir):
            log.warning("other than before: %s", change)
    rundir.write_whole(run_dir / rundir.SETTINGS, write_settings(settings))
    for stale in (rundir.STATUS, rundir.SUMMARY):
        (run_dir / stale).unlink(missing_ok=True)


def _launch(
    settings: str | None,
    overrides: list[str] | None,
    announce: Path | None,
    debug: bool,
) -> Launch:
    resolved = load_settings(settings or "alexnet", overrides=overrides or ())
    return Launch(resolved, announce, lifeline=False, debug=debug)
