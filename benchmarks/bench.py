"""What benchmarks of whole processes share: a store, a run, spreads, what the kernel counts, the file of figures."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fourstage import rundir
from fourstage.store.prepare import prepare


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def make_store(folder: Path, *, images: int, size: int) -> Path:
    """A store of ``images`` grey squares of ``size`` pixels in two classes: the smallest JPEG files there are."""
    for number in range(images):
        path = folder / "photographs" / "ab"[number % 2] / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((size, size, 3), number % 251, np.uint8))
    prepare(folder / "photographs", folder / "store", size=size, workers=1)
    return folder / "store"


def run_command(store: Path, run_dir: Path, augmenters: int, settings: Mapping[str, object], *flags: str) -> list[str]:
    """``fourstage run --recipe drain --json`` with these settings."""
    overrides = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return [
        sys.executable, "-m", "fourstage", "run", "--store", os.fspath(store), "--recipe", "drain", "--run-dir",
        os.fspath(run_dir), "--augmenters", str(augmenters), "--json", *flags, *overrides,
    ]  # fmt: skip


def complete(command: list[str]) -> dict[str, Any]:
    """A whole run's summary; where it fails its words are the last."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def next_step(run: "subprocess.Popen[str]", run_dir: Path, *, after: int) -> int:
    """Wait for the next step above ``after`` that a run tells of; where it has ended its words are the last."""
    seen = None
    while run.poll() is None:
        time.sleep(0.005)
        if not (run_dir / rundir.STATUS).is_file():
            continue
        step = int(rundir.read_json(run_dir / rundir.STATUS)["step"])
        if seen is not None and step > max(seen, after):
            return step
        seen = step
    sys.exit(run.communicate()[1])


def thread_seconds(pid: int) -> dict[str, float]:
    """CPU seconds of a process's living threads: its main one, ZeroMQ's, all others.

    From schedstat, in nanoseconds; /proc/PID/stat counts whole ticks.
    """
    found = {"main": 0.0, "zmq": 0.0, "other": 0.0}
    for task in Path(f"/proc/{pid}/task").iterdir():
        kind = "main" if task.name == str(pid) else "zmq" if (task / "comm").read_text().startswith("ZMQ") else "other"
        found[kind] += int((task / "schedstat").read_text().split()[0]) / 1e9
    return found


def cpu_seconds(pid: int) -> float:
    """CPU seconds of all living threads of a process."""
    return sum(thread_seconds(pid).values())


def write_figures(path: Path | None, figures: dict[str, Any]) -> None:
    """The JSON file that was asked for, if one was."""
    if path is not None:
        path.write_text(json.dumps(figures, indent=1) + "\n")
