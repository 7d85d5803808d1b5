"""Host memory of all processes of a training run together: the most, and who holds it at that moment.

Starts ``fourstage run --recipe alexnet`` and reads the proportional set size (PSS: shared pages count once, divided
among those who map them) of the run command, loader, augmenters and trainers from /proc/PID/smaps_rollup, several
times a second. On a CPU the trainer's memory holds network, gradients and activations, which on a GPU lie there.

    python -m benchmarks.memory [--store STORE] [--augmenters 2] [--steps 6] [--json FILE]

Without a store one of 400 drawn photographs, 256x256, is made and removed again, with 130 for validation.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.machine import machine
from fourstage.demo import write_photographs
from fourstage.store.prepare import prepare

KINDS = ("Pss", "Pss_Anon", "Pss_Shmem", "Pss_File")
"""All of it; private and copied-on-write; arenas; libraries and mapped files."""
LIMIT = 5e9
"""The paper's system memory during training (talk, slide on the pipeline): about 5 GB."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One moment: bytes of each kind by process."""

    second: float
    processes: dict[str, dict[str, int]]

    @property
    def total(self) -> int:
        """PSS of all processes."""
        return sum(kinds["Pss"] for kinds in self.processes.values())


def proportional_set(pid: int) -> dict[str, int]:
    """Bytes of each kind; nothing for a process that is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return {}
    fields = {name: value for name, colon, value in (line.partition(":") for line in lines) if colon}
    return {kind: 1024 * int(fields[kind].split()[0]) for kind in KINDS if kind in fields}


def role(process: psutil.Process) -> str:
    """What a process of a run is: its name among the services, or its command."""
    words = process.cmdline()
    if "--name" in words:
        return words[words.index("--name") + 1]
    after = words[words.index("fourstage") + 1 :] if "fourstage" in words else []
    return after[0] if after else process.name()


def sample(run: psutil.Process, second: float) -> Sample:
    """The run command and everything below it, now."""
    processes: dict[str, dict[str, int]] = {}
    for process in (run, *run.children(recursive=True)):
        try:
            name = role(process)
        except psutil.Error:
            continue
        if kinds := proportional_set(process.pid):
            processes[name if name not in processes else f"{name} {process.pid}"] = kinds
    return Sample(second, processes)


def watch(command: list[str], interval: float) -> list[Sample]:
    """Samples of a run until it ends; where it fails its words are the last."""
    samples: list[Sample] = []
    with tempfile.TemporaryFile("w+") as said, subprocess.Popen(command, stdout=said, stderr=said, text=True) as run:
        began, process = time.monotonic(), psutil.Process(run.pid)
        while run.poll() is None:
            try:
                samples.append(sample(process, time.monotonic() - began))
            except psutil.NoSuchProcess:
                break
            time.sleep(interval)
        if run.wait() != 0:
            said.seek(0)
            sys.exit(said.read())
    return samples


def make_store(folder: Path) -> Path:
    """A store of drawn photographs, 256x256: 400 for training, 130 for validation."""
    write_photographs(folder / "photographs", seed=0, train_per_class=40, validation_per_class=13)
    for split in ("train", "val"):
        prepare(folder / "photographs" / split, folder / "store", split=split)
    return folder / "store"


def main() -> None:
    """Parse, run, watch, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="store of 256x256 images")
    parser.add_argument("--recipe", default="alexnet")
    parser.add_argument("--augmenters", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=6, help="steps of the run; on a CPU one takes many seconds")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--interval", type=float, default=0.2, help="seconds between two readings")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    before = machine()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.store is None:
            print("making a store of 530 photographs, 256x256 …", file=sys.stderr)
        store = arguments.store or make_store(Path(folder))
        samples = watch(
            [sys.executable, "-m", "fourstage", "run", "--store", str(store), "--recipe", arguments.recipe,
             "--run-dir", f"{folder}/run", "--augmenters", str(arguments.augmenters), "--device", arguments.device,
             "--max-steps", str(arguments.steps), "--set", f"batch_size={arguments.batch_size}", "--json"],
            arguments.interval,
        )  # fmt: skip
    peak = max(samples, key=lambda entry: entry.total)
    own_peaks = {
        name: max(entry.processes[name]["Pss"] for entry in samples if name in entry.processes)
        for name in peak.processes
    }
    print(f"{'GB (10^9 bytes) of PSS':<24} {'own peak':>8} {'at peak':>8} {'private':>8} {'arenas':>8} {'files':>8}")
    for name, kinds in peak.processes.items():
        print(f"{name:<24} {own_peaks[name] / 1e9:>8.3f} " + " ".join(f"{kinds[kind] / 1e9:>8.3f}" for kind in KINDS))
    sums = [sum(kinds[kind] for kinds in peak.processes.values()) / 1e9 for kind in KINDS]
    print(f"{'all together':<24} {'':>8} " + " ".join(f"{figure:>8.3f}" for figure in sums))
    verdict = "under" if peak.total < LIMIT else "over"
    print(f"peak of the sum {peak.total / 1e9:.3f} GB after {peak.second:.0f} s, {verdict} {LIMIT / 1e9:.0f} GB")
    if arguments.json:
        result = {
            "machine": before,
            "recipe": arguments.recipe,
            "batch_size": arguments.batch_size,
            "augmenters": arguments.augmenters,
            "steps": arguments.steps,
            "samples": len(samples),
            "peak_bytes": peak.total,
            "peak_second": round(peak.second, 1),
            "at_peak": peak.processes,
            "own_peaks": own_peaks,
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
