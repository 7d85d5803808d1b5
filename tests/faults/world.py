"""The processes of one seed: ``fourstage run``, or services of their own, on one host or as if on several."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from tests.faults.draw import SILENCE_SECONDS, Plan, Role, World
from tests.faults.inside import HOSTS, VARIABLE
from tests.faults.proxy import Proxy
from tests.pipeline.harness import CROP, eventually, is_alive
from tests.ports import free_port

SETTINGS: Final = (
    f"augmenter.crop={CROP}", "batch_size=8", "colour_std=0.1", "seed=7", "receipt=pixels", "train.epochs=2",
    "train.drop_epochs=[]", "train.device=cpu", "train.threads=1",
)  # fmt: skip
"""What decides about bytes and losses."""
PACE: Final = (
    f"loader.silence_seconds={SILENCE_SECONDS}", "loader.heartbeat_seconds=0.2", "loader.hedge_seconds=0.5",
    "augmenter.batch_seconds=0.06", "train.checkpoint_seconds=0.5",
)  # fmt: skip
"""Slow enough that a fault falls into the middle of something, and impatient."""
RECIPE: Final = "cifar-augmented"
_RESTARTED = re.compile(r"(\S+) (?:was killed by (SIG\w+)|ended with (\d+)): started again")
_ENDED: Final = "fourstage: "


@dataclass(frozen=True, slots=True)
class Death:
    """A process that ended before the run did; below zero: by a signal."""

    name: str
    code: int


class Processes(Protocol):
    """Loader, augmenters and trainer, whoever starts them."""

    run_dir: Path

    @property
    def deaths(self) -> list[Death]:
        """Who ended before the run did."""

    def pid(self, name: str) -> int:
        """The process that has the name now; 0 while there is none."""

    def turn(self) -> None:
        """Start again who has ended."""

    def ended(self) -> int | None:
        """How the run ended; None while it goes on."""

    def resume(self) -> None:
        """Go on after an end."""

    def add(self) -> None:
        """One more augmenter has to find its place: the first one, started again, or another."""

    def logs(self) -> list[Path]:
        """Where they say things."""

    @property
    def last_log(self) -> Path:
        """Where it is said how the run failed."""

    def close(self) -> None:
        """End all of them."""


def flags(settings: Sequence[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def last_words(log: Path) -> str:
    """How whoever writes the log has said that it failed."""
    said = [line for line in log.read_text(errors="replace").splitlines() if line.startswith(_ENDED)]
    return said[-1].removeprefix(_ENDED) if said else ""


def of_this(folder: Path) -> list[int]:
    """Every process that was started with this folder of faults, whoever its parent is now."""
    mark = f"{VARIABLE}={folder}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return [pid for pid in found if is_alive(pid)]


@dataclass
class Engine:
    """``fourstage run``, which looks after its processes itself."""

    plan: Plan
    store: Path
    folder: Path
    environment: dict[str, str]
    run_dir: Path = field(init=False)
    _process: "subprocess.Popen[bytes]" = field(init=False)

    def __post_init__(self) -> None:
        self.run_dir = self.folder / "run"
        self._log = self.folder / "run.log"
        self._start(
            "--recipe", RECIPE, "--transport", self.plan.transport, *flags((*SETTINGS, *PACE)),
        )  # fmt: skip

    @property
    def deaths(self) -> list[Death]:
        """Those that the engine says it started again."""
        found = []
        for name, signalled, code in _RESTARTED.findall(self._log.read_text(errors="replace")):
            found.append(Death(name, -signal.Signals[signalled] if signalled else int(code)))
        return found

    def pid(self, name: str) -> int:
        if name == Role.ENGINE.value:
            return self._process.pid
        try:
            pid = int(json.loads((self.run_dir / "processes.json").read_text())[name]["pid"])
        except (OSError, ValueError, KeyError):
            return 0
        return pid if is_alive(pid) else 0

    def turn(self) -> None:
        pass

    def ended(self) -> int | None:
        return self._process.poll()

    def resume(self) -> None:
        eventually(lambda: not of_this(self.folder), "the end of a killed run's processes", 20.0)
        self._start("--resume")

    def add(self) -> None:
        if pid := self.pid("augmenter-0"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def logs(self) -> list[Path]:
        return [self._log, *(self.run_dir / "logs").glob("*.log")]

    @property
    def last_log(self) -> Path:
        return self._log

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(30)

    def _start(self, *more: str) -> None:
        command = [
            sys.executable, "-m", "tests.faults.inside", "run", "--store", str(self.store), "--run-dir",
            str(self.run_dir), "--augmenters", str(self.plan.augmenters), *more,
        ]  # fmt: skip
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment
            )


@dataclass
class Services:
    """Services one by one, started again by us; over TCP each as if on a host of its own."""

    plan: Plan
    store: Path
    folder: Path
    environment: dict[str, str]
    keys: Path
    networks: dict[Role, tuple[Proxy, ...]] = field(default_factory=dict)
    """To the loader there are two: augmenters' and trainers'."""
    run_dir: Path = field(init=False)
    _deaths: list[Death] = field(default_factory=list)
    _processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    _kept: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _code: int | None = None

    def __post_init__(self) -> None:
        self.run_dir = self.folder / "run"
        self._address = self.folder / "address"
        self._bind = f"file:{self._address}"
        self._trainers = "auto"
        self._receiver: list[str] = []
        if self.plan.world is World.HOSTS:
            (self.folder / HOSTS).touch()
            port = free_port()
            proxy = self._kept.enter_context(Proxy(port))
            self.networks[Role.TO_TRAINER] = (proxy,)
            self._receiver = [f"receiver=tcp://127.0.0.1:{proxy.port}", f"receiver_bind=tcp://127.0.0.1:{port}"]
            self._bind_elsewhere()
        for name in ("trainer", "loader", *(f"augmenter-{number}" for number in range(self.plan.augmenters))):
            self._start(name)

    @property
    def deaths(self) -> list[Death]:
        return self._deaths

    def pid(self, name: str) -> int:
        process = self._processes.get(name)
        return process.pid if process is not None and process.poll() is None else 0

    def turn(self) -> None:
        for name, process in list(self._processes.items()):
            if (code := process.poll()) is None:
                continue
            if name == "trainer" and code >= 0:
                self._code = code
            else:
                self._deaths.append(Death(name, code))
                self._start(name)

    def ended(self) -> int | None:
        return self._code

    def resume(self) -> None:
        self._code = None
        self._start("trainer")

    def move(self) -> None:
        """The loader is killed, and starts at another address."""
        process = self._processes["loader"]
        process.kill()
        process.wait()
        if self.plan.world is World.HOSTS:
            self._bind_elsewhere()

    def add(self) -> None:
        self._start(f"augmenter-{len(self._processes)}")

    def logs(self) -> list[Path]:
        return list(self.folder.glob("*.log"))

    @property
    def last_log(self) -> Path:
        return self.folder / "trainer.log"

    def close(self) -> None:
        try:
            for process in self._processes.values():
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
            for process in self._processes.values():
                process.wait(20)
        finally:
            self._kept.close()

    def _bind_elsewhere(self) -> None:
        proxies = tuple(self._kept.enter_context(Proxy(free_port())) for _ in range(2))
        self.networks[Role.TO_LOADER] = proxies
        self.networks[Role.PARTED] = proxies[1:]
        self._bind, self._trainers = (f"tcp://127.0.0.1:{proxy.target}" for proxy in proxies)
        fresh = self._address.with_suffix(".new")
        fresh.write_text("".join(f"tcp://127.0.0.1:{proxy.port}\n" for proxy in proxies))
        fresh.rename(self._address)

    def _start(self, name: str) -> None:
        role = name.partition("-")[0]
        arguments = {
            "loader": ["--store", str(self.store)],
            "augmenter": ["--name", name],
            "trainer": ["--run-dir", str(self.run_dir), "--continue", "--settings", RECIPE],
        }[role]
        settings = [*PACE, f"loader.address={self._bind if role == 'loader' else f'file:{self._address}'}"]
        if role == "loader":
            settings.append(f"loader.trainers={self._trainers}")
        if role == "trainer":
            settings += [*SETTINGS, f"transport={self.plan.transport}", *self._receiver]
        if self.plan.world is World.HOSTS:
            settings.append(f"keys={self.keys / role}")
        else:
            settings.append(f"sockets={self.folder / 'tmp'}")
        command = [sys.executable, "-m", "tests.faults.inside", role, *arguments, *flags(settings)]
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment
            )


def start(plan: Plan, store: Path, keys: Path, folder: Path) -> Engine | Services:
    """Start the processes of a plan with a copy of the store; ``folder``, a short path, gets all they write."""
    (folder / "tmp").mkdir(parents=True)
    copy = folder / "store"
    shutil.copytree(store, copy)
    environment = os.environ | {VARIABLE: str(folder), "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}
    if plan.world is World.RUN:
        return Engine(plan, copy, folder, environment)
    return Services(plan, copy, folder, environment, keys)
