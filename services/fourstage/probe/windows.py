"""Several short windows instead of one long one: their median outlives a disturbance, their spread shows it."""

import statistics
import time
from collections.abc import Callable, Sequence

from fourstage.probe.plan import Spread

WINDOWS = 9


def spread(values: Sequence[float]) -> Spread:
    """Median, lowest and highest of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def timed(work: Callable[[], int], seconds: float) -> tuple[int, float]:
    """Repeat ``work`` for at least ``seconds``, once at least: the sum of what it returns, and the seconds it took."""
    began = time.perf_counter()
    done = 0
    while True:
        done += work()
        elapsed = time.perf_counter() - began
        if elapsed >= seconds:
            return done, elapsed
