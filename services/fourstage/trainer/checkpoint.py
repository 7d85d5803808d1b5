"""A run's tensors into a checkpoint and out of it; ``saved`` has what lies on the disk."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from fourstage.errors import CheckpointError
from fourstage.trainer import saved
from fourstage.trainer.saved import MODEL, OPTIMIZER, Checkpoint, CheckpointState, latest, read

__all__ = ["MODEL", "OPTIMIZER", "Checkpoint", "CheckpointState", "latest", "load", "read", "save"]

_SHOWN = 5


def save(
    run_dir: Path,
    state: CheckpointState,
    *,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    keep: int,
) -> Path:
    """Write a checkpoint, as ``saved.write`` does. Raises CheckpointError where the disk does not take it."""
    files = ((name, _file(tensors)) for name, tensors in ((MODEL, model), (OPTIMIZER, optimizer)))
    return saved.write(run_dir, state, files, keep=keep)


def load(
    checkpoint: Checkpoint,
    *,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor] | None = None,
    store_fingerprint: str | None = None,
    identity: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Copy a checkpoint's tensors into these, on whatever device they are.

    What is given besides is compared with the checkpoint's first. Raises CheckpointError, before anything is
    copied, and names what differs: a tensor's name, shape or type, the store, the workers, a setting.
    """
    state = checkpoint.state
    differences = []
    if store_fingerprint not in (None, state.store_fingerprint):
        differences.append(f"the store's fingerprint is {store_fingerprint}, it was {state.store_fingerprint}")
    if identity not in (None, state.identity):
        differences.append(f"the workers' identity is {identity}, it was {state.identity}")
    for name, value in json.loads(json.dumps(dict(settings or {}))).items():
        if name not in state.settings:
            differences.append(f"{name} is {value!r}, it was not set")
        elif state.settings[name] != value:
            differences.append(f"{name} is {value!r}, it was {state.settings[name]!r}")
    copies: list[tuple[Tensor, Tensor]] = []
    for file_name, targets in ((MODEL, model), (OPTIMIZER, optimizer)):
        if targets is not None:
            stored = _stored_tensors(checkpoint.path / file_name)
            differences += [f"{file_name}: {what}" for what in _different_tensors(stored, targets)]
            copies += [(target, stored[name]) for name, target in targets.items() if name in stored]
    if differences:
        more = f" and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise CheckpointError(
            f"{checkpoint.path} belongs to another run: {'; '.join(differences[:_SHOWN])}{more}",
            hint="resume with the store and the settings that it was made with",
        )
    with torch.no_grad():
        for target, tensor in copies:
            target.copy_(tensor)


def _file(tensors: Mapping[str, Tensor]) -> bytes:
    return bytes(to_safetensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))


def _stored_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}", hint="try again: a running trainer may have replaced it"
        ) from error


def _different_tensors(stored: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Iterator[str]:
    for name in sorted(stored.keys() | targets.keys()):
        here, there = _form(targets.get(name)), _form(stored.get(name))
        if here != there:
            yield f"{name} is {here}, it was {there}"


def _form(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}".removeprefix("torch.")
