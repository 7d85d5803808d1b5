"""Figures that follow from predictions: intervals, errors by class, confusions. Pure."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class Predictions:
    """What was said of each sample, in the order of the split; K is 5, or the number of classes where it is less."""

    keys: tuple[str, ...]
    labels: NDArray[np.int64]
    """(N,)."""
    classes: NDArray[np.int64]
    """(N,K): the most probable first; of equal ones the lower number first."""
    probabilities: NDArray[np.float64]
    """(N,K)."""


@dataclass(frozen=True, slots=True)
class ClassErrors:
    """One class of the split."""

    samples: int
    top1_errors: int
    """Samples for which another class was the most probable."""
    top5_errors: int | None
    """Samples whose class was not among the five most probable; None below six classes."""
    most_frequent_wrong: int | None
    """What it was most often taken for; of several the lowest number. None where it was always recognised."""


def wilson_interval(errors: int, samples: int) -> tuple[float, float]:
    """The 95 % score interval of Wilson (1927) for a share of ``errors`` in ``samples`` > 0, within 0 to 1.

    Unlike p ± 1.96 sigma it stays inside, and has a width where no error was seen.
    """
    share, weight = errors / samples, _Z * _Z / samples
    middle = (share + weight / 2) / (1 + weight)
    half = math.sqrt(share * (1 - share) * weight + weight * weight / 4) / (1 + weight)
    # Exact at the ends, where rounding would leave a trace of middle - half.
    return (middle - half if errors else 0.0), (middle + half if errors < samples else 1.0)


def confusion(predictions: Predictions, classes: int) -> NDArray[np.int64]:
    """(classes,classes): samples by their true class (row) and the most probable one (column)."""
    pairs = predictions.labels * classes + predictions.classes[:, 0]
    return np.bincount(pairs, minlength=classes * classes).astype(np.int64).reshape(classes, classes)


def errors_by_class(predictions: Predictions, classes: int) -> list[ClassErrors]:
    """One entry for each class, also for those without a sample."""
    table = confusion(predictions, classes)
    wrong = table - np.diag(np.diag(table))
    missed = (predictions.classes != predictions.labels[:, None]).all(1)
    missed_by_class = np.bincount(predictions.labels[missed], minlength=classes)
    return [
        ClassErrors(
            samples=int(table[label].sum()),
            top1_errors=int(wrong[label].sum()),
            top5_errors=int(missed_by_class[label]) if classes > predictions.classes.shape[1] else None,
            most_frequent_wrong=int(wrong[label].argmax()) if wrong[label].any() else None,
        )
        for label in range(classes)
    ]
