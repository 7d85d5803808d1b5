"""What the trainers of one training agree on before each step (pure).

Every trainer brings a vote; all of them see all votes and so come to the same decision: whether the step is taken,
whether a checkpoint follows it, at which rate set by hand, and which samples the whole batch is made of.
"""

import math
import struct
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from fourstage.errors import FourstageError
from fourstage.trainer.receipt import DIGEST_BYTES, skipped_rows

_HEAD = struct.Struct("<???xId")


@dataclass(frozen=True, slots=True)
class Vote:
    """One trainer's word on the step that comes next."""

    ready: bool
    """The batch lies on its device."""

    stop: bool = False
    """It was told to stop."""

    save: bool = False
    """A checkpoint is due after this step; only the first trainer's word counts."""

    rate: float = math.nan
    """A learning rate set by hand, or not a number; only the first trainer's word counts."""

    samples: bytes = b""
    """The digests of its planned rows, 16 bytes each, zeros where one was skipped."""

    def pack(self, rows: int) -> bytes:
        """The same length for every trainer; rows: of the largest share."""
        count = len(self.samples) // DIGEST_BYTES
        return _HEAD.pack(self.ready, self.stop, self.save, count, self.rate) + self.samples.ljust(
            rows * DIGEST_BYTES, b"\0"
        )

    @classmethod
    def unpack(cls, data: bytes) -> "Vote":
        ready, stop, save, count, rate = _HEAD.unpack_from(data)
        return cls(ready, stop, save, rate, data[_HEAD.size : _HEAD.size + count * DIGEST_BYTES])


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows from all votes, the same at every trainer."""

    go: bool
    save: bool
    rate: float | None
    samples: bytes
    """The digests of the whole batch in its order, zeros where a row was skipped."""
    skipped: tuple[int, ...] = ()
    """The rows that were, of the whole batch as planned."""

    def closed_up(self, row: int) -> int:
        """Where a planned row of the whole batch lies among those that are there."""
        return row - bisect_left(self.skipped, row)


def decide(votes: Sequence[Vote], columns: int) -> Decision:
    """The decision on votes in the order of ranks. Raises FourstageError where two columns hold different bytes."""
    leading = votes[::columns]
    go = all(vote.ready and not vote.stop for vote in votes)
    for column in range(1, columns):
        for rank, (first, other) in enumerate(zip(leading, votes[column::columns], strict=True)):
            if go and first.samples != other.samples:
                raise FourstageError(f"the columns of replica {rank} were given different samples of one batch")
    first = votes[0]
    samples = b"".join(vote.samples for vote in leading)
    return Decision(
        go=go,
        save=first.save,
        rate=None if math.isnan(first.rate) else first.rate,
        samples=samples,
        skipped=skipped_rows(samples),
    )
