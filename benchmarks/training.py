"""Training on batches that lie ready on the device, against training through the pipeline.

Step: the network's forward, backward and update on synthetic batches, nothing else. Pipeline: ``fourstage run`` with
the same settings on a store, from its steps.jsonl. Both in turn, several rounds, each in a process of its own; the
medians' ratio is what the first three stages leave of the fourth. On a GPU also: precisions, memory layouts and
torch.compile, the device memory that a step takes, and gigabytes a second of uploads from registered, staged and
ordinary memory.

    python -m benchmarks.training [--store STORE] [--rounds 3] [--set train.precision=tf32] [--json FILE]

Without a store one of 400 drawn photographs, 256x256, is made and removed again. A CPU takes small batches and few
steps by default: AlexNet takes a tenth of a second per image there.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from benchmarks.machine import machine
from fourstage import rundir
from fourstage.arena import Arena, slot_bytes_for
from fourstage.demo import write_photographs
from fourstage.process import StopFlag
from fourstage.resolve import load_settings
from fourstage.settings import Settings
from fourstage.store import open_store
from fourstage.store.prepare import prepare
from fourstage.trainer.copy import slot_tensor
from fourstage.trainer.device import choose_device
from fourstage.trainer.group import Group
from fourstage.trainer.layout import Layout
from fourstage.trainer.learner import make_learner
from fourstage.trainer.registration import Registrations, cuda_runtime

T = TypeVar("T")

VARIANTS: dict[str, tuple[list[str], bool]] = {
    "float32": (["train.precision=float32"], True),
    "tf32": (["train.precision=tf32"], True),
    "bf16": (["train.precision=bf16"], True),
    "tf32, channels first": (["train.precision=tf32"], False),
    "tf32, compiled": (["train.precision=tf32", "train.compile=true"], True),
    "bf16, compiled": (["train.precision=bf16", "train.compile=true"], True),
}
"""On a GPU: the settings of each, and whether tensors are channels_last."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured: the first ``warm_up`` steps of a measurement count for nothing."""

    overrides: list[str]
    device: str
    batch_size: int
    warm_up: int
    steps: int

    def settings(self, *more: str) -> Settings:
        """Recipe alexnet as the plan has it."""
        flags = {"train.device": self.device, "batch_size": self.batch_size}
        return load_settings("alexnet", overrides=[*self.overrides, *more], flags=flags)


