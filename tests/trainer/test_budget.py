"""What a run may be trained without: charged in order, the same however it was interrupted."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourstage.errors import CheckpointError, CorruptSampleError
from fourstage.order import BatchPlan
from fourstage.trainer.budget import Budget, nothing_left
from fourstage.trainer.inbox import Skipped

SAMPLES, BATCH = 20, 6
PLAN = BatchPlan(SAMPLES, BATCH)
"""Batches of 6, 6, 6 and 2 samples."""


def budget(count: int = 1000, share: float = 1.0, consecutive: int = 1000) -> Budget:
    limits = SimpleNamespace(corrupt_count=count, corrupt_share=share, corrupt_consecutive=consecutive)
    return Budget.of(limits, SAMPLES)


def skipped(rows: list[int], first: int = 0) -> list[Skipped]:
    return [Skipped(row, f"key-{first + row}", first + row) for row in rows]


def charge(start: Budget, epochs: list[set[int]], begin: int = 0) -> Budget:
    """From batch ``begin`` on. epochs: positions that are corrupt; in every epoch the sample is its position."""
    for seq in range(begin, len(epochs) * PLAN.batches_per_epoch):
        place = PLAN.place(seq)
        rows = [row for row in range(place.rows) if place.first + row in epochs[place.epoch]]
        start = start.charged(place, skipped(rows, place.first))
    return start


def longest_run(flags: list[bool]) -> int:
    longest = now = 0
    for flag in flags:
        now = now + 1 if flag else 0
        longest = max(longest, now)
    return longest


EPOCHS = st.lists(st.sets(st.integers(0, SAMPLES - 1)), min_size=1, max_size=4)


@given(EPOCHS, st.integers(1, 25), st.floats(0.01, 1.0), st.integers(1, 25))
def test_it_ends_a_run_exactly_where_one_limit_is_passed(
    epochs: list[set[int]], count: int, share: float, consecutive: int
) -> None:
    order = [position in corrupt for corrupt in epochs for position in range(SAMPLES)]
    fits = (
        len(set().union(*epochs)) <= count
        and max(len(corrupt) for corrupt in epochs) <= max(1, int(share * SAMPLES))
        and longest_run(order) <= consecutive
    )
    if fits:
        charge(budget(count, share, consecutive), epochs)
    else:
        with pytest.raises(CorruptSampleError, match=r"allows \d+; fourstage verify --decode"):
            charge(budget(count, share, consecutive), epochs)


@given(EPOCHS, st.data())
def test_interrupted_anywhere_it_goes_on_as_if_nothing_had_been(epochs: list[set[int]], data: st.DataObject) -> None:
    whole = charge(budget(), epochs)
    stop = data.draw(st.integers(0, len(epochs) * PLAN.batches_per_epoch))
    before = budget()
    for seq in range(stop):
        place = PLAN.place(seq)
        rows = [row for row in range(place.rows) if place.first + row in epochs[place.epoch]]
        before = before.charged(place, skipped(rows, place.first))
    restored = budget().restored(json.loads(json.dumps(before.state())))
    assert restored == before
    assert charge(restored, epochs, stop) == whole


def test_a_sample_that_comes_in_every_epoch_counts_once() -> None:
    charge(budget(count=1), [{3}] * 4)
    with pytest.raises(CorruptSampleError, match=r"^2 different samples .* 'key-7': corrupt_count allows 1"):
        charge(budget(count=1), [{3}, {7}])


def test_one_sample_of_an_epoch_may_be_left_out_however_small_the_share() -> None:
    charge(budget(share=0.001), [{3}, {7}])
    with pytest.raises(CorruptSampleError, match=r"^2 samples of epoch 1 .* 'key-7': corrupt_share allows 1"):
        charge(budget(share=0.001), [{3}, {3, 7}])


def test_samples_one_behind_another_are_counted_across_batches_and_epochs() -> None:
    charge(budget(consecutive=2), [{4, 5, 7}])
    for epochs in ([{4, 5, 6}], [{18, 19}, {0}]):
        with pytest.raises(CorruptSampleError, match=r"^3 samples one behind another"):
            charge(budget(consecutive=2), epochs)


def test_nothing_is_made_of_a_batch_that_is_whole() -> None:
    before = budget()
    assert before.charged(PLAN.place(0), ()) is before


def test_limits_are_those_of_the_settings_and_not_of_the_checkpoint() -> None:
    spent = charge(budget(), [{3, 7}])
    assert budget(count=1).restored(spent.state()) == dataclasses.replace(spent, count=1)


@pytest.mark.parametrize("state", [{"known": "x"}, {"known": [-1]}, {"behind": True}, {"epoch": 1.5}])
def test_a_state_that_is_none_is_refused(state: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="budget"):
        budget().restored(state)


def test_a_batch_of_which_nothing_is_left_is_named_by_its_samples() -> None:
    said = str(nothing_left(4, skipped(list(range(7)))))
    assert said.startswith("no sample of batch 4 can be decoded ('key-0', 'key-1', 'key-2', 'key-3', 'key-4' and 2")
