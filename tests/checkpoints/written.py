"""Small checkpoints whose every byte says which one they are, and what is found of them."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fourstage.errors import CheckpointError
from fourstage.trainer.checkpoint import CheckpointState, latest, load, save

STATE = CheckpointState(
    step=0,
    next_seq=0,
    epoch=0,
    epoch_samples=0,
    receipt={"digest": "", "delivered": 0},
    store_fingerprint="store",
    identity="901d",
    settings={"batch_size": 8},
)


def tensors(value: float, size: int = 8) -> dict[str, Tensor]:
    """Two, full of one value."""
    return {"conv1.weight": torch.full((2, 3, size, size), float(value)), "conv1.bias": torch.full((2,), float(value))}


def write(run: Path, step: int, *, keep: int = 2, size: int = 8) -> Path:
    """A checkpoint that is ``step`` in its state, its receipt and every number of its tensors."""
    state = replace(STATE, step=step, next_seq=step, receipt={"digest": f"{step:032x}", "delivered": 8 * step})
    return save(run, state, model=tensors(step, size), optimizer=tensors(-step, size), keep=keep)


def found(run: Path, *, size: int = 8) -> str:
    """What a resumed run would go on from: ``step N``, ``nothing``, ``mixture`` or why it is refused."""
    try:
        checkpoint = latest(run)
        if checkpoint is None:
            return "nothing"
        model, optimizer = tensors(float("nan"), size), tensors(float("nan"), size)
        load(checkpoint, model=model, optimizer=optimizer)
    except CheckpointError as error:
        return f"refused: {error}"
    state, step = checkpoint.state, checkpoint.state.step
    said = (state.next_seq, state.receipt["delivered"], state.receipt["digest"]) == (step, 8 * step, f"{step:032x}")
    return f"step {step}" if said and _all(model, step) and _all(optimizer, -step) else "mixture"


def leftovers(run: Path) -> list[str]:
    """What lies among the checkpoints and is none."""
    return sorted(path.name for path in (run / "checkpoints").iterdir() if not path.name.startswith("step-"))


def _all(tensors: dict[str, Tensor], value: float) -> bool:
    return all(bool((tensor == value).all()) for tensor in tensors.values())
