"""One run, watched and disturbed until its time is over, then interrupted; and what its samples amount to."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.soak.disturb import Act, Disturber, plan
from benchmarks.soak.judge import Series
from benchmarks.soak.watch import Sample, listed, processes, stream
from fourstage import rundir

EVERY = 1.0
"""Seconds between two samples."""
_TURN_SECONDS = 0.05
_START_SECONDS, _STOP_SECONDS = 120.0, 60.0
ENDLESS = 1_000_000
"""Epochs: a run is ended by an interrupt."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how often, with what. gaps: least and most seconds between two disturbances."""

    seconds: float
    seed: int = 0
    gaps: tuple[float, float] = (10.0, 30.0)
    augmenters: int = 2
    settle: float = 5.0
    """Seconds after a disturbance in which what is held is not compared."""
    flags: tuple[str, ...] = ()
    """Of ``fourstage run``: recipe and settings."""


@dataclass(slots=True)
class Soaked:
    """All that was seen of a run."""

    samples: list[Sample] = field(default_factory=list)
    acts: list[Act] = field(default_factory=list)
    missed: list[Act] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    steps: Series = field(default_factory=lambda: np.zeros(0))
    """(steps,): milliseconds from the end of one step to the end of the next, as ``steps.jsonl`` has them."""
    left_behind: list[str] = field(default_factory=list)
    """Processes that were still there after the run's end."""


@contextmanager
def started(command: Sequence[str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A run in the background; killed in the end if it still goes on."""
    with log.open("wb") as said, subprocess.Popen(command, stdout=said, stderr=said, stdin=subprocess.DEVNULL) as run:
        try:
            yield run
        finally:
            if run.poll() is None:
                run.kill()


def soak(store: Path, folder: Path, what: Plan, tell: Callable[[Sample], None] = lambda _: None) -> Soaked:
    """Run, disturb, watch. folder: gets the run directory ``run``; tell: hears each sample.

    Raises RuntimeError with the run's words where it ends before it is interrupted, or otherwise than by that.
    """
    run_dir, log = folder / "run", folder / "run.log"
    command = [
        sys.executable, "-m", "fourstage", "run", "--store", os.fspath(store), "--run-dir", os.fspath(run_dir),
        "--epochs", str(ENDLESS), "--augmenters", str(what.augmenters), "--receipt", "pixels",
        "--seed", str(what.seed), "--json", *what.flags,
    ]  # fmt: skip
    soaked = Soaked()
    with started(command, log) as run:
        await_first_step(run, run_dir, log)
        acts = plan(what.seed, what.seconds, what.gaps, what.augmenters)
        disturber = Disturber(run_dir, run.pid, acts, what.augmenters)
        try:
            watch(run, run_dir, what, disturber, soaked, tell)
        finally:
            if run.poll() is None:
                disturber.undo()
        if run.poll() is not None:
            raise RuntimeError(f"the run ended with {run.returncode}: {log.read_text(errors='replace')[-2000:]}")
        seen = {key for sample in soaked.samples for key in sample.processes}
        run.send_signal(signal.SIGINT)
        code = run.wait(_STOP_SECONDS)
        if code != 130:
            raise RuntimeError(f"interrupted, the run ended with {code}: {log.read_text(errors='replace')[-2000:]}")
    soaked.left_behind = [f"{name} {pid}" for name, pid in sorted(seen) if Path(f"/proc/{pid}").exists()]
    soaked.acts, soaked.missed = disturber.done, disturber.missed
    soaked.summary = rundir.read_json(run_dir / rundir.SUMMARY)
    soaked.steps = step_milliseconds(run_dir / rundir.STEPS)
    return soaked


def await_first_step(run: "subprocess.Popen[bytes]", run_dir: Path, log: Path) -> None:
    """Until the run trains."""
    deadline = time.monotonic() + _START_SECONDS
    while run.poll() is None and time.monotonic() < deadline:
        if (run_dir / rundir.STATUS).is_file() and rundir.read_json(run_dir / rundir.STATUS)["step"]:
            return
        time.sleep(_TURN_SECONDS)
    raise RuntimeError(f"the run does not begin: {log.read_text(errors='replace')[-2000:]}")


def watch(
    run: "subprocess.Popen[bytes]",
    run_dir: Path,
    what: Plan,
    disturber: Disturber,
    soaked: Soaked,
    tell: Callable[[Sample], None],
) -> None:
    """Sample and disturb until the time is over or the run has ended."""
    began = time.monotonic()
    due = 0.0
    while run.poll() is None and (now := time.monotonic() - began) < what.seconds:
        disturber.turn(now)
        if now >= due:
            due = max(due + EVERY, now)
            present = listed(run_dir)
            quiet = not disturber.under_way and now - disturber.last >= what.settle
            sample = Sample(
                second=now,
                processes=processes(run.pid, present),
                stream=stream(present),
                settled=quiet and _usual(present, what.augmenters),
            )
            soaked.samples.append(sample)
            tell(sample)
        time.sleep(_TURN_SECONDS)


def _usual(present: dict[str, dict[str, Any]], augmenters: int) -> bool:
    """Everybody is up, and nobody too many."""
    names = {"trainer", "loader", *(f"augmenter-{number}" for number in range(augmenters))}
    return set(present) == names and all("metrics" in entry for entry in present.values())


def step_milliseconds(path: Path) -> Series:
    """(steps,): how long each step and the wait for its batch took."""
    with path.open(encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    return np.array([1e3 * (line["seconds"] + line["data_wait_seconds"]) for line in found], np.float64)
