"""AlexNet (paper, section 3.5 and figure 2): the family, with its columns on one device or on one each.

    layer   kernels or units   reads              maps are (crops of 224)   then
    conv1    96 of 11x11x3     the image          55 x 55                   norm, pooling to 27 x 27
    conv2   256 of 5x5x48      its own column     27 x 27                   norm, pooling to 13 x 13
    conv3   384 of 3x3x256     both columns       13 x 13
    conv4   384 of 3x3x192     its own column     13 x 13
    conv5   256 of 3x3x192     its own column     13 x 13                   pooling to 6 x 6
    fc6    4096                both columns       256 x 6 x 6               dropout
    fc7    4096                both columns                                 dropout
    fc8    the classes         both columns                                 softmax, which is the loss's

A nonlinearity follows every layer but fc8. Everywhere the first half of the kernels, and of the units of fc6 and fc7,
is the first column. Variants: one column alone; layers left out; a sixth convolution after the last pooling, 256
of 3x3x256 that read both columns; pooling, norms and nonlinearity of other kinds (ModelSettings).
"""

from itertools import count, pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import convert_conv2d_weight_memory_format

from fourstage.errors import SettingsError
from fourstage.settings import ModelSettings
from fourstage.trainer.columns import Column, to_both, to_first
from fourstage.trainer.layers import (
    DropoutKey,
    activation,
    dropout,
    initialise,
    map_norm,
    max_pool,
    pooled,
    pooling_window,
    response_norm,
)

_KERNEL, _STRIDE = 11, 4
_KERNELS = {
    1: {"conv1": 48, "conv2": 128, "conv3": 192, "conv4": 192, "conv5": 256, "conv6": 256},
    2: {"conv1": 96, "conv2": 256, "conv3": 384, "conv4": 384, "conv5": 256, "conv6": 256},
}
"""By the number of columns: the net for one GPU has half of conv1 to conv4 (paper, section 3.2 with its footnote)."""

_UNITS = 4096
_MIDDLE = frozenset({"conv3", "conv4", "conv5"})
_ONES = frozenset({"conv2", "conv4", "conv5", "fc6", "fc7"})
"""Biases that begin at 1 (paper, section 5). The sixth convolution's begin at 0, as the paper does not name it."""

_STD = 0.01

_DROPOUT = 0.5
"""Of fc6 and fc7 (paper, section 4.2)."""


