"""A sample's draws are its own: the same however its batch is cut, in range, and as the paper says."""

from statistics import NormalDist
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourstage import philox
from fourstage.augmenter.draws import crop_positions, draw, normal_quantiles
from fourstage.views import EVERY_EPOCH, View, colour_matrix

CAREFUL = settings(max_examples=150, deadline=None, derandomize=True)
RANDOM = np.random.default_rng(5)
VECTORS, VALUES = np.linalg.qr(RANDOM.normal(size=(3, 3)))[0], np.array([9000.0, 300.0, 60.0])
Bound = Literal["exclusive", "inclusive"]
Scale = Literal["eigenvalues", "deviations"]
bounds = st.sampled_from(["exclusive", "inclusive"])
chunks = st.sampled_from([1, 3, 32, 65_536])


@CAREFUL
@given(chunks, st.integers(0, 2**63 - 1), st.integers(0, 99), st.integers(0, 10**7), st.integers(0, 40), st.data())
def test_draws_do_not_depend_on_how_a_batch_is_cut(
    chunk: int, seed: int, epoch: int, first: int, rows: int, data: st.DataObject
) -> None:
    view = View("random", 224, colour_std=0.1, crop_chunk=chunk)
    colours = colour_matrix(VECTORS, VALUES, "eigenvalues")
    whole = draw(view, size=256, seed=seed, epoch=epoch, first=first, rows=rows, colours=colours)
    cut = data.draw(st.integers(0, rows))
    parts = [
        draw(view, size=256, seed=seed, epoch=epoch, first=begin, rows=count, colours=colours)
        for begin, count in ((first, cut), (first + cut, rows - cut))
    ]
    for name in ("offsets", "reflections", "shifts"):
        together = np.concatenate([getattr(part, name) for part in parts])
        assert np.array_equal(together, getattr(whole, name))


@CAREFUL
@given(bounds, st.integers(1, 300), st.integers(0, 50), st.integers(0, 2**63 - 1))
def test_every_crop_lies_within_the_image(bound: Bound, crop: int, margin: int, seed: int) -> None:
    view = View("random", crop, crop_positions=bound)
    made = draw(view, size=crop + margin, seed=seed, epoch=0, first=0, rows=64, colours=VECTORS)
    assert made.offsets.min() >= 0
    assert made.offsets.max() <= margin
    assert not made.shifts.any()


@pytest.mark.parametrize(("bound", "positions"), [("exclusive", 32), ("inclusive", 33)])
def test_all_positions_of_224_in_256_are_drawn_alike(bound: Bound, positions: int) -> None:
    assert crop_positions(256, 224, bound) == positions
    rows = 40_000
    view = View("random", 224, crop_positions=bound)
    made = draw(view, size=256, seed=1, epoch=0, first=0, rows=rows, colours=VECTORS)
    expected = rows / positions
    for axis in (0, 1):
        counts = np.bincount(made.offsets[:, axis], minlength=positions)
        assert len(counts) == positions
        assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)
    assert abs(made.reflections.mean() - 0.5) < 5 * 0.5 / np.sqrt(rows)
    assert abs(np.corrcoef(made.offsets[:, 0], made.offsets[:, 1])[0, 1]) < 5 / np.sqrt(rows)


@pytest.mark.parametrize("scale", ["eigenvalues", "deviations"])
def test_the_colour_shift_is_the_paper_s_formula(scale: Scale) -> None:
    made = draw(
        View("random", 224, colour_std=0.1), size=256, seed=3, epoch=2, first=7, rows=20,
        colours=colour_matrix(VECTORS, VALUES, scale),
    )  # fmt: skip
    words = philox.words(3, 2, philox.DRAWS, 7, 20)
    for row in range(20):
        alphas = [0.1 * NormalDist().inv_cdf(((int(word) >> 52) + 0.5) / 4096) for word in words[row, 1:]]
        if scale == "eigenvalues":
            # For pixels on 0..1 the covariance is 255^2 times smaller; the shift is scaled back to 0..255.
            shift = 255.0 * VECTORS @ (np.array(alphas) * VALUES / 255.0**2)
        else:
            shift = VECTORS @ (np.array(alphas) * np.sqrt(VALUES))
        assert made.shifts[row] == pytest.approx(shift, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("chunk", [3, 32])
def test_a_chunk_of_positions_shares_its_first_one_s_crop_and_reflection_but_no_shift(chunk: int) -> None:
    alone, shared = (
        draw(
            View("random", 224, colour_std=0.1, crop_chunk=length),
            size=256, seed=3, epoch=2, first=50, rows=100, colours=VECTORS,
        )
        for length in (1, chunk)
    )  # fmt: skip
    assert np.array_equal(alone.shifts, shared.shifts)
    assert len(np.unique(shared.shifts, axis=0)) == 100
    for row in range(100):
        leader = (50 + row) // chunk * chunk - 50
        if leader >= 0:
            assert np.array_equal(shared.offsets[row], alone.offsets[leader])
            assert shared.reflections[row] == alone.reflections[leader]


@CAREFUL
@given(st.integers(0, 100), st.integers(0, 100))
def test_epochs_from_the_given_one_on_have_no_shift(epoch: int, epochs: int) -> None:
    def made(view: View) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return draw(view, size=256, seed=3, epoch=epoch, first=0, rows=8, colours=VECTORS).shifts

    expected = made(View("random", 224, colour_std=0.1 if epoch < epochs else 0.0))
    assert np.array_equal(made(View("random", 224, colour_std=0.1, colour_epochs=epochs)), expected)
    assert made(View("random", 224, colour_std=0.1, colour_epochs=EVERY_EPOCH)).any()


def test_the_table_of_quantiles_is_a_normal_distribution() -> None:
    table = normal_quantiles().astype(np.float64)
    assert len(table) == 4096
    assert np.array_equal(table, -table[::-1])
    assert np.all(np.diff(table) > 0)
    assert table.std() == pytest.approx(1.0, abs=2e-3)


def test_evaluation_draws_nothing() -> None:
    centre = draw(View("centre", 224), size=256, seed=1, epoch=0, first=0, rows=3, colours=VECTORS)
    full = draw(View("full", 256), size=256, seed=1, epoch=0, first=0, rows=3, colours=VECTORS)
    assert centre.offsets.tolist() == [[16, 16]] * 3
    assert full.offsets.tolist() == [[0, 0]] * 3
    for made in (centre, full):
        assert not made.reflections.any()
        assert not made.shifts.any()
