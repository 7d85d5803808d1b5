"""How many augmenters a run should have: a pure controller, told what was counted so far and by what clock.

It does not feel its way. Each stage's own rate follows from its batches and busy seconds, whatever it waits for, and
so does the number that would just feed the trainer; the controller goes there, at most doubling at a time and never
beyond what the idle cores carry, and waits after every change until it has measured the new state.
"""

import math
from collections import deque
from dataclasses import dataclass

from fourstage.by_hand import LARGEST_SCALE
from fourstage.verdict import WAITING, Reading, Shares, seconds_of_a_batch, shares

SETTLED_SECONDS = 3.0
"""Nothing is decided on less than this much of an unchanged state."""
SETTLED_BATCHES = 3
"""Nor on fewer batches than these, of augmenters and of the trainer."""
RECENT_SECONDS = 10.0
"""Nothing older counts."""
FEWER_SECONDS = 30.0
"""So long fewer must have been enough before one leaves."""
SPARE = 0.1
"""Share of what the trainer needs that must be left over when one leaves; with WAITING this is the hysteresis."""
_NEARLY = 0.15
"""Cores that may be missing: loader and kernel take a little of every one, and who takes no more needs no idle one."""
_CHEAPEST = 0.01
"""Cores of an augmenter that only sleeps."""
ELSEWHERE = {
    "load": "reading from disk",
    "copy": "the copy to the device",
    "to-augmenter": "batches on their way to augmenters",
    "to-trainer": "batches on their way to the trainer",
    "peer": "a process that is not there or is refused",
}
"""What a run can wait for that no augmenter changes, in words."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A look at the run."""

    reading: Reading
    """Counters; its ``at`` is any clock in seconds."""
    count: int
    """Augmenters that there should be."""
    present: int
    """Those that the loader hears from."""
    what: str
    """What the run waits for: one of ``fourstage.metrics.BOTTLENECKS``."""
    cpu: float
    """Core-seconds that the present augmenters have used or, ready to run, have waited for."""
    idle: tuple[float, ...]
    """Core-seconds that were left unused, by limit (``Cores.idle_seconds``); empty: nobody knows."""


@dataclass(frozen=True, slots=True)
class Decision:
    """How many there should be now, and why; the same number as before: only something to say."""

    count: int
    reason: str


@dataclass(frozen=True, slots=True)
class Measured:
    """What a window of looks says of the state that they have in common."""

    train: Shares
    augmenter_seconds: float
    """Of work that a batch takes an augmenter."""
    other_seconds: float
    """A batch every so often is the most that loader, copy and trainer together would take; 0: not known."""
    free: float
    """Cores that were idle."""
    cores: float
    """That one augmenter would take while it works."""

    @property
    def work(self) -> float:
        """Augmenters that would be busy all the time if nothing waited for them."""
        return self.augmenter_seconds / self.other_seconds if self.other_seconds else 0.0


