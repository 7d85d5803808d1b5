"""Is a series flat? The slope by Theil and Sen with bounds that hold for what is sampled here, and a verdict.

Memory of a process is not noise about a line: readings a second apart are nearly the same one, and an allocator takes
memory in steps, mostly in the beginning. So

- each series is one process's; what was sampled before it had warmed up is left out;
- readings are gathered in blocks of about a minute, whose medians count once each, however often was sampled;
- what is still left of likeness between neighbouring blocks widens the bounds: with a correlation r of their residuals
  the variance of Kendall's statistic, on which the bounds rest, grows by (1 + r) / (1 - r) (Hamed and Rao, 1998);
- many series are judged at one time, so the bounds are those at which ``risk`` is the chance of one false alarm among
  all of them (Bonferroni).

A slope whose bounds contain zero proves nothing where they lie far apart: a leak may hide between them. So there are
two limits. ``harmless`` is a slope that could not matter in the longest run, ``visible`` one that must have been seen.
A series is flat where its bounds reach down to what is harmless and not up to what is visible; it rises where they lie
above what is harmless; else the question stays open, and a longer run may answer it. A small step in the middle, which
is no slope, is so passed; a leak, which goes on, is not.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.stats import theilslopes

Series: TypeAlias = NDArray[np.float64]
Word = Literal["flat", "rises", "open"]

LEAST_BLOCKS = 8
"""Fewer have no bounds to speak of: at the confidence used here they are the steepest slopes between any two."""
LEAST_READINGS = 3
"""Of one block, for its median to be one."""
RISK = 0.05
_HOUR = 3600.0
_MOST_LIKENESS = 0.6
"""With more the bounds of 25 blocks would be the steepest and the flattest slope of any two, and no leak ever found."""
_MOST_DEVIATIONS = 8.0
"""Beyond it a confidence is 1 in floating point, which has no bounds."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What a slope may be, in units an hour."""

    harmless: float
    """This much could not matter in the longest run."""
    visible: float
    """This much must be ruled out, or nothing was shown."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A slope with its bounds, in units an hour, and what follows."""

    level: float
    """The median of the blocks."""
    slope: float
    low: float
    high: float
    blocks: int
    word: Word
    """``rises``: by more than is harmless, and not by chance; ``open``: the bounds are too wide to say."""


def in_blocks(seconds: Series, values: Series, length: float) -> tuple[Series, Series]:
    """The medians of times and values of each block of ``length`` seconds that has enough readings.

    seconds, values: (n,); both results (blocks,). Readings that are not a number are left out.
    """
    told = np.isfinite(values)
    seconds, values = seconds[told], values[told]
    numbers = np.floor_divide(seconds, length)
    found = [numbers == number for number in np.unique(numbers) if np.sum(numbers == number) >= LEAST_READINGS]
    return (
        np.array([np.median(seconds[block]) for block in found]),
        np.array([np.median(values[block]) for block in found]),
    )


def judge(seconds: Series, values: Series, limit: Limit, *, judgements: int = 1, risk: float = RISK) -> Judgement:
    """The verdict on a series of blocks. seconds, values: (blocks,); judgements: how many are made at one time."""
    blocks = len(values)
    level = float(np.median(values)) if blocks else math.nan
    if blocks < LEAST_BLOCKS:
        return Judgement(level, math.nan, math.nan, math.nan, blocks, "open")
    hours = seconds / _HOUR
    r = likeness(hours, values)
    deviations = NormalDist().inv_cdf(1.0 - risk / judgements / 2.0) * ((1.0 + r) / (1.0 - r)) ** 0.5
    confidence = 2.0 * NormalDist().cdf(min(_MOST_DEVIATIONS, deviations)) - 1.0
    slope, _, low, high = (float(part) for part in theilslopes(values, hours, alpha=confidence))
    return Judgement(level, slope, low, high, blocks, _word(low, high, limit))


def _word(low: float, high: float, limit: Limit) -> Word:
    if low > limit.harmless:
        return "rises"
    return "flat" if high <= max(limit.harmless, limit.visible) else "open"


def likeness(seconds: Series, values: Series) -> float:
    """How much a block says of the next one, beyond the slope: the correlation of neighbours' residuals, from 0 to 0.6.

    In short series it is found too small (Marriott and Pope, 1954), the more so the more was fitted; the correction was
    chosen by simulation. With it noise whose memory is a minute or two long keeps to the risk; noise with a memory of
    five minutes and more is hardly another thing than drift, and makes some ten times as many false alarms.

    Residuals are those of a line with one step, wherever it explains most: that blocks on either side of a step are
    alike is one event, which the ranks of the slopes bear; without it every step would look like a walk at random.
    """
    count = len(values)
    best = np.full(count, np.inf)
    for at in range(2, count - 1):
        model = np.column_stack([np.ones(count), seconds, np.arange(count) >= at])
        rest = values - model @ np.linalg.lstsq(model, values, rcond=None)[0]
        best = min(best, rest, key=lambda left: float(left @ left))
    whole = float(best @ best)
    if whole <= 1e-20 * max(1.0, float(values @ values)):
        return 0.0
    found = float(best[:-1] @ best[1:]) / whole
    return min(_MOST_LIKENESS, max(0.0, (count * found + 3.0) / (count - 6.0)))
