"""Moments of start, run and stop: drawn from a seed, waited for, and what is found after a signal then."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourstage import rundir
from fourstage.store.prepare import prepare
from tests.pipeline.harness import CROP, SIZE, complete_run, losses, write_photographs
from tests.shutdown.traces import Command, unfinished

PHASES = (
    "starting", "opening", "first batch", "training", "validating", "checkpointing", "without a loader", "ending",
    "resuming",
)  # fmt: skip
KINDS = ("INT", "TERM", "INT INT", "INT TERM", "KILL", "HUP")
_WEIGHTS = (4, 2, 3, 1, 3, 1)
_ENDS_SECONDS = 60.0
"""Nothing below takes half as long; whatever does hangs."""
_PHASE_SECONDS = 60.0
_CHANCE_OF_RESUMING = 0.4

ARGUMENTS = [
    "--recipe", "cifar-relu", "--device", "cpu", "--augmenters", "2", "--epochs", "3", "--set",
    f"augmenter.crop={CROP}", "--set", "batch_size=6", "--set", "train.checkpoint_seconds=0.3", "--set",
    "augmenter.batch_seconds=0.02",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Moment:
    """When, and what is sent then."""

    number: int
    phase: str
    kind: str
    delay: float
    """Seconds after the phase was seen to begin."""
    gap: float
    """Seconds between two signals."""
    step: int
    resume: bool
    """Whether the run is then taken to its end."""

    @classmethod
    def draw(cls, seed: int, number: int) -> "Moment":
        """Each phase comes once in as many moments as there are phases."""
        chance = random.Random(f"{seed}/{number}")
        phase = PHASES[number % len(PHASES)]
        longest = {"starting": 2.5, "opening": 2.0, "resuming": 4.0}.get(phase, 0.3)
        return cls(
            number,
            phase,
            chance.choices(KINDS, _WEIGHTS)[0],
            delay=chance.uniform(0.0, longest),
            gap=chance.choice([0.0, chance.uniform(0.0, 0.05), chance.uniform(0.0, 1.0)]),
            step=chance.randint(2, 20),
            resume=chance.random() < _CHANCE_OF_RESUMING,
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a moment."""

    moment: Moment
    code: int | None
    complaints: tuple[str, ...]
    resumed: bool
    seconds: float


@dataclass(frozen=True)
class World:
    """A small store, and a run on it that nobody disturbed."""

    folder: Path
    store: Path
    digest: str
    losses: list[float]

    @classmethod
    def make(cls, folder: Path) -> "World":
        """24 training images of three classes make 12 steps of three epochs; 12 images to validate on."""
        write_photographs(folder, "train", 16)
        write_photographs(folder, "val", 8)
        store = folder / "store"
        prepare(folder / "train", store, size=SIZE, workers=1)
        prepare(folder / "val", store, split="val", size=SIZE, workers=1)
        summary = complete_run(store, folder / "undisturbed", *ARGUMENTS)
        return cls(folder, store, summary["receipt"]["digest"], losses(folder / "undisturbed"))


def attempt(world: World, moment: Moment) -> Outcome:
    """Start a run, stop it at the moment, look what is left, and perhaps go on."""
    began = time.monotonic()
    folder = world.folder / f"moment-{moment.number}"
    shutil.rmtree(folder, ignore_errors=True)
    run_dir = folder / "run"
    more = []
    if moment.phase == "resuming":
        _kill_in_the_middle(world, folder, run_dir)
        more = ["--resume"]
    command = Command(_words(world, run_dir, *more), folder / "first")
    complaints: list[str] = []
    try:
        _await(command, run_dir, moment)
        time.sleep(moment.delay)
        known = list(command.family())
        was_over, was_up = command.process.poll() is not None, command.is_up()
        for place, name in enumerate(moment.kind.split()):
            if place:
                time.sleep(moment.gap)
            command.signal(signal.Signals[f"SIG{name}"])
        code = command.end(_ENDS_SECONDS)
        if code is None:
            complaints.append(f"does not end within {_ENDS_SECONDS:g} s")
        else:
            complaints += _complaints(command, known, run_dir, moment, code, was_over=was_over, was_up=was_up)
    finally:
        command.kill()
    resumed = moment.resume and not complaints and (run_dir / rundir.SETTINGS).is_file()
    if resumed:
        complaints += _resume(world, folder, run_dir)
    if not complaints:
        shutil.rmtree(folder)
    return Outcome(moment, code, tuple(complaints), resumed, time.monotonic() - began)


