"""Which batches both columns may read, and who of them still does (pure)."""

from collections.abc import Collection
from dataclasses import dataclass

from fourstage.errors import PeerError
from fourstage.trainer.inbox import FeedBatch


@dataclass(slots=True)
class _Loan:
    batch: FeedBatch
    number: int
    here: bool = True
    there: bool = True


class Loans:
    """Every method that ends a use returns the batches that nobody uses any more, each of them once."""

    def __init__(self) -> None:
        self._loans: dict[int, _Loan] = {}
        self._number = 0

    def lend(self, batch: FeedBatch) -> int:
        """Both columns read this batch from now on; its number, counted from 1."""
        self._number += 1
        self._loans[batch.seq] = _Loan(batch, self._number)
        return self._number

    def end_here(self, seq: int) -> list[FeedBatch]:
        """The first column has read batch ``seq``."""
        if seq in self._loans:
            self._loans[seq].here = False
        return self._free()

    def reconcile(self, seen: int, held: Collection[int]) -> list[FeedBatch]:
        """Of the batches up to number ``seen`` the second column reads only ``held``.

        Raises PeerError where it speaks of batches that were not lent, or takes back that it has read one.
        """
        known = {seq for seq, loan in self._loans.items() if loan.there and loan.number <= seen}
        if seen > self._number or not known.issuperset(held):
            raise PeerError(f"the second column holds {sorted(held)} of {seen} batches; lent were {sorted(known)}")
        for seq in known.difference(held):
            self._loans[seq].there = False
        return self._free()

    def end_there(self) -> list[FeedBatch]:
        """The second column reads nothing any more: it is gone."""
        return self.reconcile(self._number, ())

    def _free(self) -> list[FeedBatch]:
        free = [loan.batch for loan in self._loans.values() if not (loan.here or loan.there)]
        for batch in free:
            del self._loans[batch.seq]
        return free
