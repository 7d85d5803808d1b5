"""The rate of each epoch."""

import pytest

from fourstage.settings import TrainSettings
from fourstage.trainer.schedule import learning_rate


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [(0, 0.01), (24, 0.01), (25, 0.001), (50, 0.001), (51, 0.0001), (67, 0.00001), (90, 0.00001)],
)
def test_the_rate_drops_at_the_beginning_of_each_epoch_named(epoch: int, rate: float) -> None:
    train = TrainSettings(learning_rate=0.01, drop_epochs=(51, 25, 67))
    assert learning_rate(train, epoch) == pytest.approx(rate, rel=1e-12)


def test_without_drops_it_stays() -> None:
    assert learning_rate(TrainSettings(learning_rate=0.02), 89) == 0.02
