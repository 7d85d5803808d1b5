"""What a learner counts of its steps."""

import torch

from fourstage.process import StopFlag
from fourstage.resolve import load_settings
from fourstage.trainer.group import Group
from fourstage.trainer.layout import Layout
from fourstage.trainer.learner import NetworkLearner

CPU = torch.device("cpu")


def test_the_recorded_loss_of_a_network_in_bf16_was_rounded_to_bf16() -> None:
    settings = load_settings("cifar-relu", overrides=["train.precision=bf16"], environment={})
    crop = settings.augmenter.crop
    with Group(Layout(0, 1, 1), CPU, StopFlag()) as group:
        learner = NetworkLearner(settings, classes=10, device=CPU, group=group)
        images = torch.randn(128, 3, crop, crop, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(128) % 10
        loss = learner.train(images, labels, step=0, first_row=0, rows=128, rate=0.0)
    samples, total, *_ = learner.trained()
    assert samples == 128
    torch.testing.assert_close(total / samples, float(loss), rtol=1e-6, atol=0.0)
