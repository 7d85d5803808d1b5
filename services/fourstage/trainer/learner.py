"""What a batch is used for: a step of training, a test, or nothing at all."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fourstage.settings import Settings
from fourstage.trainer.columns import slice_of, whole
from fourstage.trainer.evaluate import Errors, mean_cross_entropy
from fourstage.trainer.group import Group
from fourstage.trainer.networks import DropoutKey, build_network
from fourstage.trainer.optimizer import MomentumSGD
from fourstage.trainer.rates import NOTHING, Totals

Tensors: TypeAlias = Mapping[str, Tensor]
Read: TypeAlias = Callable[[Tensors, Tensors], None]


class Learner(Protocol):
    """images: float32 (rows, 3, crop, crop) channels_last; labels: int64 (rows,); both on the device."""

    def train(self, images: Tensor, labels: Tensor, *, step: int, first_row: int, rows: int, rate: float) -> Tensor:
        """One step on this trainer's rows, which begin at ``first_row`` of a batch of ``rows``; its share of the mean
        loss, still on the device."""

    def test(self, images: Tensor, labels: Tensor) -> None:
        """Count one batch's errors."""

    def begin_epoch(self, trained: Totals = NOTHING) -> None:
        """Count what is trained on from here, or after what all trainers together had counted before."""

    def trained(self) -> Totals:
        """What was trained on in this epoch, by all trainers together; all of them call it."""

    def tested(self) -> Totals:
        """What was tested since the last call, by all trainers together; all of them call it."""

    def state(self) -> tuple[Tensors, Tensors]:
        """Whole tensors of network and optimizer, for the first trainer's checkpoint; all trainers call it."""

    def load(self, read: Read) -> None:
        """Go on from whole tensors: ``read`` fills those of a network and of its optimizer."""


