"""What both networks are made of: nonlinearity, pooling, response norms, dropout and the first weights."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fourstage.trainer.columns import Column, slice_of, whole_shape
from fourstage.trainer.layout import COLUMNS

_DROPOUT_STREAM = int.from_bytes(b"dropout\0", "big")
_UNITS_PER_BLOCK = 16
_POOLING_STRIDE = 2
_WINDOW = 5
"""Units over which both response norms sum, along each axis."""
_BLOCK = 1 << 18
"""Numbers of a block: 1 MiB of float32. A step takes the same from half of that to twice as many."""


def activation(name: Literal["relu", "tanh", "abs-tanh"]) -> Callable[[Tensor], Tensor]:
    """The nonlinearity of a setting (paper, section 3.1); it may overwrite its argument."""
    return {"relu": torch.relu_, "tanh": torch.tanh_, "abs-tanh": _abs_tanh}[name]


def _abs_tanh(values: Tensor) -> Tensor:
    # The tangent's gradient needs its own result: the absolute value is another tensor.
    return torch.tanh_(values).abs()


def pooling_window(overlapping: bool) -> int:
    """The width z of pooling windows s = 2 apart: 3 where they overlap (paper, section 3.4), 2 where they touch."""
    return 3 if overlapping else _POOLING_STRIDE


def max_pool(maps: Tensor, window: int) -> Tensor:
    """The largest value of each window inside the maps: (N,C,H,W) to (N,C,pooled(H),pooled(W))."""
    return functional.max_pool2d(maps, kernel_size=window, stride=_POOLING_STRIDE)


def pooled(side: int, window: int) -> int:
    """The width of the maps that ``max_pool`` makes of maps ``side`` wide; below 1 it cannot pool them."""
    return (side - window) // _POOLING_STRIDE + 1


def response_norm(
    maps: Tensor, *, scale: Literal["sum", "mean"] = "sum", k: float = 2.0, alpha: float = 1e-4, columns: int
) -> Tensor:
    """Local response normalisation (paper, section 3.3): each unit over ``(k + alpha * sum)**0.75``.

    ``maps`` is (N,C,H,W), floating point, C a multiple of ``columns``; the result has its type and layout, what is
    shorter than float32 is computed in float32. The sum is that of the squares of the 5 adjacent maps at the same
    place, cut off at the ends of a column: a GPU of the paper saw its own half of the maps only. With ``mean`` alpha is
    divided by 5, also at the ends, as in the 2012 code and torch's LocalResponseNorm. Unlike the latter's, the gradient
    is deterministic on every device.
    """
    images, channels, height, width = maps.shape
    split = maps.view(images, columns, channels // columns, height, width)
    return _normalised(split, _over_maps, k, alpha if scale == "sum" else alpha / _WINDOW).flatten(1, 2)


def map_norm(maps: Tensor, *, alpha: float = 0.001) -> Tensor:
    """The 2012 code's response norm within each map: each unit over ``(1 + alpha / 25 * sum)**0.75``.

    ``maps`` is (N,C,H,W); the sum is that of the squares of the 5x5 units around, cut off at the borders. Types, layout
    and determinism are those of ``response_norm``.
    """
    return _normalised(maps, _within_map, 1.0, alpha / _WINDOW**2)


def _normalised(maps: Tensor, windows: Callable[[Tensor], Tensor], k: float, alpha: float) -> Tensor:
    wide = maps if maps.dtype == torch.float64 else maps.float()
    result: Tensor = _ResponseNorm.apply(wide, windows, k, alpha)  # type: ignore[no-untyped-call]
    return result.to(maps.dtype)


class _ResponseNorm(torch.autograd.Function):
    """maps / (k + alpha * windows(maps**2))**0.75 for symmetric sums; autograd would keep every partial sum."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, windows: Callable[[Tensor], Tensor], k: float, alpha: float) -> Tensor:
        scale, result = torch.empty_like(maps), torch.empty_like(maps)
        for own, sums, normal in _blocks(maps, scale, result):
            sums.copy_(windows(own * own)).mul_(alpha).add_(k)
            normal.copy_(own).mul_(_factor(sums))
        ctx.save_for_backward(maps, scale)
        ctx.constants = windows, alpha
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        maps, scale = ctx.saved_tensors
        windows, alpha = ctx.constants
        result = torch.empty_like(maps)
        for own, sums, above, below in _blocks(maps, scale, gradient, result):
            below.copy_(above).mul_(_factor(sums))
            below.addcmul_(windows((below * own).div_(sums)), own, value=-2.0 * 0.75 * alpha)
        return result, None, None, None


