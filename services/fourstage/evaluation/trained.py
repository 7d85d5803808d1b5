"""A run's network as its last checkpoint has it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional

from fourstage import rundir
from fourstage.errors import CheckpointError, SettingsError
from fourstage.resolve import load_settings
from fourstage.settings import Settings
from fourstage.trainer import checkpoint
from fourstage.trainer.device import choose_device
from fourstage.trainer.networks import Network, build_network

_LAST_BIAS = {"alexnet": "fc8.bias", "cifar": "fc4.bias"}
"""The tensor that has as many numbers as the network has outputs."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A network and where it comes from. ``load_trained`` makes it."""

    run_dir: Path
    settings: Settings
    """Those of the run, with the device and the precision that are in force here."""
    step: int
    """Steps trained when the checkpoint was written."""
    store_fingerprint: str
    """Of the store that it was trained on."""
    classes: int
    """Outputs. Their names are the store's."""
    network: Network
    """In test mode, on ``device``."""
    device: torch.device

    @torch.no_grad()
    def log_probabilities(self, images: Tensor) -> Tensor:
        """float64 (N,classes), the logarithms of the softmax, of float32 images (N,3,crop,crop) as ``Finish`` gives
        them, computed in the run's precision."""
        # The precision of products and the number of threads belong to the process: another run's may be in force.
        choose_device(self.settings)
        bf16 = self.settings.train.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            logits = self.network(images.to(next(self.network.parameters()).dtype), None)
        return functional.log_softmax(logits.double(), 1)


def load_trained(run_dir: Path, device: str = "auto") -> Trained:
    """The network of a run's newest whole checkpoint, in test mode; the run may still be training.

    device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``. On a CPU a run's ``tf32`` and ``bf16``, which are there to be
    fast on a GPU, are ``float32``. Prepares the device as the run's settings say (threads, precision).

    Raises SettingsError where there is no run, no such device or no network, CheckpointError where there is no whole
    checkpoint.
    """
    settings = _settings(run_dir, device)
    found = checkpoint.latest(run_dir)
    if found is None:
        raise CheckpointError(
            f"{run_dir} holds no checkpoint", hint="a run writes one when it ends, is interrupted, or takes long"
        )
    if settings.model.name == "none":
        raise SettingsError(f"{run_dir} trained no network: model.name = 'none'", hint="name a run that trained one")
    classes = _outputs(found.path / checkpoint.MODEL, _LAST_BIAS[settings.model.name])
    network = build_network(settings.model, classes=classes, crop=settings.augmenter.crop, seed=settings.seed)
    if settings.train.precision == "float64":
        network.double()
    checkpoint.load(found, model=dict(network.named_parameters()))
    place = choose_device(settings)
    return Trained(
        run_dir=run_dir,
        settings=settings,
        step=found.state.step,
        store_fingerprint=found.state.store_fingerprint,
        classes=classes,
        network=network.to(place).eval(),
        device=place,
    )


def _settings(run_dir: Path, device: str) -> Settings:
    path = run_dir / rundir.SETTINGS
    if not path.is_file():
        raise SettingsError(f"{run_dir} holds no run", hint="name the --run-dir of a fourstage run")
    # No environment: it is the run's own settings that made the network.
    settings = load_settings(str(path), environment={}, flags={"train.device": device})
    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    if on_cpu and settings.train.precision != "float64":
        whole = {"train.device": device, "train.precision": "float32"}
        settings = load_settings(str(path), environment={}, flags=whole)
    return settings


def _outputs(path: Path, name: str) -> int:
    """The length of a vector in a file of tensors, of which only the header is read."""
    try:
        with safe_open(path, "pt") as file:
            return int(file.get_slice(name).get_shape()[0])
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}", hint="try again: a running trainer may have replaced it"
        ) from error
