"""How far a long command is, for whoever draws the bar."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """A moment of ``prepare`` or ``verify``."""

    done: int
    """Images dealt with: taken or left out, checked."""

    total: int
    bytes: int
    """Bytes of shards written or read."""

    left_out: int
    """Images left out, or problems found."""


ProgressCallback = Callable[[Progress], None]
"""Called in the caller's own thread, about once for every 64 images."""
