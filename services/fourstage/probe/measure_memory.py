"""Memory: how fast pixels are copied into an arena, and how much of it there is."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fourstage.arena import Arena
from fourstage.probe.plan import Spread
from fourstage.probe.windows import WINDOWS, spread

_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def copies(slots: int, slot_bytes: int, seconds: float) -> tuple[Spread, Spread]:
    """Bytes per second on one core into arenas: the first touch of fresh ones, and into ones that were touched."""
    source = np.random.default_rng(0).integers(0, 256, slot_bytes, np.uint8)
    fresh: list[float] = []
    touched: list[float] = []
    until = time.monotonic() + seconds
    while not fresh or (time.monotonic() < until and len(fresh) < WINDOWS * 100):
        arena = Arena.create(slots, slot_bytes)
        try:
            for rates in (fresh, touched):
                began = time.perf_counter()
                for slot in range(slots):
                    np.frombuffer(arena.slot(slot, slot_bytes), np.uint8)[:] = source
                rates.append(slots * slot_bytes / (time.perf_counter() - began))
        finally:
            arena.close()
    return spread(fresh), spread(touched)


def available_bytes(proc: Path = _PROC, cgroup: Path = _CGROUP) -> int:
    """Memory that this process and its children may still take, what the page cache would give up included."""
    fields = dict(line.split(":", 1) for line in (proc / "meminfo").read_text("ascii").splitlines())
    return max(0, min([int(fields["MemAvailable"].split()[0]) << 10, *_left_in_groups(proc, cgroup)]))


def _left_in_groups(proc: Path, cgroup: Path) -> Iterator[int]:
    """What each control group (version 2) of this process leaves of its limit."""
    try:
        lines = (proc / "self" / "cgroup").read_text("utf-8").splitlines()
    except OSError:
        return
    own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    if own is None:
        return
    inner = cgroup / own.lstrip("/")
    for folder in (inner, *inner.parents):
        if not folder.is_relative_to(cgroup):
            return
        try:
            limit = (folder / "memory.max").read_text("ascii").strip()
            used = int((folder / "memory.current").read_text("ascii"))
            counted = dict(line.split() for line in (folder / "memory.stat").read_text("ascii").splitlines())
        except OSError:
            continue
        if limit != "max":
            # The page cache of its files counts as used, and is given up first.
            yield int(limit) - used + int(counted.get("inactive_file", 0))
