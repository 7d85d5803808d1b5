"""From the counters to a sentence: what the run is waiting for, and whether another augmenter would help."""

import math
from dataclasses import dataclass

from fourstage.wire.messages import Usage

WAITING = 0.05
"""A train stage that waits for less than this share of its time is fed."""
SATURATED = 0.75


@dataclass(frozen=True, slots=True)
class Shares:
    """How a stage spent an interval, as shares of it; for augmenters the mean over them."""

    busy: float
    wait_upstream: float
    wait_downstream: float
    batches: int


def shares(before: Usage, after: Usage, workers: int = 1) -> Shares:
    """The shares of the time between two readings; all zero where nothing was counted."""
    busy = max(0.0, after.busy - before.busy)
    upstream = max(0.0, after.wait_upstream - before.wait_upstream)
    downstream = max(0.0, after.wait_downstream - before.wait_downstream)
    total = busy + upstream + downstream
    if total <= 0.0 or workers < 1:
        return Shares(0.0, 0.0, 0.0, max(0, after.batches - before.batches))
    return Shares(busy / total, upstream / total, downstream / total, max(0, after.batches - before.batches))


def bottleneck(load: Shares, transform: Shares, copy: Shares, train: Shares, *, augmenters: int) -> str:
    """One sentence that names the stage that holds the run up."""
    waits = f"the trainer waits {train.wait_upstream:.0%} of its time"
    if train.busy + train.wait_upstream == 0.0:
        return "nothing has been trained on yet"
    if train.wait_upstream < WAITING:
        return f"train-bound: {waits}, the pipeline keeps up"
    if transform.busy >= SATURATED:
        wanted = math.ceil(augmenters * train.wait_upstream / max(0.01, 1.0 - train.wait_upstream))
        plural = "" if wanted == 1 else "s"
        return (
            f"transform-bound: augmenters are {transform.busy:.0%} busy, {waits}; "
            f"about {wanted} more augmenter{plural} would feed it, where cores are free"
        )
    if load.busy >= SATURATED:
        return f"load-bound: the loader reads {load.busy:.0%} of the time, {waits}; a faster disk would help"
    if copy.busy >= SATURATED:
        return f"copy-bound: the copy stage is {copy.busy:.0%} busy, {waits}"
    busiest = max((("load", load), ("transform", transform), ("copy", copy)), key=lambda entry: entry[1].busy)
    return (
        f"latency-bound: {waits}, yet no stage is saturated (busiest: {busiest[0]}, {busiest[1].busy:.0%}); "
        "a larger window would help"
    )
