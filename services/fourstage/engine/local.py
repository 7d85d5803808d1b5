"""The processes of one run on this machine.

Loader and augmenters that die are started again; a trainer that was killed goes on from its last checkpoint.
"""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fourstage import rundir
from fourstage.engine.processes import POLL_SECONDS, STOP_SECONDS, Processes
from fourstage.errors import FourstageError
from fourstage.process import StopFlag

_TRAINER_STOP_SECONDS = 120.0
"""Time for the last step and the checkpoint."""
_LOADER, _TRAINER = "loader", "trainer"


@dataclass(slots=True)
class LocalRun:
    """``run`` from start to end."""

    run_dir: Path
    sockets: Path
    store: Path
    augmenters: int
    resume: bool
    debug: bool = False
    _processes: Processes = field(init=False)

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
        try:
            self._start_all()
            return self._watch(stop, show)
        finally:
            self._stop_all(stop)

    def _start_all(self) -> None:
        self._processes.start(_LOADER, ["loader", "--store", os.fspath(self.store)])
        for name in self._augmenters():
            self._processes.start(name, ["augmenter", "--name", name])
        self._processes.start(_TRAINER, self._trainer(resume=self.resume))

    def _augmenters(self) -> list[str]:
        return [f"augmenter-{number}" for number in range(self.augmenters)]

    def _trainer(self, *, resume: bool) -> list[str]:
        return ["trainer", "--run-dir", os.fspath(self.run_dir), *(["--resume"] if resume else [])]

    def _watch(self, stop: StopFlag, show: Callable[[dict[str, Any]], None]) -> int:
        shown: dict[str, Any] = {}
        listed: dict[str, Any] = {}
        told_to_stop = False
        while True:
            if stop and not told_to_stop:
                told_to_stop = True
                self._processes.signal(_TRAINER, signal.SIGTERM)
            code = self._processes.poll(_TRAINER)
            status = self._status()
            if status and status != shown:
                shown = status
                show(status)
            if (present := self._present()) != listed:
                listed = present
                rundir.write_json(self.run_dir / "processes.json", listed)
            if stop.urgent:
                return 130
            if code is not None and not self._restart_trainer(code, stop):
                return code
            self._processes.revive([_LOADER, *self._augmenters()])
            if told_to_stop:
                # The flag stays set: waiting on it would not wait any more.
                time.sleep(POLL_SECONDS)
            else:
                stop.wait(POLL_SECONDS)

    def _restart_trainer(self, code: int, stop: StopFlag) -> bool:
        """Start a killed trainer again; one that has ended by itself stays ended."""
        if code > 0 and code != 130:
            raise FourstageError(self._processes.last_words(_TRAINER, code))
        if code >= 0 or stop:
            return False
        self._processes.restart(_TRAINER, code, self._trainer(resume=True))
        return True

    def _stop_all(self, stop: StopFlag) -> None:
        """Trainer, then augmenters, then loader: each stage outlives those that it feeds."""
        for names, seconds in (
            ([_TRAINER], _TRAINER_STOP_SECONDS),
            (self._augmenters(), STOP_SECONDS),
            ([_LOADER], STOP_SECONDS),
        ):
            self._processes.stop(names, seconds, lambda: stop.urgent)
        self._processes.let_go()

    def _status(self) -> dict[str, Any]:
        try:
            return rundir.read_json(self.run_dir / rundir.STATUS)
        except FourstageError:
            return {}

    def _present(self) -> dict[str, Any]:
        """Who runs: process number and pages of each."""
        listed = {}
        for name in self._processes.names():
            try:
                announced = json.loads((self.sockets / f"{name}.json").read_text("utf-8"))
            except (OSError, ValueError):
                announced = {}
            pid = self._processes.pid(name)
            listed[name] = {"pid": pid} | (announced if announced.get("pid") == pid else {})
        return listed
