"""The four-layer network of the paper's figure 1. The paper does not specify it: this is the project's."""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from fourstage.errors import SettingsError
from fourstage.settings import ModelSettings
from fourstage.trainer.layers import DropoutKey, activation, initialise, max_pool, pooled, response_norm

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
        side = pooled(pooled(pooled(crop)))
        if side < 1:
            raise SettingsError(
                f"cifar cannot see crops of {crop} pixels: nothing is left after its last pooling",
                hint="set augmenter.crop to 15 or more",
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
        self._response_norm = model.response_norm
        self._activation = activation(model.activation)

    def forward(self, images: Tensor, dropout: DropoutKey | None = None) -> Tensor:  # noqa: ARG002
        """Logits (N,classes) of images (N,3,crop,crop), float32 on the scale 0..255 minus the mean.

        ``dropout`` is AlexNet's: there are no such layers here, training and test are the same function.
        """
        maps = max_pool(self._norm(self._activation(self.conv1(images))))
        maps = max_pool(self._norm(self._activation(self.conv2(maps))))
        maps = max_pool(self._activation(self.conv3(maps)))
        logits: Tensor = self.fc4(maps.flatten(1))
        return logits

    def _norm(self, maps: Tensor) -> Tensor:
        return response_norm(maps, columns=1) if self._response_norm else maps
