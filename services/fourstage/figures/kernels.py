"""The paper's figure 3: the kernels that the first convolutional layer has learned."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from fourstage.errors import CheckpointError
from fourstage.figures import style

_PER_ROW = 16
_SIDE, _GAP = 44, 4
"""Pixels of about a kernel, and of the white between two: 4 for each weight of an 11x11 kernel."""
_COLUMN_GAP = 20
_INCHES = 7.2


def read_kernels(path: Path) -> NDArray[np.float32]:
    """The weights (K,3,h,w) of ``conv1`` in a checkpoint's ``model.safetensors``, of which nothing else is read.

    Raises CheckpointError where they cannot be.
    """
    try:
        with safe_open(path, "np") as file:
            kernels: NDArray[np.float32] = file.get_tensor("conv1.weight").astype(np.float32)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}", hint="try again: a running trainer may have replaced it"
        ) from error
    return kernels


def colours(kernels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Kernels (K,3,h,w) as RGB images (K,h,w,3) from 0 to 1: a weight of zero is mid-grey.

    One scale for all of them: a kernel that learned nothing stays grey, where a scale of its own would blow its
    first noise up to the contrast of the others. The scale is the 99.9th percentile of the magnitudes, lest one
    weight dims the whole picture.
    """
    largest = np.percentile(np.abs(kernels), 99.9)
    scaled = kernels / (2.0 * largest if largest > 0.0 else 1.0) + 0.5
    return np.clip(scaled, 0.0, 1.0).transpose(0, 2, 3, 1).astype(np.float32)


def tile(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Images (K,h,w,3), enlarged by whole factors, sixteen to a row on white: one image (H,W,3)."""
    factor = max(1, round(_SIDE / images.shape[1]))
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, width, _ = images.shape
    rows = -(-count // _PER_ROW)
    sheet = np.ones((rows * (height + _GAP), min(_PER_ROW, count) * (width + _GAP), 3), np.float32)
    for number, image in enumerate(images):
        top, left = number // _PER_ROW * (height + _GAP), number % _PER_ROW * (width + _GAP)
        sheet[top : top + height, left : left + width] = image
    return sheet[:-_GAP, :-_GAP]


def draw(kernels: NDArray[np.float32], *, columns: int, step: int) -> Figure:
    """Kernels (K,3,h,w), the halves of a two-column net one above the other.

    ``columns`` is 1 or 2, ``step`` that of the checkpoint they come from.
    """
    blocks = [tile(block) for block in np.split(colours(kernels), columns)]
    gap = np.ones((_COLUMN_GAP, blocks[0].shape[1], 3), np.float32)
    sheet = np.concatenate([part for block in blocks for part in (gap, block)][1:])
    figure = style.new_figure(_INCHES, _INCHES * sheet.shape[0] / sheet.shape[1] + 0.3)
    axes = figure.add_subplot()
    style.show_pixels(axes, sheet, interpolation="nearest")
    _, channels, height, width = kernels.shape
    axes.set_title(f"The {len(kernels)} kernels ({height}x{width}x{channels}) of the first layer after {step:,} steps")
    if columns > 1:
        block = blocks[0].shape[0]
        centres = [number * (block + _COLUMN_GAP) + block / 2 for number in range(columns)]
        axes.set_yticks(centres, ["column A", "column B"], rotation=90, va="center")
        axes.tick_params(axis="y", length=0)
    return figure
