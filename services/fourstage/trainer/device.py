"""The device that trains, prepared as the settings say: threads, determinism, precision."""

import os
from collections.abc import Mapping

import torch

from fourstage.errors import SettingsError
from fourstage.settings import Settings


def choose_device(settings: Settings) -> torch.device:
    """The device of the settings, ready to use. Raises SettingsError where there is none."""
    torch.set_num_threads(settings.train.threads)
    name = settings.train.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(own_gpu(name, os.environ))
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise SettingsError(f"device {name!r}: this PyTorch sees no GPU", hint="use --device cpu")
        if (device.index or 0) >= torch.cuda.device_count():
            raise SettingsError(f"device {name!r}: there are {torch.cuda.device_count()} GPUs")
        torch.cuda.set_device(device)
        # Set either way: PyTorch's own defaults shorten convolutions and leave matrix products whole.
        shortened = "tf32" if settings.train.precision == "tf32" else "ieee"
        torch.backends.cudnn.conv.fp32_precision = shortened  # type: ignore[attr-defined]
        torch.backends.cuda.matmul.fp32_precision = shortened
    elif settings.train.precision == "tf32":
        raise SettingsError("train.precision = 'tf32' is a mode of CUDA", hint="use float32 or bf16 on a CPU")
    if settings.train.deterministic:
        # cuBLAS is deterministic with a workspace of fixed size only; it reads this when it is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    return device


def own_gpu(device: str, environment: Mapping[str, str]) -> str:
    """``cuda`` by number: the first, or of several processes on this machine each its own, shared where there are too
    few."""
    if device != "cuda":
        return device
    return f"cuda:{int(environment.get('LOCAL_RANK', 0)) % max(1, torch.cuda.device_count())}"
