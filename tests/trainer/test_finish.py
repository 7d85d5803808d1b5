"""The last arithmetic against NumPy, bit for bit."""

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fourstage.errors import PeerError, SettingsError, StoreError
from fourstage.trainer.finish import Finish
from fourstage.views import View

CPU = torch.device("cpu")
SIZE, CROP, COUNT = 12, 8, 16
VIEW = View("random", CROP, colour_std=0.1, colour_epochs=3)
Subtract = Literal["mean-image", "mean-colour"]
Place = Literal["crop", "centre"]
Batch = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.bool_], NDArray[np.float32]]


def mean_image(size: int = SIZE) -> NDArray[np.float32]:
    return (np.random.default_rng(1).random((size, size, 3)) * 255).astype(np.float32)


def batch(size: int = SIZE, crop: int = CROP, count: int = COUNT) -> Batch:
    generator = np.random.default_rng(2)
    pixels = generator.integers(0, 256, (count, crop, crop, 3), dtype=np.uint8)
    shifts = generator.normal(0, 20, (count, 3)).astype(np.float32)
    shifts[: count // 4] = 0.0
    pixels.flags.writeable = False
    return pixels, generator.integers(0, size - crop + 1, (count, 2)), generator.random(count) < 0.5, shifts


def reference(
    mean: NDArray[np.float32],
    given: Batch,
    *,
    place: str = "crop",
    divisor: float = 1.0,
    size: int = SIZE,
    crop: int = CROP,
) -> NDArray[np.float32]:
    finished = []
    for image, (top, left), reflected, shift in zip(*given, strict=True):
        if place == "centre":
            top = left = (size - crop) // 2
        own = mean[top : top + crop, left : left + crop]
        if reflected and place == "crop":
            own = own[:, ::-1]
        result = (image.astype(np.float32) - own) + shift
        finished.append(result / np.float32(divisor))
    return np.stack(finished).transpose(0, 3, 1, 2)


def finished(finish: Finish, given: Batch, *, as_tensor: bool = False, epoch: int = 0) -> torch.Tensor:
    pixels, offsets, reflections, shifts = given
    out = torch.full(pixels.shape, torch.nan)
    return finish(torch.tensor(pixels) if as_tensor else pixels, offsets, reflections, shifts, out, epoch=epoch)


@pytest.mark.parametrize("as_tensor", [False, True], ids=["slot", "device"])
@pytest.mark.parametrize("place", ["crop", "centre"])
@pytest.mark.parametrize("divide", [False, True], ids=["whole", "divided"])
def test_every_place_of_the_mean_and_the_divisor(place: Place, divide: bool, as_tensor: bool) -> None:
    finish = Finish(mean_image(), VIEW, subtract="mean-image", device=CPU, mean_place=place, colour_divide=divide)
    found = finished(finish, batch(), as_tensor=as_tensor)
    assert found.is_contiguous(memory_format=torch.channels_last)
    expected = reference(mean_image(), batch(), place=place, divisor=1.1 if divide else 1.0)
    np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize(
    ("view", "epoch", "divisor"),
    [
        (VIEW, 0, 1.1),
        (VIEW, 2, 1.1),
        (VIEW, 3, 1.0),
        (replace(VIEW, colour_std=0.5), 0, 1.5),
        (replace(VIEW, colour_std=0.0), 0, 1.0),
        (View("centre", CROP), 0, 1.0),
        (replace(VIEW, kind="centre"), 0, 1.0),
    ],
    ids=["first", "last", "off", "strong", "none", "validation", "no-draws"],
)
@pytest.mark.parametrize("as_tensor", [False, True], ids=["slot", "device"])
def test_the_divisor_holds_while_the_shift_is_on(view: View, epoch: int, divisor: float, as_tensor: bool) -> None:
    finish = Finish(mean_image(), view, subtract="mean-image", device=CPU, colour_divide=True)
    found = finished(finish, batch(), as_tensor=as_tensor, epoch=epoch)
    np.testing.assert_array_equal(found.numpy(), reference(mean_image(), batch(), divisor=divisor))


def test_a_reflected_crop_meets_its_own_mean() -> None:
    """An image equal to the mean image leaves nothing, wherever it is cut and however it is reflected."""
    mean = np.round(mean_image())
    _, offsets, reflections, _ = batch()
    cut = [mean[top : top + CROP, left : left + CROP] for top, left in offsets]
    pixels = np.stack([own[:, ::-1] if flag else own for own, flag in zip(cut, reflections, strict=True)])
    finish = Finish(mean, VIEW, subtract="mean-image", device=CPU)
    shifts = np.zeros((COUNT, 3), np.float32)
    assert not finished(finish, (pixels.astype(np.uint8), offsets, reflections, shifts)).any()


@pytest.mark.parametrize("as_tensor", [False, True], ids=["slot", "device"])
def test_the_mean_colour(as_tensor: bool) -> None:
    finish = Finish(mean_image(), VIEW, subtract="mean-colour", device=CPU)
    colour = mean_image().astype(np.float64).mean((0, 1)).astype(np.float32)
    expected = reference(np.broadcast_to(colour, (SIZE, SIZE, 3)), batch())
    np.testing.assert_array_equal(finished(finish, batch(), as_tensor=as_tensor).numpy(), expected)


def test_a_crop_of_the_whole_image_and_an_empty_batch() -> None:
    finish = Finish(mean_image(), View("centre", SIZE), subtract="mean-image", device=CPU)
    given = batch(crop=SIZE)
    np.testing.assert_array_equal(finished(finish, given).numpy(), reference(mean_image(), given, crop=SIZE))
    assert finished(finish, batch(crop=SIZE, count=0)).shape == (0, 3, SIZE, SIZE)


def test_a_too_large_crop_is_refused() -> None:
    with pytest.raises(SettingsError, match="crops of 13 pixels"):
        Finish(mean_image(), View("centre", 13), subtract="mean-image", device=CPU)


@pytest.mark.parametrize("mean", [np.zeros((4, 5, 3), np.float32), np.zeros((4, 4, 3)), np.zeros((4, 4), np.float32)])
def test_a_foreign_mean_is_refused(mean: NDArray[np.float32]) -> None:
    with pytest.raises(StoreError, match="mean image"):
        Finish(mean, View("centre", 4), subtract="mean-image", device=CPU)


@pytest.mark.parametrize("offset", [-1, SIZE - CROP + 1])
def test_offsets_outside_the_image_are_refused(offset: int) -> None:
    pixels, offsets, reflections, shifts = batch()
    offsets[3, 1] = offset
    finish = Finish(mean_image(), VIEW, subtract="mean-image", device=CPU)
    with pytest.raises(PeerError, match=f"{offset}"):
        finished(finish, (pixels, offsets, reflections, shifts))


def test_columns_of_unequal_length_are_refused() -> None:
    pixels, offsets, reflections, shifts = batch()
    finish = Finish(mean_image(), VIEW, subtract="mean-image", device=CPU)
    with pytest.raises(PeerError, match="offsets"):
        finished(finish, (pixels, offsets[:-1], reflections, shifts))
