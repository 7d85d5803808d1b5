"""What both networks are made of: nonlinearity, response norm, pooling, dropout and the first weights."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

_DROPOUT_STREAM = int.from_bytes(b"dropout\0", "big")
_UNITS_PER_BLOCK = 16


def activation(name: Literal["relu", "tanh"]) -> Callable[[Tensor], Tensor]:
    """The nonlinearity of a setting; it overwrites its argument (paper, section 3.1)."""
    return {"relu": torch.relu_, "tanh": torch.tanh_}[name]


def max_pool(maps: Tensor) -> Tensor:
    """Overlapping pooling, 3x3 windows 2 apart (paper, section 3.4): (N,C,H,W) to (N,C,(H-1)//2,(W-1)//2)."""
    return functional.max_pool2d(maps, kernel_size=3, stride=2)


def pooled(side: int) -> int:
    """The width of the maps that ``max_pool`` makes of maps ``side`` wide; below 1 it cannot pool them."""
    return (side - 1) // 2


def response_norm(
    maps: Tensor, *, size: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75, columns: int = 2
) -> Tensor:
    """Local response normalisation (paper, section 3.3): each unit over ``(k + alpha * sum)**beta``.

    ``maps`` is (N,C,H,W), floating point, C a multiple of ``columns``. The sum is that of the squares of the
    ``size`` adjacent maps at the same place, cut off at the ends of a column: a GPU of the paper saw its own
    half of the maps only. Unlike torch's LocalResponseNorm it is not divided by ``size``, and its gradient is
    deterministic on every device.
    """
    images, channels, height, width = maps.shape
    split = maps.view(images, columns, channels // columns, height, width)
    result: Tensor = _ResponseNorm.apply(split, size // 2, k, alpha, beta)  # type: ignore[no-untyped-call]
    return result.flatten(1, 2)


class _ResponseNorm(torch.autograd.Function):
    """On (N,columns,C,H,W); written out because autograd would keep every partial sum."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, reach: int, k: float, alpha: float, beta: float) -> Tensor:
        scale = _windows(maps * maps, reach).mul_(alpha).add_(k)
        factor = scale.pow(-beta)
        ctx.save_for_backward(maps, scale, factor)
        ctx.constants = reach, alpha, beta
        return maps * factor

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        maps, scale, factor = ctx.saved_tensors
        reach, alpha, beta = ctx.constants
        direct = gradient * factor
        neighbours = _windows((direct * maps).div_(scale), reach).mul_(maps)
        return direct.sub_(neighbours, alpha=2.0 * alpha * beta), None, None, None, None


def _windows(maps: Tensor, reach: int) -> Tensor:
    total = maps.clone()
    for distance in range(1, min(reach, maps.shape[2] - 1) + 1):
        total[:, :, distance:].add_(maps[:, :, :-distance])
        total[:, :, :-distance].add_(maps[:, :, distance:])
    return total


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


def dropout(units: Tensor, key: DropoutKey | None, *, layer: int, p: float) -> Tensor:
    """Dropout (paper, section 4.2): in training units times a 0/1 mask, in a test (no key) times 1 - p.

    ``units`` is (N,width). Not today's inverted dropout: equal in expectation, but other activations.
    """
    if p == 0.0:
        return units
    if key is None:
        return units * (1.0 - p)
    rows = range(key.first_row, key.first_row + units.shape[0])
    mask = dropout_mask(key.seed, key.step, layer, rows, units.shape[1], p)
    if units.is_cuda:
        mask = mask.pin_memory().to(units.device, non_blocking=True)
    return units * mask


def initialise(network: nn.Module, *, seed: int, stds: Mapping[str, float], ones: Collection[str] = ()) -> None:
    """Draw the first weights, N(0, std of the layer), layer by layer; biases are 1 in ``ones``, else 0.

    The layers are on the CPU, in float32 and whole: whoever needs a slice takes it of the whole draw.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, layer in network.named_children():
            layer.get_parameter("weight").normal_(0.0, stds[name], generator=generator)
            layer.get_parameter("bias").fill_(1.0 if name in ones else 0.0)
