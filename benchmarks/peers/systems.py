"""What is measured, and one round of each."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.install import interpreter, obstacle
from benchmarks.peers.stream import BATCH
from benchmarks.peers.table import Measurement
from benchmarks.pipeline import pipeline_rate, raw_rate
from fourstage.store import open_store

WARM_UP = 50
"""Batches of a peer before its clock starts: processes, compilers and tf.data's AUTOTUNE settle in less."""

PATIENCE = 120.0
"""Seconds that a peer may take beyond those of 200 images/s."""

ROOT = Path(__file__).parents[2]


class NotMeasuredError(Exception):
    """A system could not be measured; says why."""


@dataclass(frozen=True, slots=True)
class Work:
    """What every system is given."""

    store: Path
    files: Path
    """The store's images as files."""

    size: int
    workers: int
    images: int
    environments: Path


@dataclass(frozen=True, slots=True)
class System:
    """One row of the table."""

    description: str
    measure: Callable[[Work], tuple[Measurement, dict[str, str]]]
    """One round, and the versions of what took part; raises NotMeasuredError."""


def raw(work: Work) -> tuple[Measurement, dict[str, str]]:
    """The bare decoder on as many threads."""
    began = time.process_time()
    rate = raw_rate(work.store, work.workers, work.images)
    return Measurement(work.images, work.images / rate, time.process_time() - began), {}


def fourstage(work: Work) -> tuple[Measurement, dict[str, str]]:
    """Recipe drain, in whole epochs.

    No processor time: its processes' start and end would count too, which cost as much as thousands of images.
    """
    epoch = len(open_store(work.store).split("train"))
    images = max(1, round(work.images / epoch)) * epoch
    try:
        rate, _ = pipeline_rate(work.store, work.workers, images, "arena")
    except SystemExit as end:
        raise NotMeasuredError(_last_line(str(end))) from end
    return Measurement(images, images / rate, None), {}


def peer(
    module: str, variant: str, environment: str = "general"
) -> Callable[[Work], tuple[Measurement, dict[str, str]]]:
    """A program of this package in the peers' environment."""

    def measure(work: Work) -> tuple[Measurement, dict[str, str]]:
        if reason := obstacle(work.environments, environment):
            raise NotMeasuredError(reason)
        answer = run_program(
            [str(interpreter(work.environments, environment)), "-m", f"benchmarks.peers.{module}", variant,
             "--folder", str(work.files), "--size", str(work.size), "--workers", str(work.workers),
             "--warm-up", str(WARM_UP), "--batches", str(max(1, work.images // BATCH))],
            PATIENCE + work.images / 200,
        )  # fmt: skip
        measured = Measurement(int(answer["images"]), float(answer["seconds"]), float(answer["cpu_seconds"]))
        return measured, answer["versions"]

    return measure


SYSTEMS = {
    "raw": System("bare decoder, one thread per core", raw),
    "fourstage": System("fourstage, one augmenter per core", fourstage),
    "tfdata-service": System("tf.data service, dispatcher and one worker per core", peer("tfdata", "service")),
    "tfdata": System("tf.data in process", peer("tfdata", "process")),
    "dataloader-simplejpeg": System("PyTorch DataLoader, simplejpeg", peer("dataloader", "simplejpeg")),
    "dataloader-pillow": System("PyTorch DataLoader, Pillow", peer("dataloader", "pillow")),
    "spdl": System("SPDL threads, simplejpeg", peer("spdl", "threads")),
    "dali-crop": System("DALI on CPUs, cropped while decoding", peer("dali", "image_crop")),
    "dali-whole": System("DALI on CPUs, decoded whole", peer("dali", "image")),
    "ffcv": System("FFCV, JPEG .beton", peer("ffcv", "jpeg", "ffcv")),
}


def run_program(command: list[str], patience: float) -> dict[str, Any]:
    """The JSON that a program prints last; nothing that it started outlives this.

    Raises NotMeasuredError with the last line of what it complained of.
    """
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | quiet, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        output, errors = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired as error:
        raise NotMeasuredError(f"no answer within {patience:.0f} s") from error
    finally:
        # Its session: workers that it leaves behind would take part in the next measurement.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    try:
        answer: dict[str, Any] = json.loads(_last_line(output))
    except json.JSONDecodeError as error:
        raise NotMeasuredError(f"exit {process.returncode}: {_last_line(errors)}") from error
    return answer


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]
