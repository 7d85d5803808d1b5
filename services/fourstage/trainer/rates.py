"""Loss and error rates of an epoch or a test, and the sums that they are made of (no tensors)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeAlias

from pydantic import Field

TOP = 5

_Sum: TypeAlias = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Totals: TypeAlias = tuple[_Sum, _Sum, _Sum, _Sum]
"""Samples, sum of their losses in nats, top-1 errors, top-5 errors."""
NOTHING: Totals = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class ErrorRates:
    """Cross-entropy in nats; shares (0 to 1) of samples whose label is not the first, not in the first 5."""

    samples: int
    loss: float
    top1_error: float
    top5_error: float | None
    """None below six classes, where the first five say nothing."""

    @classmethod
    def of(cls, totals: Sequence[float], classes: int) -> "ErrorRates | None":
        """From ``Totals`` of one process or of several together; None where nothing was counted."""
        samples, loss, top1, top5 = totals
        if samples == 0:
            return None
        return cls(
            samples=int(samples),
            loss=loss / samples,
            top1_error=top1 / samples,
            top5_error=top5 / samples if classes > TOP else None,
        )
