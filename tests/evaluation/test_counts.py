"""Intervals, confusions and errors by class."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourstage.evaluation.counts import Predictions, confusion, errors_by_class, wilson_interval


@pytest.mark.parametrize(
    ("errors", "samples", "low", "high"),
    [
        # Published examples of the score interval: Newcombe (1998), table I, and Agresti and Coull (1998).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (10, 10, 0.7225, 1.0000),
    ],
)
def test_wilson_intervals_are_the_published_ones(errors: int, samples: int, low: float, high: float) -> None:
    assert wilson_interval(errors, samples) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 100_000).flatmap(lambda samples: st.tuples(st.integers(0, samples), st.just(samples))))
def test_an_interval_holds_its_share_and_mirrors_that_of_the_complement(counts: tuple[int, int]) -> None:
    errors, samples = counts
    low, high = wilson_interval(errors, samples)
    assert 0.0 <= low <= errors / samples <= high <= 1.0
    assert low < high
    assert (1.0 - high, 1.0 - low) == pytest.approx(wilson_interval(samples - errors, samples), abs=1e-12)


@st.composite
def predicted(draw: st.DrawFn) -> tuple[Predictions, int]:
    classes, samples = draw(st.integers(1, 9)), draw(st.integers(0, 40))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    ranked = np.argsort(generator.random((samples, classes)), axis=1)[:, :5]
    keys = tuple(str(number) for number in range(samples))
    labels = generator.integers(0, classes, samples)
    return Predictions(keys, labels, ranked, np.zeros(ranked.shape)), classes


@given(predicted())
def test_confusions_and_errors_by_class_are_a_count_one_by_one(drawn: tuple[Predictions, int]) -> None:
    predictions, classes = drawn
    pairs = Counter(zip(predictions.labels.tolist(), predictions.classes[:, 0].tolist(), strict=True))
    table = confusion(predictions, classes)
    assert {
        (row, column): table[row, column] for row, column in np.ndindex(classes, classes) if table[row, column]
    } == (dict(pairs))
    for label, found in enumerate(errors_by_class(predictions, classes)):
        rows = [row.tolist() for row, own in zip(predictions.classes, predictions.labels, strict=True) if own == label]
        wrong = Counter(row[0] for row in rows if row[0] != label)
        assert (found.samples, found.top1_errors) == (len(rows), wrong.total())
        assert found.top5_errors == (sum(label not in row for row in rows) if classes > 5 else None)
        most = max(wrong.values(), default=0)
        assert found.most_frequent_wrong == min((name for name, count in wrong.items() if count == most), default=None)
