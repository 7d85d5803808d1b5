"""Loss and error rates, added up on the device."""

import torch
from torch import Tensor
from torch.nn import functional

from fourstage.trainer.rates import TOP, ErrorRates


def mean_cross_entropy(logits: Tensor, labels: Tensor, *, batch_size: int) -> Tensor:
    """Cross-entropy of a share of a batch over the size of the whole batch: a scalar to call ``backward`` on.

    ``logits`` is (n,classes) float, ``labels`` (n,) int64. The shares of all ranks add up to the mean over
    the global batch of ``batch_size``, also where they differ in size or are empty.
    """
    return functional.cross_entropy(logits, labels, reduction="sum") / batch_size


class Errors:
    """Adds up batches without waiting for the device; ``result`` waits."""

    def __init__(self, classes: int, device: torch.device) -> None:
        """Start at zero, for logits of ``classes`` columns on ``device``."""
        self.totals = torch.zeros(4, dtype=torch.float64, device=device)
        """Samples, sum of losses, top-1 errors, top-5 errors: what several ranks would add together."""
        self._classes = classes
        self._columns = torch.arange(classes, device=device)

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch on the device: logits (N,classes) float, or log-probabilities, and labels (N,) int64.

        Of equal logits the lower class comes first. A logit that is not a number is ahead of the label.
        """
        own = logits.gather(1, labels[:, None])
        ahead = ~(logits <= own) | ((logits == own) & (self._columns < labels[:, None]))
        rank = ahead.sum(1)
        self.totals[0] += labels.shape[0]
        self.totals[1] += functional.cross_entropy(logits, labels, reduction="sum")
        self.totals[2] += (rank >= 1).sum()
        self.totals[3] += (rank >= TOP).sum()

    def result(self) -> ErrorRates | None:
        """The rates of all that was added; None where nothing was. Waits for the device."""
        return ErrorRates.of(self.totals.tolist(), self._classes)