def apart(work: Callable[..., T], *arguments: object) -> T:
    """The result of a function in a fresh process: nothing of one measurement is left in the next."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def step_rate(settings: Settings, plan: Plan, classes: int, channels_last: bool) -> dict[str, float]:
    """Images per second of training alone; on a GPU also the most bytes that PyTorch held there."""
    device = choose_device(settings)
    learner = make_learner(settings, classes=classes, device=device, group=Group(Layout(), device, StopFlag()))
    rows, crop = plan.batch_size, settings.augmenter.crop
    draw = torch.Generator().manual_seed(0)
    images = (torch.randn((rows, crop, crop, 3), generator=draw) * 50).to(device).permute(0, 3, 1, 2)
    labels = torch.randint(classes, (rows,), generator=draw).to(device)
    if not channels_last:
        images = images.contiguous()
        for tensors in learner.state():
            for tensor in tensors.values():
                tensor.data = tensor.data.contiguous()
    loss = torch.zeros(())
    began = 0.0
    for step in range(plan.warm_up + plan.steps):
        if step == plan.warm_up:
            _finish_all(device)
            began = time.perf_counter()
        # As the service does: the loss of the step before is read while this one runs.
        before = loss
        # Rate 0: the same arithmetic, and random labels cannot make it diverge.
        loss = learner.train(images, labels, step=step, first_row=0, rows=rows, rate=0.0)
        before.item()
    _finish_all(device)
    figures = {"images_per_second": plan.steps * rows / (time.perf_counter() - began)}
    if device.type == "cuda":
        figures["peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return figures


def pipeline_rate(store: Path, plan: Plan, augmenters: int) -> float:
    """Images per second of a run after its first steps; checkpoints and validation are left out."""
    overrides = [*plan.overrides, f"batch_size={plan.batch_size}", "remainder=drop"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "fourstage", "run", "--store", str(store), "--recipe", "alexnet",
             "--run-dir", f"{folder}/run", "--augmenters", str(augmenters), "--device", plan.device,
             "--max-steps", str(plan.warm_up + plan.steps), "--json",
             *(word for override in overrides for word in ("--set", override))],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode != 0:
            sys.exit(done.stderr)
        lines = rundir.read_lines(Path(folder) / "run" / rundir.STEPS)[plan.warm_up :]
    seconds: float = sum(line["seconds"] + line["data_wait_seconds"] for line in lines)
    return len(lines) * plan.batch_size / seconds


def upload_rates(settings: Settings, rows: int, repeats: int = 50) -> dict[str, float]:
    """10^9 bytes per second of whole batches from an arena to a GPU, by the path that they take.

    ``locked`` is page-locked memory that is filled already: what the bus gives.
    """
    device, crop = choose_device(settings), settings.augmenter.crop
    size = rows * crop * crop * 3
    own = Arena.create(1, slot_bytes_for(size))
    own.slot(0, size)[:] = bytes(size)
    arena = Arena.attach(os.dup(own.descriptor), 1, own.slot_bytes)
    slot = slot_tensor(np.frombuffer(arena.slot(0, size), np.uint8))
    staging = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(size, dtype=torch.uint8, device=device)

    def rate(copy: Callable[[], object]) -> float:
        for _ in range(3):
            copy()
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        for _ in range(repeats):
            copy()
            torch.cuda.synchronize(device)
        return repeats * size / (time.perf_counter() - began) / 1e9

    rates = {
        "pageable": rate(lambda: target.copy_(slot, non_blocking=True)),
        "staged": rate(lambda: target.copy_(staging.copy_(slot), non_blocking=True)),
        "locked": rate(lambda: target.copy_(staging, non_blocking=True)),
    }
    with Registrations(cuda_runtime(device)).reading(arena) as registered:
        if registered:
            rates["registered"] = rate(lambda: target.copy_(slot, non_blocking=True))
    arena.close()
    own.close()
    return rates


def _finish_all(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare(store: Path, plan: Plan, rounds: int, augmenters: int) -> list[dict[str, float]]:
    """Rounds of step and pipeline in turn."""
    classes, figures = len(open_store(store).classes), []
    print(f"{'round':>6} {'step images/s':>14} {'pipeline':>9} {'ratio':>6}")
    for number in range(1, rounds + 1):
        step = apart(step_rate, plan.settings(), plan, classes, True)["images_per_second"]
        rate = pipeline_rate(store, plan, augmenters)
        figures.append({"step": step, "pipeline": rate, "ratio": rate / step})
        print(f"{number:>6} {step:>14,.1f} {rate:>9,.1f} {rate / step:>6.3f}")
    return figures


def variants(plan: Plan, rounds: int) -> dict[str, dict[str, float]]:
    """The step with the paper's thousand classes, in every precision and layout; medians of rounds in turn."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for _ in range(rounds):
        for name, (overrides, channels_last) in VARIANTS.items():
            found[name].append(apart(step_rate, plan.settings(*overrides), plan, 1000, channels_last))
    medians = {
        name: {key: statistics.median(figures[key] for figures in rounds_) for key in rounds_[0]}
        for name, rounds_ in found.items()
    }
    print(f"\n{'step':<24} {'images/s':>9} {'GB on the device':>17}")
    for name, figures in medians.items():
        print(f"{name:<24} {figures['images_per_second']:>9,.0f} {figures['peak_bytes'] / 1e9:>17.2f}")
    return medians


def main() -> None:
    """Parse, measure, report."""
    has_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="store of 256x256 images")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=128 if has_gpu else 32)
    parser.add_argument("--steps", type=int, default=200 if has_gpu else 5, help="measured steps of one round")
    parser.add_argument("--warm-up", type=int, default=20 if has_gpu else 1, help="steps before them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--augmenters", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as fourstage run takes it")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    before = machine()
    plan = Plan(arguments.set, arguments.device, arguments.batch_size, arguments.warm_up, arguments.steps)
    on_gpu = has_gpu and not arguments.device.startswith("cpu")
    with tempfile.TemporaryDirectory() as folder:
        store = arguments.store
        if store is None:
            print("making a store of 400 photographs, 256x256 …", file=sys.stderr)
            photographs, store = Path(folder) / "photographs", Path(folder) / "store"
            write_photographs(photographs, seed=0, train_per_class=40, validation_per_class=0)
            prepare(photographs / "train", store)
        figures = compare(store, plan, arguments.rounds, arguments.augmenters)
    step, rate = (statistics.median(entry[name] for entry in figures) for name in ("step", "pipeline"))
    ratios = [entry["ratio"] for entry in figures]
    print(f"{'median':>6} {step:>14,.1f} {rate:>9,.1f} {rate / step:>6.3f}   ({min(ratios):.3f} to {max(ratios):.3f})")
    result = {
        "machine": before,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "batch_size": plan.batch_size,
        "set": plan.overrides,
        "rounds": figures,
        "ratio": rate / step,
    }
    if on_gpu:
        result["variants"] = variants(plan, arguments.rounds)
        result["upload_gb_per_second"] = uploads = apart(upload_rates, plan.settings(), plan.batch_size)
        print("\nuploads, 10^9 bytes/s: " + ", ".join(f"{name} {value:.1f}" for name, value in uploads.items()))
    else:
        print("left out without a GPU: precisions, memory layouts, torch.compile, device memory, uploads")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
