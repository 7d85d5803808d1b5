"""Going on from a checkpoint: which one, whether it is this run's, and what of the run's files it does not know."""

import logging
from pathlib import Path
from typing import Any

from fourstage import rundir
from fourstage.errors import CheckpointError
from fourstage.settings import Settings
from fourstage.trainer import checkpoint

log = logging.getLogger(__name__)

PINNED = (
    "seed", "batch_size", "remainder", "augment", "augmenter.crop", "colour_std", "colour_scale", "colour_divide",
    "colour_epochs", "crop_positions", "crop_chunk", "mean_place", "subtract", "train_split", "model",
    "train.bias_rate", "train.bias_decay",
)  # fmt: skip
"""Settings that a resumed run must share with its checkpoint, or it would be another run. Not among them: how many
trainers share the network, and how."""


def pinned_settings(settings: Settings) -> dict[str, Any]:
    """What must be the same when a run goes on, as JSON values by setting name."""
    values = settings.model_dump(mode="json")
    return {name: _at(values, name) for name in PINNED}


def _at(values: dict[str, Any], name: str) -> Any:
    section, _, field = name.rpartition(".")
    return (values[section] if section else values)[field]


def last_checkpoint(settings: Settings, run_dir: Path) -> checkpoint.Checkpoint | None:
    """The run's newest whole checkpoint; None where it has none yet.

    Raises CheckpointError where it was made with other settings.
    """
    found = checkpoint.latest(run_dir)
    if found is None:
        log.warning("%s holds no checkpoint yet: the run begins again", run_dir)
        return None
    stored, wanted = found.state.settings, pinned_settings(settings)
    different = [name for name in wanted if stored.get(name) != wanted[name]]
    if different:
        name = different[0]
        raise CheckpointError(
            f"{name} = {wanted[name]!r}, but the run began with {stored.get(name)!r}",
            hint="resume with the settings it began with, or begin a new run directory",
        )
    log.info("going on from step %d", found.state.step)
    return found


def cut_lines(run_dir: Path, *, step: int, epochs: int) -> None:
    """Lines that the checkpoint does not know belong to steps that will be taken again."""
    rundir.keep_lines(run_dir / rundir.STEPS, lambda line: line["step"] <= step)
    rundir.keep_lines(run_dir / rundir.RECEIPT, lambda line: line["epoch"] < epochs)
    rundir.keep_lines(run_dir / rundir.EPOCHS, lambda line: line["epoch"] < epochs)
