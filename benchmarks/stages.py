"""Does a batch cost what the longest stage costs, and not what all four cost together?

Four simulated stages of nearly one length, the longest 20 % above the shortest, each in turn the longest: load is a
disk that reads one batch at a time, transform two augmenters that take twice as long each, copy and train sleep. The
step time of the steady state, from one step's beginning to the next one's in the run's own timeline, over the longest
stage's time is the answer: 1.00 is a perfect pipeline, 3.7 none.

    python -m benchmarks.stages [--rounds 2] [--steps 50] [--json FILE]
"""

import argparse
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.bench import complete, make_store, run_command, spread, write_figures
from benchmarks.machine import machine
from fourstage import rundir
from fourstage.trace import STAGE_ROWS

SECONDS = (0.100, 0.110, 0.115, 0.120)
"""Of one batch in the four stages, in the order that each round of the benchmark turns on by one."""
AUGMENTERS = 2
ROWS, SIZE, CROP = 48, 40, 32
"""What is really done besides sleeping takes a few milliseconds of a core."""
TARGET = 1.05


def permutations() -> Iterator[dict[str, float]]:
    """Each stage's seconds; every stage is the longest once."""
    names = list(STAGE_ROWS)
    for turn in range(len(SECONDS)):
        yield {name: SECONDS[(place - turn) % len(SECONDS)] for place, name in enumerate(names)}


def settings(seconds: dict[str, float]) -> dict[str, object]:
    """A run whose stages take that long for a batch."""
    return {
        "batch_size": ROWS,
        "augmenter.crop": CROP,
        "loader.batch_seconds": seconds["load"],
        "augmenter.batch_seconds": AUGMENTERS * seconds["transform"],
        "train.copy_seconds": seconds["copy"],
        "train.step_seconds": seconds["train"],
    }


def step_seconds(events: Iterable[dict[str, Any]], warm_up: int) -> float:
    """Mean seconds from one step's beginning to the next one's, without the first ``warm_up`` steps."""
    began = sorted(event["ts"] for event in events if event["ph"] == "X" and event["pid"] == STAGE_ROWS["train"])
    steady = began[warm_up:]
    return float(steady[-1] - steady[0]) / (len(steady) - 1) / 1e6


def measure(store: Path, seconds: dict[str, float], *, warm_up: int, steps: int) -> dict[str, float]:
    """One run: its step time, and that over the longest stage's."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir, wanted = Path(folder) / "run", warm_up + steps
        flags = ("--trace", "--max-steps", str(wanted), "--epochs", str(wanted))
        complete(run_command(store, run_dir, AUGMENTERS, settings(seconds), *flags))
        events = json.loads((run_dir / rundir.TRACE).read_text())["traceEvents"]
    took = step_seconds(events, warm_up)
    return {"step_seconds": took, "ratio": took / max(seconds.values())}


def main() -> None:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=50, help="measured steps of one run")
    parser.add_argument("--warm-up", type=int, default=15, help="steps before them, in which the stages fill")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    before = machine()
    found: list[dict[str, Any]] = []
    print("".join(f"{name:>10}" for name in STAGE_ROWS) + f"{'step':>9}{'ratio':>8}   seconds")
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder), images=5 * ROWS, size=SIZE)
        for _ in range(arguments.rounds):
            for seconds in permutations():
                figures = measure(store, seconds, warm_up=arguments.warm_up, steps=arguments.steps)
                found.append({"stages": seconds} | figures)
                stages = "".join(f"{value:>10.3f}" for value in seconds.values())
                print(f"{stages}{figures['step_seconds']:>9.4f}{figures['ratio']:>8.3f}", flush=True)
    ratio = spread([entry["ratio"] for entry in found])
    verdict = "at most" if ratio["median"] <= TARGET else "more than"
    print(f"median {ratio['median']:.3f} ({ratio['least']:.3f} to {ratio['most']:.3f}), {verdict} {TARGET}")
    write_figures(arguments.json, {"machine": before, "rounds": found, "ratio": ratio, "target": TARGET})


if __name__ == "__main__":
    main()
