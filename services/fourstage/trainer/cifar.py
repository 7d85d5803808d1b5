"""The four-layer network of the paper's figure 1. The paper does not specify it: this is the project's."""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from fourstage.errors import SettingsError
from fourstage.settings import ModelSettings
from fourstage.trainer.layers import (
    DropoutKey,
    activation,
    initialise,
    max_pool,
    pooled,
    pooling_window,
    response_norm,
)

_MAPS = 64
_INPUT_SPREAD = 64.0


class CifarNet(nn.Module):
    """Three 5x5 convolutions of 64 maps, each followed by pooling, and a dense layer: conv1 to conv3, fc4.

    Response norm (over all maps: there is one column) comes after the first two nonlinearities when it is
    asked for. There is no dropout. Weights are drawn with the standard deviation ``1 / sqrt(inputs)``, for
    conv1 over 64 more, about the spread of pixels around their mean: every layer then starts with outputs of
    about one. ``model.init_std`` replaces all of them.
    """

    def __init__(self, model: ModelSettings, *, classes: int, crop: int, seed: int) -> None:
        """Draw a network for ``crop`` x ``crop`` pixels; SettingsError where pooling would leave none."""
        super().__init__()
        window = pooling_window(model.overlapping_pooling)
        side = pooled(pooled(pooled(crop, window), window), window)
        if side < 1:
            raise SettingsError(
                f"cifar cannot see crops of {crop} pixels: nothing is left after its last pooling",
                hint=f"set augmenter.crop to {15 if model.overlapping_pooling else 8} or more",
            )
        with torch.device("meta"):
            self.conv1 = nn.Conv2d(3, _MAPS, 5, padding=2)
            self.conv2 = nn.Conv2d(_MAPS, _MAPS, 5, padding=2)
            self.conv3 = nn.Conv2d(_MAPS, _MAPS, 5, padding=2)
            self.fc4 = nn.Linear(_MAPS * side * side, classes)
        stds = {
            name: 1.0 / math.sqrt(layer.get_parameter("weight")[0].numel()) for name, layer in self.named_children()
        }
        stds["conv1"] /= _INPUT_SPREAD
        self.to_empty(device="cpu")
        initialise(self, seed=seed, stds={name: model.init_std or std for name, std in stds.items()})
        convert_conv2d_weight_memory_format(self, torch.channels_last)
        self._settings = model
        self._window = window
        self._activation = activation(model.activation)

    def forward(self, images: Tensor, dropout: DropoutKey | None = None) -> Tensor:  # noqa: ARG002
        """Logits (N,classes) of images (N,3,crop,crop), float32 on the scale 0..255 minus the mean.

        ``dropout`` is AlexNet's: there are no such layers here, training and test are the same function.
        """
        logits: Tensor = self.fc4(self.features(images))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """What fc4 reads: (N, 64 * side * side), the maps after the last pooling."""
        maps = self._pool(self._norm(self._activation(self.conv1(images))))
        maps = self._pool(self._norm(self._activation(self.conv2(maps))))
        maps = self._pool(self._activation(self.conv3(maps)))
        return maps.flatten(1)

    def _norm(self, maps: Tensor) -> Tensor:
        if not self._settings.response_norm:
            return maps
        return response_norm(maps, scale=self._settings.norm_scale, columns=1)

    def _pool(self, maps: Tensor) -> Tensor:
        return max_pool(maps, self._window)
