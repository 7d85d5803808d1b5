"""Going on from a checkpoint: which one, whether it is this run's, and what of the run's files it does not know."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fourstage import rundir
from fourstage.errors import CheckpointError
from fourstage.resolve import read_toml
from fourstage.settings import Settings
from fourstage.trainer import saved

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


def last_checkpoint(settings: Settings, run_dir: Path) -> saved.Checkpoint | None:
    """The run's newest whole checkpoint; None where it has none yet.

    Raises CheckpointError where it was made with other settings.
    """
    found = saved.latest(run_dir)
    if found is None:
        log.warning("%s holds no checkpoint yet: the run begins again", run_dir)
        return None
    _refuse_another_run(settings, found)
    log.info("going on from step %d", found.state.step)
    return found


def changed_settings(settings: Settings, run_dir: Path) -> list[str]:
    """Each setting that is other than in the run's file of settings, in words.

    Raises CheckpointError where one of them would make it another run.
    """
    if (found := saved.latest(run_dir)) is not None:
        _refuse_another_run(settings, found)
    before = _flat(read_toml(run_dir / rundir.SETTINGS))
    now = _flat(settings.model_dump(mode="json", exclude_none=True))
    return [
        f"{name} = {now.get(name)!r}, was {before.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def _refuse_another_run(settings: Settings, found: saved.Checkpoint) -> None:
    stored, wanted = found.state.settings, pinned_settings(settings)
    different = [name for name in wanted if stored.get(name) != wanted[name]]
    if different:
        name = different[0]
        raise CheckpointError(
            f"{name} = {wanted[name]!r}, but the run began with {stored.get(name)!r}",
            hint="resume with the settings it began with, or begin a new run directory",
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def cut_lines(run_dir: Path, *, step: int, epochs: int, validated: int, samples: int) -> None:
    """What the checkpoint does not know belongs to steps that will be taken again.

    epochs: that are over, of which so many have been ``validated``; samples: of all steps before
    """
    saved.remove_leftovers(run_dir)
    rundir.remove_leftovers(run_dir, rundir.TRAINERS)
    rundir.keep_lines(run_dir / rundir.STEPS, lambda line: line["step"] <= step)
    rundir.keep_lines(run_dir / rundir.RECEIPT, lambda line: line["epoch"] < epochs)
    rundir.keep_lines(run_dir / rundir.EPOCHS, lambda line: line["epoch"] < validated)
    rundir.cut_samples(run_dir / rundir.SAMPLES, samples)
