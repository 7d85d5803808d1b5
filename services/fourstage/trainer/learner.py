"""What stage 4 does with a batch: train a network, or only take its time."""

import time
from typing import Protocol

import torch
from torch import Tensor

from fourstage.errors import SettingsError
from fourstage.settings import Settings
from fourstage.trainer.evaluate import ErrorRates, Errors, mean_cross_entropy
from fourstage.trainer.layers import DropoutKey
from fourstage.trainer.networks import build_network
from fourstage.trainer.optimizer import MomentumSGD


class Learner(Protocol):
    """images: float32 (rows, 3, crop, crop) channels_last; labels: int64 (rows,); both on the device."""

    def train(self, images: Tensor, labels: Tensor, *, step: int, learning_rate: float) -> Tensor | None:
        """One step; the mean loss, still on the device."""

    def test(self, images: Tensor, labels: Tensor) -> None:
        """Count one batch's errors."""

    def rates(self) -> ErrorRates | None:
        """Loss and errors of everything trained on or tested since the last call."""

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The network's and the optimizer's, for a checkpoint."""


class NetworkLearner:
    """Trains the network of the settings by the paper's rule (section 5)."""

    def __init__(self, settings: Settings, *, classes: int, device: torch.device) -> None:
        self._settings = settings
        self._classes = classes
        self._device = device
        self._network = build_network(
            settings.model, classes=classes, crop=settings.augmenter.crop, seed=settings.seed
        ).to(device)
        # nn.Module.to(memory_format=...) is not in torch's annotations; the same for each tensor is.
        for parameter in self._network.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self._optimizer = MomentumSGD(
            self._network.named_parameters(),
            momentum=settings.train.momentum,
            weight_decay=settings.train.weight_decay,
        )
        self._errors = Errors(classes, device)

    def train(self, images: Tensor, labels: Tensor, *, step: int, learning_rate: float) -> Tensor | None:
        """One step; the mean loss, still on the device."""
        self._network.train()
        logits = self._network(images, DropoutKey(self._settings.seed, step))
        loss = mean_cross_entropy(logits, labels, batch_size=len(labels))
        self._network.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step(learning_rate)
        self._errors.add(logits.detach(), labels)
        return loss.detach()

    @torch.no_grad()
    def test(self, images: Tensor, labels: Tensor) -> None:
        """Count one batch's errors."""
        self._network.eval()
        self._errors.add(self._network(images, None), labels)

    def rates(self) -> ErrorRates | None:
        """Loss and errors of everything trained on or tested since the last call."""
        result = self._errors.result()
        self._errors = Errors(self._classes, self._device)
        return result

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The network's and the optimizer's, for a checkpoint."""
        return dict(self._network.named_parameters()), self._optimizer.state


class Drain:
    """Uses batches up without training: the pipeline alone, or before a simulated device."""

    def __init__(self, step_seconds: float) -> None:
        self._step_seconds = step_seconds

    def train(self, images: Tensor, labels: Tensor, *, step: int, learning_rate: float) -> Tensor | None:  # noqa: ARG002
        """Sleep for as long as the device would be busy."""
        if self._step_seconds:
            time.sleep(self._step_seconds)
        return None

    def test(self, images: Tensor, labels: Tensor) -> None:
        """Nothing to count."""

    def rates(self) -> ErrorRates | None:
        """There are none."""
        return None

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """There are none."""
        return {}, {}


def make_learner(settings: Settings, *, classes: int, device: torch.device) -> Learner:
    """The learner of the settings."""
    if settings.model.name == "none":
        return Drain(settings.train.step_seconds)
    return NetworkLearner(settings, classes=classes, device=device)


def choose_device(settings: Settings) -> torch.device:
    """The device of the settings, prepared: threads, determinism. Raises SettingsError where there is none."""
    torch.set_num_threads(settings.train.threads)
    name = settings.train.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise SettingsError(f"device {name!r}: this PyTorch sees no GPU", hint="use --device cpu")
        if (device.index or 0) >= torch.cuda.device_count():
            raise SettingsError(f"device {name!r}: there are {torch.cuda.device_count()} GPUs")
        torch.cuda.set_device(device)
    if settings.train.deterministic:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    return device
