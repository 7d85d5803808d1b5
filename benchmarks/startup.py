"""How long does a person wait for the first batch, and for what?

``fourstage run --recipe drain`` on a store whose files are in the page cache, from the command to the first batch
to the first step that ``status.json`` tells of, and from the last step to the command's return. The moments between
come from the kernel (when each process was made), from each process's log (its pages are up once everything is
imported) and from the run's timeline (where the first batch was when); all of one
machine's clocks. A second table says what each process imports, in milliseconds
of ``python -X importtime``, and which of it nobody but the command line needs.

    python -m benchmarks.startup [--store STORE] [--augmenters 2] [--rounds 5] [--json FILE]

Without a store one of 256 small squares is made and removed again.
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from benchmarks.bench import make_store, run_command, spread, write_figures
from benchmarks.machine import machine
from benchmarks.memory import role
from fourstage import rundir
from fourstage.trace import STAGE_ROWS

TARGET_SECONDS = 3.0
_LOOK_SECONDS = 0.01
_UP = "metrics at"
"""What a service's log says once it has imported everything and answers on its pages."""
_SERVING = "serving"
_ROLES = {
    "run": "fourstage.cli.runs",
    "loader": "fourstage.engine.child, fourstage.loader.service, fourstage.store",
    "augmenter": "fourstage.engine.child, fourstage.augmenter.service",
    "trainer": "fourstage.engine.child, fourstage.trainer.service",
}
"""What each process imports before it works."""


def log_moment(lines: Iterable[str], words: str, *, after: float) -> float:
    """Unix time of the first line of a log that has these words; lines say the time of day, ``after`` the day."""
    for line in lines:
        if words in line:
            day = datetime.datetime.fromtimestamp(after).astimezone()
            told = datetime.time.fromisoformat(line.split()[0])
            moment = datetime.datetime.combine(day.date(), told, day.tzinfo)
            if moment.timestamp() < after - 1.0:
                moment += datetime.timedelta(days=1)
            return moment.timestamp()
    raise ValueError(f"no line has {words!r}")


def last_step(events: Iterable[dict[str, Any]]) -> float:
    """Monotonic seconds at which the last step ended."""
    ends: list[float] = [
        (event["ts"] + event["dur"]) / 1e6
        for event in events
        if event["ph"] == "X" and event["pid"] == STAGE_ROWS["train"]
    ]
    return max(ends)


