"""The network's input by each preset against NumPy and float64; docs/fidelity.md has the rows."""

from statistics import NormalDist

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fourstage import philox
from fourstage.augmenter.draws import Draws, crop_positions, draw
from fourstage.augmenter.transform import transform
from fourstage.resolve import load_settings
from fourstage.settings import Settings
from fourstage.trainer.finish import Finish
from fourstage.views import View, colour_matrix, view_of
from tests.trainer.fidelity import (
    FLOAT32,
    FLOAT64,
    Floats,
    code_input,
    code_shift,
    paper_input,
    paper_shift,
    relative_error,
)

RECIPES = ["alexnet", "alexnet-code-2012"]
SIZE, CROP, ROWS, SEED, FIRST = 48, 40, 40, 2012, 20
RANDOM = np.random.default_rng(4)
VECTORS = np.linalg.qr(RANDOM.normal(size=(3, 3)))[0]
VALUES = np.array([14143.0, 1222.0, 293.0])
"""The order of ImageNet's eigenvalues on the scale 0..255: 0.2175, 0.0188 and 0.0045 on 0..1."""
IMAGES = RANDOM.integers(0, 256, (ROWS, SIZE, SIZE, 3), dtype=np.uint8)
MEAN = (RANDOM.random((SIZE, SIZE, 3)) * 255).astype(np.float32)


def of(recipe: str) -> Settings:
    return load_settings(recipe, overrides=[f"augmenter.crop={CROP}"], environment={})


def draws_of(view: View, *, epoch: int, first: int = FIRST, rows: int = ROWS, size: int = SIZE) -> Draws:
    colours = colour_matrix(VECTORS, VALUES, view.colour_scale)
    return draw(view, size=size, seed=SEED, epoch=epoch, first=first, rows=rows, colours=colours)


def coefficients(epoch: int, row: int) -> Floats:
    """a1, a2, a3 ~ N(0, 0.1) of a row, from the words that pick them."""
    words = philox.words(SEED, epoch, philox.DRAWS, FIRST + row, 1)[0, 1:]
    return np.array([0.1 * NormalDist().inv_cdf(((int(word) >> 52) + 0.5) / 4096) for word in words])


def finished(settings: Settings, draws: Draws, epoch: int) -> NDArray[np.float32]:
    """What training sees, by transform and finish: (ROWS, CROP, CROP, 3)."""

    def as_stored(image: memoryview, scratch: NDArray[np.uint8]) -> None:
        scratch[:] = np.frombuffer(image, np.uint8).reshape(SIZE, SIZE, 3)

    pixels = np.empty((ROWS, CROP, CROP, 3), np.uint8)
    scratch = np.empty((SIZE, SIZE, 3), np.uint8)
    transform([memoryview(image.tobytes()) for image in IMAGES], draws, as_stored, scratch=scratch, out=pixels)
    finish = Finish(
        MEAN, view_of(settings, "random"), subtract=settings.subtract, device=torch.device("cpu"),
        mean_place=settings.mean_place, colour_divide=settings.colour_divide,
    )  # fmt: skip
    out = torch.empty(pixels.shape)
    finish(pixels, draws.offsets, draws.reflections, draws.shifts, out, epoch=epoch)
    return np.asarray(out.numpy(), np.float32)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_colour_shift_of_each_preset(recipe: str) -> None:
    """Row 2: eigenvalues of pixels on 0..1, or standard deviations on 0..255."""
    reference = paper_shift if recipe == "alexnet" else code_shift
    view = view_of(of(recipe), "random")
    drawn = draws_of(view, epoch=3).shifts
    alphas = np.array([coefficients(3, row) for row in range(ROWS)])
    expected = np.array([reference(row, VECTORS, VALUES) for row in alphas])
    assert relative_error(alphas @ colour_matrix(VECTORS, VALUES, view.colour_scale).T, expected) < FLOAT64
    assert relative_error(drawn, expected) < FLOAT32


