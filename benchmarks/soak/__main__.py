"""Does a run hold what it held, and stay as fast, while its processes are killed, frozen and scaled for half an hour?

One ``fourstage run`` at full rate. Once a second the memory, descriptors and threads of every process are read, and the
counters of the stream; every 10 to 30 seconds something happens, drawn from a seed (``disturb``). In the end the run is
interrupted by Ctrl-C, and its receipt, pixels included, is compared with what arithmetic alone makes of as many steps
(``expected``). For each role and measure the slope is judged (``judge`` says how, ``findings`` of what).

The usual form drains: nothing is trained, so batches, leases, slots and messages, by which whatever leaks is likely to
leak, come at the highest rate there is; checkpoints and receipts are written as in every run. ``--trainer`` trains the
small net instead, with validation after each epoch and a checkpoint every few seconds, at a twentieth of that rate.

    python -m benchmarks.soak --store STORE [--minutes 30] [--seed N] [--trainer] [--json FILE] [--plot FILE.png]

Exit 0: all is flat and the digest right. 1: something rises, or the digest is wrong, or a process was left behind.
3: the run was too short, or too noisy, for something to be judged.
"""

import argparse
import math
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench import write_figures
from benchmarks.machine import machine
from benchmarks.soak.disturb import KINDS
from benchmarks.soak.expected import expected_digest
from benchmarks.soak.findings import Finding, Window, findings
from benchmarks.soak.judge import Word
from benchmarks.soak.run import Plan, Soaked, soak
from benchmarks.soak.watch import Sample
from fourstage import rundir
from fourstage.resolve import read_toml, validated
from fourstage.store import open_store

DRAIN = ("--recipe", "drain")
TELL_SECONDS = 60.0


def trains(store: Path) -> tuple[str, ...]:
    """Flags of a run that trains the small net on small batches, and validates on the training split if need be."""
    split = "val" if "val" in open_store(store).splits else "train"
    settings = ("augmenter.crop=24", "batch_size=32", f"validation_split={split}", "train.checkpoint_seconds=5",
                "train.learning_rate=0.0001")  # fmt: skip
    return "--recipe", "cifar-augmented", "--device", "cpu", *(f"--set={setting}" for setting in settings)


class Progress:
    """One line a minute."""

    def __init__(self) -> None:
        self._last: Sample | None = None

    def __call__(self, sample: Sample) -> None:
        last = self._last
        if last is not None and sample.second - last.second < TELL_SECONDS:
            return
        self._last = sample
        if last is None:
            return
        rate = (sample.stream.steps - last.stream.steps) / (sample.second - last.second)
        held = "  ".join(
            f"{name} {vitals.private:.0f} MB {vitals.descriptors}/{vitals.threads}"
            for (name, _), vitals in sample.processes.items()
        )
        print(f"{sample.second / 60:5.1f} min  {rate:6.1f} batches/s  {held}", flush=True)


def table(found: Sequence[Finding]) -> str:
    """The verdicts, a line each."""
    head = f"{'role':<10} {'measure':<12} {'level':>11} {'slope an hour':>14}"
    lines = [f"{head}   {'bounds':<20} {'of level':>8} {'blocks':>7}"]
    for finding in found:
        judged = finding.judgement
        head = f"{finding.role:<10} {finding.measure.name:<12} {judged.level:>8.1f} {finding.measure.unit:<2}"
        share = f"{judged.high / judged.level:+.1%}" if judged.level else ""
        slope = (
            f"{judged.slope:>+14.2f}   {f'{judged.low:+.2f} … {judged.high:+.2f}':<20} {share:>8}"
            if math.isfinite(judged.high)
            else " " * 46
        )
        lines.append(f"{head} {slope} {judged.blocks:>7}  {judged.word}")
    return "\n".join(lines)


def counts(soaked: Soaked) -> dict[str, int]:
    """Disturbances by kind, and what came of them."""
    happened = Counter(act.kind for act in soaked.acts)
    receipt = soaked.summary["receipt"]
    return {kind: happened[kind] for kind in KINDS} | {
        "missed": len(soaked.missed),
        "redispatched": int(receipt["redispatched"]),
        "duplicates dropped": int(receipt["duplicates_dropped"]),
    }