def first_passage(events: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Monotonic seconds at which each stage began and ended its work on batch 0."""
    names = {row: name for name, row in STAGE_ROWS.items()}
    found = {}
    for event in events:
        if event["ph"] == "X" and event["args"]["seq"] == 0:
            stage, began = names[event["pid"]], event["ts"] / 1e6
            found[f"{stage} began"], found[f"{stage} ended"] = began, began + event["dur"] / 1e6
    return found


def import_costs(report: str) -> tuple[dict[str, float], float]:
    """Milliseconds of ``python -X importtime`` by top package, the largest first, and of all together.

    The standard library is one entry. A module's own time counts for its own package, whoever imported it.
    """
    costs: dict[str, float] = defaultdict(float)
    for line in report.splitlines():
        parts = line.removeprefix("import time:").split("|")
        if not line.startswith("import time:") or len(parts) != 3 or not parts[0].strip().isdigit():
            continue
        top = parts[2].strip().partition(".")[0]
        standard = top in sys.stdlib_module_names or top.startswith("_")
        costs["standard library" if standard else top] += int(parts[0]) / 1000
    ordered = dict(sorted(costs.items(), key=lambda entry: -entry[1]))
    return ordered, sum(costs.values())


def imports_of(modules: str) -> dict[str, float]:
    """``import_costs`` of one process, of two tries the faster: the first may read from the disk."""
    tries = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", f"import {modules}"], check=True, capture_output=True, text=True
        )
        tries.append(import_costs(done.stderr))
    return min(tries, key=lambda entry: entry[1])[0]


def measure(store: Path, augmenters: int) -> dict[str, float]:
    """One run of three steps: seconds from the command to each moment."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        settings = {"batch_size": 32, "augmenter.crop": 32}
        command = run_command(store, run_dir, augmenters, settings, "--trace", "--max-steps", "3")
        to_unix = time.time() - time.monotonic()
        began = time.time()
        moments: dict[str, float] = {}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
            process = psutil.Process(run.pid)
            while run.poll() is None and "first step told" not in moments:
                time.sleep(_LOOK_SECONDS)
                look(process, run_dir, moments)
            _, error = run.communicate()
        ended = time.time()
        if run.returncode != 0:
            sys.exit(error)
        for name in ["loader", "trainer", *(f"augmenter-{number}" for number in range(augmenters))]:
            lines = (run_dir / rundir.LOGS / f"{name}.log").read_text().splitlines()
            moments[f"{name} up"] = log_moment(lines, _UP, after=began)
            if name == "loader":
                moments["loader serving"] = log_moment(lines, _SERVING, after=began)
                moments["stream opened"] = log_moment(lines, "opened", after=began)
        events = json.loads((run_dir / rundir.TRACE).read_text())["traceEvents"]
        moments |= {name: moment + to_unix for name, moment in first_passage(events).items()}
        moments["last step ended"] = last_step(events) + to_unix
        moments["command returned"] = ended
    return {name: moment - began for name, moment in sorted(moments.items(), key=lambda entry: entry[1])}


def look(run: psutil.Process, run_dir: Path, moments: dict[str, float]) -> None:
    """Note what can only be seen while it happens: processes that are there, and the first step told."""
    try:
        for child in run.children():
            moments.setdefault(f"{role(child)} made", child.create_time())
    except psutil.Error:
        return
    status = run_dir / rundir.STATUS
    if status.is_file() and rundir.read_json(status)["step"] > 0:
        moments["first step told"] = time.time()


def main() -> None:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="a store")
    parser.add_argument("--augmenters", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    before = machine()
    with tempfile.TemporaryDirectory() as folder:
        store = arguments.store or make_store(Path(folder), images=256, size=40)
        measure(store, arguments.augmenters)  # Files and byte code are in the page cache from now on.
        rounds = [measure(store, arguments.augmenters) for _ in range(arguments.rounds)]
    # A run may be so quick that a process was never seen: what all rounds know is compared.
    names = [name for name in rounds[0] if all(name in moments for moments in rounds)]
    moments = {name: spread([entry[name] for entry in rounds]) for name in names}
    print(f"{'seconds after the command':<28}{'median':>8}{'least':>8}{'most':>8}")
    for name, figures in sorted(moments.items(), key=lambda entry: entry[1]["median"]):
        print(f"{name:<28}" + "".join(f"{value:>8.2f}" for value in figures.values()))
    first = moments["transform ended"]["median"]
    trained = moments["train began"]["median"]
    print(
        f"first batch made after {first:.2f} s, trained on after {trained:.2f} s, "
        f"{'at most' if trained <= TARGET_SECONDS else 'more than'} {TARGET_SECONDS:.0f} s"
    )
    after = spread([entry["command returned"] - entry["last step ended"] for entry in rounds])
    print(f"from the last step to the command's return {after['median']:.2f} s")
    imports = {name: imports_of(modules) for name, modules in _ROLES.items()}
    print(f"\n{'imports, milliseconds':<28}" + "".join(f"{name:>11}" for name in imports))
    packages = sorted({name for costs in imports.values() for name in costs}, key=lambda name: -_most(imports, name))
    for name in packages[:16]:
        print(f"{name:<28}" + "".join(f"{costs.get(name, 0.0):>11.0f}" for costs in imports.values()))
    print(f"{'all together':<28}" + "".join(f"{sum(costs.values()):>11.0f}" for costs in imports.values()))
    told = {"machine": before, "moments": moments, "rounds": rounds, "imports_milliseconds": imports}
    write_figures(arguments.json, told)


def _most(imports: dict[str, dict[str, float]], package: str) -> float:
    return max(costs.get(package, 0.0) for costs in imports.values())


if __name__ == "__main__":
    main()
