"""The paper's rule (section 5): v <- momentum * v - decay * rate * w - rate * gradient; w <- w + v."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(slots=True)
class _Group:
    """Parameters that share a rate and a decay."""

    rate: float | None
    """None: that of the step."""
    decay: float
    names: list[str] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    velocities: list[Tensor] = field(default_factory=list)


class MomentumSGD:
    """Gradient descent whose velocity holds the rate.

    torch.optim.SGD multiplies the whole velocity by the present rate, so it differs from this at every change
    of the rate: here the old velocity keeps its size.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        momentum: float,
        weight_decay: float,
        bias_rate: float | None = None,
        bias_decay: bool = True,
    ) -> None:
        """Start at rest; ``parameters`` are a network's ``named_parameters()``, already on their device, or those of
        a part of it.

        bias_rate: of every parameter that is called ``bias``, at every step; None: the step's
        bias_decay: whether those decay as well
        """
        self.state: dict[str, Tensor] = {}
        """The velocities, by parameter name."""
        groups: dict[tuple[float | None, float], _Group] = {}
        for name, parameter in parameters:
            is_bias = name.rpartition(".")[2] == "bias"
            rate = bias_rate if is_bias else None
            decay = weight_decay if bias_decay or not is_bias else 0.0
            group = groups.setdefault((rate, decay), _Group(rate, decay))
            velocity = torch.zeros_like(parameter, requires_grad=False)
            self.state[name] = velocity
            group.names.append(name)
            group.weights.append(parameter)
            group.velocities.append(velocity)
        self._groups = list(groups.values())
        self._momentum = momentum

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Move every parameter, in place, by the gradients that ``backward`` has left in them."""
        for group in self._groups:
            gradients = [weight.grad for weight in group.weights if weight.grad is not None]
            if len(gradients) != len(group.weights):
                without = [name for name, weight in zip(group.names, group.weights, strict=True) if weight.grad is None]
                raise RuntimeError(f"no gradient for {', '.join(without)}: step comes after backward")
            rate = learning_rate if group.rate is None else group.rate
            torch._foreach_mul_(group.velocities, self._momentum)
            torch._foreach_add_(group.velocities, group.weights, alpha=-group.decay * rate)
            torch._foreach_add_(group.velocities, gradients, alpha=-rate)
            torch._foreach_add_(group.weights, group.velocities, alpha=1)
