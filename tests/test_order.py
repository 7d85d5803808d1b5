"""Every sample once per epoch, however the epoch is cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourstage.errors import SettingsError
from fourstage.order import BatchPlan, Order, permutation

CAREFUL = settings(max_examples=200, deadline=None, derandomize=True)


@CAREFUL
@given(st.integers(1, 200), st.integers(1, 50), st.integers(1, 5), st.integers(0, 2**63 - 1), st.integers(0, 3))
def test_the_ranks_together_use_every_sample_of_an_epoch_once(
    samples: int, batch_size: int, world: int, seed: int, epoch: int
) -> None:
    orders = [
        Order(BatchPlan(samples, batch_size, "keep", rank, world), seed=seed, shuffle=True) for rank in range(world)
    ]
    batches = orders[0].plan.batches_per_epoch
    seqs = range(epoch * batches, (epoch + 1) * batches)
    used = np.concatenate([order.indices(seq) for seq in seqs for order in orders])
    assert np.array_equal(np.sort(used), np.arange(samples))
    whole = Order(BatchPlan(samples, batch_size), seed=seed, shuffle=True)
    for seq in seqs:
        shares = [order.indices(seq) for order in orders]
        assert np.array_equal(np.concatenate(shares), whole.indices(seq))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert max(map(len, shares)) <= max(order.plan.largest_rows for order in orders)


@CAREFUL
@given(st.integers(1, 200), st.integers(1, 50))
def test_drop_leaves_out_only_what_fills_no_batch(samples: int, batch_size: int) -> None:
    if samples < batch_size:
        with pytest.raises(SettingsError, match="makes no batch"):
            BatchPlan(samples, batch_size, "drop")
        return
    plan = BatchPlan(samples, batch_size, "drop")
    assert {plan.place(seq).rows for seq in range(plan.batches_per_epoch)} == {batch_size}
    assert samples - plan.batches_per_epoch * batch_size < batch_size


@CAREFUL
@given(st.integers(2, 300), st.integers(0, 2**63 - 1), st.integers(0, 90))
def test_an_order_is_a_permutation_of_its_own(samples: int, seed: int, epoch: int) -> None:
    order = permutation(seed, epoch, samples)
    assert np.array_equal(np.sort(order), np.arange(samples))
    assert np.array_equal(order, permutation(seed, epoch, samples))


def test_epochs_and_seeds_differ_and_no_place_is_favoured() -> None:
    orders = np.stack([permutation(seed, epoch, 50) for seed in range(20) for epoch in range(20)])
    assert len({order.tobytes() for order in orders}) == 400
    # The mean of 400 uniform places has a standard deviation of 14.4 / 20; five of them are 3.6.
    assert np.abs(orders.mean(0) - 24.5).max() < 3.6


def test_without_shuffling_the_split_s_own_order_comes_again_and_again() -> None:
    order = Order(BatchPlan(5, 2), seed=1, shuffle=False)
    assert [order.indices(seq).tolist() for seq in range(4)] == [[0, 1], [2, 3], [4], [0, 1]]


def test_going_back_and_forth_between_epochs_changes_nothing() -> None:
    order = Order(BatchPlan(7, 7), seed=1, shuffle=True)
    first = [order.indices(seq).copy() for seq in range(5)]
    again = [order.indices(seq) for seq in (4, 0, 3, 1, 2)]
    assert all(np.array_equal(first[seq], indices) for seq, indices in zip((4, 0, 3, 1, 2), again, strict=True))
