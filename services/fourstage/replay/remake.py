"""The batch of any step, made again in this process by the functions that loader and augmenters use."""

from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from fourstage.augmenter.decode import make_decoder
from fourstage.augmenter.draws import Draws, draw
from fourstage.augmenter.transform import CorruptRowError, identity, scratch_for, transform
from fourstage.errors import CorruptSampleError, SettingsError
from fourstage.loader.reader import ReadJob, ShardFiles, read_batch
from fourstage.order import BatchPlan, Order, Place
from fourstage.settings import Settings
from fourstage.store import Store
from fourstage.trainer.receipt import batch_digest, pixel_digests, sample_digests
from fourstage.views import colour_matrix, view_of

_CHUNK = 64
"""Crops in memory at one time while a whole batch is digested: 10 MB of 224x224."""


@dataclass(frozen=True, slots=True)
class Remade:
    """A batch without its pixels.

    labels: int32 (rows,); indices: int64 (rows,), the samples' numbers in the split
    offsets: int32 (rows, 2); reflections: bool (rows,); shifts: float32 (rows, 3)
    """

    seq: int
    place: Place
    keys: tuple[str, ...]
    indices: NDArray[np.int64]
    labels: NDArray[np.int32]
    offsets: NDArray[np.int32]
    reflections: NDArray[np.bool_]
    shifts: NDArray[np.float32]

    def rows(self, rows: slice) -> "Remade":
        """Some of its rows, as if they were a batch of their own; ``place`` stays the whole one's."""
        return Remade(
            self.seq, self.place, self.keys[rows], self.indices[rows], self.labels[rows], self.offsets[rows],
            self.reflections[rows], self.shifts[rows],
        )  # fmt: skip


class Remaker:
    """The training batches of a run; a context manager, because it holds the store's shards open."""

    def __init__(self, settings: Settings, store: Store) -> None:
        """Raises SettingsError and StoreError where the settings cannot make batches of this store."""
        if settings.augmenter.crop > store.size:
            raise SettingsError(
                f"augmenter.crop = {settings.augmenter.crop} is larger than the images of {store.path}, "
                f"{store.size}x{store.size}",
                hint="give the --store that the run was trained on",
            )
        self.store = store
        self._settings = settings
        self._split = store.split(settings.train_split)
        self._plan = BatchPlan(len(self._split), settings.batch_size, settings.remainder)
        self._order = Order(self._plan, seed=settings.seed, shuffle=True)
        self._view = view_of(settings, "random")
        statistics = store.statistics
        self._colours = colour_matrix(statistics.eigenvectors, statistics.eigenvalues, self._view.colour_scale)
        self._decode = make_decoder(settings.augmenter.decoder)
        self._scratch = scratch_for(store.size)
        self._files = ShardFiles()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    @property
    def steps(self) -> int:
        """Steps of the run's plan."""
        planned = self._settings.train.epochs * self._plan.batches_per_epoch
        return min(planned, self._settings.train.max_steps or planned)

    @property
    def identity(self) -> str:
        """Of this process's decoder and transform: workers with another one make other pixels."""
        return identity(self._decode).hex()

    def batch(self, step: int) -> Remade:
        """The batch of a step, which counts from 1; all rows of it, however many trainers shared them."""
        place = self._plan.place(step - 1)
        indices = self._order.indices(step - 1)
        draws = draw(
            self._view, size=self.store.size, seed=self._settings.seed, epoch=place.epoch, first=place.first,
            rows=place.rows, colours=self._colours,
        )  # fmt: skip
        return Remade(
            step - 1, place, tuple(self._split.keys(indices)), indices, self._split.labels(indices), draws.offsets,
            draws.reflections, draws.shifts,
        )  # fmt: skip

    def pixels(self, batch: Remade) -> NDArray[np.uint8]:
        """The crops as they are trained on before mean and colour shift: (rows, crop, crop, 3), RGB.

        Raises StoreError, and CorruptSampleError with the key of an image that cannot be decoded.
        """
        sizes = self._split.records["size"][batch.indices].astype(np.int64)
        ends = np.cumsum(sizes)
        jpegs = memoryview(bytearray(int(sizes.sum())))
        read_batch(self._files, ReadJob((b"", 0, 0), self._split, batch.indices, jpegs))
        images = [jpegs[end - size : end] for size, end in zip(sizes.tolist(), ends.tolist(), strict=True)]
        pixels = np.empty((len(images), self._view.crop, self._view.crop, 3), np.uint8)
        draws = Draws(batch.offsets, batch.reflections, batch.shifts)
        try:
            transform(images, draws, self._decode, scratch=self._scratch, out=pixels)
        except CorruptRowError as error:
            raise CorruptSampleError(f"the image {batch.keys[error.row]!r} cannot be decoded: {error}") from error
        return pixels

    def samples(self, batch: Remade, covers: Literal["keys", "pixels"]) -> bytes:
        """The digests of its rows as a receipt has them, 16 bytes each. Raises as ``pixels``."""
        if covers == "keys":
            return sample_digests(batch, b"")
        parts = [batch.rows(slice(row, row + _CHUNK)) for row in range(0, len(batch.keys), _CHUNK)]
        return b"".join(sample_digests(part, pixel_digests(self.pixels(part))) for part in parts)


def digest_of(batch: Remade, samples: bytes) -> str:
    """The digest that ``steps.jsonl`` has for a batch whose rows have these digests."""
    return batch_digest(batch.seq, samples).hex()
