"""Child processes on this machine: started, watched, started again when they die, stopped.

All of them read one FIFO. When the last process that can write to it is gone, by whatever death, they leave by
themselves and take the folder of sockets with them.
"""

import logging
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fourstage.ending import ERROR_PREFIX
from fourstage.errors import FourstageError, SettingsError, of_the_machine
from fourstage.resolve import ENVIRONMENT_PREFIX

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
"""How often whoever watches looks at them."""
STOP_SECONDS = 10.0
ADDRESS = "loader.address"
"""The file in the folder of sockets where the loader writes its present address."""
_LIFELINE = "lifeline"
_RESTARTS = 5
"""Restarts of one process within ``_RESTART_WINDOW`` seconds after which we give up."""
_RESTARTS_OF_KILLED = 20
"""The same after a signal: to find the sample that kills its workers takes 3 + log2(batch_size) + 2 deaths."""
_RESTART_WINDOW = 30.0


@dataclass(slots=True)
class Child:
    """One process and how it is started."""

    name: str
    arguments: list[str]
    launcher: tuple[str, ...]
    process: "subprocess.Popen[bytes]"
    starts: list[float] = field(default_factory=list)


class Hold:
    """What keeps services alive: an end of their lifeline for writing, in this process and in no fork of it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        reference = weakref.ref(self)

        def in_fork() -> None:
            # A worker of somebody's own DataLoader may outlive this process, and the services would with it.
            if (held := reference()) is not None:
                held.let_go()

        os.register_at_fork(after_in_child=in_fork)

    def let_go(self) -> None:
        """Services that nobody else holds leave by themselves."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Processes:
    """Services by name. ``settings``: their TOML file; ``sockets``: their folder; ``logs``: where each has a file."""

    def __init__(self, *, settings: Path, sockets: Path, logs: Path, debug: bool = False) -> None:
        self._settings = settings
        self._sockets = sockets
        self._logs = logs
        self._debug = debug
        self._children: dict[str, Child] = {}
        self._log_starts: dict[str, int] = {}
        """Where in its log the words of each process that was started last begin: older ones are of another."""
        path = sockets / _LIFELINE
        path.unlink(missing_ok=True)
        os.mkfifo(path, 0o600)
        # The reading end first, without waiting: a FIFO opens for writing once somebody reads it.
        self._reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._held = Hold(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
        os.set_blocking(self._reader, True)

    def start(self, name: str, arguments: Sequence[str], launcher: tuple[str, ...] = ()) -> None:
        """Start a service: ``arguments`` of the command line, without what all of them get.

        launcher: arguments of the interpreter before those, which start it several times over
        """
        process = self._popen(name, arguments, launcher)
        self._children[name] = Child(name, list(arguments), launcher, process, [time.monotonic()])

    def names(self) -> list[str]:
        """In the order of their start."""
        return list(self._children)

    def pid(self, name: str) -> int:
        """The number of the process that bears the name now."""
        return self._children[name].process.pid

    def poll(self, name: str) -> int | None:
        """How a process ended, below zero by a signal; None while it runs."""
        return self._children[name].process.poll()

    def sleep(self, name: str, seconds: float, *descriptors: int) -> None:
        """Until a process that has not ended does, something can be read from a descriptor, or the time is over."""
        process = os.pidfd_open(self.pid(name))
        try:
            select.select([process, *descriptors], [], [], seconds)
        finally:
            os.close(process)

    def revive(self, names: Iterable[str]) -> None:
        """Start those again that have ended. Raises FourstageError as ``restart`` does."""
        for name in names:
            if (code := self.poll(name)) is not None:
                self.restart(name, code)

    def restart(self, name: str, code: int, arguments: Sequence[str] | None = None) -> None:
        """Start one again that ended with ``code``. Raises FourstageError with its last words when that is no use."""
        child = self._children[name]
        now = time.monotonic()
        child.starts = [start for start in child.starts if now - start < _RESTART_WINDOW]
        most = _RESTARTS if code >= 0 else _RESTARTS_OF_KILLED
        if code == SettingsError.exit_code:
            raise SettingsError(self.last_words(name, code))
        if len(child.starts) > most:
            raise FourstageError(self.last_words(name, code))
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        log.warning("%s %s: started again", name, how)
        child.arguments = list(arguments or child.arguments)
        child.process = self._popen(name, child.arguments, child.launcher)
        child.starts.append(time.monotonic())

    def last_words(self, name: str, code: int) -> str:
        """What a process that ended said of it, or where its log lies."""
        path = self._logs / f"{name}.log"
        with path.open("rb") as log_file:
            log_file.seek(self._log_starts.get(name, 0))
            lines = log_file.read().decode("utf-8", errors="replace").splitlines()
        words = [line.removeprefix(ERROR_PREFIX) for line in lines if line.startswith(ERROR_PREFIX)]
        last = f": {lines[-1]}" if lines else ""
        return words[-1] if words else f"{name} ended with {code}{last}; see {path}"

    def signal(self, name: str, number: int) -> None:
        """Send a signal; nothing where the process has ended."""
        child = self._children[name]
        if child.process.poll() is None:
            child.process.send_signal(number)

    def forget(self, name: str) -> None:
        """Leave a process that has ended out of the books."""
        del self._children[name]
        (self._sockets / f"{name}.json").unlink(missing_ok=True)

    def stop(
        self, names: Iterable[str], seconds: float = STOP_SECONDS, urgent: Callable[[], bool] = lambda: False
    ) -> None:
        """Ask some to leave and wait for them; kill those that take longer, or all as soon as it is urgent."""
        group = [self._children[name] for name in names if name in self._children]
        for child in group:
            self.signal(child.name, signal.SIGTERM)
        deadline = time.monotonic() + seconds
        for child in group:
            while child.process.poll() is None and not urgent() and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS / 10)
            if child.process.poll() is None:
                log.warning("%s does not stop: killed", child.name)
                child.process.kill()
                child.process.wait()

    def let_go(self) -> None:
        """Drop the lifeline: processes that nobody else holds leave by themselves."""
        self._held.let_go()
        os.close(self._reader)

    def _popen(self, name: str, arguments: Sequence[str], launcher: tuple[str, ...]) -> "subprocess.Popen[bytes]":
        environment = {key: value for key, value in os.environ.items() if not key.startswith(ENVIRONMENT_PREFIX)}
        environment |= {
            "FOURSTAGE_LOADER__ADDRESS": f"file:{self._sockets / ADDRESS}",
            "FOURSTAGE_LOADER__TRAINERS": "auto",
            "FOURSTAGE_SOCKETS": os.fspath(self._sockets),
            # They speak through Unix sockets; the setting is for one role, and these are of all.
            "FOURSTAGE_KEYS": "",
            # One process one core: the pools of BLAS and OpenMP would fight for it.
            "OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS", "1"),
            "OPENBLAS_NUM_THREADS": "1",
            # Trainers of one machine meet on its loopback: a container's own name may not resolve.
            **({"GLOO_SOCKET_IFNAME": "lo"} if launcher else {}),
        }
        command = [
            sys.executable, *launcher, "-m", "fourstage", *arguments, "--settings", os.fspath(self._settings),
            "--announce", os.fspath(self._sockets / f"{name}.json"), "--lifeline",
            *(["--debug"] if self._debug else []),
        ]  # fmt: skip
        try:
            with (self._logs / f"{name}.log").open("ab") as output:
                self._log_starts[name] = output.tell()
                return subprocess.Popen(
                    command, stdin=self._reader, stdout=output, stderr=output, env=environment, start_new_session=True
                )
        except OSError as error:
            raise of_the_machine(error) or FourstageError(
                f"cannot start {name}: {error}", hint="raise the limit of processes (ulimit -u, pids), or start fewer"
            ) from error


def hold(sockets: Path) -> Hold:
    """Hold the processes of another one's folder of sockets.

    Raises FourstageError where there are none, which is so on another machine.
    """
    try:
        return Hold(os.open(sockets / _LIFELINE, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        raise FourstageError(f"no processes to share in {sockets}: {error.strerror}") from error
