"""The learning rate of each epoch."""

from fourstage.settings import TrainSettings


def learning_rate(train: TrainSettings, epoch: int) -> float:
    """The rate of an epoch (from 0): divided by ten at each of ``drop_epochs`` (paper, section 5)."""
    drops = sum(drop <= epoch for drop in train.drop_epochs)
    return float(train.learning_rate / 10**drops)