class AlexNet(nn.Module):
    """Layers named conv1 to conv5 (conv6), fc6 to fc8; None if left out. 60,965,224 parameters for 1000 classes."""

    def __init__(
        self, model: ModelSettings, *, classes: int, crop: int, seed: int, column: Column | None = None
    ) -> None:
        """Draw a network for ``crop`` x ``crop`` pixels, or one column's half of it.

        Weights are drawn whole, then sliced along their first axis; fc8 is the first column's, the second has none.
        SettingsError where pooling would leave no maps, and for a column of a network that has one.
        """
        super().__init__()
        if column is not None and model.columns == 1:
            raise SettingsError(
                "model.columns = 1: this network cannot be split", hint="set model.columns = 2 or parallel = 'none'"
            )
        self._settings = model
        self._column = column
        self._window = pooling_window(model.overlapping_pooling)
        self._activation = activation(model.activation)
        side = _final_side(crop, self._window)
        # The kernels' grid begins at the first pixel, and what it lacks is added at the far ends alone: 3
        # pixels for 224, which makes the 2012 code's maps 55 wide. A padding of 2 all around would shift it.
        self._padding = -(crop - _KERNEL) % _STRIDE

        kernels = {
            name: number
            for name, number in _KERNELS[model.columns].items()
            if name not in model.without and (name != "conv6" or model.sixth_layer)
        }
        reads = {name: kernels[before] for before, name in pairwise(kernels)}
        parts = 1 if column is None else model.columns
        self._groups = model.columns // parts  # columns in this process

        def convolution(name: str, *, both: bool) -> nn.Conv2d | None:
            if name not in kernels:
                return None
            inputs, groups = (reads[name], 1) if both else (reads[name] // parts, self._groups)
            return nn.Conv2d(inputs, kernels[name] // parts, 3, padding=1, groups=groups)

        def dense(name: str, inputs: int) -> nn.Linear | None:
            return None if name in model.without else nn.Linear(inputs, _UNITS // parts)

        flat = next(reversed(kernels.values())) * side * side
        with torch.device("meta"):
            self.conv1 = nn.Conv2d(3, kernels["conv1"] // parts, _KERNEL, stride=_STRIDE)
            self.conv2 = nn.Conv2d(
                reads["conv2"] // parts, kernels["conv2"] // parts, 5, padding=2, groups=self._groups
            )
            self.conv3 = convolution("conv3", both=True)
            self.conv4 = convolution("conv4", both=False)
            self.conv5 = convolution("conv5", both=False)
            self.conv6 = convolution("conv6", both=True)
            self.fc6 = dense("fc6", flat)
            self.fc7 = dense("fc7", flat if self.fc6 is None else _UNITS)
            hidden = flat if self.fc6 is None and self.fc7 is None else _UNITS
            self.fc8 = nn.Linear(hidden, classes) if column is None or column.index == 0 else None
        self.to_empty(device="cpu")
        std = model.init_std or _STD
        stds = {name: (model.middle_std or std) if name in _MIDDLE else std for name, _ in self.named_children()}
        initialise(self, seed=seed, stds=stds, ones=_ONES, column=column)
        convert_conv2d_weight_memory_format(self, torch.channels_last)

    def forward(self, images: Tensor, dropout: DropoutKey | None = None) -> Tensor:
        """Logits (N,classes) of images (N,3,crop,crop), float32 on the scale 0..255 minus the mean.

        With a ``dropout`` key it is a training step's pass; without one the network is tested. Both columns call it
        with the same images, and the second gets (N,0): ``sum().backward()`` there takes part in the first's
        backward pass.
        """
        units = self._hidden(images, dropout)
        return units if self.fc8 is None else self.fc8(units)

    def features(self, images: Tensor) -> Tensor:
        """What fc8 reads in a test (paper, section 6.1 and figure 4 right): (N,4096), not negative with ReLU.

        Of two columns the first gets it, the second (N,0).
        """
        return self._hidden(images, None)

    def _hidden(self, images: Tensor, key: DropoutKey | None) -> Tensor:
        maps = self._first(self.conv1(functional.pad(images, (0, self._padding, 0, self._padding))))
        maps = self._norm(self._activation(self.conv2(maps)))
        maps = self._pool(map_norm(maps) if self._settings.map_norm else maps)
        if self.conv3 is not None:
            maps = self._activation(self.conv3(to_both(maps, self._column)))
        for convolution in (self.conv4, self.conv5):
            if convolution is not None:
                maps = self._activation(convolution(maps))
        maps = self._pool(maps)
        if self.conv6 is not None:
            maps = self._activation(self.conv6(to_both(maps, self._column)))
        units = maps.flatten(1)
        for number, dense in ((6, self.fc6), (7, self.fc7)):
            if dense is not None:
                units = self._drop(self._activation(dense(to_both(units, self._column))), key, layer=number)
        return to_first(units, self._column)

    def _first(self, maps: Tensor) -> Tensor:
        """What follows conv1 in the paper, or in the 2012 code."""
        if self._settings.conv1_order == "norm-pool-activation":
            return self._activation(self._pool(self._norm(maps)))
        return self._pool(self._norm(self._activation(maps)))

    def _norm(self, maps: Tensor) -> Tensor:
        if not self._settings.response_norm:
            return maps
        return response_norm(maps, scale=self._settings.norm_scale, columns=self._groups)

    def _pool(self, maps: Tensor) -> Tensor:
        return max_pool(maps, self._window)

    def _drop(self, units: Tensor, key: DropoutKey | None, *, layer: int) -> Tensor:
        p = _DROPOUT if self._settings.dropout is None else self._settings.dropout
        return dropout(units, key, layer=layer, p=p, column=self._column)


def _final_side(crop: int, window: int) -> int:
    """The width of the maps that fc6 reads: 6 for 224 (55, 27, 13, 6)."""
    if (side := _side(crop, window)) < 1:
        least = next(larger for larger in count(crop) if _side(larger, window) >= 1)
        raise SettingsError(
            f"alexnet cannot see crops of {crop} pixels: nothing is left after its last pooling",
            hint=f'set augmenter.crop to {least} or more, or model.name = "cifar"',
        )
    return side


def _side(crop: int, window: int) -> int:
    side = -(-(crop - _KERNEL) // _STRIDE) + 1
    for _ in range(3):
        side = pooled(side, window)
    return side
