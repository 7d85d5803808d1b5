"""The controller of the augmenters' number in a closed loop: it gets there, stays there, and never swings."""

import dataclasses
import itertools
import math
import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fourstage.by_hand import LARGEST_SCALE
from fourstage.engine.autoscale import FEWER_SECONDS, SPARE, Autoscale, Seen
from fourstage.verdict import WAITING, Reading
from fourstage.wire.messages import Usage
from tests.engine.world import World

many = settings(max_examples=60, deadline=None, derandomize=True)
noises = st.floats(0.0, 0.1)
batches = st.floats(0.02, 1.0)
"""Seconds of a batch."""


def bounds(work: float, noise: float) -> tuple[int, int]:
    """The least and the most that are right where ``work`` augmenters would be busy all the time."""
    wanted = (1.0 - WAITING) * work
    # The noise of single half seconds is averaged over three seconds at least.
    return max(1, math.ceil(wanted * (1.0 - noise / 2))), max(1, math.ceil(wanted * (1.0 + noise / 2)))


def steady(counts: list[int]) -> bool:
    """Whether it went one way only."""
    return counts in (sorted(counts), sorted(counts, reverse=True))


@many
@given(batches, st.floats(0.3, 16.0), noises, st.sampled_from(["train", "load", "copy"]), st.integers(0, 2**32))
def test_it_reaches_what_the_rest_can_take_within_thirty_seconds_and_stays(
    augmenter: float, work: float, noise: float, narrow: str, seed: int
) -> None:
    world = World(Autoscale(), augmenter, augmenter / work, noise=noise, chance=random.Random(seed))
    if narrow != "train":
        world.train /= 3
        setattr(world, narrow, augmenter / work)
    low, high = bounds(work, noise)
    world.run(30.0)
    assert low <= world.count <= high
    reached = world.count
    world.run(300.0)
    assert steady(world.counts)
    if low == high:
        assert world.count == reached
    else:
        # On the edge between two numbers it may take the larger one later, once.
        assert low <= reached <= world.count <= high


@many
@given(batches, st.floats(1.0, 40.0), st.integers(1, 12), st.integers(1, 12), noises, st.integers(0, 2**32))
def test_work_that_takes_cores_never_gets_more_augmenters_than_cores(
    augmenter: float, work: float, cores: int, first: int, noise: float, seed: int
) -> None:
    assume(first <= cores)
    world = World(
        Autoscale(), augmenter, augmenter / work, first, cores=cores, costs=1.0, noise=noise,
        chance=random.Random(seed),
    )  # fmt: skip
    world.run(240.0)
    assert max(world.counts) <= cores
    assert world.count >= min(cores, bounds(work, noise)[0])


@many
@given(batches, st.lists(st.floats(0.5, 12.0), min_size=2, max_size=5), noises, st.integers(0, 2**32))
def test_it_follows_a_changing_demand_without_swinging(
    augmenter: float, demands: list[float], noise: float, seed: int
) -> None:
    world = World(Autoscale(), augmenter, augmenter, noise=noise, chance=random.Random(seed))
    for work in demands:
        world.train = augmenter / work
        world.counts = [world.count]
        world.run(150.0)
        assert steady(world.counts)
        least = bounds(work, noise)[0]
        most = math.ceil((1.0 + SPARE) * work * (1.0 + noise / 2))
        assert least <= world.count <= max(1, most)


def test_fewer_leave_only_after_thirty_seconds_of_being_too_many() -> None:
    world = World(Autoscale(), augmenter=0.3, train=0.05, count=6)
    world.run(30.0)
    assert world.count == 6
    world.train = 0.15
    fell = world.now
    decisions = world.run(120.0)
    assert world.counts == [6, 3]
    assert decisions[-1][0] - fell > FEWER_SECONDS
    assert "to spare" in decisions[-1][1].reason


def test_a_lull_that_ends_within_thirty_seconds_changes_nothing() -> None:
    world = World(Autoscale(), augmenter=0.3, train=0.05, count=6)
    for train in itertools.islice(itertools.cycle((0.15, 0.05)), 10):
        world.train = train
        assert world.run(15.0) == []


def test_it_at_most_doubles_and_then_waits_until_it_has_measured_the_new_state() -> None:
    world = World(Autoscale(), augmenter=0.8, train=0.1)
    decisions = world.run(60.0)
    assert world.counts == [1, 2, 4, 8]
    assert all(later - earlier >= 4.5 for (earlier, _), (later, _) in itertools.pairwise(decisions))
    assert "the trainer waits" in decisions[0][1].reason
    assert "8 would feed it" in decisions[0][1].reason


