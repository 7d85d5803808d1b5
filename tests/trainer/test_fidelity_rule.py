"""Rule and schedule of each preset against NumPy and float64; docs/fidelity.md has the rows."""

import numpy as np
import pytest
import torch
from torch import nn

from fourstage.resolve import load_settings
from fourstage.trainer.optimizer import MomentumSGD
from fourstage.trainer.schedule import Schedule
from tests.trainer.fidelity import FLOAT32, FLOAT64, Floats, follow_rule, relative_error

RECIPES = ["alexnet", "alexnet-code-2012"]
SHAPES = {"conv1.weight": (6, 3, 5, 5), "conv1.bias": (6,), "fc8.weight": (10, 12), "fc8.bias": (10,)}
EPOCHS = [0, 23, 24, 25, 26, 50, 51, 52, 66, 67, 68, 90]
"""Of one step each, around every change of the rate."""


def code_rate(epoch: int) -> float:
    """Net 145's rate of the weights."""
    return 0.01 if epoch < 25 else 0.001 if epoch < 51 else 0.0001 if epoch < 67 else 0.00001


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, FLOAT64), (torch.float32, FLOAT32)])
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_rule_of_each_preset_across_changes_of_rate(recipe: str, dtype: torch.dtype, bound: float) -> None:
    """Rows 3 and 8: the velocity holds eps; biases by eps 0.02 and without decay, or as the weights."""
    train = load_settings(recipe, environment={}).train
    generator = np.random.default_rng(8)
    start: dict[str, Floats] = {name: generator.normal(size=shape) for name, shape in SHAPES.items()}
    gradients = {name: [generator.normal(size=shape) for _ in EPOCHS] for name, shape in SHAPES.items()}
    parameters = {name: nn.Parameter(torch.tensor(weight, dtype=dtype)) for name, weight in start.items()}
    optimizer = MomentumSGD(
        parameters.items(), momentum=train.momentum, weight_decay=train.weight_decay, bias_rate=train.bias_rate,
        bias_decay=train.bias_decay,
    )  # fmt: skip
    rates = [code_rate(epoch) for epoch in EPOCHS]
    for step, rate in enumerate(rates):
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(gradients[name][step], dtype=dtype)
        optimizer.step(rate)
    for name, parameter in parameters.items():
        of_code = recipe == "alexnet-code-2012" and name.endswith("bias")
        own_rates, decay = ([0.02] * len(rates), 0.0) if of_code else (rates, 0.0005)
        weight, velocity = follow_rule(start[name], gradients[name], own_rates, decay)
        assert relative_error(parameter.detach().numpy(), weight) < bound
        assert relative_error(optimizer.state[name].numpy(), velocity) < bound


def test_the_schedule_of_the_code() -> None:
    """Row 15: net 145's rates, its 91 epochs, and the epoch that ends the colour shift."""
    settings = load_settings("alexnet-code-2012", environment={})
    schedule = Schedule(settings.train)
    assert settings.train.epochs == 91
    for epoch in range(91):
        assert schedule.rate(epoch) == pytest.approx(code_rate(epoch), rel=1e-12)
        schedule.after_epoch(epoch, 0.5)
    assert settings.colour_epochs == 67


def test_the_schedule_of_the_paper() -> None:
    """Row 15: 0.01, divided by ten when the validation error stops improving, three times; 90 epochs."""
    settings = load_settings("alexnet", environment={})
    schedule = Schedule(settings.train)
    rates = []
    best, since, rate, left = 1.0, 0, 0.01, 3
    expected = []
    for epoch in range(settings.train.epochs):
        rates.append(schedule.rate(epoch))
        expected.append(rate)
        # It falls through ten of every 25 epochs, and with the rate.
        error = 0.9 * rate**0.1 + 0.01 * max(0, 10 - epoch % 25)
        schedule.after_epoch(epoch, error)
        best, since = (error, 0) if error < best else (best, since + 1)
        if since >= settings.train.patience and left:
            rate, since, left = rate / 10, 0, left - 1
    assert settings.train.epochs == 90
    assert rates == pytest.approx(expected, rel=1e-12)
    assert (rates[0], rates[-1]) == pytest.approx((0.01, 1e-5))
