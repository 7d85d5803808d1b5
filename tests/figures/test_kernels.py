"""Figure 3: kernels as colours, and where each of them lies."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from fourstage.errors import CheckpointError
from fourstage.figures import kernels
from tests.figures.conftest import Drawn


def drawn_image(weights: NDArray[np.float32], columns: int) -> NDArray[np.float32]:
    (axes,) = kernels.draw(weights, columns=columns, step=1234).axes
    assert "1,234 steps" in axes.get_title(loc="left")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["column A", "column B"][: 2 * columns - 2]
    (image,) = axes.images
    return np.asarray(image.get_array())


def test_zero_is_grey_and_all_kernels_share_a_scale() -> None:
    weights = np.zeros((3, 3, 5, 5), np.float32)
    weights[1, 0] = 2.0
    weights[2, 2] = -1.0
    grey, red, yellow = kernels.colours(weights)
    assert (grey == 0.5).all()
    assert (red == [1.0, 0.5, 0.5]).all()
    assert (yellow == [0.5, 0.5, 0.25]).all()


def test_a_net_without_a_weight_is_grey_throughout() -> None:
    assert (kernels.colours(np.zeros((2, 3, 5, 5), np.float32)) == 0.5).all()


def test_two_columns_lie_one_above_the_other_with_a_gap() -> None:
    weights = np.random.default_rng(1).normal(size=(96, 3, 11, 11)).astype(np.float32)
    image = drawn_image(weights, columns=2)
    # Kernels 44 wide and 4 apart, three rows of sixteen, 20 between the columns.
    block = 3 * 44 + 2 * 4
    assert image.shape == (2 * block + 20, 16 * 44 + 15 * 4, 3)
    assert (image[block : block + 20] == 1.0).all()
    colours = kernels.colours(weights)
    for number, (top, left) in {0: (0, 0), 17: (48, 48), 48: (block + 20, 0), 95: (block + 20 + 96, 15 * 48)}.items():
        assert (image[top : top + 44 : 4, left : left + 44 : 4] == colours[number]).all()


def test_one_column_is_one_block() -> None:
    assert drawn_image(np.ones((64, 3, 5, 5), np.float32), columns=1).shape == (4 * 45 + 3 * 4, 16 * 45 + 15 * 4, 3)


def test_the_weights_are_the_checkpoints(drawn: Drawn, tmp_path: Path) -> None:
    (path,) = drawn.relu.glob("checkpoints/*/model.safetensors")
    weights = kernels.read_kernels(path)
    assert weights.shape == (64, 3, 5, 5)
    assert np.array_equal(weights, load_file(path)["conv1.weight"])
    with pytest.raises(CheckpointError, match="cannot be read"):
        kernels.read_kernels(tmp_path / "model.safetensors")
