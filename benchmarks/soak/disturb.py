"""What happens to a run while it is soaked: kills, freezes, other numbers of augmenters, drawn from a seed.

A process that is killed again and again is too young to show a leak, and a slow leak of one role may come of the death
of another. So the loader is killed in the first third of a run alone, and the first augmenter never: each role has a
process that lives through most of what happens to the others.
"""

import os
import random
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from benchmarks.soak.watch import listed

Kind = Literal["kill augmenter", "kill loader", "scale", "freeze"]
KINDS: tuple[Kind, ...] = ("kill augmenter", "kill loader", "scale", "freeze")
MOST = 4
"""Augmenters, whatever the cores: too many are a load as well."""
_LOADER_SHARE = 1.0 / 3.0
_USUAL_GAP = 10.0
_SCALED_SECONDS, _FROZEN_SECONDS = (8.0, 15.0), (1.0, 8.0)
"""How long, with usual gaps. A worker that is silent for five seconds loses its leases; some freezes are shorter."""


@dataclass(frozen=True, slots=True)
class Act:
    """One disturbance. at: seconds; lasts: seconds after which it is undone, 0 for a kill."""

    at: float
    kind: Kind
    lasts: float = 0.0
    number: int = 0
    """To scale to; or which augmenter is killed or frozen."""


def plan(seed: int, seconds: float, gaps: tuple[float, float], home: int) -> list[Act]:
    """The disturbances of a run of ``seconds``, none of which overlap.

    gaps: least and most seconds from the end of one to the next; home: the usual number of augmenters, at least 2.
    Kinds are dealt like cards: each comes as often as the others.
    """
    chance = random.Random(seed)
    acts: list[Act] = []
    deck: list[Kind] = []
    shorter = min(1.0, gaps[0] / _USUAL_GAP)
    at = chance.uniform(*gaps)
    while at + gaps[0] < seconds:
        deck = deck or chance.sample(KINDS, len(KINDS))
        match deck.pop():
            case "kill loader" if at > _LOADER_SHARE * seconds:
                continue
            case "scale":
                number = chance.choice([count for count in range(1, MOST + 1) if count != home])
                act = Act(at, "scale", shorter * chance.uniform(*_SCALED_SECONDS), number)
            case "freeze":
                act = Act(at, "freeze", shorter * chance.uniform(*_FROZEN_SECONDS), chance.randrange(home))
            case "kill augmenter":
                act = Act(at, "kill augmenter", number=chance.randrange(1, home))
            case kind:
                act = Act(at, kind)
        acts.append(act)
        at += act.lasts + chance.uniform(*gaps)
    while acts and acts[-1].at + acts[-1].lasts + gaps[0] > seconds:
        acts.pop()
    return acts


class Disturber:
    """Does what is planned; ``turn`` is called several times a second."""

    def __init__(self, run_dir: Path, engine: int, acts: Iterable[Act], home: int) -> None:
        """engine: the process number of ``fourstage run``, whose children alone are touched."""
        self._run_dir = run_dir
        self._engine = engine
        self._home = home
        self._acts = deque(acts)
        self._undo_at = 0.0
        self._frozen = 0
        self._scaled = False
        self.done: list[Act] = []
        """At the moments when they happened."""
        self.missed: list[Act] = []
        """Nobody was there to be killed or frozen."""
        self.last = 0.0
        """The last moment at which one began or was undone."""

    @property
    def under_way(self) -> bool:
        """Whether something is yet to be undone."""
        return bool(self._frozen) or self._scaled

    def turn(self, now: float) -> None:
        """Do what is due. now: seconds, as in the plan. Raises RuntimeError where ``fourstage scale`` fails."""
        if self.under_way and now >= self._undo_at:
            self.undo()
            self.last = now
        elif not self.under_way and self._acts and now >= self._acts[0].at:
            act = self._acts.popleft()
            happened = replace(act, at=now)
            (self.done if self._begin(act) else self.missed).append(happened)
            self._undo_at, self.last = now + act.lasts, now

    def undo(self) -> None:
        """Whoever is frozen goes on, and there are as many augmenters as usual."""
        if self._frozen:
            self._signal(self._frozen, signal.SIGCONT)
            self._frozen = 0
        if self._scaled:
            self._scale(self._home)
            self._scaled = False

    def _begin(self, act: Act) -> bool:
        if act.kind == "scale":
            self._scale(act.number)
            self._scaled = True
            return True
        name = "loader" if act.kind == "kill loader" else f"augmenter-{act.number}"
        pid = int(listed(self._run_dir).get(name, {}).get("pid", 0))
        if act.kind != "freeze":
            return self._signal(pid, signal.SIGKILL)
        if self._signal(pid, signal.SIGSTOP):
            self._frozen = pid
        return bool(self._frozen)

    def _signal(self, pid: int, number: signal.Signals) -> bool:
        if not is_child(pid, self._engine):
            return False
        os.kill(pid, number)
        return True

    def _scale(self, number: int) -> None:
        command = [sys.executable, "-m", "fourstage", "scale", str(number), "--run-dir", os.fspath(self._run_dir)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"fourstage scale {number} ended with {done.returncode}: {done.stderr.strip()}")


def is_child(pid: int, parent: int) -> bool:
    """Whether a process lives and is the child of another: its number may have been given to somebody else."""
    try:
        state, of, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return False
    return int(of) == parent and state != "Z"
