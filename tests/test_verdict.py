"""The sentence that says what a run waits for."""

import pytest

from fourstage.verdict import Shares, bottleneck, shares
from fourstage.wire.messages import Usage

IDLE = Shares(0.1, 0.2, 0.7, 10)


def train(wait: float) -> Shares:
    return Shares(1.0 - wait, wait, 0.0, 10)


@pytest.mark.parametrize(
    ("load", "transform", "copy", "waits", "words"),
    [
        (IDLE, IDLE, IDLE, 0.0, "train-bound"),
        (
            IDLE,
            Shares(0.97, 0.03, 0.0, 9),
            IDLE,
            0.31,
            "transform-bound: augmenters are 97% busy, the trainer waits 31%",
        ),
        (Shares(0.9, 0.0, 0.1, 9), IDLE, IDLE, 0.5, "load-bound"),
        (IDLE, IDLE, Shares(0.8, 0.2, 0.0, 9), 0.5, "copy-bound"),
        (IDLE, IDLE, IDLE, 0.5, "latency-bound"),
    ],
)
def test_the_saturated_stage_is_named(load: Shares, transform: Shares, copy: Shares, waits: float, words: str) -> None:
    assert words in bottleneck(load, transform, copy, train(waits), augmenters=2)


@pytest.mark.parametrize(
    ("augmenters", "waits", "more"), [(2, 0.5, "2 more augmenters"), (4, 0.2, "1 more augmenter ")]
)
def test_as_many_augmenters_as_the_trainer_s_waiting_asks_for(augmenters: int, waits: float, more: str) -> None:
    sentence = bottleneck(IDLE, Shares(1.0, 0.0, 0.0, 9), IDLE, train(waits), augmenters=augmenters)
    assert f"about {more}" in sentence


def test_shares_of_an_interval() -> None:
    assert shares(Usage(2, 1.0, 1.0, 0.0), Usage(6, 4.0, 1.5, 0.5)) == Shares(0.75, 0.125, 0.125, 4)
    assert shares(Usage(), Usage()) == Shares(0.0, 0.0, 0.0, 0)


def test_before_the_first_batch_nothing_is_blamed() -> None:
    nothing = Shares(0.0, 0.0, 0.0, 0)
    assert bottleneck(nothing, nothing, nothing, nothing, augmenters=1) == "nothing has been trained on yet"
