"""Real processes for the tests: the services one by one, or a whole run."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

T = TypeVar("T")
SIZE, CROP = 40, 32


def write_photographs(folder: Path, split: str, per_class: int, seed: int = 0) -> None:
    """Noisy squares of three classes that a small net can learn, as JPEG files in class folders."""
    random = np.random.default_rng([seed, len(split)])
    for label, name in enumerate(("blot", "dash", "plus")):
        (folder / split / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = random.integers(0, 90, (60, 50, 3), np.uint8)
            top, left = random.integers(5, 25, 2)
            shapes = [(slice(0, 22), slice(0, 22)), (slice(8, 14), slice(0, 22)), (slice(0, 22), slice(8, 14))]
            for rows, columns in (shapes[:1], shapes[1:2], shapes[1:])[label]:
                pixels[top + rows.start : top + rows.stop, left + columns.start : left + columns.stop] += 120
            cv2.imwrite(str(folder / split / name / f"{number:03d}.jpg"), pixels)


def eventually(probe: Callable[[], T], what: str, seconds: float = 30.0) -> T:
    """The first true answer of ``probe``; fails with ``what`` was not seen within the time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := probe():
            return answer
        time.sleep(0.01)
    raise AssertionError(f"not within {seconds} s: {what}")


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def page_metric(page: str, family: str, **labels: str) -> float:
    """One sample from a process's page (http://HOST:PORT); 0 while it has none."""
    try:
        with urllib.request.urlopen(f"{page}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return 0.0
    for metric in text_string_to_metric_families(text):
        for sample in metric.samples:
            if sample.name == family and labels.items() <= sample.labels.items():
                return float(sample.value)
    return 0.0


@dataclass
class Services:
    """A loader and augmenters of one store, as processes of their own."""

    store: Path
    folder: Path
    settings: Sequence[str] = ()
    loader: str = ""
    """Where the loader binds; empty: a Unix socket whose address it writes to a file."""
    keys: Path | None = None
    """What ``fourstage keys init`` has made: whoever is started takes the folder of its role."""
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return self.loader or f"file:{self.folder / 'loader.address'}"

    def start_loader(self) -> None:
        self._start("loader", "loader", "--store", str(self.store))

    def start_augmenter(self, name: str, *, loader: str = "", keys: Path | None = None) -> None:
        """loader: where it is reached, if not at its own address. keys: its own folder, if not its role's."""
        self._start(name, "augmenter", "--name", name, loader=loader, keys=keys)

    def start_trainer(self, recipe: str, *flags: str) -> None:
        """A trainer whose run directory is ``run`` in the folder."""
        self._start("trainer", "trainer", "--run-dir", str(self.folder / "run"), "--settings", recipe, *flags)

    def status(self) -> dict[str, Any]:
        """What the trainer says of its run; nothing before it has begun."""
        for name, process in self.processes.items():
            if (code := process.poll()) is not None:
                raise AssertionError(f"{name} ended with {code}: {(self.folder / f'{name}.log').read_text()}")
        return _json(self.folder / "run" / "status.json")

    def signal(self, name: str, number: int) -> None:
        self.processes[name].send_signal(number)

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def metric(self, name: str, family: str, **labels: str) -> float:
        """One sample from the process's own page; 0 while it has none."""
        try:
            page = json.loads((self.folder / f"{name}.json").read_text())["metrics"]
        except OSError:
            return 0.0
        return page_metric(page, family, **labels)

    def _start(self, name: str, *arguments: str, loader: str = "", keys: Path | None = None) -> None:
        overrides = [f"loader.address={loader or self.address}", f"sockets={self.folder}", *self.settings]
        if self.keys is not None:
            overrides.append(f"keys={keys or self.keys / arguments[0]}")
        flags = [part for override in overrides for part in ("--set", override)]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "fourstage",
                    *arguments,
                    "--announce",
                    str(self.folder / f"{name}.json"),
                    *flags,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )


@contextmanager
def services(
    store: Path,
    folder: Path,
    augmenters: int,
    settings: Sequence[str] = (),
    *,
    loader: str = "",
    keys: Path | None = None,
) -> Iterator[Services]:
    """Start a loader and ``augmenters`` workers; stop them in the end, frozen ones too."""
    running = Services(store, folder, settings, loader, keys)
    try:
        running.start_loader()
        for number in range(augmenters):
            running.start_augmenter(f"augmenter-{number}")
        yield running
    finally:
        for process in running.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in running.processes.values():
            process.wait(20)


@dataclass
class Run:
    """A ``fourstage run`` under way."""

    process: "subprocess.Popen[str]"
    run_dir: Path
    killed: set[int] = field(default_factory=set)

    def status(self) -> dict[str, Any]:
        return _json(self.run_dir / "status.json")

    def processes(self) -> dict[str, int]:
        """Process numbers by name."""
        return {name: entry["pid"] for name, entry in _json(self.run_dir / "processes.json").items()}

    def step(self) -> int:
        return int(self.status().get("step", 0))

    def reach(self, step: int, seconds: float = 60.0) -> None:
        def arrived() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"the run ended: {self.process.communicate()}")
            return self.step() >= step

        eventually(arrived, f"step {step}", seconds)

    def kill(self, name: str) -> None:
        """SIGKILL for a process of that name that was not killed before: after a kill the one started again."""

        def fresh() -> int:
            pid = self.processes().get(name, 0)
            return 0 if pid in self.killed or not is_alive(pid) else pid

        pid = eventually(fresh, f"{name} started")
        self.killed.add(pid)
        os.kill(pid, signal.SIGKILL)

    def finish(self, seconds: float = 120.0) -> tuple[int, str, str]:
        out, error = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, error


def start_run(store: Path, run_dir: Path, *arguments: str) -> Run:
    """``fourstage run --json`` in the background."""
    command = [sys.executable, "-m", "fourstage", "run", "--store", str(store), "--run-dir", str(run_dir), "--json"]
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return Run(process, run_dir)


def complete_run(store: Path, run_dir: Path, *arguments: str) -> dict[str, Any]:
    """A whole run's summary; fails with its words where it does not end well."""
    code, out, error = start_run(store, run_dir, *arguments).finish()
    if code != 0:
        raise AssertionError(f"exit {code}: {error}")
    summary = json.loads(out)
    if not isinstance(summary, dict):
        raise AssertionError(out)
    return summary


def fourstage(*arguments: str, seconds: float = 60.0) -> "subprocess.CompletedProcess[str]":
    """Any command, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "fourstage", *arguments], capture_output=True, text=True, timeout=seconds, check=False
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(run_dir: Path) -> list[float]:
    """The loss of every step, in order."""
    return [line["loss"] for line in lines(run_dir / "steps.jsonl")]


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
