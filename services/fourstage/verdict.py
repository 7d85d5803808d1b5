"""From the counters to a sentence: what the run is waiting for, and whether more augmenters would help.

Stages of a line that are not the narrow one are either starved (they wait for input) or blocked (they wait for room);
the narrow one is busy. Where all stages wait and yet a batch is on its way between two of them nearly always, the
narrow place is that way.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fourstage.wire.messages import Usage

STAGE_NAMES = ("load", "transform", "copy", "train")
WAITING = 0.05
"""A train stage that waits for less than this share of its time is fed."""
SATURATED = 0.85
"""Busy for so much of its time a stage is the narrow one."""
BUSIEST = 0.7
"""Where nothing is saturated, a stage as busy as this is named all the same: its batches take unequal times."""
ON_THE_WAY = 0.8
"""Batches that are between two stages on average, from which on the way is the narrow place."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Every counter at one moment. usages: by stage; seconds of ways: summed over batches."""

    usages: Mapping[str, Usage] = field(default_factory=dict)
    at: float = 0.0
    to_augmenter: float = 0.0
    to_trainer: float = 0.0

    def of(self, stage: str) -> Usage:
        """The counters of a stage; zeros where nothing is known of it."""
        return self.usages.get(stage, Usage())


@dataclass(frozen=True, slots=True)
class Shares:
    """How a stage spent an interval, as shares of it; for augmenters the mean over them."""

    busy: float
    wait_upstream: float
    wait_downstream: float
    batches: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the run waits for."""

    what: str
    """One of ``fourstage.metrics.BOTTLENECKS``."""
    sentence: str
    waits: float
    """Share of its time in which the train stage waited."""
    wanted: int
    """Augmenters that would just feed the trainer; 0: not known."""

    def as_json(self) -> dict[str, Any]:
        return {"what": self.what, "sentence": self.sentence, "waits": round(self.waits, 4), "wanted": self.wanted}


def shares(before: Usage, after: Usage) -> Shares:
    """The shares of the time between two readings; all zero where nothing was counted."""
    busy = max(0.0, after.busy - before.busy)
    upstream = max(0.0, after.wait_upstream - before.wait_upstream)
    downstream = max(0.0, after.wait_downstream - before.wait_downstream)
    total = busy + upstream + downstream
    batches = max(0, after.batches - before.batches)
    if total <= 0.0:
        return Shares(0.0, 0.0, 0.0, batches)
    return Shares(busy / total, upstream / total, downstream / total, batches)


def wanted_augmenters(before: Reading, after: Reading, *, replicas: int = 1) -> int:
    """Augmenters that would keep up with the slowest of the other stages, however many there are; 0: not known.

    replicas: trainers that each take a share of every batch, of which copy and train are those of one.

    Each stage's own rate is its batches over its busy seconds; what a batch costs an augmenter is its busy seconds
    over its batches. Neither depends on how many augmenters there are, as long as each has a core.
    """
    seconds = {stage: seconds_of_a_batch(before.of(stage), after.of(stage)) for stage in STAGE_NAMES}
    # Loader and augmenters count a replica's share of a batch as a batch: a step costs them that many.
    others = max(replicas * seconds["load"], seconds["copy"], seconds["train"])
    if not seconds["transform"] or not seconds["train"]:
        return 0
    return max(1, math.ceil((1.0 - WAITING) * replicas * seconds["transform"] / others))


def judge(
    before: Reading, after: Reading, *, augmenters: int, replicas: int = 1, waiting: str = "", decodes: bool = False
) -> Verdict:
    """What held the run up between two readings.

    augmenters: how many there are now. replicas: trainers that share each batch
    waiting: the loader's reason for not leasing anything, in words
    decodes: the trainer decodes itself, in its copy stage: augmenters are not asked for, and cannot help
    """
    parts = {stage: shares(before.of(stage), after.of(stage)) for stage in STAGE_NAMES}
    waits = parts["train"].wait_upstream
    wanted = 0 if decodes else wanted_augmenters(before, after, replicas=replicas)

    def verdict(what: str, sentence: str) -> Verdict:
        return Verdict(what, sentence, waits, wanted)

    if waiting:
        return verdict("peer", f"waiting: {waiting}")
    if parts["train"].busy + waits == 0.0:
        return verdict("starting", "nothing has been trained on yet")
    said = f"the trainer waits {waits:.0%} of its time"

    def words(stage: str) -> str:
        busy = parts[stage].busy
        return _of_own_stage(stage, busy, said) if decodes else _of_stage(stage, busy, said, augmenters, wanted)

    if waits < WAITING:
        return verdict("train", f"train-bound: {said}, the pipeline keeps up")
    narrow = max(("copy", "transform", "load"), key=lambda stage: parts[stage].busy)
    if parts[narrow].busy >= SATURATED:
        return verdict(narrow, words(narrow))
    elapsed = max(1e-9, after.at - before.at)
    on_the_way = {
        "to-trainer": (after.to_trainer - before.to_trainer) / elapsed,
        "to-augmenter": (after.to_augmenter - before.to_augmenter) / elapsed,
    }
    way = max(on_the_way, key=lambda name: on_the_way[name])
    if on_the_way[way] >= ON_THE_WAY:
        return verdict(way, _of_way(way, on_the_way[way], said, decodes))
    if parts[narrow].busy >= BUSIEST:
        return verdict(narrow, words(narrow))
    return verdict(
        "window",
        f"window-bound: {said}, yet no stage is saturated (busiest: {narrow}, {parts[narrow].busy:.0%}); "
        f"more batches in flight would help: raise window or augmenter.slots{'' if decodes else ', or add augmenters'}",
    )


def _of_stage(stage: str, busy: float, said: str, augmenters: int, wanted: int) -> str:
    if stage == "load":
        return f"load-bound: the loader reads {busy:.0%} of the time, {said}; a faster disk would help"
    if stage == "copy":
        return f"copy-bound: the copy stage is {busy:.0%} busy, {said}; more augmenters would not help"
    more = wanted - augmenters
    if more > 0:
        plural = "" if more == 1 else "s"
        advice = f"about {more} more augmenter{plural} would feed it, where cores are free"
    else:
        advice = f"by what a batch costs them {wanted} are enough: either they have just come, or they lack cores"
    return f"transform-bound: augmenters are {busy:.0%} busy, {said}; {advice}"


def _of_own_stage(stage: str, busy: float, said: str) -> str:
    """Where the trainer decodes."""
    if stage == "copy":
        return (
            f"copy-bound: the copy stage, which decodes, is {busy:.0%} busy, {said}; where CPU cores are free, "
            "augmenters would help: decode = 'augmenter'"
        )
    if stage == "transform":
        return f"transform-bound: the trainer takes JPEG bytes in {busy:.0%} of the time, {said}"
    return _of_stage(stage, busy, said, 0, 0)


def _of_way(way: str, batches: float, said: str, decodes: bool) -> str:
    worker = "trainer" if decodes else "augmenters"
    ends = f"loader and {worker}" if way == "to-augmenter" else f"{worker} and trainer"
    return (
        f"network-bound: {said}; {batches:.1f} batches are between {ends} at any time; a faster network there, "
        "or both on one host, would help"
    )


def seconds_of_a_batch(before: Usage, after: Usage) -> float:
    """Busy seconds of a stage for each batch between two readings; 0 where there was none."""
    batches = after.batches - before.batches
    return max(0.0, after.busy - before.busy) / batches if batches > 0 else 0.0
