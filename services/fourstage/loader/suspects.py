"""Which row of a batch kills the workers that decode it: found by halves, in trials whose pixels nobody uses.

A worker's death proves little: somebody may have killed it. So no row is named before it has killed by itself, twice;
where it has not, nothing was wrong with the batch.
"""

from dataclasses import dataclass

PROOFS = 2
"""Deaths in the trial of one row alone that name it."""


@dataclass(slots=True)
class Suspects:
    """The rows from ``first`` to before ``end``, one of which is suspected; at least one."""

    first: int
    end: int
    _deaths: int = 0
    """In the trial of the only row left."""

    @property
    def trial(self) -> tuple[int, int]:
        """The rows to decode next, from the first to before the second: half of those suspected."""
        return self.first, (self.first + self.end + 1) // 2

    def died(self) -> int | None:
        """A worker died in the trial; the row that is guilty, once it is known."""
        self.first, self.end = self.trial
        if self.end - self.first > 1:
            return None
        self._deaths += 1
        return self.first if self._deaths >= PROOFS else None

    def survived(self) -> bool:
        """A worker lived through the trial; whether that acquits the whole batch."""
        alone = self.end - self.first == 1
        self.first, self._deaths = self.trial[1], 0
        return alone
