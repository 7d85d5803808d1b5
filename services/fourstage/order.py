"""Which samples make up which batch: a pure function of the split's size and the stream's settings.

Batches are numbered through all epochs by one sequence number, so they run on across the end of an epoch without
draining the pipeline. Loader and trainer both compute the order; the trainer refuses a batch that does not match.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fourstage import philox
from fourstage.errors import SettingsError

Remainder = Literal["keep", "drop"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a batch lies: its epoch, and its rows as positions within that epoch."""

    epoch: int
    first: int
    rows: int


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """How the samples of an epoch are cut into batches, and which rows of each belong to one rank."""

    samples: int
    batch_size: int
    remainder: Remainder = "keep"
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.batches_per_epoch == 0:
            raise SettingsError(
                f"batch_size = {self.batch_size} with remainder = {self.remainder!r} makes no batch "
                f"of {self.samples} samples",
                hint="lower batch_size or keep the remainder",
            )

    @property
    def batches_per_epoch(self) -> int:
        """Batches of one epoch."""
        whole, rest = divmod(self.samples, self.batch_size)
        return whole + (1 if rest and self.remainder == "keep" else 0)

    def place(self, seq: int) -> Place:
        """Where batch ``seq`` of this rank lies. A rank's rows are contiguous, sizes differ by one at most."""
        epoch, batch = divmod(seq, self.batches_per_epoch)
        first = batch * self.batch_size
        rows = min(self.batch_size, self.samples - first)
        low = rows * self.rank // self.world
        high = rows * (self.rank + 1) // self.world
        return Place(epoch, first + low, high - low)

    @property
    def largest_rows(self) -> int:
        """Rows of this rank's largest batch."""
        return max(self.place(0).rows, self.place(self.batches_per_epoch - 1).rows)


def permutation(seed: int, epoch: int, samples: int) -> NDArray[np.int64]:
    """The order of an epoch: sample indices int64 (samples,), the stable argsort of the epoch's words."""
    blocks = -(-samples // philox.WORDS_PER_BLOCK)
    ranks = philox.words(seed, epoch, philox.ORDER, 0, blocks).reshape(-1)[:samples]
    return np.argsort(ranks, kind="stable")


class Order:
    """The samples of any batch; keeps the orders of the two epochs used last (10 MB each for ImageNet)."""

    def __init__(self, plan: BatchPlan, *, seed: int, shuffle: bool) -> None:
        self.plan = plan
        self._seed = seed
        self._shuffle = shuffle
        self._epochs: dict[int, NDArray[np.int64]] = {}

    def indices(self, seq: int) -> NDArray[np.int64]:
        """Sample indices of batch ``seq``: int64 (rows,)."""
        place = self.plan.place(seq)
        if not self._shuffle:
            return np.arange(place.first, place.first + place.rows, dtype=np.int64)
        if place.epoch not in self._epochs:
            while len(self._epochs) >= 2:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[place.epoch] = permutation(self._seed, place.epoch, self.plan.samples)
        return self._epochs[place.epoch][place.first : place.first + place.rows]
