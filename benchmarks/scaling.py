"""What does one more augmenter bring?

``fourstage run --recipe drain`` with each number of augmenters, and the bare decoder in as many threads, in turn,
several rounds. Up to the number of cores the pipeline should grow as decoding does; beyond it nothing is to be
gained, and nothing should be lost.

    python -m benchmarks.scaling --store STORE [--augmenters 1,2,4] [--rounds 3] [--json FILE]
"""

import argparse
import os
from pathlib import Path

from benchmarks.bench import spread, write_figures
from benchmarks.machine import machine
from benchmarks.pipeline import pipeline_rate, raw_rate


def main() -> None:
    """Parse, measure, report."""
    cores = len(os.sched_getaffinity(0))
    usual = ",".join(str(number) for number in doubling(2 * cores))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True, help="store of 256x256 images")
    parser.add_argument("--augmenters", default=usual, help="numbers of augmenters")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=12_000, help="images of one measurement with one augmenter")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    before = machine()
    numbers = [int(number) for number in arguments.augmenters.split(",")]
    rates: dict[int, list[float]] = {number: [] for number in numbers}
    raws: dict[int, list[float]] = {number: [] for number in numbers}
    for _ in range(arguments.rounds):
        for number in numbers:
            images = arguments.images * min(number, cores)
            raws[number].append(raw_rate(arguments.store, number, images))
            rates[number].append(pipeline_rate(arguments.store, number, images, "arena")[0])
    print(
        f"{cores} cores\n{'augmenters':>10}{'images/s':>10}{'least':>8}{'most':>8}{'raw':>8}{'ratio':>7}{'of one':>8}"
    )
    found = []
    for number in numbers:
        ratios = spread([rate / raw for rate, raw in zip(rates[number], raws[number], strict=True)])
        entry = {"augmenters": number, "pipeline": spread(rates[number]), "raw": spread(raws[number]), "ratio": ratios}
        rate = spread(rates[number])
        growth = rate["median"] / spread(rates[numbers[0]])["median"]
        found.append(entry)
        print(f"{number:>10}{rate['median']:>10,.0f}{rate['least']:>8,.0f}{rate['most']:>8,.0f}"
              f"{spread(raws[number])['median']:>8,.0f}{ratios['median']:>7.2f}{growth:>8.2f}")  # fmt: skip
    write_figures(arguments.json, {"machine": before, "augmenters": found})


def doubling(most: int) -> list[int]:
    """1, 2, 4 … up to ``most``."""
    numbers = [1]
    while 2 * numbers[-1] <= most:
        numbers.append(2 * numbers[-1])
    return numbers


if __name__ == "__main__":
    main()
