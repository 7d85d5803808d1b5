"""Starts, watches, restarts and stops the processes of a run on this machine.

The children hold a pipe to this process: when it closes, by whatever death, they leave by themselves. Loader and
augmenters that die are started again; a trainer that was killed goes on from its last checkpoint.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fourstage import rundir
from fourstage.errors import FourstageError
from fourstage.process import StopFlag
from fourstage.settings import ENVIRONMENT_PREFIX

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_TRAINER_STOP_SECONDS = 120.0
"""Time for the last step and the checkpoint."""
_STOP_SECONDS = 10.0
_RESTARTS = 5
"""Restarts of one process within ``_RESTART_WINDOW`` seconds after which the run gives up."""
_RESTART_WINDOW = 30.0
ERROR_PREFIX = "fourstage: "
"""How the last line of a failed process begins."""


@dataclass(slots=True)
class Child:
    """One process of the run and how it is started."""

    name: str
    arguments: list[str]
    process: "subprocess.Popen[bytes] | None" = None
    starts: list[float] = field(default_factory=list)


@dataclass(slots=True)
class LocalRun:
    """The processes of one run. ``run`` from start to end."""

    run_dir: Path
    sockets: Path
    store: Path
    augmenters: int
    resume: bool
    debug: bool = False
    children: dict[str, Child] = field(default_factory=dict)
    restarts: int = 0

    def run(self, stop: StopFlag, show: Callable[[dict[str, Any]], None]) -> int:
        """Run to the end; ``show`` is called with every new status. Returns the trainer's exit code.

        Raises FourstageError with the words of the process that failed.
        """
        try:
            self._start_all()
            return self._watch(stop, show)
        finally:
            self._stop_all(stop)

    def _start_all(self) -> None:
        self._add("loader", ["loader", "--store", os.fspath(self.store)])
        for number in range(self.augmenters):
            self._add(f"augmenter-{number}", ["augmenter", "--name", f"augmenter-{number}"])
        resume = ["--resume"] if self.resume else []
        self._add("trainer", ["trainer", "--run-dir", os.fspath(self.run_dir), *resume])

    def _add(self, name: str, arguments: list[str]) -> None:
        self.children[name] = Child(name, arguments)
        self._start(self.children[name])

    def _start(self, child: Child) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(ENVIRONMENT_PREFIX)}
        environment |= {
            "FOURSTAGE_LOADER__ADDRESS": f"file:{self.sockets / 'loader.address'}",
            "FOURSTAGE_SOCKETS": os.fspath(self.sockets),
            # One process one core: the pools of BLAS and OpenMP would fight for it.
            "OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS", "1"),
            "OPENBLAS_NUM_THREADS": "1",
        }
        command = [
            sys.executable, "-m", "fourstage", *child.arguments,
            "--settings", os.fspath(self.run_dir / rundir.SETTINGS),
            "--announce", os.fspath(self.sockets / f"{child.name}.json"),
            "--lifeline", *(["--debug"] if self.debug else []),
        ]  # fmt: skip
        with (self.run_dir / rundir.LOGS / f"{child.name}.log").open("ab") as output:
            child.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
        child.starts.append(time.monotonic())

    def _watch(self, stop: StopFlag, show: Callable[[dict[str, Any]], None]) -> int:
        shown: dict[str, Any] = {}
        listed: dict[str, Any] = {}
        trainer = self.children["trainer"]
        told_to_stop = False
        while True:
            if stop and not told_to_stop:
                told_to_stop = True
                self._signal(trainer, signal.SIGTERM)
            code = trainer.process.poll() if trainer.process else None
            status = self._status()
            if status and status != shown:
                shown = status
                show(status)
            if (processes := self._processes()) != listed:
                listed = processes
                rundir.write_json(self.run_dir / "processes.json", listed)
            if code is not None and not self._restart_trainer(trainer, code, stop):
                return code
            for child in self.children.values():
                if child is not trainer and child.process is not None and child.process.poll() is not None:
                    self._restart(child, child.process.returncode)
            stop.wait(_POLL_SECONDS) if not told_to_stop else time.sleep(_POLL_SECONDS)

    def _restart_trainer(self, trainer: Child, code: int, stop: StopFlag) -> bool:
        """Start a killed trainer again; one that has ended by itself stays ended."""
        if code in (0, 130) or stop:
            return False
        if code > 0:
            raise FourstageError(self._last_words(trainer, code))
        if "--resume" not in trainer.arguments:
            trainer.arguments.append("--resume")
        self._restart(trainer, code)
        return True

    def _restart(self, child: Child, code: int) -> None:
        now = time.monotonic()
        child.starts = [start for start in child.starts if now - start < _RESTART_WINDOW]
        if code == 2 or len(child.starts) > _RESTARTS:
            raise FourstageError(self._last_words(child, code))
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        log.warning("%s %s: started again", child.name, how)
        self.restarts += 1
        if child.process is not None and child.process.stdin is not None:
            child.process.stdin.close()
        self._start(child)

    def _last_words(self, child: Child, code: int) -> str:
        path = self.run_dir / rundir.LOGS / f"{child.name}.log"
        lines = path.read_text("utf-8", errors="replace").splitlines()
        words = [line.removeprefix(ERROR_PREFIX) for line in lines if line.startswith(ERROR_PREFIX)]
        return words[-1] if words else f"{child.name} ended with {code}; see {path}"

    def _stop_all(self, stop: StopFlag) -> None:
        """Trainer, then augmenters, then loader: each stage outlives those that it feeds."""
        trainer = [child for child in self.children.values() if child.name == "trainer"]
        loader = [child for child in self.children.values() if child.name == "loader"]
        augmenters = [child for child in self.children.values() if child not in (*trainer, *loader)]
        for group in (trainer, augmenters, loader):
            for child in group:
                self._signal(child, signal.SIGTERM)
            for child in group:
                self._wait(child, _TRAINER_STOP_SECONDS if child in trainer else _STOP_SECONDS, stop)

    def _wait(self, child: Child, seconds: float, stop: StopFlag) -> None:
        if child.process is None:
            return
        try:
            child.process.wait(0.0 if stop.reason == "at once" else seconds)
        except subprocess.TimeoutExpired:
            log.warning("%s does not stop: killed", child.name)
            child.process.kill()
            child.process.wait()
        if child.process.stdin is not None:
            child.process.stdin.close()

    def _signal(self, child: Child, number: int) -> None:
        if child.process is not None and child.process.poll() is None:
            child.process.send_signal(number)

    def _status(self) -> dict[str, Any]:
        try:
            return rundir.read_json(self.run_dir / rundir.STATUS)
        except FourstageError:
            return {}

    def _processes(self) -> dict[str, Any]:
        """Who runs: process number and pages of each."""
        listed = {}
        for child in self.children.values():
            try:
                announced = json.loads((self.sockets / f"{child.name}.json").read_text("utf-8"))
            except (OSError, ValueError):
                announced = {}
            pid = child.process.pid if child.process else None
            listed[child.name] = {"pid": pid} | (announced if announced.get("pid") == pid else {})
        return listed
