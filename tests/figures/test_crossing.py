"""When a training error reaches a level, and the comparison of two: arithmetic alone."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourstage.figures.crossing import Curve, crossing, ratio, spread

shares = st.floats(0.0, 1.0)
curves = st.lists(shares, min_size=1, max_size=30).map(
    lambda errors: Curve(tuple(range(1, len(errors) + 1)), (*errors,))
)


@given(curves, shares)
def test_the_error_is_first_at_the_level_where_the_curve_crosses_it(curve: Curve, level: float) -> None:
    found = crossing(curve, level)
    if found is None:
        assert min(curve.errors) > level
        return
    before = [error for epoch, error in zip(curve.epochs, curve.errors, strict=True) if epoch < found - 1e-9]
    assert all(error > level for error in before)
    after = curve.errors[math.ceil(found - 1e-9) - 1]
    assert after <= level
    if before:
        share = found - len(before)
        assert before[-1] + share * (after - before[-1]) == pytest.approx(level, abs=1e-6)
    else:
        assert found == curve.epochs[0]


@given(st.floats(0.3, 1.0), st.floats(0.01, 0.1))
def test_a_straight_line_crosses_where_algebra_says(start: float, slope: float) -> None:
    epochs = tuple(range(1, 101))
    curve = Curve(epochs, tuple(start - slope * (epoch - 1) for epoch in epochs))
    assert crossing(curve, 0.25) == pytest.approx(1 + (start - 0.25) / slope)


@given(curves, shares, st.floats(0.5, 20.0))
def test_a_slower_copy_takes_so_many_times_the_epochs(curve: Curve, level: float, factor: float) -> None:
    slower = Curve(tuple(factor * epoch for epoch in curve.epochs), curve.errors)
    fast, slow = crossing(curve, level), crossing(slower, level)
    if fast is None:
        assert slow is None
        assert ratio(fast, slow) is None
    else:
        assert ratio(fast, slow) == pytest.approx(factor)


def test_there_is_no_ratio_to_a_level_that_was_never_reached() -> None:
    assert ratio(5.0, None) is None
    assert ratio(None, 5.0) is None
    assert ratio(5.0, 30.0) == 6.0


@given(st.lists(curves, min_size=1, max_size=5))
def test_the_mean_of_runs_lies_within_their_spread_at_the_epochs_that_all_have(runs: list[Curve]) -> None:
    together = spread(runs)
    assert len(together.mean.epochs) == min(len(curve.epochs) for curve in runs)
    for place, mean in enumerate(together.mean.errors):
        errors = [curve.errors[place] for curve in runs]
        assert (together.lowest[place], together.highest[place]) == (min(errors), max(errors))
        assert mean == pytest.approx(math.fsum(errors) / len(runs))


@given(curves)
def test_one_run_is_its_own_mean(curve: Curve) -> None:
    assert spread([curve]).mean == curve
