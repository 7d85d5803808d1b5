"""A checkpoint's writing interrupted everywhere, the long form: ``python -m tests.checkpoints``.

Every system call of the writer (strace), every file call ended or refused, every state that a power cut may leave.
Prints for each way: tried, old found, new found, neither; ends with 1 where anything but the old or the new was found.
"""

import argparse
import sys
from collections import Counter
from functools import partial

from tests.checkpoints.attempts import NEW, OLD, Way, campaign, ended, killed, powerless, refused, strace_works


def main() -> int:
    """The exit code."""
    argparse.ArgumentParser(
        prog="python -m tests.checkpoints", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    ways: dict[str, Way] = {"process ended": ended, "refused by the disk": refused, "power cut": powerless}
    if why := strace_works():
        print(f"killed at system calls: not tried, {why}")
    else:
        ways = {"killed at system calls": partial(killed, calls=None), **ways}
    print(f"{'':24}{'tried':>8}{'old':>8}{'new':>8}{'neither':>9}{'wrong':>8}")
    counts = {name: Counter[str]() for name in ways}
    for name, attempt in campaign(ways):
        counts[name][attempt.found if attempt.found in (OLD, NEW) else "neither"] += 1
        if not attempt.is_right:
            counts[name]["wrong"] += 1
            print(f"{name}, {attempt.where}: {attempt.found} {attempt.complaint}", file=sys.stderr)
    for name, count in counts.items():
        tried = count[OLD] + count[NEW] + count["neither"]
        print(f"{name:24}{tried:8,}{count[OLD]:8,}{count[NEW]:8,}{count['neither']:9,}{count['wrong']:8,}")
    return int(any(count["wrong"] for count in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