def _factor(scale: Tensor) -> Tensor:
    # scale**-0.75: on a CPU two roots take a quarter of the time of pow.
    root = scale.rsqrt()
    return root.mul_(root.sqrt())


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of the tensors, cut alike over the images; on a GPU one of each.

    On a CPU what is made of a block stays in the cache. Of all images at once it would be fresh pages from the
    operating system time and again, which took half of the norm's time.
    """
    images, *rest = tensors[0].shape
    if tensors[0].device.type == "cpu":
        images = _BLOCK // math.prod(rest)
    return zip(*(torch.split(tensor, max(1, images)) for tensor in tensors), strict=True)


def _over_maps(values: Tensor) -> Tensor:
    """Sums over 5 adjacent maps of (N,columns,C,H,W).

    Shifted additions: a product with a banded matrix over the maps is no faster, and a GPU may shorten it to TF32.
    """
    total = values.clone()
    for distance in range(1, min(_WINDOW // 2, values.shape[2] - 1) + 1):
        total[:, :, distance:].add_(values[:, :, :-distance])
        total[:, :, :-distance].add_(values[:, :, distance:])
    return total


def _within_map(values: Tensor) -> Tensor:
    """Sums over the 5x5 places around each of (N,C,H,W)."""
    return functional.avg_pool2d(values, _WINDOW, stride=1, padding=_WINDOW // 2, divisor_override=1)


@dataclass(frozen=True, slots=True)
class DropoutKey:
    """The masks of a training step: those of the rows from ``first_row`` on of the global batch."""

    seed: int
    step: int
    first_row: int = 0


def dropout_mask(seed: int, step: int, layer: int, rows: range, width: int, p: float) -> Tensor:
    """Which units of some rows of the global batch stay: bool (len(rows), width) on the CPU, True with 1 - p.

    A pure function of its arguments, on every machine: sixteen bits of a Philox word per unit against p, with
    the row in the counter. So any division of the batch among ranks sees the same masks, and a checkpoint has
    no generator state to hold.
    """
    blocks = -(-width // _UNITS_PER_BLOCK)
    generator = np.random.Philox(
        key=np.array([seed, _DROPOUT_STREAM], np.uint64),
        counter=np.array([rows.start * blocks, step, layer, 0], np.uint64),
    )
    words = generator.random_raw(len(rows) * blocks * 4).astype("<u8", copy=False)
    draws = words.view("<u2").reshape(len(rows), blocks * _UNITS_PER_BLOCK)[:, :width]
    return torch.from_numpy(draws >= round(p * 65_536))


@torch.library.custom_op("fourstage::dropout_mask", mutates_args=())
def _opaque_mask(seed: int, step: int, layer: int, first_row: int, rows: int, width: int, p: float) -> Tensor:
    """``dropout_mask`` as an operator: torch.compile would otherwise trace the generator, which it cannot."""
    return dropout_mask(seed, step, layer, range(first_row, first_row + rows), width, p)


@_opaque_mask.register_fake
def _(seed: int, step: int, layer: int, first_row: int, rows: int, width: int, p: float) -> Tensor:  # noqa: ARG001
    return torch.empty(rows, width, dtype=torch.bool)


def dropout(units: Tensor, key: DropoutKey | None, *, layer: int, p: float, column: Column | None = None) -> Tensor:
    """Dropout (paper, section 4.2): in training units times a 0/1 mask, in a test (no key) times 1 - p.

    ``units`` is (N,width), or a column's half of that and then of the mask. Not today's inverted dropout: equal in
    expectation, but other activations.
    """
    if p == 0.0:
        return units
    if key is None:
        return units * (1.0 - p)
    width = units.shape[1] * (1 if column is None else COLUMNS)
    mask: Tensor = _opaque_mask(key.seed, key.step, layer, key.first_row, units.shape[0], width, p)
    if column is not None:
        mask = column.half(mask, dim=1)
    if units.is_cuda:
        mask = mask.pin_memory().to(units.device, non_blocking=True)
    return units * mask


def initialise(
    network: nn.Module,
    *,
    seed: int,
    stds: Mapping[str, float],
    ones: Collection[str] = (),
    column: Column | None = None,
) -> None:
    """Draw the first weights, N(0, std of the layer), layer by layer; biases are 1 in ``ones``, else 0.

    The layers are on the CPU, in float32. Every layer is drawn whole, and a column takes its slice of it.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, layer in network.named_children():
            weight = layer.get_parameter("weight")
            drawn = torch.empty(whole_shape(name, weight, column)).normal_(0.0, stds[name], generator=generator)
            weight.copy_(slice_of(name, drawn, column))
            layer.get_parameter("bias").fill_(1.0 if name in ones else 0.0)
