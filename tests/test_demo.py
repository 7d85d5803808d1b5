"""The demonstration's photographs: reproducible, varied, and no easier by colour than they should be."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fourstage.demo import (
    CLASSES,
    LARGEST_SIDE,
    SMALLEST_SIDE,
    VALIDATION_NUMBERS,
    draw_photograph,
    write_photographs,
)
from fourstage.resolve import load_settings

SEED = 7


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    write_photographs(folder, seed=SEED, train_per_class=3, validation_per_class=2, workers=1)
    return folder


def test_ten_classes_in_a_stores_order() -> None:
    assert len(CLASSES) == len(set(CLASSES)) == 10
    assert list(CLASSES) == sorted(CLASSES)


def test_folders_of_classes_with_names_that_are_used_once(photographs: Path) -> None:
    for split, per_class in (("train", 3), ("val", 2)):
        assert sorted(folder.name for folder in (photographs / split).iterdir()) == list(CLASSES)
        for folder in (photographs / split).iterdir():
            assert len(list(folder.glob("*.jpg"))) == per_class
    names = [path.name for path in photographs.rglob("*.jpg")]
    assert len(set(names)) == len(names) == 50


def test_the_same_bytes_for_any_number_of_workers(photographs: Path, tmp_path: Path) -> None:
    write_photographs(tmp_path, seed=SEED, train_per_class=3, validation_per_class=2, workers=5)
    assert contents(tmp_path) == contents(photographs)


def test_a_larger_set_holds_the_smaller_one(photographs: Path, tmp_path: Path) -> None:
    write_photographs(tmp_path, seed=SEED, train_per_class=4, validation_per_class=3)
    assert contents(photographs).items() <= contents(tmp_path).items()


def test_every_photograph_is_another(photographs: Path) -> None:
    files = contents(photographs)
    assert len(set(files.values())) == len(files)
    assert not np.array_equal(draw_photograph(1, 0, 0), draw_photograph(2, 0, 0))


def test_sizes_vary_within_their_bounds(photographs: Path) -> None:
    sizes = set()
    for path in photographs.rglob("*.jpg"):
        with Image.open(path) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert SMALLEST_SIDE <= min(image.size) <= max(image.size) <= LARGEST_SIDE
            sizes.add(image.size)
    assert len(sizes) > 40


def test_pixels_are_height_by_width_by_rgb() -> None:
    pixels = draw_photograph(SEED, 4, 0)
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3


def test_a_colour_histogram_gets_more_than_half_wrong() -> None:
    train, train_labels = histograms(range(60))
    test, test_labels = histograms(range(VALIDATION_NUMBERS, VALIDATION_NUMBERS + 20))
    assert np.mean(nearest_neighbour(train, train_labels, test) != test_labels) > 0.5
    assert np.mean(logistic_regression(train, train_labels, test) != test_labels) > 0.5


def test_the_recipe_is_the_four_layer_net_with_one_thread() -> None:
    settings = load_settings("demo", environment={})
    assert settings.model.name == "cifar"
    assert settings.augmenter.crop == 32
    assert settings.train.threads == 1


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.jpg")}


def histograms(numbers: Iterable[int]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Square roots of 8x8x8 colour histograms, float64 (N,512), and class indices (N,)."""
    rows, labels = [], []
    for number in numbers:
        for class_index in range(len(CLASSES)):
            pixels = draw_photograph(SEED, class_index, number).reshape(-1, 3) // 32
            counts = np.bincount(pixels @ np.array([64, 8, 1]), minlength=512)
            rows.append(np.sqrt(counts / len(pixels)))
            labels.append(class_index)
    return np.stack(rows), np.array(labels)


def nearest_neighbour(
    train: NDArray[np.float64], labels: NDArray[np.int64], test: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Rows have unit length, so the nearest is the one with the largest product."""
    nearest: NDArray[np.int64] = labels[np.argmax(test @ train.T, axis=1)]
    return nearest


def logistic_regression(
    train: NDArray[np.float64], labels: NDArray[np.int64], test: NDArray[np.float64]
) -> NDArray[np.int64]:
    weights = np.zeros((train.shape[1], len(CLASSES)))
    targets = np.eye(len(CLASSES))[labels]
    for _ in range(300):
        odds = np.exp(train @ weights)
        error = odds / odds.sum(axis=1, keepdims=True) - targets
        weights -= 10.0 * (train.T @ error / len(train))
    likeliest: NDArray[np.int64] = np.argmax(test @ weights, axis=1)
    return likeliest
