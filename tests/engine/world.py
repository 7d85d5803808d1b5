"""A run in miniature: what its stages would count, second by second, under a controller of their number."""

import random
from collections import deque
from dataclasses import dataclass, field

from fourstage.engine.autoscale import Autoscale, Decision, Seen
from fourstage.verdict import Reading, judge
from fourstage.wire.messages import Usage

TURN = 0.5
"""Seconds between two looks, as the trainer's status has them."""
START, LEAVE = 1.5, 0.5
"""Seconds until a new augmenter works, and until a leaving one has gone."""


@dataclass
class World:
    """Flows, not batches, yet counted in whole batches as the stages do."""

    controller: Autoscale
    augmenter: float
    """Seconds of work of a batch, like the others."""
    train: float
    count: int = 1
    load: float = 0.001
    copy: float = 0.001
    cores: float = 1000.0
    costs: float = 0.0
    """Cores that an augmenter takes while it works."""
    taken: float = 0.0
    """Cores that are busy with something else."""
    noise: float = 0.0
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    now: float = 0.0
    present: int = 0
    decisions: list[tuple[float, Decision]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    _coming: list[tuple[float, int]] = field(default_factory=list)
    _flow: dict[str, float] = field(default_factory=dict)
    _usages: dict[str, Usage] = field(default_factory=dict)
    _cpu: float = 0.0
    _idle: float = 0.0
    _readings: deque[Reading] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._coming = [(START, self.count)]
        self.counts = [self.count]

    def run(self, seconds: float) -> list[tuple[float, Decision]]:
        """Let time pass; what was decided in it."""
        before, until = len(self.decisions), self.now + seconds
        while self.now < until:
            self._turn()
        return self.decisions[before:]

    def _turn(self) -> None:
        self.now += TURN
        self.present += sum(change for at, change in self._coming if at <= self.now)
        self._coming = [(at, change) for at, change in self._coming if at > self.now]
        augmenter, train = (seconds * self._wobble() for seconds in (self.augmenter, self.train))
        # More of them than cores: each takes longer.
        crowded = max(1.0, self.present * self.costs / self.cores)
        augmenter *= crowded
        rate = min(1.0 / train, 1.0 / self.load, 1.0 / self.copy, self.present / augmenter)
        asked = rate * augmenter * self.costs
        self._cpu += asked * TURN
        self._idle += max(0.0, self.cores - self.taken - asked / crowded) * TURN
        for stage, seconds in (
            ("load", self.load), ("transform", augmenter), ("copy", self.copy), ("train", train)
        ):  # fmt: skip
            self._flow[stage] = self._flow.get(stage, 0.0) + rate * TURN
            usage = self._usages.get(stage, Usage())
            batches = int(self._flow[stage]) - usage.batches
            workers = self.present if stage == "transform" else 1
            waits = TURN * max(0.0, workers - rate * seconds)
            self._usages[stage] = Usage(
                usage.batches + batches, usage.busy + batches * seconds, usage.wait_upstream + waits, 0.0
            )
        reading = Reading(dict(self._usages), self.now)
        self._readings.append(reading)
        while len(self._readings) > 2 and self.now - self._readings[0].at > 10.0:
            self._readings.popleft()
        what = judge(self._readings[0], reading, augmenters=self.present).what
        self._look(Seen(reading, self.count, self.present, what, self._cpu, (self._idle,)))

    def _look(self, seen: Seen) -> None:
        if (decision := self.controller.look(seen)) is None:
            return
        self.decisions.append((self.now, decision))
        if change := decision.count - self.count:
            self.counts.append(decision.count)
            self._coming.append((self.now + (START if change > 0 else LEAVE), change))
            self.count = decision.count

    def _wobble(self) -> float:
        return 1.0 + self.chance.uniform(-self.noise, self.noise)
