"""A run in the foreground: its directory, its processes, its view, and what is said in the end."""

import json
import logging
import shlex
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fourstage import rundir
from fourstage.by_hand import SCALE
from fourstage.ending import say
from fourstage.engine.local import LocalRun
from fourstage.engine.lock import looked_after
from fourstage.errors import SettingsError
from fourstage.logs import configure_logging
from fourstage.process import StopFlag, private_folder
from fourstage.resolve import write_settings
from fourstage.settings import Settings
from fourstage.store import open_store
from fourstage.trace import REQUEST, TRACE_FOLDER
from fourstage.view import LiveView, Screen, final_table

log = logging.getLogger(__name__)


def run_in_foreground(
    settings: Settings,
    *,
    store: Path,
    run_dir: Path,
    augmenters: int,
    resume: bool,
    as_json: bool,
    debug: bool,
    auto: bool = False,
) -> int:
    """Train with a live view; the exit code. Raises FourstageErrors before anything is written where it can.

    augmenters: to begin with; auto: from then on as many as the trainer needs
    """
    opened = open_store(store)
    size = opened.size
    if settings.augmenter.crop > size:
        raise SettingsError(
            f"augmenter.crop = {settings.augmenter.crop} is larger than the store's images of {size}x{size}",
            hint=f"--set augmenter.crop={size} or less",
        )
    rundir.create_run_directory(run_dir, resume=resume)
    configure_logging("run", debug=debug)
    stop = StopFlag()
    stop.on_signals()
    console = Screen(stderr=as_json)
    with ExitStack() as stack:
        stack.enter_context(looked_after(run_dir))
        if resume:
            from fourstage.trainer.resume import changed_settings

            # Before anything is written: what is refused leaves the run as it was.
            for change in changed_settings(settings, run_dir):
                log.warning("other than before: %s", change)
        rundir.remove_leftovers(run_dir, rundir.ENGINES)
        rundir.note_store(run_dir, store, opened.fingerprint)
        rundir.write_whole(run_dir / rundir.SETTINGS, write_settings(settings))
        for stale in (rundir.STATUS, rundir.SUMMARY, rundir.TRACE, REQUEST):
            (run_dir / stale).unlink(missing_ok=True)
        SCALE.withdraw(run_dir)
        shutil.rmtree(run_dir / TRACE_FOLDER, ignore_errors=True)
        # Always a folder of its own: whoever is orphaned removes it.
        sockets = private_folder(settings.sockets)
        stack.callback(shutil.rmtree, sockets, ignore_errors=True)
        view = stack.enter_context(LiveView(console))
        count = trainers(settings)
        replicas = count // 2 if settings.parallel == "columns" else count
        run = LocalRun(run_dir, sockets, store.absolute(), augmenters, auto, resume, count, replicas, debug)
        code = run.run(stop, view)
    summary = rundir.read_json(run_dir / rundir.SUMMARY) if (run_dir / rundir.SUMMARY).is_file() else {}
    if as_json:
        say(json.dumps(summary or {"state": "interrupted"}))
    elif summary and not stop.urgent:
        console.print(final_table(summary))
        console.print(f"written to {run_dir}: {', '.join(written(run_dir))}", soft_wrap=True, highlight=False)
    if code == 130:
        command = ["fourstage", "run", "--store", str(store), "--run-dir", str(run_dir), "--resume"]
        Screen(stderr=True).print(
            f"{_interrupted(summary, stop)}; go on with: {shlex.join(command)}", soft_wrap=True, highlight=False
        )
    return code


def _interrupted(summary: Mapping[str, Any], stop: StopFlag) -> str:
    if summary:
        return f"interrupted after step {summary['steps']}"
    return "stopped at once, at the last checkpoint" if stop.urgent else "interrupted before the first step"


def trainers(settings: Settings) -> int:
    """How many trainers the settings ask for on this machine."""
    match settings.parallel:
        case "none":
            return 1
        case "columns":
            return 2 * (settings.replicas or 1)
        case "data":
            return settings.replicas or _gpus(settings) or 2


def _gpus(settings: Settings) -> int:
    if settings.train.device == "cpu":
        return 0
    import torch

    return torch.cuda.device_count()


def written(run_dir: Path) -> list[str]:
    """The files that a person may want to look at."""
    names = (rundir.SUMMARY, rundir.RECEIPT, rundir.STEPS, rundir.EPOCHS, rundir.TRACE)
    return [name for name in names if (run_dir / name).is_file()]


def free_run_directory(wanted: Path) -> Path:
    """The wanted directory, or the first of ``NAME-2``, ``NAME-3`` … that holds no run."""
    path, number = wanted, 1
    while (path / rundir.SETTINGS).exists():
        number += 1
        path = wanted.with_name(f"{wanted.name}-{number}")
    return path