def expected_codes(kind: str) -> set[int]:
    """0 where the run was over before."""
    match kind:
        case "KILL":
            return {-signal.SIGKILL, 0}
        case _:
            return {130, 0}


def _complaints(
    command: Command, known: Sequence[int], run_dir: Path, moment: Moment, code: int, *, was_over: bool, was_up: bool
) -> list[str]:
    complaints = command.left(known, run_dir)
    # Before the first line of ours Python itself answers, with a traceback and by the signal.
    is_ours = was_up or code not in {-signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP}
    if is_ours and code not in expected_codes(moment.kind):
        complaints.append(f"exit code {code}: {command.said.strip()[-400:]}")
    if is_ours and "Traceback" in command.said:
        complaints.append(f"a traceback: {command.said.strip()[-400:]}")
    summary = _json(run_dir / rundir.SUMMARY)
    if code == 0 and summary.get("state") != "done":
        complaints.append(f"exit code 0, but the run is {summary.get('state')!r}")
    if moment.kind in ("INT", "TERM") and not was_over:
        if unfinished(run_dir):
            complaints.append(f"unfinished: {unfinished(run_dir)}")
        step = summary.get("steps", 0)
        saved = sorted(path.name for path in run_dir.glob("checkpoints/step-*"))
        if step and (not saved or not saved[-1].startswith(f"step-{step:08d}")):
            complaints.append(f"interrupted after step {step} with the checkpoints {saved}")
    return complaints


def _resume(world: World, folder: Path, run_dir: Path) -> list[str]:
    command = Command(_words(world, run_dir, "--resume"), folder / "second")
    try:
        code = command.end(2 * _ENDS_SECONDS)
        if code != 0:
            return [f"--resume ends with {code}: {command.said.strip()[-400:]}"]
        complaints = command.left(run_dir=run_dir)
    finally:
        command.kill()
    complaints += [f"unfinished after --resume: {name}" for name in unfinished(run_dir)]
    if _json(run_dir / rundir.SUMMARY)["receipt"]["digest"] != world.digest:
        complaints.append("another digest after --resume")
    if losses(run_dir) != world.losses:
        complaints.append("other losses after --resume")
    return complaints


def _words(world: World, run_dir: Path, *more: str) -> list[str]:
    where = ["--store", str(world.store), "--run-dir", str(run_dir)]
    return ["-m", "fourstage", "run", *where, "--json", *ARGUMENTS, *more]


def _kill_in_the_middle(world: World, folder: Path, run_dir: Path) -> None:
    command = Command(_words(world, run_dir), folder / "before")
    try:
        _until(command, lambda: _json(run_dir / rundir.STATUS).get("step", 0) >= 4)
    finally:
        command.kill()


def _await(command: Command, run_dir: Path, moment: Moment) -> None:
    """Until the phase begins, or the run is over: it may be too short for the moment."""
    status = run_dir / rundir.STATUS

    def phase_begins() -> bool:
        match moment.phase:
            case "starting" | "resuming":
                return True
            case "opening":
                return (run_dir / rundir.PROCESSES).is_file()
            case "first batch":
                return status.is_file()
            case "training" | "without a loader":
                return bool(_json(status).get("step", 0) >= moment.step)
            case "validating":
                return _json(status).get("state") == "validating"
            case "checkpointing":
                return any(run_dir.glob("checkpoints/.partial-step-*")) and _json(status).get("step", 0) > 1
            case "ending":
                return (run_dir / rundir.SUMMARY).is_file()
        raise ValueError(moment.phase)

    _until(command, phase_begins)
    if moment.phase == "without a loader":
        loader = _json(run_dir / rundir.PROCESSES).get("loader", {}).get("pid")
        if loader in command.family():
            os.kill(loader, signal.SIGKILL)


def _until(command: Command, probe: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PHASE_SECONDS
    while not probe() and command.process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
