"""One seed: its plan carried out, and what came of it judged."""

import contextlib
import json
import os
import re
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fourstage.store.prepare import prepare
from tests.faults import world
from tests.faults.draw import RULES, Fault, Plan, Role, Stop, World, draw
from tests.faults.inside import AWAITED, HELD, MEMORY, READ_ERROR
from tests.faults.strike import Striker
from tests.pipeline.harness import SIZE, complete_run, eventually, fourstage, losses, write_photographs

DEADLINE_SECONDS: Final = 90.0
SAME, STOPPED = "same bytes", "clean stop"
_TURN_SECONDS = 0.01
_STACKS_SECONDS = 0.5
"""For what hangs to write into its log where it is."""
_INTERNAL = re.compile(r".*(?:internal error|Traceback|the feed failed|Assertion failed).*")


class FaultError(Exception):
    """A promise was broken; the message says how."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What all seeds share: a store, keys, and what an undisturbed run makes of them."""

    store: Path
    keys: Path
    digest: str
    losses: list[float]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a seed. ``failure``: how a promise was broken; empty where none was."""

    plan: Plan
    how: str
    seconds: float
    failure: str = ""


def prepare_ground(folder: Path) -> Ground:
    """Make the store and the keys, and run once undisturbed."""
    for split, per_class in (("train", 32), ("val", 8)):
        write_photographs(folder, split, per_class)
        prepare(folder / split, folder / "store", split=split, size=SIZE, workers=1)
    done = fourstage("keys", "init", str(folder / "keys"))
    if done.returncode:
        raise FaultError(done.stderr)
    run_dir = folder / "undisturbed"
    summary = complete_run(
        folder / "store", run_dir, "--recipe", world.RECIPE, "--augmenters", "1", *world.flags(world.SETTINGS)
    )
    return Ground(folder / "store", folder / "keys", summary["receipt"]["digest"], losses(run_dir))


def play(seed: int, ground: Ground, folder: Path, *, keep: bool = False) -> Outcome:
    """Carry out a seed's plan. folder: where its processes write; removed where all is well, unless to be kept."""
    plan, began = draw(seed), time.monotonic()
    where = folder / str(seed)
    try:
        how = _play(plan, ground, where)
    except (FaultError, AssertionError) as error:
        return Outcome(plan, "failed", time.monotonic() - began, f"{error} (logs in {where})")
    if not keep:
        shutil.rmtree(where)
    return Outcome(plan, how, time.monotonic() - began)


def _play(plan: Plan, ground: Ground, folder: Path) -> str:
    folder.mkdir(parents=True)
    for strike in plan.strikes:
        (folder / (strike.token + AWAITED)).touch()
    processes = world.start(plan, ground.store, ground.keys, folder)
    striker = Striker(processes, ground.store, folder)
    try:
        stops = _to_the_end(plan, processes, striker)
        striker.heal()
        processes.close()
        check_same(processes.run_dir, ground)
        _check_deaths(plan, processes, striker)
        _check_struck(plan, folder, stops)
        _check_nothing_left(plan, folder)
    finally:
        for pid in world.of_this(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(Exception):
            processes.close()
    return STOPPED if stops else SAME


def _to_the_end(plan: Plan, processes: world.Processes, striker: Striker) -> int:
    """Strike, heal, resume, until the run is done; how many times it stopped with words."""
    pending, stops = list(plan.strikes), 0
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        if time.monotonic() > deadline:
            for pid in world.of_this(striker.folder):
                os.kill(pid, signal.SIGUSR1)
            time.sleep(_STACKS_SECONDS)
            left = f", waiting for: {'; '.join(map(str, pending))}" if pending else ""
            raise FaultError(f"not done within {DEADLINE_SECONDS:.0f} s{left}")
        striker.turn()
        processes.turn()
        _check_deaths(plan, processes, striker)
        for strike in list(pending):
            if (said := striker.folder / (strike.token + HELD)).is_symlink():
                pending.remove(strike)
                striker.strike(strike, str(said.readlink()))
        code = processes.ended()
        if code is None:
            time.sleep(_TURN_SECONDS)
            continue
        if code == 0:
            if pending:
                raise FaultError(f"never came: {'; '.join(map(str, pending))}")
            return stops
        if code == 1:
            _check_words(plan, processes)
            stops += 1
        elif not _explained(plan, {Role.TRAINER, Role.ENGINE}, code):
            raise FaultError(f"the run ended with {code}: {_said(processes)}")
        striker.heal()
        processes.resume()


def _explained(plan: Plan, roles: set[Role], code: int) -> bool:
    return any(blow.role in roles and code in RULES[blow.fault].codes for blow in plan.blows)


def _said(processes: world.Processes) -> str:
    return world.last_words(processes.last_log)


def _check_words(plan: Plan, processes: world.Processes) -> None:
    said = _said(processes)
    rules = [RULES[blow.fault] for blow in plan.blows]
    if not any(rule.stop is not Stop.NEVER and re.search(rule.words, said) for rule in rules):
        raise FaultError(f"stopped with {said!r}")


def check_same(run_dir: Path, ground: Ground) -> None:
    """Raises FaultError where a run's bytes or losses are others than undisturbed."""
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    if summary["receipt"]["digest"] != ground.digest:
        raise FaultError(f"other bytes: digest {summary['receipt']['digest']}, undisturbed {ground.digest}")
    if (found := losses(run_dir)) != ground.losses:
        steps = [step for step, pair in enumerate(zip(found, ground.losses, strict=False), 1) if pair[0] != pair[1]]
        raise FaultError(f"other losses: {len(found)} of {len(ground.losses)} steps, different: {steps[:5]}")


def _check_deaths(plan: Plan, processes: world.Processes, striker: Striker) -> None:
    """Nobody died but by a fault, and nobody met what it did not expect."""
    for death in processes.deaths:
        killed = death.code == -signal.SIGKILL and death.name in striker.provoked
        if not killed and not _explained(plan, {Role(death.name.partition("-")[0])}, death.code):
            raise FaultError(f"{death.name} ended with {death.code}")
    starved = any(blow.fault is Fault.MEMORY for blow in plan.blows)
    for log in processes.logs():
        if (found := _INTERNAL.search(log.read_text(errors="replace"))) and not starved:
            raise FaultError(f"{log.name}: {found[0]}")


def _check_struck(plan: Plan, folder: Path, stops: int) -> None:
    """A fault that nobody met proves nothing."""
    if left := [path.name for pattern in (READ_ERROR, MEMORY) for path in folder.glob(f"{pattern}*")]:
        raise FaultError(f"never met: {', '.join(left)}")
    if not stops and any(RULES[blow.fault].stop is Stop.ALWAYS for blow in plan.blows):
        raise FaultError("went on without a word")


def _check_nothing_left(plan: Plan, folder: Path) -> None:
    """No process; and no socket, but of those that were killed while nobody looked after them."""
    eventually(lambda: not world.of_this(folder), "the end of every process", 10.0)
    left = [path.name for path in (folder / "tmp").rglob("*")]
    if left and plan.world is World.RUN:
        raise FaultError(f"left behind: {', '.join(left)}")
