"""Runs stopped at random moments, and what is left of each: ``python -m tests.shutdown --moments 100``.

Prints a table by phase and signal: tried, exit codes, left behind; ends with 1 where anything was left, an exit code
is not the documented one, or a resumed run has another digest. A failed moment is printed with the command that
replays it.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.shutdown.moments import KINDS, PHASES, Moment, Outcome, World, attempt


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.shutdown")
    parser.add_argument("--moments", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one moment")
    parser.add_argument("--json", type=Path, help="a file for every outcome")
    arguments = parser.parse_args()
    numbers = range(arguments.moments) if arguments.only is None else [arguments.only]
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="shutdown-", ignore_cleanup_errors=True) as folder:
        world = World.make(Path(folder))
        for number in numbers:
            outcome = attempt(world, Moment.draw(arguments.seed, number))
            outcomes.append(outcome)
            _tell(outcome, arguments.seed)
    _table(outcomes)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    return int(any(outcome.complaints for outcome in outcomes))


def _tell(outcome: Outcome, seed: int) -> None:
    moment = outcome.moment
    print(
        f"{moment.number:4} {moment.phase}+{moment.delay:.3f} {moment.kind}: {outcome.code}"
        f"{', resumed' if outcome.resumed else ''} ({outcome.seconds:.1f} s)",
        flush=True,
    )
    for complaint in outcome.complaints:
        print(f"     {complaint}", flush=True)
    if outcome.complaints:
        print(f"     again: python -m tests.shutdown --seed {seed} --only {moment.number}", flush=True)


def _table(outcomes: Sequence[Outcome]) -> None:
    groups: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        groups[outcome.moment.phase, outcome.moment.kind].append(outcome)
    print(f"\n{'phase':18}{'signals':10}{'tried':>6}{'resumed':>9}{'left or wrong':>15}  exit codes")
    for phase in PHASES:
        for kind in KINDS:
            if group := groups[phase, kind]:
                codes = Counter(str(outcome.code) for outcome in group)
                wrong, resumed = sum(bool(o.complaints) for o in group), sum(o.resumed for o in group)
                said = ", ".join(f"{code} x{count}" for code, count in sorted(codes.items()))
                print(f"{phase:18}{kind:10}{len(group):6}{resumed:9}{wrong:15}  {said}")
    wrong = sum(bool(outcome.complaints) for outcome in outcomes)
    print(f"{len(outcomes) - wrong} of {len(outcomes)} moments left nothing and ended as documented")


if __name__ == "__main__":
    sys.exit(main())
