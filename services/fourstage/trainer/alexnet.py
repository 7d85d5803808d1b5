"""AlexNet (paper, section 3.5) with both columns on one device."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import convert_conv2d_weight_memory_format

from fourstage.errors import SettingsError
from fourstage.settings import ModelSettings
from fourstage.trainer.layers import (
    DropoutKey,
    activation,
    dropout,
    initialise,
    max_pool,
    pooled,
    response_norm,
)

COLUMNS = 2
"""Halves of the kernels, one for each GPU of the paper. Convolutions 2, 4 and 5 see their own half alone."""

_KERNEL, _STRIDE = 11, 4
_ONES = frozenset({"conv2", "conv4", "conv5", "fc6", "fc7"})
_STD = 0.01

_DROPOUT = 0.5
"""Of fc6 and fc7 (paper, section 4.2)."""


class AlexNet(nn.Module):
    """Five convolutional and three dense layers, named conv1 to fc8; 60,965,224 parameters for 1000 classes.

    Everywhere the first half of the channels, and of the units of fc6 and fc7, is the first column. The
    columns meet before conv3, fc6, fc7 and fc8.
    """

    def __init__(self, model: ModelSettings, *, classes: int, crop: int, seed: int) -> None:
        """Draw a network for ``crop`` x ``crop`` pixels; SettingsError where pooling would leave none."""
        super().__init__()
        side = _final_side(crop)
        with torch.device("meta"):
            self.conv1 = nn.Conv2d(3, 96, _KERNEL, stride=_STRIDE)
            self.conv2 = nn.Conv2d(96, 256, 5, padding=2, groups=COLUMNS)
            self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
            self.conv4 = nn.Conv2d(384, 384, 3, padding=1, groups=COLUMNS)
            self.conv5 = nn.Conv2d(384, 256, 3, padding=1, groups=COLUMNS)
            self.fc6 = nn.Linear(256 * side * side, 4096)
            self.fc7 = nn.Linear(4096, 4096)
            self.fc8 = nn.Linear(4096, classes)
        self.to_empty(device="cpu")
        std = model.init_std or _STD
        initialise(self, seed=seed, stds={name: std for name, _ in self.named_children()}, ones=_ONES)
        convert_conv2d_weight_memory_format(self, torch.channels_last)
        self._settings = model
        self._activation = activation(model.activation)
        # The kernels' grid begins at the first pixel, and what it lacks is added at the far ends alone: 3
        # pixels for 224, which makes the 2012 code's maps 55 wide. A padding of 2 all around would shift it.
        self._padding = -(crop - _KERNEL) % _STRIDE

    def forward(self, images: Tensor, dropout: DropoutKey | None = None) -> Tensor:
        """Logits (N,classes) of images (N,3,crop,crop), float32 on the scale 0..255 minus the mean.

        With a ``dropout`` key it is a training step's pass; without one the network is tested.
        """
        maps = functional.pad(images, (0, self._padding, 0, self._padding))
        maps = max_pool(self._norm(self._activation(self.conv1(maps))))
        maps = max_pool(self._norm(self._activation(self.conv2(maps))))
        maps = self._activation(self.conv3(maps))
        maps = self._activation(self.conv4(maps))
        maps = max_pool(self._activation(self.conv5(maps)))
        units = self._drop(self._activation(self.fc6(maps.flatten(1))), dropout, layer=6)
        units = self._drop(self._activation(self.fc7(units)), dropout, layer=7)
        logits: Tensor = self.fc8(units)
        return logits

    def _norm(self, maps: Tensor) -> Tensor:
        return response_norm(maps, columns=COLUMNS) if self._settings.response_norm else maps

    def _drop(self, units: Tensor, key: DropoutKey | None, *, layer: int) -> Tensor:
        return dropout(
            units, key, layer=layer, p=_DROPOUT if self._settings.dropout is None else self._settings.dropout
        )


def _final_side(crop: int) -> int:
    """The width of the maps that fc6 reads: 6 for 224 (55, 27, 13, 6)."""
    first = -(-(crop - _KERNEL) // _STRIDE) + 1
    side = pooled(pooled(pooled(first)))
    if side < 1:
        raise SettingsError(
            f"alexnet cannot see crops of {crop} pixels: nothing is left after its last pooling",
            hint='set augmenter.crop to 64 or more, or model.name = "cifar"',
        )
    return side
