"""The processes of one run on this machine.

Loader and augmenters that die are started again; a trainer that was killed goes on from its last checkpoint. Several
trainers run under torchrun, and when one of them dies all of them end.
"""

import json
import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fourstage import rundir
from fourstage.engine.crew import Crew
from fourstage.engine.processes import POLL_SECONDS, STOP_SECONDS, Processes
from fourstage.engine.scaling import Scaling
from fourstage.errors import FourstageError, SettingsError
from fourstage.process import StopFlag

log = logging.getLogger(__name__)

_TRAINER_STOP_SECONDS = 120.0
"""Time for the last step and the checkpoint."""
_RANKS_END_SECONDS = 12
"""How long torchrun waits for the trainers that a dead one leaves: they need half of it to know whose death it was."""
_LOADER, _TRAINER = "loader", "trainer"


@dataclass(slots=True)
class LocalRun:
    """``run`` from start to end."""

    run_dir: Path
    sockets: Path
    store: Path
    augmenters: int
    """To begin with."""
    auto: bool
    """Whether their number adapts."""
    resume: bool
    trainers: int = 1
    replicas: int = 1
    """Trainers with a stream each."""
    debug: bool = False
    _processes: Processes = field(init=False)
    _crew: Crew = field(init=False)

    def run(self, stop: StopFlag, show: Callable[[dict[str, Any]], None]) -> int:
        """Run to the end; ``show`` is called with every new status. Returns the trainer's exit code.

        Raises FourstageError with the words of the process that failed.
        """
        self._processes = Processes(
            settings=self.run_dir / rundir.SETTINGS,
            sockets=self.sockets,
            logs=self.run_dir / rundir.LOGS,
            debug=self.debug,
        )
        self._crew = Crew(self._processes)
        try:
            self._start_all()
            return self._watch(stop, show)
        finally:
            self._stop_all(stop)

    def _start_all(self) -> None:
        # First whoever takes longest: it imports torch.
        self._processes.start(_TRAINER, self._trainer(resume=self.resume), self._torchrun())
        self._processes.start(_LOADER, ["loader", "--store", os.fspath(self.store)])
        self._crew.resize(self.augmenters, time.monotonic())

    def _trainer(self, *, resume: bool) -> list[str]:
        return ["trainer", "--run-dir", os.fspath(self.run_dir), *(["--resume"] if resume else [])]

    def _torchrun(self) -> tuple[str, ...]:
        if self.trainers == 1:
            return ()
        return (
            "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.trainers),
            "--max-restarts", "0", "--shutdown-timeout", str(_RANKS_END_SECONDS),
            # Its own would stay in the folder of temporary files.
            "--log-dir", os.fspath(self.sockets / "torchrun"),
        )  # fmt: skip

    def _ranks(self) -> list[str]:
        """The trainers that torchrun starts, by the names under which they announce themselves."""
        return [f"{_TRAINER}-{rank}" for rank in range(self.trainers)] if self.trainers > 1 else []

    def _watch(self, stop: StopFlag, show: Callable[[dict[str, Any]], None]) -> int:
        shown: dict[str, Any] = {}
        listed: dict[str, Any] = {}
        told_to_stop = False
        scaling = Scaling(self.run_dir, self._processes, self._crew, auto=self.auto, replicas=self.replicas)
        while True:
            if stop and not told_to_stop:
                told_to_stop = True
                self._stop_training()
            code = self._processes.poll(_TRAINER)
            now = time.monotonic()
            status = self._status()
            if status and status != shown:
                shown = status
                show(status)
                if not told_to_stop:
                    scaling.look(status, now)
            if not told_to_stop:
                scaling.turn(now)
            if (present := self._present()) != listed:
                listed = present
                rundir.write_json(self.run_dir / rundir.PROCESSES, listed, durable=False)
            if stop.urgent:
                return 130
            if code is not None and not self._restart_trainer(code, stop):
                return self._ended(code)
            self._processes.revive([_LOADER])
            self._crew.turn(now)
            # Once set the flag stays so: waiting for it would not wait any more.
            self._processes.sleep(_TRAINER, POLL_SECONDS, *([] if told_to_stop else [stop.reader]))

    def _stop_training(self) -> None:
        """Tell one trainer: it tells the others, and all of them stop after the same step.

        Told by torchrun they would stop one by one, and be killed if the checkpoint takes long.
        """
        first = self._announced(self._ranks()[0]) if self._ranks() else {}
        if "pid" in first:
            # It may just have ended, and torchrun be about to.
            with suppress(ProcessLookupError):
                os.kill(first["pid"], signal.SIGTERM)
        else:
            self._processes.signal(_TRAINER, signal.SIGTERM)

    def _restart_trainer(self, code: int, stop: StopFlag) -> bool:
        """Start a killed trainer again; one that has ended by itself stays ended."""
        if (code > 0 and code != 130) or (code < 0 and self.trainers > 1):
            words = self._processes.last_words(_TRAINER, code)
            if not (stop and self.trainers > 1 and not self._status()):
                raise (SettingsError if code == SettingsError.exit_code else FourstageError)(words)
            # torchrun says the same of trainers that were stopped before their first batch as of any that failed.
            log.warning("%s", words)
        if code >= 0 or stop:
            return False
        self._processes.restart(_TRAINER, code, self._trainer(resume=True))
        return True

    def _ended(self, code: int) -> int:
        """The code of a run whose trainer has ended with ``code``; the summary, where there is one, says how.

        torchrun takes any code but 0 for a failure, so trainers under it say it only there. A signal kills a trainer
        that is not up yet, or that is done and about to leave.
        """
        if code >= 0 and self.trainers == 1:
            return code
        if code == -signal.SIGKILL:
            log.warning("the trainer was killed while it stopped: the run can go on from its last checkpoint")
        return 0 if rundir.is_done(self.run_dir) else 130

    def _stop_all(self, stop: StopFlag) -> None:
        """Trainer, then augmenters, then loader: each stage outlives those that it feeds."""
        for names, seconds in (
            ([_TRAINER], _TRAINER_STOP_SECONDS),
            (self._crew.names + self._crew.leaving, STOP_SECONDS),
            ([_LOADER], STOP_SECONDS),
        ):
            self._processes.stop(names, seconds, lambda: stop.urgent)
            for rank in self._ranks():
                self._kill_leftover(rank)
        self._processes.let_go()

    def _kill_leftover(self, rank: str) -> None:
        """A trainer whose torchrun was killed would notice it by itself, but only after seconds."""
        if "pid" in (announced := self._announced(rank)):
            with suppress(ProcessLookupError):
                os.kill(announced["pid"], signal.SIGKILL)
        (self.sockets / f"{rank}.json").unlink(missing_ok=True)

    def _status(self) -> dict[str, Any]:
        try:
            return rundir.read_json(self.run_dir / rundir.STATUS)
        except FourstageError:
            return {}

    def _present(self) -> dict[str, Any]:
        """Who runs: process number and pages of each."""
        listed = {}
        for name in self._processes.names():
            announced = self._announced(name)
            pid = self._processes.pid(name)
            listed[name] = {"pid": pid} | (announced if announced.get("pid") == pid else {})
        for name in self._crew.leaving:
            listed[name]["leaving"] = True
        return listed | {rank: announced for rank in self._ranks() if (announced := self._announced(rank))}

    def _announced(self, name: str) -> dict[str, Any]:
        """What a process said of itself; nothing before it is up."""
        try:
            announced = json.loads((self.sockets / f"{name}.json").read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return announced if isinstance(announced, dict) else {}
