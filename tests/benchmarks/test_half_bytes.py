"""Planes finished on the device are the decoder's own RGB, bit by bit; what has no such planes is refused."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from benchmarks.planes import (
    LEAST_SIZE,
    NoPlanesError,
    Planes,
    Turbo,
    chroma_side,
    finish,
    slot_bytes,
    transform_planes,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks import half_bytes
from fourstage.augmenter.draws import Draws
from fourstage.errors import CorruptSampleError

SIZES = st.integers(LEAST_SIZE, 70)
QUALITIES = st.integers(1, 100)
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def turbo() -> Iterator[Turbo]:
    """The system's library, without which there are no planes."""
    try:
        made = Turbo()
    except OSError as error:
        pytest.skip(str(error))
    with made:
        yield made


def picture(size: int, seed: int, blocks: int) -> NDArray[np.uint8]:
    """Random colours, uint8 (size, size, 3): noise at ``blocks`` 1, else squares of so many pixels of one colour."""
    side = -(-size // blocks)
    colours = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    return np.ascontiguousarray(colours.repeat(blocks, 0).repeat(blocks, 1)[:size, :size])


def stored(pixels: NDArray[np.uint8], quality: int = 90, sampling: str = "420") -> memoryview:
    """The JPEG of it."""
    return memoryview(simplejpeg.encode_jpeg(pixels, quality, "RGB", sampling))


def decoded(image: memoryview) -> NDArray[np.uint8]:
    """What the augmenters make of it."""
    return np.asarray(simplejpeg.decode_jpeg(image, "RGB", fastdct=False, fastupsample=False))


def through_planes(
    images: list[memoryview],
    size: int,
    crop: int,
    offsets: list[tuple[int, int]],
    reflections: list[bool],
    turbo: Turbo,
) -> NDArray[np.uint8]:
    """The crops of the images by way of planes."""
    rows, side = len(images), chroma_side(crop)
    draws = Draws(np.array(offsets, np.int32), np.array(reflections), np.zeros((rows, 3), np.float32))
    luma, chroma = np.empty((rows, crop, crop), np.uint8), np.empty((rows, 2, side, side), np.uint8)
    transform_planes(images, draws, turbo, scratch=Planes(size), luma=luma, chroma=chroma)
    tensors = (torch.from_numpy(array) for array in (luma, chroma, draws.offsets, draws.reflections))
    return finish(*tensors).numpy()


@settings(deadline=None, max_examples=300)
@given(size=SIZES, quality=QUALITIES, seed=SEEDS, blocks=st.sampled_from([1, 2, 3, 9]))
def test_a_whole_image_is_the_decoders_bit_by_bit(
    size: int, quality: int, seed: int, blocks: int, turbo: Turbo
) -> None:
    image = stored(picture(size, seed, blocks), quality)
    np.testing.assert_array_equal(through_planes([image], size, size, [(0, 0)], [False], turbo)[0], decoded(image))


@settings(deadline=None, max_examples=300)
@given(data=st.data(), size=SIZES, quality=QUALITIES, seed=SEEDS)
def test_any_crop_reflected_or_not_is_the_crop_of_the_decoders_pixels(
    data: st.DataObject, size: int, quality: int, seed: int, turbo: Turbo
) -> None:
    crop, rows = data.draw(st.integers(1, size), "crop"), data.draw(st.integers(1, 5), "rows")
    place = st.integers(0, size - crop)
    offsets = data.draw(st.lists(st.tuples(place, place), min_size=rows, max_size=rows), "offsets")
    reflections = data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows), "reflections")
    images = [stored(picture(size, seed + row, 2), quality) for row in range(rows)]
    found = through_planes(images, size, crop, offsets, reflections, turbo)
    for image, (top, left), reflected, pixels in zip(images, offsets, reflections, found, strict=True):
        window = decoded(image)[top : top + crop, left : left + crop]
        np.testing.assert_array_equal(pixels, window[:, ::-1] if reflected else window)


@pytest.mark.parametrize("size", [255, 256])
def test_every_place_of_a_stored_images_edges_is_exact(size: int, turbo: Turbo) -> None:
    crop = size - 32
    places = [(top, left) for top in (0, 1, 15, 16, 31, 32) for left in (0, 1, 16, 17, 31, 32)]
    image = stored(picture(size, 7, 1), 100)
    found = through_planes([image] * len(places), size, crop, places, [False] * len(places), turbo)
    pixels = decoded(image)
    for (top, left), one in zip(places, found, strict=True):
        np.testing.assert_array_equal(one, pixels[top : top + crop, left : left + crop])


def test_the_same_library_to_rgb_makes_the_augmenters_pixels(turbo: Turbo) -> None:
    image, pixels = stored(picture(64, 1, 3)), np.empty((64, 64, 3), np.uint8)
    turbo.rgb(image, pixels)
    np.testing.assert_array_equal(pixels, decoded(image))


@pytest.mark.parametrize("sampling", ["444", "422", "440", "Gray"])
def test_an_image_that_is_not_stored_as_420_is_refused_for_rgb_to_carry(sampling: str, turbo: Turbo) -> None:
    pixels = picture(32, 1, 2)
    grey = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels[:, :, :1]), 90, "GRAY")
    image = memoryview(grey) if sampling == "Gray" else stored(pixels, sampling=sampling)
    with pytest.raises(NoPlanesError):
        turbo.planes(image, Planes(32))


def test_an_image_of_another_size_is_refused_not_scaled(turbo: Turbo) -> None:
    with pytest.raises(NoPlanesError):
        turbo.planes(stored(picture(64, 1, 2)), Planes(32))


def test_a_truncated_image_is_corrupt(turbo: Turbo) -> None:
    image = stored(picture(64, 1, 1))
    with pytest.raises(CorruptSampleError):
        turbo.planes(image[: len(image) // 2], Planes(64))


def test_images_that_libjpeg_upsamples_in_another_way_are_refused() -> None:
    with pytest.raises(ValueError, match="images of 4 pixels"):
        Planes(LEAST_SIZE - 1)


def test_a_slot_of_planes_has_half_the_bytes_and_little_more() -> None:
    assert slot_bytes(224) == 76168
    assert slot_bytes(224) / (224 * 224 * 3) < 0.51


def test_the_benchmark_measures_both_ways_of_the_same_pixels(
    store: Path, tmp_path: Path, turbo: Turbo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del turbo
    monkeypatch.setattr(
        sys, "argv",
        ["half_bytes", "--store", str(store), "--crop", "32", "--rounds", "2", "--json", str(tmp_path / "figures")],
    )  # fmt: skip
    half_bytes.main()
    said = capsys.readouterr().out
    assert "256 images, equal in every bit" in said
    assert "end to end on the CPU" in said
    assert "end_to_end_ratio" in (tmp_path / "figures").read_text()
