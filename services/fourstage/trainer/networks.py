"""The network that a run trains."""

from typing import TypeAlias

from fourstage.errors import SettingsError
from fourstage.settings import ModelSettings
from fourstage.trainer.alexnet import AlexNet
from fourstage.trainer.cifar import CifarNet
from fourstage.trainer.columns import Column
from fourstage.trainer.layers import DropoutKey

__all__ = ["DropoutKey", "Network", "build_network", "parameter_count"]

Network: TypeAlias = AlexNet | CifarNet
"""Called as ``network(images, dropout)``: with a DropoutKey a training step's logits, with None a test's."""


def build_network(model: ModelSettings, *, classes: int, crop: int, seed: int, column: Column | None = None) -> Network:
    """The settings' network with its first weights, a pure function of the arguments; float32 on the CPU.

    ``crop`` is the width and height of the input in pixels. With a ``column`` it is one process's half of AlexNet.
    Raises SettingsError for a crop that is too small, a column of a network that has only one, and
    ``model.name = "none"``.
    """
    match model.name:
        case "alexnet":
            return AlexNet(model, classes=classes, crop=crop, seed=seed, column=column)
        case "cifar":
            if column is not None:
                raise SettingsError(
                    'model.name = "cifar" has one column: it cannot be split', hint='set parallel to "none" or "data"'
                )
            return CifarNet(model, classes=classes, crop=crop, seed=seed)
        case "none":
            raise SettingsError('model.name = "none" has no network to train', hint="set alexnet or cifar")


def parameter_count(network: Network) -> int:
    """Numbers that training adjusts: weights and biases."""
    return sum(parameter.numel() for parameter in network.parameters())
