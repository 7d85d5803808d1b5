"""The batch of any step, made again in this process by the functions that loader and augmenters use."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from fourstage.augmenter.decode import make_decoder
from fourstage.augmenter.draws import Draws, draw
from fourstage.augmenter.transform import identity, scratch_for, transform_decodable
from fourstage.errors import CorruptSampleError, SettingsError
from fourstage.loader.reader import ReadJob, ShardFiles, read_batch
from fourstage.order import BatchPlan, Order, Place
from fourstage.replay.trial import why_not
from fourstage.settings import Settings
from fourstage.store import Store
from fourstage.trainer.receipt import DIGEST_BYTES, batch_digest, pixel_digests, sample_digests
from fourstage.views import colour_matrix, view_of

_CHUNK = 64
"""Crops in memory at one time while a whole batch is digested: 10 MB of 224x224."""


@dataclass(frozen=True, slots=True)
class Remade:
    """A batch without its pixels, all planned rows of it.

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
    left_out: Mapping[int, str] = field(default_factory=dict)
    """Rows that it goes without, and why they cannot be decoded."""

    def rows(self, rows: slice) -> "Remade":
        """Some of its rows, as if they were a batch of their own; ``place`` stays the whole one's."""
        return Remade(
            self.seq, self.place, self.keys[rows], self.indices[rows], self.labels[rows], self.offsets[rows],
            self.reflections[rows], self.shifts[rows],
            {row - rows.start: why for row, why in self.left_out.items() if rows.start <= row < rows.stop},
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
        self._decoder = settings.augmenter.decoder
        self._decode = make_decoder(self._decoder)
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

    def closed_up(self, batch: Remade, recorded: Collection[str]) -> Remade:
        """The batch without what cannot be decoded, where the run leaves that out by its settings, or has by those that
        it had before. Raises StoreError.

        recorded: keys that the run has left out. They are tried in a process of their own, for one may have killed
        those that decoded it.
        """
        if self._settings.on_corrupt == "fail" and not recorded:
            return batch
        left_out: dict[int, str] = {}
        for first in range(0, len(batch.keys), _CHUNK):
            part = batch.rows(slice(first, first + _CHUNK))
            images = self._images(part)
            apart = [row for row, key in enumerate(part.keys) if key in recorded]
            found = self._transform(part, images, apart)[1]
            for row in apart:
                found[row] = why_not(images[row].tobytes(), decoder=self._decoder, size=self.store.size)
            left_out |= {first + row: why for row, why in found.items() if why}
        return replace(batch, left_out=dict(sorted(left_out.items())))

    def pixels(self, batch: Remade) -> NDArray[np.uint8]:
        """The crops as they are trained on before mean and colour shift: (rows, crop, crop, 3), RGB; zeros where the
        batch leaves a row out.

        Raises StoreError, and CorruptSampleError with the key of another image that cannot be decoded.
        """
        made, left_out = self._transform(batch, self._images(batch), batch.left_out)
        for row, why in left_out.items():
            if row not in batch.left_out:
                raise CorruptSampleError(f"the image {batch.keys[row]!r} cannot be decoded: {why}")
        if not left_out:
            return made
        pixels = np.zeros_like(made)
        there = np.delete(np.arange(len(made)), list(left_out))
        pixels[there] = made[: len(there)]
        return pixels

    def samples(self, batch: Remade, covers: Literal["keys", "pixels"]) -> bytes:
        """The digests of its rows as a receipt has them, 16 bytes each, zeros where a row is left out. Raises as
        ``pixels``."""
        parts = [batch.rows(slice(row, row + _CHUNK)) for row in range(0, len(batch.keys), _CHUNK)]
        digests = bytearray()
        for part in parts:
            digests += sample_digests(part, pixel_digests(self.pixels(part)) if covers == "pixels" else b"")
        for row in batch.left_out:
            digests[row * DIGEST_BYTES : (row + 1) * DIGEST_BYTES] = bytes(DIGEST_BYTES)
        return bytes(digests)

    def _images(self, batch: Remade) -> list[memoryview]:
        sizes = self._split.records["size"][batch.indices].astype(np.int64)
        ends = np.cumsum(sizes)
        jpegs = memoryview(bytearray(int(sizes.sum())))
        read_batch(self._files, ReadJob(None, self._split, batch.indices, jpegs))
        return [jpegs[end - size : end] for size, end in zip(sizes.tolist(), ends.tolist(), strict=True)]

    def _transform(
        self, batch: Remade, images: Sequence[memoryview], skip: Collection[int]
    ) -> tuple[NDArray[np.uint8], dict[int, str]]:
        pixels = np.empty((len(images), self._view.crop, self._view.crop, 3), np.uint8)
        draws = Draws(batch.offsets, batch.reflections, batch.shifts)
        left_out = transform_decodable(images, draws, self._decode, scratch=self._scratch, out=pixels, skip=skip)
        return pixels, left_out


def digest_of(batch: Remade, samples: bytes) -> str:
    """The digest that ``steps.jsonl`` has for a batch whose rows have these digests."""
    return batch_digest(batch.seq, samples).hex()
