"""CPU time as the kernel counts it: what a process has asked for, and what was left over."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Quota:
    """A limit of a control group, as containers have it."""

    cores: float
    usage: Path
    """Of the file that counts what the group's processes have used."""

    def used(self) -> float:
        """Core-seconds since the group was made."""
        text = self.usage.read_text("ascii")
        if self.usage.name == "cpuacct.usage":
            return int(text) / 1e9
        counted = dict(line.split() for line in text.splitlines())
        return int(counted["usage_usec"]) / 1e6


class Cores:
    """The cores that this process and its children may use."""

    def __init__(self, proc: Path = _PROC, cgroup: Path = _CGROUP) -> None:
        """Read which they are; later changes are not followed."""
        self._proc = proc
        self._numbers = os.sched_getaffinity(0)
        self._quotas = list(quotas(proc, cgroup))

    @property
    def usable(self) -> int:
        """Whole cores: those of the affinity mask, fewer where a control group allows less. At least one."""
        return max(1, min([len(self._numbers), *(int(quota.cores) for quota in self._quotas)]))

    def idle_seconds(self, now: float) -> tuple[float, ...]:
        """Core-seconds that were left unused until ``now`` (any clock in seconds), by each limit: first the cores
        themselves, then the control groups. Only differences mean anything."""
        return (self._idle_cores(), *(quota.cores * now - quota.used() for quota in self._quotas))

    def _idle_cores(self) -> float:
        names = {f"cpu{number}" for number in self._numbers}
        lines = [line.split() for line in (self._proc / "stat").read_text("ascii").splitlines()]
        # Fields 4 and 5 of proc(5): idle, and idle while a disk is waited for.
        ticks = sum(int(line[4]) + int(line[5]) for line in lines if line and line[0] in names)
        return ticks / os.sysconf("SC_CLK_TCK")


def core_seconds(pid: int, proc: Path = _PROC) -> float:
    """Core-seconds that a process has used, and those that its main thread, ready to run, has waited for where the
    kernel counts these: starved of cores it would else look like one that sleeps. 0 where it is gone."""
    try:
        text = (proc / str(pid) / "stat").read_text("utf-8", errors="replace")
    except OSError:
        return 0.0
    try:
        waited = int((proc / str(pid) / "schedstat").read_text("ascii").split()[1]) / 1e9
    except OSError:
        waited = 0.0
    # The name in parentheses may hold anything; of what follows it, fields 14 and 15 of proc(5) are its times.
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") + waited


def quotas(proc: Path, cgroup: Path) -> Iterator[Quota]:
    """Every limit on the CPU time of this process: of its control groups and of those that these are in."""
    try:
        lines = (proc / "self" / "cgroup").read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            for folder in _upwards(cgroup, path):
                yield from _unified(folder)
        elif "cpu" in controllers.split(","):
            # Both are links to one folder where the two are mounted together.
            for folder in _upwards(cgroup / "cpu", path):
                yield from _legacy(folder, cgroup / "cpuacct" / folder.relative_to(cgroup / "cpu"))


def _upwards(root: Path, path: str) -> Iterator[Path]:
    """A group's folder and those above it; in a container the outer ones may not be there."""
    inner = root / path.lstrip("/")
    yield inner
    while inner != root:
        inner = inner.parent
        yield inner


def _unified(folder: Path) -> Iterator[Quota]:
    try:
        quota, period = (folder / "cpu.max").read_text("ascii").split()
    except OSError:
        return
    if quota != "max":
        yield Quota(int(quota) / int(period), folder / "cpu.stat")


def _legacy(folder: Path, accounts: Path) -> Iterator[Quota]:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text("ascii"))
        period = int((folder / "cpu.cfs_period_us").read_text("ascii"))
    except OSError:
        return
    if quota > 0:
        yield Quota(quota / period, accounts / "cpuacct.usage")
