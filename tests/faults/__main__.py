"""The fault campaign: ``python -m tests.faults --seeds 230``, or one seed again: ``--seed N``."""

import argparse
import json
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from tests.faults.draw import Fault
from tests.faults.play import Ground, Outcome, play, prepare_ground


def main() -> int:
    arguments = _parser().parse_args()
    many = range(arguments.first, arguments.first + arguments.seeds)
    seeds = arguments.seed or many
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    ground = prepare_ground(folder)
    outcomes = []
    for outcome in _all(seeds, ground, folder, arguments.jobs, keep=arguments.keep):
        outcomes.append(outcome)
        print(f"seed {outcome.plan.seed:4}  {outcome.how:10}  {outcome.seconds:4.1f} s  {outcome.plan}", flush=True)
        if outcome.failure:
            print(f"    {outcome.failure}\n    again: python -m tests.faults --seed {outcome.plan.seed}", flush=True)
    print(table(outcomes))
    failed = [outcome for outcome in outcomes if outcome.failure]
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([_record(outcome) for outcome in outcomes], indent=1) + "\n")
    return 1 if failed else 0


def _all(seeds: Iterable[int], ground: Ground, folder: Path, jobs: int, *, keep: bool) -> Iterable[Outcome]:
    if jobs == 1:
        yield from (play(seed, ground, folder, keep=keep) for seed in seeds)
        return
    with ProcessPoolExecutor(jobs) as pool:
        for done in as_completed([pool.submit(play, seed, ground, folder, keep=keep) for seed in seeds]):
            yield done.result()


def table(outcomes: Iterable[Outcome]) -> str:
    """How often each kind of fault was tried, and what came of it."""
    counts: dict[Fault, Counter[str]] = defaultdict(Counter)
    for outcome in outcomes:
        for fault in {blow.fault for blow in outcome.plan.blows}:
            counts[fault].update(("tried", outcome.how))
    columns = ("tried", "same bytes", "clean stop", "failed")
    head = f"{'fault':24}" + "".join(f"{column:>12}" for column in columns)
    rows = (f"{fault!s:24}" + "".join(f"{counts[fault][column]:12}" for column in columns) for fault in Fault)
    return "\n".join((head, *rows))


def _record(outcome: Outcome) -> dict[str, object]:
    return {
        "seed": outcome.plan.seed,
        "plan": str(outcome.plan),
        "faults": [blow.fault.name for blow in outcome.plan.blows],
        "moments": [strike.moment.name for strike in outcome.plan.strikes],
        "how": outcome.how,
        "seconds": round(outcome.seconds, 2),
        "failure": outcome.failure,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seeds", type=int, default=230, help="how many")
    parser.add_argument("--first", type=int, default=0, help="from which one on")
    parser.add_argument("--seed", type=int, nargs="+", help="these alone")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at one time")
    parser.add_argument("--keep", action="store_true", help="keep the logs of all seeds, not only of those that fail")
    parser.add_argument("--json", type=Path, help="a file for what came of each")
    return parser


if __name__ == "__main__":
    sys.exit(main())
