"""AlexNet in plain NumPy float64: column by column, map by map, as the paper writes it and as the 2012 code did.

Maps are (N,C,H,W), units (N,width). Nothing here is fast, and nothing is shared with what it is compared to.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fourstage.settings import ModelSettings

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def neighbours(own: int, maps: int, columns: int) -> range:
    """The maps over which the response norm of map ``own`` sums: two on each side, in its own column."""
    width = maps // columns
    first = own // width * width
    return range(max(first, own - 2), min(first + width, own + 3))


def response_norm(maps: Array, columns: int, scale: str) -> Array:
    """x / (2 + alpha * sum)**0.75; alpha is 1e-4 of the sum, or of the mean of a full window."""
    alpha = 1e-4 if scale == "sum" else 1e-4 / 5
    result = np.empty_like(maps)
    for own in range(maps.shape[1]):
        total = sum(maps[:, other] ** 2 for other in neighbours(own, maps.shape[1], columns))
        result[:, own] = maps[:, own] / (2.0 + alpha * total) ** 0.75
    return result


def response_norm_gradient(maps: Array, gradient: Array, columns: int, scale: str) -> Array:
    """Of sum(gradient * response_norm(maps)): the quotient rule, for each pair of maps."""
    alpha = 1e-4 if scale == "sum" else 1e-4 / 5
    result = np.zeros_like(maps)
    for own in range(maps.shape[1]):
        window = neighbours(own, maps.shape[1], columns)
        denominator = 2.0 + alpha * sum(maps[:, other] ** 2 for other in window)
        result[:, own] += gradient[:, own] * denominator**-0.75
        for other in window:
            slope = -0.75 * denominator**-1.75 * alpha * 2.0 * maps[:, other]
            result[:, other] += gradient[:, own] * maps[:, own] * slope
    return result


def places(row: int, column: int, height: int, width: int) -> tuple[slice, slice]:
    """The 5x5 places around one, cut off at the borders."""
    return slice(max(0, row - 2), min(height, row + 3)), slice(max(0, column - 2), min(width, column + 3))


def map_norm(maps: Array) -> Array:
    """x / (1 + 0.001 / 25 * sum over 5x5 places of the same map)**0.75."""
    height, width = maps.shape[2:]
    result = np.empty_like(maps)
    for row in range(height):
        for column in range(width):
            rows, columns = places(row, column, height, width)
            total = (maps[:, :, rows, columns] ** 2).sum((2, 3))
            result[:, :, row, column] = maps[:, :, row, column] / (1.0 + 0.001 / 25 * total) ** 0.75
    return result


def map_norm_gradient(maps: Array, gradient: Array) -> Array:
    """Of sum(gradient * map_norm(maps))."""
    height, width = maps.shape[2:]
    result = np.zeros_like(maps)
    for row in range(height):
        for column in range(width):
            rows, columns = places(row, column, height, width)
            window = maps[:, :, rows, columns]
            denominator = 1.0 + 0.001 / 25 * (window**2).sum((2, 3))
            own = gradient[:, :, row, column]
            result[:, :, row, column] += own * denominator**-0.75
            slope = own * maps[:, :, row, column] * -0.75 * denominator**-1.75 * 0.001 / 25 * 2.0
            result[:, :, rows, columns] += slope[:, :, None, None] * window
    return result


def max_pool(maps: Array, size: int) -> Array:
    """The largest of each window of ``size``, 2 apart, that lies inside the maps."""
    rows, columns = ((side - size) // 2 + 1 for side in maps.shape[2:])
    result = np.empty((*maps.shape[:2], rows, columns))
    for row in range(rows):
        for column in range(columns):
            window = maps[:, :, 2 * row : 2 * row + size, 2 * column : 2 * column + size]
            result[:, :, row, column] = window.max((2, 3))
    return result


def convolve(maps: Array, kernels: Array, bias: Array, *, stride: int = 1, before: int = 0, after: int = 0) -> Array:
    """Kernels (out,in,S,S) over maps with ``before`` zeros at the left and top, ``after`` at the right and bottom."""
    maps = np.pad(maps, ((0, 0), (0, 0), (before, after), (before, after)))
    size = kernels.shape[2]
    rows, columns = ((side - size) // stride + 1 for side in maps.shape[2:])
    result = np.zeros((maps.shape[0], kernels.shape[0], rows, columns))
    for down in range(size):
        for right in range(size):
            seen = maps[:, :, down : down + stride * rows : stride, right : right + stride * columns : stride]
            result += np.einsum("nchw,kc->nkhw", seen, kernels[:, :, down, right], optimize=True)
    return result + bias[None, :, None, None]


def activation(values: Array, name: str) -> Array:
    """The nonlinearities of section 3.1."""
    return {"relu": np.maximum(values, 0.0), "tanh": np.tanh(values), "abs-tanh": np.abs(np.tanh(values))}[name]


def alexnet(
    weights: Mapping[str, Array], images: Array, model: ModelSettings, masks: Mapping[str, Mask] | None = None
) -> Array:
    """Logits of images (N,3,crop,crop), with dropout ``masks`` of fc6 and fc7 as in training, or as in a test."""
    columns = model.columns

    def convolution(name: str, maps: Array, *, both: bool, pad: int) -> Array:
        """One layer, column by column."""
        kernels, biases = np.split(weights[f"{name}.weight"], columns), np.split(weights[f"{name}.bias"], columns)
        seen = [maps] * columns if both else np.split(maps, columns, 1)
        layers = zip(seen, kernels, biases, strict=True)
        return np.concatenate([convolve(own, k, b, before=pad, after=pad) for own, k, b in layers], 1)

    def nonlinear(values: Array) -> Array:
        return activation(values, model.activation)

    def norm(maps: Array) -> Array:
        return response_norm(maps, columns, model.norm_scale) if model.response_norm else maps

    def pool(maps: Array) -> Array:
        return max_pool(maps, 3 if model.overlapping_pooling else 2)

    # As many zeros at the far ends as complete the last kernel: 3 for 224.
    far = (4 - (images.shape[2] - 11) % 4) % 4
    maps = convolve(images, weights["conv1.weight"], weights["conv1.bias"], stride=4, after=far)
    in_paper = model.conv1_order == "activation-norm-pool"
    maps = pool(norm(nonlinear(maps))) if in_paper else nonlinear(pool(norm(maps)))
    maps = norm(nonlinear(convolution("conv2", maps, both=False, pad=2)))
    maps = pool(map_norm(maps) if model.map_norm else maps)
    for name, both in (("conv3", True), ("conv4", False), ("conv5", False)):
        if name not in model.without:
            maps = nonlinear(convolution(name, maps, both=both, pad=1))
    maps = pool(maps)
    if model.sixth_layer:
        maps = nonlinear(convolution("conv6", maps, both=True, pad=1))
    units = maps.reshape(len(maps), -1)
    for name in ("fc6", "fc7"):
        if name not in model.without:
            units = nonlinear(units @ weights[f"{name}.weight"].T + weights[f"{name}.bias"])
            kept = 0.5 if model.dropout is None else 1.0 - model.dropout
            units = units * kept if masks is None else units * masks[name]
    return units @ weights["fc8.weight"].T + weights["fc8.bias"]
