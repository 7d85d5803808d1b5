"""The number of a run's augmenters: what a person asks for, or what the controller makes of what is measured."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fourstage.by_hand import SCALE
from fourstage.engine.autoscale import Autoscale, Seen
from fourstage.engine.cores import Cores, core_seconds
from fourstage.engine.crew import Crew
from fourstage.engine.processes import Processes
from fourstage.errors import FourstageError
from fourstage.verdict import Reading
from fourstage.wire.messages import Usage

log = logging.getLogger(__name__)


class Scaling:
    """Takes requests and looks at every new status."""

    def __init__(self, run_dir: Path, processes: Processes, crew: Crew, *, auto: bool, replicas: int) -> None:
        self._run_dir = run_dir
        self._processes = processes
        self._crew = crew
        self._replicas = replicas
        self._auto = Autoscale(replicas) if auto else None
        self._cores = Cores()

    def turn(self, now: float) -> None:
        """Do what was asked for since the last call. now: seconds, here and in ``look``"""
        match SCALE.take(self._run_dir):
            case None:
                return
            case "auto":
                if self._auto is None:
                    self._auto = Autoscale(self._replicas)
                log.info("augmenters %d: as many as the trainer needs from now on", len(self._crew.names))
            case int(count):
                self._auto = None
                self._resize(count, "asked by hand", now)

    def look(self, status: Mapping[str, Any], now: float) -> None:
        """The trainer says where it stands: perhaps another number is better."""
        if self._auto is None or (seen := self._seen(status, now)) is None:
            return
        if (decision := self._auto.look(seen)) is not None:
            self._resize(decision.count, decision.reason, now)

    def _resize(self, count: int, reason: str, now: float) -> None:
        before = len(self._crew.names)
        log.info("augmenters %s: %s", before if count == before else f"{before} -> {count}", reason)
        try:
            self._crew.resize(count, now)
        except FourstageError as error:
            # Those that there are go on: more of them are wished for, not needed.
            log.warning("augmenters stay %d: %s", len(self._crew.names), error)

    def _seen(self, status: Mapping[str, Any], now: float) -> Seen | None:
        # While it validates the trainer counts no steps.
        if status.get("state") != "running":
            return None
        try:
            usages = {stage: Usage(**counted) for stage, counted in status["usage"].items()}
            what, present = str(status["verdict"]["what"]), int(status["augmenters"])
        except (KeyError, TypeError, ValueError):
            return None
        return Seen(
            Reading(usages, now),
            count=len(self._crew.names),
            present=present,
            what=what,
            cpu=sum(core_seconds(self._processes.pid(name)) for name in self._crew.names),
            idle=self._cores.idle_seconds(now),
        )
