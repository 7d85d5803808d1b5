"""The rate of the weights, epoch by epoch: by plateau, at given epochs, or by hand (no clock, no file, no device)."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from fourstage.errors import CheckpointError
from fourstage.settings import Rate, TrainSettings

_FORBID = ConfigDict(extra="forbid")
_Epoch = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, slots=True, config=_FORBID)
class ManualChange:
    """Somebody set the rate."""

    step: Annotated[int, Field(ge=0)]
    """Steps that had been taken by then."""
    epoch: _Epoch
    rate: Rate


@dataclass(frozen=True, slots=True, config=_FORBID)
class ScheduleState:
    """What has happened; all that a checkpoint needs."""

    drops: tuple[_Epoch, ...] = ()
    """Epochs at whose beginning a plateau lowered the rate."""
    best_error: Annotated[float, Field(allow_inf_nan=False)] | None = None
    best_epoch: _Epoch = 0
    changes: tuple[ManualChange, ...] = ()
    """Every rate that was set by hand, in order."""


class Schedule:
    """The rate by the settings and by what has happened. Epochs are counted from 0.

    ``plateau`` (paper, section 5): divided by ten when the validation error has not improved for ``train.patience``
    epochs, ``train.drops`` times in all. ``epochs``: divided by ten at the beginning of each of ``train.drop_epochs``.
    A rate set by hand holds from then on, and later drops divide it.
    """

    def __init__(self, train: TrainSettings, happened: ScheduleState | None = None) -> None:
        """Begin a run, or go on after what has ``happened``."""
        self._train = train
        self._happened = happened or ScheduleState()

    @property
    def happened(self) -> ScheduleState:
        """Drops and changes so far."""
        return self._happened

    def rate(self, epoch: int) -> float:
        """The weights' rate in the present epoch, or in a later one if nothing happens until then."""
        base, since = self._train.learning_rate, 0
        if self._happened.changes:
            last = self._happened.changes[-1]
            base, since = last.rate, last.epoch
        drops = self._train.drop_epochs if self._train.schedule == "epochs" else self._happened.drops
        return float(base / 10 ** sum(since < drop <= epoch for drop in drops))

    def after_epoch(self, epoch: int, error: float | None) -> None:
        """An epoch is over, with a validation error of 0 to 1; without a validation split it is the training error.

        None, where it was not measured, decides nothing; the epoch counts as one without a lower error.
        """
        state, train = self._happened, self._train
        if train.schedule != "plateau" or error is None:
            return
        if state.best_error is None or error < state.best_error:
            self._happened = replace(state, best_error=error, best_epoch=epoch)
            return
        # A lower rate, by plateau or by hand, gets as many epochs to show what it can do.
        lowered = [drop - 1 for drop in state.drops] + [change.epoch for change in state.changes]
        if epoch - max([state.best_epoch, *lowered]) >= train.patience and len(state.drops) < train.drops:
            self._happened = replace(state, drops=(*state.drops, epoch + 1))

    def set_by_hand(self, step: int, rate: float, *, epoch: int) -> None:
        """From the step after ``step``, which lies in ``epoch``, the rate is this one."""
        change = ManualChange(step, epoch, rate)
        self._happened = replace(self._happened, changes=(*self._happened.changes, change))

    def state(self) -> dict[str, Any]:
        """What has happened, as JSON values."""
        return asdict(self._happened)

    @classmethod
    def from_state(cls, train: TrainSettings, state: Mapping[str, Any]) -> Self:
        """Go on from a checkpoint; an empty state is a run's beginning. Raises CheckpointError for what is none."""
        try:
            return cls(train, TypeAdapter(ScheduleState).validate_python(dict(state)))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise CheckpointError(f"the checkpoint's schedule is damaged: {place}: {first['msg']}") from error
