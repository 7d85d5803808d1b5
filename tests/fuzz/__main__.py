"""The long form: ``python -m tests.fuzz [--cases N] [--handler NAME]... [--seed N] [--first CASE] [--json FILE]``.

Exits with 1 where a promise was broken, and says how to see it again.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.campaign import WORLD, Outcome, run
from tests.fuzz.targets import TARGETS

_LINE_SECONDS = 5.0
_MEBIBYTE = 1 << 20
MOST_GROWTH = 48 * _MEBIBYTE
"""Bytes between the middle and the end of a campaign; a leak of 100 bytes a case would be 48 MB in half a million."""


def main() -> int:
    arguments = _arguments()
    outcomes = []
    for name in arguments.handler or TARGETS:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            outcome = run(
                TARGETS[name],
                name,
                Path(folder),
                seed=arguments.seed,
                cases=arguments.cases,
                first=arguments.first,
                progress=_Progress(name, arguments.cases),
            )
        _tell(outcome)
        outcomes.append(outcome)
    if arguments.json:
        arguments.json.write_text(json.dumps([outcome.as_json() for outcome in outcomes], indent=1) + "\n", "utf-8")
    return 1 if any(outcome.failure or growth(outcome) > MOST_GROWTH for outcome in outcomes) else 0


def growth(outcome: Outcome) -> int:
    """Bytes by which the memory has grown in the second half."""
    return outcome.resident[-1] - outcome.resident[-2] if len(outcome.resident) > 2 else 0


class _Progress:
    def __init__(self, name: str, cases: int) -> None:
        self._name = name
        self._cases = cases
        self._next = time.monotonic() + _LINE_SECONDS

    def __call__(self, done: int, seconds: float) -> None:
        if time.perf_counter() > self._next:
            self._next = time.perf_counter() + _LINE_SECONDS
            print(f"{self._name:>10} {done:>9,} of {self._cases:,}  {done / seconds:,.0f} cases/s", file=sys.stderr)


def _tell(outcome: Outcome) -> None:
    memory = " → ".join(f"{size / _MEBIBYTE:.0f}" for size in outcome.resident)
    rate = outcome.cases / outcome.seconds
    print(f"{outcome.target:>10} {outcome.cases:>9,} cases  {outcome.seconds:.0f} s  {rate:,.0f}/s  {memory} MiB")
    for path, entries in sorted(outcome.largest.items(), key=lambda item: -item[1])[:3]:
        print(f"{'':>10} {entries:>9,} at most in {path}")
    if growth(outcome) > MOST_GROWTH:
        print(f"{'':>10} the memory grows", file=sys.stderr)
    if failure := outcome.failure:
        print(failure.what, file=sys.stderr)
        for frames in failure.frames:
            print(f"  {frames}", file=sys.stderr)
        print(
            f"case {failure.case} of seed {failure.seed}; again: python -m tests.fuzz --handler {failure.target}"
            f" --seed {failure.seed} --first {failure.first} --cases {failure.case - failure.first + 1}",
            file=sys.stderr,
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=1_000_000, help="for each handler")
    parser.add_argument("--handler", action="append", choices=sorted(TARGETS), help="default: all, one after another")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help=f"the first case, a multiple of {WORLD:,}")
    parser.add_argument("--json", type=Path, help="where to write what came of it")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
