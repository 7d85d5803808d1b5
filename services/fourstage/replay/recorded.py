"""What a run directory says of the batches that the run was trained on."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fourstage import rundir
from fourstage.errors import FourstageError, SettingsError
from fourstage.order import BatchPlan, Place
from fourstage.resolve import read_toml, validated
from fourstage.settings import Settings

if TYPE_CHECKING:
    from fourstage.trainer.checkpoint import CheckpointState

BATCH_SETTINGS = (
    "seed", "batch_size", "remainder", "augment", "augmenter.crop", "colour_std", "colour_scale", "colour_epochs",
    "crop_positions", "crop_chunk", "train_split",
)  # fmt: skip
"""All settings that keys, labels, draws and pixels depend on; besides them the store and the decoder's identity."""

LENGTH_SETTINGS = ("train.epochs", "train.max_steps")


@dataclass(frozen=True, slots=True)
class Step:
    """A line of ``steps.jsonl``."""

    epoch: int
    digest: str
    corrupt: tuple[str, ...] = ()
    """Keys of the samples that it was trained without."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A run as its directory has it. ``read_run`` makes it."""

    path: Path
    settings: Settings
    store: Path | None
    """Where its store was; None: it does not say."""
    fingerprint: str
    """Of the store that it was trained on; empty: not known."""
    identity: str
    """Of the decoder and the transform of its workers; empty: it has no checkpoint."""
    steps: Mapping[int, Step]
    """By their numbers, which count from 1."""
    epoch_samples: int | None
    """Samples of one epoch as planned; None: the first one is not over."""
    doubt: str
    """Why its settings are not those that it was trained with; empty: they are."""

    @property
    def last_step(self) -> int:
        """The last step that it has recorded, 0 where there is none."""
        return max(self.steps, default=0)

    def setting(self, name: str) -> Any:
        """A setting by its dotted name."""
        return setting_of(self.settings.model_dump(mode="json"), name)

    def place(self, step: int) -> tuple[Place, int]:
        """Where a recorded step's batch lies in its epoch, and how many samples were planned before it."""
        size = self.settings.batch_size
        if self.epoch_samples is None:
            return Place(0, (step - 1) * size, size), (step - 1) * size
        place = BatchPlan(self.epoch_samples, size, self.settings.remainder).place(step - 1)
        return place, place.epoch * self.epoch_samples + place.first

    def words(self, step: int) -> NDArray[np.uint32] | None:
        """The short digests of a step's planned samples, uint32 (rows,); None where the run has not kept them all."""
        place, before = self.place(step)
        try:
            words = np.fromfile(self.path / rundir.SAMPLES, "<u4", place.rows, offset=4 * before)
        except OSError:
            return None
        return words if len(words) == place.rows and words.all() else None


def read_run(path: Path) -> Recorded:
    """Read a run directory; the run may still go on. Raises SettingsError where there is no run."""
    if not (path / rundir.SETTINGS).is_file():
        raise SettingsError(f"{path} holds no run", hint="name a directory that fourstage run has written")
    settings = validated(read_toml(path / rundir.SETTINGS))
    origin = rundir.read_json(path / rundir.ORIGIN) if (path / rundir.ORIGIN).is_file() else {}
    saved = _last_state(path)
    try:
        steps, epoch_samples = _steps(path), _epoch_samples(path)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SettingsError(
            f"the lines of {path / rundir.STEPS} or {path / rundir.RECEIPT} are not a run's: {error!r}",
            hint="name a directory that this version of fourstage run has written",
        ) from error
    return Recorded(
        path=path,
        settings=settings,
        store=Path(str(origin["store"])) if "store" in origin else None,
        fingerprint=saved.store_fingerprint if saved else str(origin.get("fingerprint", "")),
        identity=saved.identity if saved else "",
        steps=steps,
        epoch_samples=epoch_samples,
        doubt=_doubt(settings, saved) if saved else "",
    )


def setting_of(values: Mapping[str, Any], name: str) -> Any:
    """The value of a dotted name in nested values."""
    section, _, field = name.rpartition(".")
    return (values[section] if section else values)[field]


def _steps(path: Path) -> dict[int, Step]:
    """Raises what a line that is no step's makes of itself."""
    return {
        operator.index(line["step"]): Step(
            operator.index(line["epoch"]), str(line["digest"]), tuple(map(str, line.get("corrupt", ())))
        )
        for line in rundir.read_lines(path / rundir.STEPS)
        if "digest" in line
    }


def _epoch_samples(path: Path) -> int | None:
    """Raises as ``_steps``."""
    first = next(iter(rundir.read_lines(path / rundir.RECEIPT)), None)
    return operator.index(first["samples"]) + len(first["corrupt"]) if first else None


def _last_state(path: Path) -> "CheckpointState | None":
    try:
        from fourstage.trainer import checkpoint
    except ModuleNotFoundError:
        return None  # Without torch all but the decoder's identity is in other files as well.
    try:
        found = checkpoint.latest(path)
    except FourstageError:
        return None  # What is asked about a run goes without; whoever resumes it is told.
    return found.state if found else None


def _doubt(settings: Settings, saved: "CheckpointState") -> str:
    values = settings.model_dump(mode="json")
    for name in BATCH_SETTINGS:
        now = setting_of(values, name)
        if name in saved.settings and saved.settings[name] != now:
            before = saved.settings[name]
            return f"{rundir.SETTINGS} says {name} = {now!r}, its checkpoint of step {saved.step} has {before!r}"
    return ""