def test_the_shift_has_the_strength_of_pixels_on_0_to_1() -> None:
    """Row 2: with the eigenvalues of pixels on 0..255 the formula would add hundreds."""
    paper, code = (np.abs(draws_of(view_of(of(recipe), "random"), epoch=3).shifts).max() for recipe in RECIPES)
    assert 1.0 < paper < 25.0
    assert 1.0 < code < 50.0
    raw = np.abs(VECTORS @ (coefficients(3, 0) * VALUES)).max()
    assert raw > 100.0


@pytest.mark.parametrize(("recipe", "last"), [("alexnet", 31), ("alexnet-code-2012", 32)])
def test_the_last_crop_position_of_each_preset(recipe: str, last: int) -> None:
    """Row 4: 32 or 33 positions a side for 224 in 256, all of them reached and none beyond."""
    settings = load_settings(recipe, environment={})
    view = view_of(settings, "random")
    assert crop_positions(256, 224, view.crop_positions) == last + 1
    made = draws_of(view, epoch=0, first=0, rows=40_000, size=256)
    for axis in (0, 1):
        assert np.unique(made.offsets[:, axis]).tolist() == list(range(last + 1))


@pytest.mark.parametrize(("recipe", "chunk"), [("alexnet", 1), ("alexnet-code-2012", 32)])
def test_the_images_that_share_a_crop_in_each_preset(recipe: str, chunk: int) -> None:
    """Row 5: one crop and one reflection for each chunk of positions, also where a batch begins inside one."""
    view = view_of(of(recipe), "random")
    first, rows = 1000, 3000
    made = draws_of(view, epoch=1, first=first, rows=rows)
    leaders = [position // chunk * chunk for position in range(first, first + rows)]
    alone = View("random", CROP, crop_positions=view.crop_positions)
    expected = draws_of(alone, epoch=1, first=leaders[0], rows=first + rows - leaders[0])
    rows_of = np.array(leaders) - leaders[0]
    assert np.array_equal(made.offsets, expected.offsets[rows_of])
    assert np.array_equal(made.reflections, expected.reflections[rows_of])
    assert len(np.unique(made.shifts, axis=0)) == rows


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("epoch", [0, 66, 67, 90])
def test_the_network_s_input_by_each_preset(recipe: str, epoch: int) -> None:
    """Rows 2, 4, 5, 6 and 15 together: crop, reflection, mean, shift and divisor in every epoch."""
    settings = of(recipe)
    draws = draws_of(view_of(settings, "random"), epoch=epoch)
    shifted = recipe == "alexnet" or epoch < 67
    expected = []
    for row, (image, place, reflected) in enumerate(zip(IMAGES, draws.offsets, draws.reflections, strict=True)):
        top, left = place.tolist()
        shift = np.zeros(3)
        if shifted:
            reference = paper_shift if recipe == "alexnet" else code_shift
            shift = reference(coefficients(epoch, row), VECTORS, VALUES)
        mean = MEAN.astype(np.float64)
        if recipe == "alexnet":
            expected.append(paper_input(image, mean, (top, left), CROP, reflected=reflected, shift=shift))
        else:
            coefficient = 0.1 if shifted else 0.0
            expected.append(
                code_input(image, mean, (top, left), CROP, reflected=reflected, shift=shift, coefficient=coefficient)
            )
    found = finished(settings, draws, epoch)
    for own, row_of in zip(found, expected, strict=True):
        assert relative_error(own, row_of) < FLOAT32


def test_validation_pixels_are_not_divided() -> None:
    """Row 2: without a shift the divisor is 1."""
    settings = of("alexnet-code-2012")
    view = view_of(settings, "centre")
    finish = Finish(
        MEAN, view, subtract=settings.subtract, device=torch.device("cpu"),
        mean_place=settings.mean_place, colour_divide=settings.colour_divide,
    )  # fmt: skip
    draws = draws_of(view, epoch=0)
    middle = slice((SIZE - CROP) // 2, (SIZE + CROP) // 2)
    pixels = np.ascontiguousarray(IMAGES[:, middle, middle])
    out = torch.empty(pixels.shape)
    finish(pixels, draws.offsets, draws.reflections, draws.shifts, out, epoch=0)
    expected = pixels.astype(np.float64) - MEAN[middle, middle]
    assert relative_error(out.numpy(), expected) < FLOAT32
