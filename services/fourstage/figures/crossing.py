"""When a training error first falls to a level, and how the epochs of two groups of runs compare: pure arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.25
"""The paper's figure 1 compares the epochs that its networks need to 25 % training error."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Training errors (shares, 0 to 1) after so many epochs; epochs ascend and need not be whole numbers."""

    epochs: tuple[float, ...]
    errors: tuple[float, ...]


def crossing(curve: Curve, level: float = LEVEL) -> float | None:
    """Epochs until the error is first at or below ``level``, on straight lines between the points.

    None where it never is. A curve that begins there crosses at its first point, for want of an earlier one.
    """
    before: tuple[float, float] | None = None
    for epoch, error in zip(curve.epochs, curve.errors, strict=True):
        if error <= level:
            if before is None:
                return epoch
            share = (before[1] - level) / (before[1] - error)
            return before[0] + share * (epoch - before[0])
        before = epoch, error
    return None


@dataclass(frozen=True, slots=True)
class Spread:
    """Several runs as one line: at each epoch that all of them reached their mean, lowest and highest error."""

    mean: Curve
    lowest: tuple[float, ...]
    highest: tuple[float, ...]


def spread(curves: Sequence[Curve]) -> Spread:
    """One line of one or more runs; epochs that any of them lacks are left out."""
    shared = sorted(set.intersection(*(set(curve.epochs) for curve in curves)))
    by_run = [dict(zip(curve.epochs, curve.errors, strict=True)) for curve in curves]
    columns = [[errors[epoch] for errors in by_run] for epoch in shared]
    return Spread(
        mean=Curve(tuple(shared), tuple(sum(column) / len(column) for column in columns)),
        lowest=tuple(map(min, columns)),
        highest=tuple(map(max, columns)),
    )


def ratio(fast: float | None, slow: float | None) -> float | None:
    """How many times the epochs of ``fast`` those of ``slow`` are; None where either never got there."""
    return None if fast is None or slow is None or fast <= 0.0 else slow / fast
