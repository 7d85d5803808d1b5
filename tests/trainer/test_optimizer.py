"""The rule against the paper's formula in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from fourstage.trainer.optimizer import MomentumSGD

RATES = [0.01, 0.01, 0.01, 0.001, 0.001, 0.0001]


def gradients(seed: int, shape: tuple[int, ...]) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.normal(size=shape) for _ in RATES]


def follow(kind: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The weights of two parameters after all rates: ours, and the formula's."""
    shapes = [(3, 4), (5,)]
    start = [np.random.default_rng(seed).normal(size=shape) for seed, shape in enumerate(shapes)]
    steps = [gradients(seed + 10, shape) for seed, shape in enumerate(shapes)]
    parameters = [nn.Parameter(torch.tensor(weight)) for weight in start]
    ours = MomentumSGD(zip("ab", parameters, strict=True), momentum=0.9, weight_decay=0.0005)
    torchs = torch.optim.SGD(parameters, momentum=0.9, weight_decay=0.0005)
    for index, rate in enumerate(RATES):
        for parameter, own in zip(parameters, steps, strict=True):
            parameter.grad = torch.tensor(own[index])
        if kind == "ours":
            ours.step(rate)
        else:
            torchs.param_groups[0]["lr"] = rate
            torchs.step()
    expected = []
    for weight, own in zip(start, steps, strict=True):
        velocity = np.zeros_like(weight)
        for rate, gradient in zip(RATES, own, strict=True):
            velocity = 0.9 * velocity - 0.0005 * rate * weight - rate * gradient
            weight = weight + velocity
        expected.append(weight)
    return [parameter.detach().numpy() for parameter in parameters], expected


def test_the_rule_is_the_papers_across_changes_of_rate() -> None:
    for ours, expected in zip(*follow("ours"), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-12)


def test_torchs_rule_is_another() -> None:
    """The reason for our own: after a drop the old velocity keeps its size."""
    for theirs, expected in zip(*follow("torch"), strict=True):
        assert not np.allclose(theirs, expected, rtol=1e-4)


@pytest.mark.parametrize("bias_rate", [None, 0.02])
@pytest.mark.parametrize("bias_decay", [True, False])
def test_biases_may_have_a_rate_of_their_own_and_no_decay(bias_rate: float | None, bias_decay: bool) -> None:
    names = ["conv1.weight", "conv1.bias", "bias", "bias.weight"]
    start = [np.random.default_rng(seed).normal(size=6) for seed in range(4)]
    steps = [gradients(seed + 20, (6,)) for seed in range(4)]
    parameters = [nn.Parameter(torch.tensor(weight)) for weight in start]
    optimizer = MomentumSGD(
        zip(names, parameters, strict=True),
        momentum=0.9,
        weight_decay=0.0005,
        bias_rate=bias_rate,
        bias_decay=bias_decay,
    )
    for index, rate in enumerate(RATES):
        for parameter, own in zip(parameters, steps, strict=True):
            parameter.grad = torch.tensor(own[index])
        optimizer.step(rate)
    for name, parameter, weight, own in zip(names, parameters, start, steps, strict=True):
        is_bias = name in ("conv1.bias", "bias")
        decay = 0.0 if is_bias and not bias_decay else 0.0005
        velocity = np.zeros_like(weight)
        for rate, gradient in zip(RATES, own, strict=True):
            own_rate = bias_rate if is_bias and bias_rate is not None else rate
            velocity = 0.9 * velocity - decay * own_rate * weight - own_rate * gradient
            weight = weight + velocity
        np.testing.assert_allclose(parameter.detach().numpy(), weight, rtol=1e-12)
        np.testing.assert_allclose(optimizer.state[name].numpy(), velocity, rtol=1e-12)


def test_the_halves_of_a_parameter_move_as_the_whole() -> None:
    """Columns hold half of the kernels each, and half of the biases."""
    generator = torch.Generator().manual_seed(1)
    whole = {name: torch.randn(shape, generator=generator) for name, shape in (("c.weight", (4, 3)), ("c.bias", (4,)))}
    slopes = [{name: torch.randn(w.shape, generator=generator) for name, w in whole.items()} for _ in RATES]

    def moved(rows: slice) -> dict[str, torch.Tensor]:
        parameters = {name: nn.Parameter(tensor[rows].clone()) for name, tensor in whole.items()}
        optimizer = MomentumSGD(parameters.items(), momentum=0.9, weight_decay=0.0005, bias_rate=0.02, bias_decay=False)
        for rate, gradient in zip(RATES, slopes, strict=True):
            for name, parameter in parameters.items():
                parameter.grad = gradient[name][rows].clone()
            optimizer.step(rate)
        return {name: parameter.detach() for name, parameter in parameters.items()}

    halves = (moved(slice(0, 2)), moved(slice(2, 4)))
    for name, tensor in moved(slice(0, 4)).items():
        assert torch.equal(torch.cat([half[name] for half in halves]), tensor)


def test_the_state_is_the_velocities_and_can_be_set() -> None:
    weight = nn.Parameter(torch.ones(3))
    one = MomentumSGD([("w", weight)], momentum=0.9, weight_decay=0.0)
    weight.grad = torch.ones(3)
    one.step(0.5)
    assert one.state["w"].tolist() == [-0.5] * 3
    other = MomentumSGD([("w", weight)], momentum=0.9, weight_decay=0.0)
    other.state["w"].copy_(one.state["w"])
    weight.grad = torch.zeros(3)
    other.step(0.5)
    assert torch.allclose(weight, torch.full((3,), 1.0 - 0.5 - 0.45))


def test_a_step_without_gradients_is_refused() -> None:
    optimizer = MomentumSGD([("conv1.weight", nn.Parameter(torch.ones(3)))], momentum=0.9, weight_decay=0.0)
    with pytest.raises(RuntimeError, match=r"conv1\.weight"):
        optimizer.step(0.1)
