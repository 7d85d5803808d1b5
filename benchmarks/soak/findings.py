"""What the samples of a soak amount to: a series and a verdict for each role and measure, and for the stream.

What is held depends on how many augmenters there are, and what a step takes on whether somebody has just been killed.
So only settled samples are compared: the usual number of augmenters, none frozen, nothing disturbed for some seconds.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from benchmarks.soak.judge import Judgement, Limit, Series, in_blocks, judge
from benchmarks.soak.watch import Sample

ROLES = ("trainer", "loader", "augmenter", "run")
ALL, STREAM = "together", "stream"


@dataclass(frozen=True, slots=True)
class Measure:
    """What is judged. harmless, visible: as ``Limit`` has them, in units an hour or, ``of_level``, as a share of it."""

    name: str
    unit: str
    harmless: float
    visible: float
    of_level: bool = True

    def limit(self, level: float) -> Limit:
        scale = level if self.of_level else 1.0
        return Limit(self.harmless * scale, self.visible * scale)


COUNTS = (
    # In the paper's six days of training 144 of the usual 1,024 descriptors.
    Measure("descriptors", "", 1.0, 6.0, of_level=False),
    Measure("threads", "", 1.0, 6.0, of_level=False),
)
MEMORY = (
    # In six days 144 MB of a process: five of them a seventh of the 5 GB that the paper had.
    Measure("private", "MB", 1.0, 10.0, of_level=False),
    Measure("arenas", "MB", 1.0, 10.0, of_level=False),
)
LATENCY = tuple(Measure(name, "ms", 0.01, 0.25) for name in ("batch", "step p50", "step p99", "batch age"))
"""``batch``: time over batches; ``step``: from the end of one to the end of the next, in the trainer."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One series and its verdict."""

    role: str
    process: str
    """Whose it is: name and process number; empty for the stream."""
    measure: Measure
    judgement: Judgement
    seconds: Series
    """Of the blocks."""
    values: Series


@dataclass(frozen=True, slots=True)
class Window:
    """How samples become blocks, in seconds."""

    warm_up: float
    """Of each process, and of the stream from its first step on."""
    block: float

    @classmethod
    def of(cls, seconds: float) -> "Window":
        """For a run of so many seconds: half an hour has five minutes' warm-up and blocks of a minute."""
        return cls(warm_up=min(300.0, seconds / 6.0), block=min(60.0, max(3.0, seconds / 30.0)))


def findings(samples: Sequence[Sample], steps: Series, window: Window) -> list[Finding]:
    """Everything that is judged. steps: (n,) milliseconds of each step of the run"""
    blocks = [*_held(samples, window), *_flow(samples, steps, window)]
    return [
        Finding(role, process, measure, judge(*pair, measure.limit(_level(pair[1])), judgements=len(blocks)), *pair)
        for role, process, measure, pair in blocks
    ]


_Blocks = tuple[str, str, Measure, tuple[Series, Series]]


def _held(samples: Sequence[Sample], window: Window) -> Iterator[_Blocks]:
    lives: dict[tuple[str, int], list[float]] = defaultdict(list)
    for sample in samples:
        for key in sample.processes:
            lives[key].append(sample.second)
    for role in ROLES:
        keys = [key for key in lives if key[0].partition("-")[0] == role]
        if not keys:
            continue
        # The one that lived longest shows most; how it began, and what came before, is in the figure.
        key = max(keys, key=lambda one: lives[one][-1] - lives[one][0])
        begins = lives[key][0] + window.warm_up
        for measure in (*MEMORY, *COUNTS):
            series = of_process(samples, key, measure.name, begins)
            yield role, f"{key[0]} {key[1]}", measure, in_blocks(*series, window.block)
    settled = [sample for sample in samples if sample.settled and sample.second >= window.warm_up]
    times = np.array([sample.second for sample in settled])
    sums = np.array([sum(held.private for held in sample.processes.values()) for sample in settled])
    yield ALL, "", Measure("private", "MB", 5.0, 50.0, of_level=False), in_blocks(times, sums, window.block)


def of_process(samples: Sequence[Sample], key: tuple[str, int], measure: str, begins: float) -> tuple[Series, Series]:
    """Seconds and values of one process in settled samples from ``begins`` on."""
    found = [(s.second, float(getattr(s.processes[key], measure))) for s in samples if s.settled and key in s.processes]
    pairs = np.array([pair for pair in found if pair[0] >= begins], np.float64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _flow(samples: Sequence[Sample], steps: Series, window: Window) -> Iterator[_Blocks]:
    told: dict[str, list[float]] = defaultdict(list)
    for times, seconds, batches, age, taken in windows(samples, steps, window):
        told["seconds"].append(times)
        told["batch"].append(1e3 * seconds / batches)
        told["step p50"].append(float(np.quantile(taken, 0.5)))
        told["step p99"].append(float(np.quantile(taken, 0.99)))
        told["batch age"].append(1e3 * age)
    for measure in LATENCY:
        yield STREAM, "", measure, (np.array(told["seconds"]), np.array(told[measure.name]))


def windows(
    samples: Sequence[Sample], steps: Series, window: Window
) -> Iterator[tuple[float, float, float, float, Series]]:
    """For each block: its middle, seconds and batches between settled samples, mean age of a batch, times of steps."""
    by_block: dict[int, list[tuple[Sample, Sample]]] = defaultdict(list)
    for one, other in pairwise(samples):
        if one.settled and other.settled and one.second >= window.warm_up:
            by_block[int(other.second // window.block)].append((one, other))
    for _, pairs in sorted(by_block.items()):
        seconds = sum(other.second - one.second for one, other in pairs)
        batches = sum(other.stream.steps - one.stream.steps for one, other in pairs)
        ages = sum(other.stream.age_sum - one.stream.age_sum for one, other in pairs)
        aged = sum(other.stream.age_count - one.stream.age_count for one, other in pairs)
        taken = [steps[int(one.stream.steps) : int(other.stream.steps)] for one, other in pairs]
        together = np.concatenate(taken)
        if len(pairs) >= 3 and batches > 0 and aged > 0 and len(together):
            middle = float(np.median([other.second for _, other in pairs]))
            yield middle, seconds, batches, ages / aged, together


def _level(values: Series) -> float:
    return float(np.median(values)) if len(values) else 0.0
