"""What a measurement ran on, for the JSON beside every table."""

import datetime
import os
import platform
from pathlib import Path


def machine() -> dict[str, str | int | float]:
    """Processor, cores, memory, versions, date and the load before the measurement."""
    fields = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    return {
        "processor": next((value.strip() for name, value in fields.items() if name.strip() == "model name"), "unknown"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory.split()[1]) / 2**20, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "load_before": round(os.getloadavg()[0], 2),
    }
