"""The rate of each epoch: by plateau, at given epochs, by hand, and through a checkpoint."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourstage.errors import CheckpointError
from fourstage.settings import TrainSettings
from fourstage.trainer.schedule import ManualChange, Schedule, ScheduleState

CAREFUL = settings(max_examples=200, deadline=None, derandomize=True)
PLATEAU = TrainSettings(schedule="plateau", patience=3)
errors = st.none() | st.sampled_from([0.9, 0.5, 0.4, 0.3, 0.2, 0.1]) | st.floats(0.0, 1.0)


def after(train: TrainSettings, errors: Sequence[float | None]) -> Schedule:
    """The schedule after epochs with these errors."""
    schedule = Schedule(train)
    for epoch, error in enumerate(errors):
        schedule.after_epoch(epoch, error)
    return schedule


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [(0, 0.01), (24, 0.01), (25, 0.001), (50, 0.001), (51, 0.0001), (67, 0.00001), (90, 0.00001)],
)
def test_the_rate_drops_at_the_beginning_of_each_epoch_named(epoch: int, rate: float) -> None:
    train = TrainSettings(learning_rate=0.01, drop_epochs=(51, 25, 67))
    assert Schedule(train).rate(epoch) == pytest.approx(rate, rel=1e-12)
    assert after(train, [0.5] * epoch).rate(epoch) == Schedule(train).rate(epoch)


def test_without_drops_it_stays() -> None:
    assert Schedule(TrainSettings(learning_rate=0.02)).rate(89) == 0.02


def test_a_plateau_divides_by_ten_after_so_many_epochs_without_a_lower_error() -> None:
    falling = [0.9, 0.8, 0.7]
    assert after(PLATEAU, [*falling, 0.7, 0.7]).rate(5) == 0.01
    assert after(PLATEAU, [*falling, 0.7, 0.7, 0.69]).rate(6) == 0.01
    dropped = after(PLATEAU, [*falling, 0.7, 0.75, 0.8])
    assert [dropped.rate(epoch) for epoch in (5, 6, 7)] == [0.01, 0.001, 0.001]


def test_a_lower_rate_gets_as_many_epochs_as_the_one_before() -> None:
    assert [after(PLATEAU, [0.5] * epochs).rate(epochs) for epochs in range(9)] == pytest.approx(
        [0.01] * 4 + [0.001] * 3 + [0.0001] * 2
    )


def test_after_the_third_drop_nothing_happens() -> None:
    assert after(PLATEAU, [0.5] * 100).rate(100) == pytest.approx(1e-5)
    assert after(TrainSettings(schedule="plateau", drops=0), [0.5] * 100).rate(100) == 0.01


def test_epochs_that_were_not_measured_decide_nothing() -> None:
    assert after(PLATEAU, [None] * 50).rate(50) == 0.01
    assert after(PLATEAU, [0.5, None, None, None, None]).rate(5) == 0.01


@CAREFUL
@given(st.lists(errors, max_size=60), st.integers(1, 8), st.integers(0, 4))
def test_a_plateau_is_what_it_says(measured: list[float | None], patience: int, drops: int) -> None:
    train = TrainSettings(schedule="plateau", patience=patience, drops=drops)
    schedule = after(train, measured)
    found = schedule.happened.drops
    assert len(found) <= drops
    for before, drop in zip([0, *found], found, strict=False):
        assert drop - before >= patience
        # Nothing since the last ``patience`` epochs began was lower than all before them.
        earlier = [error for error in measured[: drop - patience] if error is not None]
        late = [error for error in measured[drop - patience : drop] if error is not None]
        assert late
        assert earlier
        assert min(late) >= min(earlier)
    assert schedule.rate(len(measured)) == 0.01 / 10 ** len(found)


@CAREFUL
@given(st.lists(errors, max_size=40), st.integers(0, 40), st.integers(0, 40), st.booleans())
def test_through_a_checkpoint_it_goes_on_as_if_it_had_not_stopped(
    measured: list[float | None], cut: int, by_hand: int, plateau: bool
) -> None:
    train = PLATEAU if plateau else TrainSettings(drop_epochs=(3, 7))
    whole, parts = Schedule(train), Schedule(train)
    for epoch, error in enumerate(measured):
        if epoch == cut:
            parts = Schedule.from_state(train, json.loads(json.dumps(parts.state())))
        for schedule in (whole, parts):
            if epoch == by_hand:
                schedule.set_by_hand(10 * epoch + 5, 0.003, epoch=epoch)
            schedule.after_epoch(epoch, error)
        assert parts.happened == whole.happened
        assert parts.rate(epoch + 1) == whole.rate(epoch + 1)


def test_a_rate_set_by_hand_holds_and_later_drops_divide_it() -> None:
    schedule = Schedule(TrainSettings(learning_rate=0.01, drop_epochs=(5, 10)))
    schedule.set_by_hand(70, 0.04, epoch=7)
    assert [schedule.rate(epoch) for epoch in (7, 9, 10)] == [0.04, 0.04, 0.004]
    schedule.set_by_hand(105, 0.5, epoch=10)
    assert schedule.rate(11) == 0.5
    assert schedule.happened.changes == (ManualChange(70, 7, 0.04), ManualChange(105, 10, 0.5))


def test_a_rate_set_by_hand_begins_the_wait_for_a_plateau_anew_but_not_the_count_of_drops() -> None:
    schedule = after(PLATEAU, [0.5] * 6)
    assert schedule.happened.drops == (4,)
    schedule.set_by_hand(60, 0.2, epoch=5)
    rates = []
    for epoch in range(6, 20):
        rates.append(schedule.rate(epoch))
        schedule.after_epoch(epoch, 0.5)
    assert rates == pytest.approx([0.2] * 3 + [0.02] * 3 + [0.002] * 8)


@pytest.mark.parametrize(
    ("state", "what"),
    [
        ({"drops": "soon"}, "drops"),
        ({"changes": [{"step": 1, "epoch": 0}]}, "changes.0.rate"),
        ({"changes": [{"step": 1, "epoch": 0, "rate": -1.0}]}, "changes.0.rate"),
        ({"best_error": "low"}, "best_error"),
        ({"rate": 0.1}, "rate"),
    ],
)
def test_a_damaged_state_is_refused(state: dict[str, Any], what: str) -> None:
    with pytest.raises(CheckpointError, match=what):
        Schedule.from_state(PLATEAU, state)


def test_an_empty_state_is_a_beginning() -> None:
    assert Schedule.from_state(PLATEAU, {}).happened == ScheduleState()
