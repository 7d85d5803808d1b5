"""What a run holds and does, once a second: from the kernel for each process, from /metrics for the stream.

Memory is not RSS: whoever maps an arena has all of it in its RSS, so several processes count the same pages, and one
augmenter more looks like growth. ``private`` is anonymous memory, the heap, from smaps_rollup. ``arenas`` are the
memfds that the process maps, in their full size: one that is never let go shows there at once, while what is resident
or a process's proportional share (PSS) depends on how much has been touched and on who else maps it.
"""

import json
import os
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.memory import proportional_set

ENGINE = "run"
"""The ``fourstage run`` command itself."""
_PAGES = ("trainer", "loader")
_PAGE_SECONDS = 2.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Vitals:
    """One process at one moment; memory in MB of 10^6 bytes."""

    private: float
    arenas: float
    descriptors: int
    threads: int
    cpu: float
    """Seconds since it started, of all its threads, living and dead."""


@dataclass(frozen=True, slots=True)
class Stream:
    """The counters of trainer and loader, since each started; a page that does not answer has none."""

    steps: float = 0.0
    """By the trainer's page: those whose lines are in ``steps.jsonl``."""
    data_wait: float = 0.0
    duplicates: float = 0.0
    checkpoints: float = 0.0
    age_sum: float = 0.0
    age_count: float = 0.0
    redispatched: float = 0.0
    died: float = 0.0


_COUNTERS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "steps": ("fourstage_steps_total", {}),
    "data_wait": ("fourstage_data_wait_seconds_total", {}),
    "duplicates": ("fourstage_duplicates_dropped_total", {}),
    "checkpoints": ("fourstage_checkpoints_total", {}),
    "age_sum": ("fourstage_batch_age_seconds_sum", {"stage": "train"}),
    "age_count": ("fourstage_batch_age_seconds_count", {"stage": "train"}),
    "redispatched": ("fourstage_redispatched_total", {}),
    "died": ("fourstage_workers_died_total", {}),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One moment of a run. second: since the first one."""

    second: float
    processes: Mapping[tuple[str, int], Vitals]
    """By name and process number: one that was started again is another."""
    stream: Stream
    settled: bool
    """Nothing was disturbed for a while, and the usual processes are there: what is held can be compared."""

    def as_json(self) -> dict[str, Any]:
        """Plain values, short ones."""
        return {
            "second": round(self.second, 2),
            "settled": self.settled,
            "stream": {name: round(value, 3) for name, value in asdict(self.stream).items()},
            "processes": {
                f"{name} {pid}": [round(value, 3) for value in asdict(vitals).values()]
                for (name, pid), vitals in self.processes.items()
            },
        }


def listed(run_dir: Path) -> dict[str, dict[str, Any]]:
    """The run's ``processes.json``; empty before there is one."""
    try:
        found = json.loads((run_dir / "processes.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def vitals(pid: int) -> Vitals | None:
    """A process now; None for one that is gone or has no memory any more."""
    memory = proportional_set(pid)
    try:
        # The name, in brackets, may hold anything; behind it is the third field.
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        maps = Path(f"/proc/{pid}/maps").read_text()
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - names alone, no paths
    except OSError:
        return None
    if not memory.get("Pss"):
        return None
    return Vitals(
        private=memory["Pss_Anon"] / 1e6,
        arenas=mapped(maps) / 1e6,
        descriptors=descriptors,
        threads=int(stat[17]),
        cpu=(int(stat[11]) + int(stat[12])) / _TICKS,
    )


def mapped(maps: str) -> int:
    """Bytes of memfds in the text of a process's ``maps``."""
    ranges = (line.split(" ", 1)[0].split("-") for line in maps.splitlines() if "/memfd:" in line)
    return sum(int(end, 16) - int(begin, 16) for begin, end in ranges)


def processes(engine: int, present: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, int], Vitals]:
    """Everybody of a run now. engine: its process number; present: as ``listed`` tells"""
    pids = {(ENGINE, engine)} | {(name, int(entry["pid"])) for name, entry in present.items()}
    found = {key: vitals(key[1]) for key in sorted(pids)}
    return {key: value for key, value in found.items() if value is not None}


def stream(present: Mapping[str, Mapping[str, Any]]) -> Stream:
    """What trainer and loader count now."""
    values: dict[str, float] = {}
    for name in _PAGES:
        page = str(present.get(name, {}).get("metrics", ""))
        text = _fetch(f"{page}/metrics") if page.startswith("http://") else ""
        families = text_string_to_metric_families(text)
        samples = [sample for family in families for sample in family.samples]
        for field, (wanted, labels) in _COUNTERS.items():
            for sample in samples:
                if sample.name == wanted and labels.items() <= sample.labels.items():
                    values[field] = float(sample.value)
    return Stream(**values)


def _fetch(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=_PAGE_SECONDS) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""
