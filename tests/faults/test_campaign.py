"""A few seeds of the fault campaign for every change; ``make test-faults`` plays 230."""

import dataclasses

import numpy as np
import pytest

from tests.faults.draw import RULES, Stop, World, draw
from tests.faults.play import SAME, STOPPED, FaultError, Ground, check_same, play, prepare_ground

QUICK = (1, 7, 33, 44)
"""One in each world, and one that ends the run with words."""
MORE = tuple(seed for seed in range(46) if seed not in QUICK)
"""With those every kind of fault twice."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return prepare_ground(tmp_path_factory.mktemp("g"))


def test_the_quick_seeds_are_of_every_world_and_one_ends_the_run() -> None:
    plans = [draw(seed) for seed in QUICK]
    assert {plan.world for plan in plans} == set(World)
    assert any(RULES[blow.fault].stop is Stop.ALWAYS for plan in plans for blow in plan.blows)


@pytest.mark.parametrize("seed", [*QUICK, *(pytest.param(seed, marks=pytest.mark.slow) for seed in MORE)])
def test_whatever_breaks_the_bytes_and_losses_are_the_same_or_the_run_says_why_it_stops(
    ground: Ground, tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    outcome = play(seed, ground, tmp_path_factory.mktemp("f"))
    assert not outcome.failure, f"{outcome.failure}; seed {seed}: {outcome.plan}"
    assert outcome.how in (SAME, STOPPED)


def test_one_other_byte_or_loss_fails(ground: Ground) -> None:
    run_dir = ground.store.parent / "undisturbed"
    check_same(run_dir, ground)
    with pytest.raises(FaultError, match="other bytes"):
        check_same(run_dir, dataclasses.replace(ground, digest="0" * 32))
    other = [*ground.losses[:-1], float(np.nextafter(ground.losses[-1], 9.0))]
    with pytest.raises(FaultError, match=r"different: \[24\]"):
        check_same(run_dir, dataclasses.replace(ground, losses=other))
