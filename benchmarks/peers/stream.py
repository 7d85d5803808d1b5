"""What the peers' programs share: the command line, the order of the files, the clock and the processor's time.

A program prints one line of JSON. It imports nothing of fourstage: it runs in an environment of the peers' own.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

BATCH = 128
CROP = 224
SLACK = 32
"""Batches that are offered beyond the last one measured: no peer runs dry while the clock runs."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a program shall measure."""

    variant: str
    folder: Path
    """JPEG files, all ``size`` x ``size``."""

    size: int
    workers: int
    warm_up: int
    """Batches before the clock starts."""

    batches: int
    """Batches measured."""

    def order(self) -> list[str]:
        """Files for the whole stream, shuffled anew every epoch; no end of an epoch holds a peer up."""
        files = sorted(str(path) for path in self.folder.glob("*.jpg"))
        wanted = (self.warm_up + self.batches + SLACK) * BATCH
        order: list[str] = []
        while len(order) < wanted:
            order += random.sample(files, len(files))
        return order[:wanted]


def read_plan(*variants: str) -> Plan:
    """The plan from the command line; ``variants`` are the ways that the program knows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("variant", choices=variants)
    parser.add_argument("--folder", type=Path, required=True)
    for name in ("size", "workers", "warm-up", "batches"):
        parser.add_argument(f"--{name}", type=int, required=True)
    return Plan(**vars(parser.parse_args()))


def measure(stream: Iterator[int], plan: Plan, distributions: tuple[str, ...]) -> None:
    """Count the images of ``stream``'s batches after the warm-up and print what that took, as JSON.

    ``seconds`` are wall time, ``cpu_seconds`` those of this process and all its descendants.
    """
    for _ in range(plan.warm_up):
        next(stream)
    images, began, began_cpu = 0, time.perf_counter(), cpu_seconds(os.getpid())
    for _ in range(plan.batches):
        images += next(stream)
    seconds, cpu = time.perf_counter() - began, cpu_seconds(os.getpid()) - began_cpu
    versions = {name: metadata.version(name) for name in distributions}
    print(json.dumps({"images": images, "seconds": seconds, "cpu_seconds": cpu, "versions": versions}), flush=True)


def cpu_seconds(root: int) -> float:
    """User and system time of a process and of all its descendants, the dead ones included."""
    ticks: dict[int, int] = {}
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        # proc_pid_stat(5) counts from 1; the first field behind the name is the third.
        parents[int(entry.name)] = int(fields[1])
        ticks[int(entry.name)] = sum(int(field) for field in fields[11:15])
    family = {root}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(ticks.get(pid, 0) for pid in family) / os.sysconf("SC_CLK_TCK")