def plain(finding: Finding) -> dict[str, Any]:
    """For the JSON file."""
    judged = finding.judgement
    figures = {"level": judged.level, "slope_per_hour": judged.slope, "low": judged.low, "high": judged.high}
    # JSON knows no NaN, which stands where there are too few blocks.
    told = {name: value if math.isfinite(value) else None for name, value in figures.items()}
    return {
        "role": finding.role, "process": finding.process, "measure": finding.measure.name,
        "unit": finding.measure.unit, "blocks": judged.blocks, "verdict": judged.word,
    } | told  # fmt: skip


def exit_code(words: Collection[Word], sound: bool) -> int:
    """What the program says to whoever started it. sound: digest right, nothing left behind"""
    if not sound or "rises" in words:
        return 1
    return 3 if "open" in words else 0


def _title(soaked: Soaked, what: Plan, right: bool) -> str:
    images = soaked.summary["receipt"]["delivered"]
    return (
        f"{what.seconds / 60:g} minutes, {len(soaked.acts)} disturbances, {images:,} images: "
        f"the digest is {'right' if right else 'wrong'}"
    )


def main() -> None:
    """Parse, run, judge, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True, help="store of 256x256 images")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0, help="of the disturbances and of the stream")
    parser.add_argument("--gaps", type=float, nargs=2, default=(10.0, 30.0), metavar="SECONDS",
                        help="least and most between two disturbances")  # fmt: skip
    parser.add_argument("--augmenters", type=int, default=max(2, len(os.sched_getaffinity(0))), help="at least 2")
    parser.add_argument("--trainer", action="store_true", help="train the small net, with validation")
    parser.add_argument("--json", type=Path, help="write the figures and all samples to this file")
    parser.add_argument("--plot", type=Path, help="draw the run into this PNG file")
    arguments = parser.parse_args()
    before = machine()
    what = Plan(
        seconds=60.0 * arguments.minutes, seed=arguments.seed, gaps=tuple(arguments.gaps),
        augmenters=max(2, arguments.augmenters), settle=min(5.0, arguments.gaps[0] / 2.0),
        flags=trains(arguments.store) if arguments.trainer else DRAIN,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        try:
            soaked = soak(arguments.store, Path(folder), what, Progress())
        except RuntimeError as error:
            sys.exit(f"{error}")
        settings = validated(read_toml(Path(folder) / "run" / rundir.SETTINGS))
    began = time.monotonic()
    steps, digest = int(soaked.summary["steps"]), str(soaked.summary["receipt"]["digest"])
    expected = expected_digest(settings, open_store(arguments.store), steps)
    found = findings(soaked.samples, soaked.steps, Window.of(what.seconds))
    print(table(found))
    print(", ".join(f"{name} {count}" for name, count in counts(soaked).items()))
    right = digest == expected
    seconds = time.monotonic() - began
    print(f"{steps:,} batches, {soaked.summary['receipt']['delivered']:,} images; digest {digest}")
    print(f"arithmetic alone makes {expected} in {seconds:.0f} s: {'the same' if right else 'ANOTHER ONE'}")
    for name in soaked.left_behind:
        print(f"left behind: {name}")
    write_figures(arguments.json, {
        "machine": before, "minutes": arguments.minutes, "seed": arguments.seed, "trainer": arguments.trainer,
        "steps": steps, "images": soaked.summary["receipt"]["delivered"], "digest": digest, "expected": expected,
        "left_behind": soaked.left_behind, "counts": counts(soaked), "findings": [plain(one) for one in found],
        "disturbances": [[round(act.at, 2), act.kind, round(act.lasts, 2), act.number] for act in soaked.acts],
        "samples": [sample.as_json() for sample in soaked.samples],
    })  # fmt: skip
    if arguments.plot:
        from benchmarks.soak.draw import draw
        from fourstage.figures.style import house_style, save

        with house_style():
            save(draw(soaked.samples, soaked.acts, soaked.steps, found, _title(soaked, what, right)), arguments.plot)
    sys.exit(exit_code({finding.judgement.word for finding in found}, right and not soaked.left_behind))


if __name__ == "__main__":
    main()
