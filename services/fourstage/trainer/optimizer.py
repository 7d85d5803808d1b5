"""The paper's rule (section 5): v <- momentum * v - decay * rate * w - rate * gradient; w <- w + v."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class MomentumSGD:
    """Gradient descent whose velocity holds the rate.

    torch.optim.SGD multiplies the whole velocity by the present rate, so it differs from this at every change
    of the rate: here the old velocity keeps its size.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], *, momentum: float, weight_decay: float) -> None:
        """Start at rest; ``parameters`` are a network's ``named_parameters()``, already on their device."""
        named = dict(parameters)
        self.state: dict[str, Tensor] = {
            name: torch.zeros_like(parameter, requires_grad=False) for name, parameter in named.items()
        }
        self._names = list(named)
        self._weights: list[Tensor] = [*named.values()]
        self._velocities = list(self.state.values())
        self._momentum = momentum
        self._weight_decay = weight_decay

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Move every parameter, in place, by the gradients that ``backward`` has left in them."""
        gradients = [weight.grad for weight in self._weights if weight.grad is not None]
        if len(gradients) != len(self._weights):
            without = [name for name, weight in zip(self._names, self._weights, strict=True) if weight.grad is None]
            raise RuntimeError(f"no gradient for {', '.join(without)}: step comes after backward")
        torch._foreach_mul_(self._velocities, self._momentum)
        torch._foreach_add_(self._velocities, self._weights, alpha=-self._weight_decay * learning_rate)
        torch._foreach_add_(self._velocities, gradients, alpha=-learning_rate)
        torch._foreach_add_(self._weights, self._velocities, alpha=1)