class Autoscale:
    """Look at a run a few times a second; sometimes there is something to do."""

    def __init__(self, replicas: int = 1) -> None:
        """replicas: trainers with a stream each, of which the counters of copy and train know one."""
        self._replicas = replicas
        self._window: deque[Seen] = deque()
        self._fewer_since: float | None = None
        self._enough = 0
        """The largest number that was enough since then, without what the looks before it had a part in."""
        self._said: set[str] = set()

    def look(self, seen: Seen) -> Decision | None:
        """What to do now, if anything."""
        if self._window and not _comparable(self._window[-1], seen):
            if self._window[-1].count != seen.count:
                self._said.clear()
            self._window.clear()
            self._fewer_since = None
        if seen.what == "starting" or seen.present < seen.count:
            self._window.clear()
            return None
        self._window.append(seen)
        while len(self._window) > 2 and self._window[1].reading.at <= seen.reading.at - RECENT_SECONDS:
            self._window.popleft()
        if not self._settled():
            return None
        measured = measure(self._window[0], seen, self._replicas)
        if not measured.other_seconds:
            return None
        return self._more(seen, measured) or self._fewer(seen, measured) or self._elsewhere(seen, measured)

    def _settled(self) -> bool:
        before, after = self._window[0].reading, self._window[-1].reading
        counted = (after.of(stage).batches - before.of(stage).batches for stage in ("transform", "train"))
        return after.at - before.at >= SETTLED_SECONDS and min(counted) >= SETTLED_BATCHES

    def _more(self, seen: Seen, measured: Measured) -> Decision | None:
        # A trainer that waits for less than WAITING is fed: fewer than its whole work are enough.
        wanted = min(LARGEST_SCALE, math.ceil((1.0 - WAITING) * measured.work))
        waits = measured.train.wait_upstream
        if wanted <= seen.present or seen.what in ELSEWHERE or (seen.what != "transform" and waits <= WAITING):
            return None
        why = f"the trainer waits {waits:.0%} of its time; {_paces(measured)}: {wanted} would feed it"
        room = int((measured.free + _NEARLY) / max(_CHEAPEST, measured.cores))
        more = min(wanted - seen.present, seen.present, room)
        if more < 1:
            return self._once("cores", seen, f"{why}, but no core is idle for one more ({measured.free:.1f} are)")
        if more == room < wanted - seen.present:
            why += f", {measured.free:.1f} cores are idle"
        return Decision(seen.count + more, why)

    def _fewer(self, seen: Seen, measured: Measured) -> Decision | None:
        enough = max(1, math.ceil((1.0 + SPARE) * measured.work))
        fed = measured.train.wait_upstream <= WAITING or seen.what in ("load", "copy")
        if enough >= seen.present or not fed:
            self._fewer_since = None
            return None
        if self._fewer_since is None:
            self._fewer_since = seen.reading.at
        lasting = seen.reading.at - self._fewer_since
        self._enough = enough if lasting <= RECENT_SECONDS else max(self._enough, enough)
        # A number that somebody else's augmenters add to is theirs to lower.
        count = max(1, seen.count - (seen.present - self._enough))
        if lasting < FEWER_SECONDS or count == seen.count:
            return None
        return Decision(count, f"{_paces(measured)}: {self._enough} feed the trainer with {SPARE:.0%} to spare")

    def _elsewhere(self, seen: Seen, measured: Measured) -> Decision | None:
        waits = measured.train.wait_upstream
        if seen.what not in ELSEWHERE or waits <= WAITING or self._window[0].what != seen.what:
            return None
        words = f"more would not help: the trainer waits {waits:.0%} of its time for {ELSEWHERE[seen.what]}"
        return self._once(seen.what, seen, words)

    def _once(self, about: str, seen: Seen, words: str) -> Decision | None:
        """Something to say, unless it was said since the last change."""
        if about in self._said:
            return None
        self._said.add(about)
        return Decision(seen.count, words)


def measure(before: Seen, after: Seen, replicas: int = 1) -> Measured:
    """What was between two looks at one state."""
    seconds = after.reading.at - before.reading.at
    free = [max(0.0, now - then) / seconds for now, then in zip(after.idle, before.idle, strict=True)]
    pace = {
        stage: seconds_of_a_batch(before.reading.of(stage), after.reading.of(stage))
        for stage in ("load", "transform", "copy", "train")
    }
    busy = after.reading.of("transform").busy - before.reading.of("transform").busy
    known = pace["transform"] and pace["train"]
    return Measured(
        train=shares(before.reading.of("train"), after.reading.of("train")),
        augmenter_seconds=pace["transform"],
        other_seconds=max(pace["load"], pace["copy"] / replicas, pace["train"] / replicas) if known else 0.0,
        free=min(free, default=0.0),
        cores=(after.cpu - before.cpu) / busy if busy > 0.0 else 1.0,
    )


def _comparable(before: Seen, after: Seen) -> bool:
    """Whether the state is the same and no counter began again, as with a new process."""
    return (
        (before.count, before.present) == (after.count, after.present)
        and after.cpu >= before.cpu
        and all(after.reading.of(stage).batches >= usage.batches for stage, usage in before.reading.usages.items())
    )


def _paces(measured: Measured) -> str:
    mine, others = measured.augmenter_seconds, measured.other_seconds
    return f"a batch takes an augmenter {mine:.3g} s and the slowest of the others {others:.3g} s"