@pytest.mark.parametrize(("slow", "words"), [("load", "reading from disk"), ("copy", "the copy to the device")])
def test_where_more_would_not_help_it_says_so_once_and_does_nothing(slow: str, words: str) -> None:
    world = World(Autoscale(), augmenter=0.1, train=0.05, count=1)
    setattr(world, slow, 0.11)
    decisions = world.run(120.0)
    assert world.counts == [1]
    assert [words in decision.reason for _, decision in decisions] == [True]


def test_without_an_idle_core_it_says_so_once_and_takes_one_that_comes_free() -> None:
    world = World(Autoscale(), augmenter=0.3, train=0.1, cores=1.0, costs=1.0)
    decisions = world.run(60.0)
    assert world.counts == [1]
    assert ["no core is idle" in decision.reason for _, decision in decisions] == [True]
    world.cores = 8.0
    world.run(30.0)
    assert world.counts == [1, 2, 3]


def test_augmenters_that_only_sleep_need_no_idle_core() -> None:
    world = World(Autoscale(), augmenter=0.3, train=0.1, cores=4.0, costs=0.02, taken=4.0)
    world.run(30.0)
    assert world.counts == [1, 2, 3]


def test_augmenters_that_are_starved_of_cores_are_not_taken_for_sleeping_ones() -> None:
    world = World(Autoscale(), augmenter=0.1, train=0.1, count=2, cores=0.1, costs=1.0)
    decisions = world.run(120.0)
    assert world.counts == [2]
    assert ["no core is idle" in decision.reason for _, decision in decisions] == [True]


def test_of_several_trainers_with_streams_of_their_own_each_wants_to_be_fed() -> None:
    """The counters know the steps of one of them."""
    world = World(Autoscale(replicas=4), augmenter=0.3, train=0.1)
    decisions = world.run(10.0)
    assert "12 would feed it" in decisions[0][1].reason


def looks(controller: Autoscale, *, what: str, present: int, count: int, until: float, began: float = 0.0) -> list[str]:
    """What it says to a run that waits two thirds of the time. began: when the trainer did, the rest at 0"""
    said = []
    for turn in range(round((until - began) * 2)):
        at = began + turn / 2
        made, done = int(10 * at), int(10 * (at - began))
        usages = {
            "load": Usage(made, 0.001 * made, 0.0, 0.0), "transform": Usage(made, 0.3 * made, 0.0, 0.0),
            "copy": Usage(done, 0.001 * done, 0.0, 0.0), "train": Usage(done, 0.03 * done, 0.06 * done, 0.0),
        }  # fmt: skip
        seen = Seen(Reading(usages, at), count, present, what, 0.01 * at, (8.0 * at,))
        if (decision := controller.look(seen)) is not None:
            said.append(decision.reason)
    return said


def test_nothing_is_decided_before_training_has_begun_or_while_augmenters_are_coming() -> None:
    assert looks(Autoscale(), what="starting", present=1, count=1, until=30.0) == []
    assert looks(Autoscale(), what="transform", present=1, count=2, until=30.0) == []
    assert looks(Autoscale(), what="transform", present=2, count=2, until=30.0) != []


@pytest.mark.parametrize("what", ["load", "copy", "to-augmenter", "to-trainer", "peer"])
def test_a_run_that_waits_for_something_else_gets_no_augmenter(what: str) -> None:
    said = looks(Autoscale(), what=what, present=2, count=2, until=30.0)
    assert ["more would not help" in words for words in said] == [True]


def test_counters_that_begin_again_are_not_taken_for_a_measurement() -> None:
    controller = Autoscale()
    assert looks(controller, what="transform", present=2, count=2, until=2.5) == []
    # A trainer that was killed counts from zero: its own three seconds are waited for.
    assert looks(controller, what="transform", present=2, count=2, began=2.5, until=5.0) == []
    assert looks(controller, what="transform", present=2, count=2, began=5.0, until=9.0) != []


def test_it_never_asks_for_more_than_one_run_can_have() -> None:
    controller = Autoscale()
    seen = Seen(Reading({}, 0.0), LARGEST_SCALE, LARGEST_SCALE, "transform", 0.0, (0.0,))
    busy = {
        stage: Usage(10**5, seconds, 0.0, 0.0)
        for stage, seconds in (("load", 1.0), ("transform", 10.0**6), ("copy", 1.0), ("train", 10.0))
    }
    assert controller.look(seen) is None
    later = dataclasses.replace(seen, reading=Reading(busy, 10.0), idle=(10.0**6,))
    assert controller.look(later) is None
