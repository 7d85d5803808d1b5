"""The samples that one stream is trained or tested without: named, counted, charged."""

import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from fourstage.order import Place
from fourstage.settings import Settings
from fourstage.telemetry import Telemetry
from fourstage.trainer.budget import Budget
from fourstage.trainer.council import Decision
from fourstage.trainer.group import Group
from fourstage.trainer.inbox import FeedBatch, Skipped

log = logging.getLogger(__name__)


class Skipping:
    """Called once for every batch, in their order, by all trainers; all of them come to the same end."""

    def __init__(
        self,
        settings: Settings,
        *,
        split: str,
        samples: int,
        state: Mapping[str, Any],
        group: Group,
        telemetry: Telemetry,
    ) -> None:
        """samples: of the split. state: of a checkpoint, ``{}`` at the beginning. Raises CheckpointError."""
        self._split = split
        self._group = group
        self._telemetry = telemetry
        self._fresh = Budget.of(settings, samples)
        self._budget = self._fresh.restored(state)
        self._counted: set[int] = set()
        self._count(self._budget.known)

    @property
    def most(self) -> int:
        """Different samples that can be left out before the budget is used up."""
        return self._fresh.most

    def begin(self) -> None:
        """Nothing is charged any more: a new pass."""
        self._budget = self._fresh

    def charge(self, batch: FeedBatch, whole: Place, decision: Decision) -> tuple[Skipped, ...]:
        """What all trainers leave out of a batch, with the rows of the whole one.

        whole: the place that all of them share. Raises CorruptSampleError where the budget is used up.
        """
        skipped = self._of_all(batch, whole) if decision.skipped else ()
        if skipped and self._group.layout.rank == 0:
            for sample in skipped:
                log.warning("%s batch %d goes without row %d, %r", self._split, batch.seq, sample.row, sample.key)
        self._budget = self._budget.charged(whole, skipped)
        self._count(sample.index for sample in skipped)
        return skipped

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return self._budget.state()

    def _of_all(self, batch: FeedBatch, whole: Place) -> tuple[Skipped, ...]:
        layout = self._group.layout
        if layout.world == 1:
            return batch.skipped
        first = batch.place.first - whole.first
        mine = [(first + sample.row, sample.key, sample.index) for sample in batch.skipped]
        told = self._group.gather(json.dumps(mine).encode())[:: layout.columns]
        return tuple(Skipped(row, key, index) for share in told for row, key, index in json.loads(share))

    def _count(self, indices: Iterable[int]) -> None:
        new = set(indices) - self._counted
        self._counted |= new
        if new and self._group.layout.rank == 0:
            self._telemetry.counter("fourstage_corrupt_samples_total").inc(len(new))
