"""How each fault is applied to real processes, and healed."""

import contextlib
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fourstage.store import open_store
from tests.faults.draw import Blow, Fault, Role, Strike
from tests.faults.inside import CLOCK, HELD, MEMORY, READ_ERROR, READS_FAIL, READS_SLOW, RELEASED
from tests.faults.proxy import Proxy
from tests.faults.world import Engine, Services
from tests.pipeline.harness import eventually

_DAY_SECONDS = 86_400
_SMALL_FILES = (8 << 10, 64 << 10)
"""Bytes: the lines of a few steps, or of a whole run; no tensors. A process's last words fit into its log."""
_FEW_DESCRIPTORS = 8
_STORM_SECONDS = 0.1
_STORM_CONNECTIONS = 20
_SLOW_READ_SECONDS = 0.02
_SLOW_BYTES = 200_000.0
_DELAY_SECONDS, _LONG_DELAY_SECONDS = 0.02, 0.35
_SIGNALS = {Fault.KILL: signal.SIGKILL, Fault.TERMINATE: signal.SIGTERM, Fault.INTERRUPT: signal.SIGINT}


@dataclass
class Striker:
    """Applies blows and heals them when their time is over."""

    processes: Engine | Services
    store: Path
    """As it was made."""
    folder: Path
    provoked: set[str] = field(default_factory=set)
    """Processes that were killed besides, to bring something about."""
    _due: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    _last: list[Callable[[], None]] = field(default_factory=list)
    """What stays until the run has stopped."""

    def turn(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        due = sorted((entry for entry in self._due if entry[0] <= now), key=lambda entry: entry[0])
        self._due = [entry for entry in self._due if entry[0] > now]
        for _, action in due:
            action()

    def heal(self) -> None:
        """End every fault now."""
        due, self._due = self._due, []
        last, self._last = self._last, []
        for action in (*(action for _, action in sorted(due, key=lambda entry: entry[0])), *last):
            action()

    def strike(self, strike: Strike, held: str) -> None:
        """All blows at once; then whoever is held there goes on. held: its name."""
        for blow in strike.blows:
            self._apply(blow, held)
        (self.folder / (strike.token + RELEASED)).touch()
        (self.folder / (strike.token + HELD)).unlink()

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        self._due.append((time.monotonic() + seconds, action))

    def _apply(self, blow: Blow, held: str) -> None:
        match blow.role:
            case Role.STORE:
                self._store(blow)
            case Role.TO_LOADER | Role.TO_TRAINER | Role.PARTED:
                if isinstance(self.processes, Services):
                    for proxy in self.processes.networks[blow.role]:
                        self._network(blow, proxy)
            case _:
                name = blow.role.value
                if blow.role is Role.AUGMENTER:
                    name = held if held.startswith(name) else f"{name}-{blow.number}"
                self._process(blow, name)

    def _process(self, blow: Blow, name: str) -> None:
        if blow.fault is Fault.MOVE and isinstance(self.processes, Services):
            self.processes.move()
            return
        if blow.fault is Fault.CLOCK:
            days = 1 + blow.amount % 1000
            self._tell(f"{CLOCK}-{name}", str(days * _DAY_SECONDS if blow.amount % 2 else -days * _DAY_SECONDS))
            return
        pid = eventually(lambda: self.processes.turn() or self.processes.pid(name), f"{name} runs", 20.0)
        match blow.fault:
            case Fault.FREEZE_SHORTLY | Fault.FREEZE_BEYOND_SILENCE:
                os.kill(pid, signal.SIGSTOP)
                self._after(blow.seconds, lambda: _signal(pid, signal.SIGCONT))
            case Fault.MEMORY:
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
                limit = pages * resource.getpagesize() + (16 << 20)
                resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
                self._tell(f"{MEMORY}-{name}", "")
            case Fault.DISK_FULL:
                limit = _SMALL_FILES[blow.amount % 2]
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            case Fault.DESCRIPTORS:
                self._exhaust_descriptors(blow, pid)
            case _:
                _signal(pid, _SIGNALS[blow.fault])

    def _exhaust_descriptors(self, blow: Blow, pid: int) -> None:
        """A few more than it has now; and somebody comes for whom it needs more."""
        taken = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
        few = blow.amount % _FEW_DESCRIPTORS
        limit = sorted(set(range(len(taken) + few + 1)) - taken)[few]
        most = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, most))

        def raise_again() -> None:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, before)

        self._after(blow.seconds, raise_again)
        if blow.role is Role.AUGMENTER:
            self.provoked.add("loader")
            _signal(self.processes.pid("loader"), signal.SIGKILL)
        else:
            self.provoked.add("augmenter-0")
            self.processes.add()

    def _network(self, blow: Blow, proxy: Proxy) -> None:
        match blow.fault:
            case Fault.CUT_SHORTLY | Fault.CUT_BEYOND_SILENCE:
                proxy.cut()
            case Fault.BLACK_HOLE:
                proxy.swallow()
            case Fault.DELAY:
                proxy.delay = _DELAY_SECONDS
            case Fault.LONG_DELAY:
                proxy.delay = _LONG_DELAY_SECONDS
            case Fault.THROTTLE:
                proxy.rate = _SLOW_BYTES
            case Fault.TRUNCATE:
                proxy.truncate()
            case _:
                for turn in range(max(1, int(blow.seconds / _STORM_SECONDS))):
                    self._after(turn * _STORM_SECONDS, lambda: proxy.storm(_STORM_CONNECTIONS))
        self._after(blow.seconds, proxy.heal)

    def _store(self, blow: Blow) -> None:
        match blow.fault:
            case Fault.READ_ERROR_PASSING:
                for number in range(1 + blow.amount % 2):
                    self._tell(f"{READ_ERROR}-{number}", "")
            case Fault.READ_ERROR_STAYING:
                self._tell(READS_FAIL, "")
                self._last.append(lambda: (self.folder / READS_FAIL).unlink())
            case Fault.SLOW_READS:
                self._tell(READS_SLOW, str(_SLOW_READ_SECONDS))
                self._after(blow.seconds, lambda: (self.folder / READS_SLOW).unlink(missing_ok=True))
            case _:
                self._damage(blow)

    def _damage(self, blow: Blow) -> None:
        split = open_store(self.processes.store).split("train")
        shard, size, offset = split.records[blow.amount % len(split)].tolist()[:3]
        path = split.shards[shard]
        if blow.fault is Fault.STORE_TRUNCATED:
            os.truncate(path, offset + size // 2)
        else:
            with path.open("r+b") as file:
                file.seek(offset + blow.amount % size)
                byte = file.read(1)[0]
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte ^ 1 << blow.amount % 8]))
        # Into the same file, which the loader has open.
        self._last.append(lambda: path.write_bytes((self.store / path.name).read_bytes()) and None)

    def _tell(self, name: str, text: str) -> None:
        fresh = self.folder / f".{name}"
        fresh.write_text(text)
        shutil.move(fresh, self.folder / name)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        if pid:
            os.kill(pid, number)