class NetworkLearner:
    """Trains the network of the settings, or this trainer's part of it, by the paper's rule (section 5)."""

    def __init__(self, settings: Settings, *, classes: int, device: torch.device, group: Group) -> None:
        self._settings = settings
        self._classes = classes
        self._device = device
        self._group = group
        self._column = group.column
        crop = settings.augmenter.crop
        self._network = build_network(
            settings.model, classes=classes, crop=crop, seed=settings.seed, column=self._column
        ).to(device)
        self._dtype = torch.float64 if settings.train.precision == "float64" else torch.float32
        self._network.to(self._dtype)
        # nn.Module.to(memory_format=...) is not in torch's annotations; the same for each tensor is.
        for parameter in self._network.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self._optimizer = MomentumSGD(
            self._network.named_parameters(),
            momentum=settings.train.momentum,
            weight_decay=settings.train.weight_decay,
            bias_rate=settings.train.bias_rate,
            bias_decay=settings.train.bias_decay,
        )
        self._call: nn.Module = self._network
        if settings.train.compile:
            self._network.compile()
        if group.replicas is not None:
            self._call = DistributedDataParallel(self._network, process_group=group.replicas)
        self._trained, self._tested = Errors(classes, device), Errors(classes, device)

    def train(self, images: Tensor, labels: Tensor, *, step: int, first_row: int, rows: int, rate: float) -> Tensor:
        """One step; this trainer's share of the mean loss, still on the device."""
        self._network.train()
        with self._group.errors():
            with self._autocast():
                logits = self._call(images.to(self._dtype), DropoutKey(self._settings.seed, step, first_row))
            loss = self._loss(logits, labels, rows)
            self._network.zero_grad(set_to_none=True)
            # DistributedDataParallel takes the mean over the replicas; the shares of one batch are to be added.
            (loss * self._group.layout.replicas).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step(rate)
        self._count(self._trained, logits.detach(), labels)
        return loss.detach()

    @torch.no_grad()
    def test(self, images: Tensor, labels: Tensor) -> None:
        """Count one batch's errors."""
        self._network.eval()
        with self._group.errors(), self._autocast():
            logits = self._network(images.to(self._dtype), None)
        self._count(self._tested, logits, labels)

    def begin_epoch(self, trained: Totals = NOTHING) -> None:
        """Count what is trained on from here. What was counted before is the first trainer's."""
        self._trained = Errors(self._classes, self._device)
        if self._group.layout.rank == 0:
            self._trained.totals += torch.tensor(trained, dtype=torch.float64, device=self._device)

    def trained(self) -> Totals:
        """What was trained on in this epoch, by all trainers together; all of them call it."""
        return self._together(self._trained)

    def tested(self) -> Totals:
        """What was tested since the last call, by all trainers together; all of them call it."""
        totals = self._together(self._tested)
        self._tested = Errors(self._classes, self._device)
        return totals

    def state(self) -> tuple[Tensors, Tensors]:
        """Whole tensors of network and optimizer, for the first trainer's checkpoint; all trainers call it."""
        model, optimizer = dict(self._network.named_parameters()), self._optimizer.state
        if self._column is None:
            return model, optimizer
        if self._group.layout.replica > 0:
            return {}, {}
        with self._group.errors():
            return whole(model, self._column), whole(optimizer, self._column)

    def load(self, read: Read) -> None:
        """Go on from whole tensors, of which a column takes its half."""
        model, optimizer = dict(self._network.named_parameters()), self._optimizer.state
        if self._column is None:
            read(model, optimizer)
            return
        settings = self._settings
        network = build_network(settings.model, classes=self._classes, crop=settings.augmenter.crop, seed=settings.seed)
        whole_model = dict(network.to(self._dtype).named_parameters())
        whole_optimizer = {name: torch.empty_like(tensor) for name, tensor in whole_model.items()}
        read(whole_model, whole_optimizer)
        with torch.no_grad():
            for own, complete in ((model, whole_model), (optimizer, whole_optimizer)):
                for name, tensor in own.items():
                    tensor.copy_(slice_of(name, complete[name], self._column))

    def _loss(self, logits: Tensor, labels: Tensor, rows: int) -> Tensor:
        if self._is_second:
            # No loss here: its backward waits for the first column's gradient.
            return logits.float().sum()
        return mean_cross_entropy(_exact(logits), labels, batch_size=rows)

    def _count(self, errors: Errors, logits: Tensor, labels: Tensor) -> None:
        if not self._is_second:
            errors.add(_exact(logits), labels)

    def _together(self, errors: Errors) -> Totals:
        samples, loss, top1, top5 = self._group.total(errors.totals).tolist()
        return samples, loss, top1, top5

    @property
    def _is_second(self) -> bool:
        return self._column is not None and self._column.index > 0

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._settings.train.precision != "bf16":
            return nullcontext()
        return torch.autocast(self._device.type, torch.bfloat16)


def _exact(logits: Tensor) -> Tensor:
    """A loss is computed, and added up, in float32 or better: in bf16 its own sum would be rounded to 8 bits."""
    return logits if logits.dtype == torch.float64 else logits.float()


class Drain:
    """Uses batches up without training: the pipeline alone, or before a simulated device."""

    def __init__(self, step_seconds: float) -> None:
        self._step_seconds = step_seconds

    def train(self, images: Tensor, labels: Tensor, *, step: int, first_row: int, rows: int, rate: float) -> Tensor:  # noqa: ARG002
        """Sleep for as long as the device would be busy."""
        if self._step_seconds:
            time.sleep(self._step_seconds)
        return torch.zeros(())

    def test(self, images: Tensor, labels: Tensor) -> None:
        """Nothing to count."""

    def begin_epoch(self, trained: Totals = NOTHING) -> None:
        """Nothing to count."""

    def trained(self) -> Totals:
        """Nothing was counted."""
        return NOTHING

    def tested(self) -> Totals:
        """Nothing was counted."""
        return NOTHING

    def state(self) -> tuple[Tensors, Tensors]:
        """There are no tensors."""
        return {}, {}

    def load(self, read: Read) -> None:
        """There are no tensors, but the checkpoint must say so too."""
        read({}, {})


def make_learner(settings: Settings, *, classes: int, device: torch.device, group: Group) -> Learner:
    """The learner of the settings."""
    if settings.model.name == "none":
        return Drain(settings.train.step_seconds)
    return NetworkLearner(settings, classes=classes, device=device, group=group)
