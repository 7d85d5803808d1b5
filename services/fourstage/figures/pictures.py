"""Stored images for figures, read and checked as the loader does, decoded as the augmenters do."""

from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fourstage.augmenter.decode import make_decoder
from fourstage.errors import CorruptSampleError
from fourstage.loader.reader import ReadJob, ShardFiles, read_batch
from fourstage.store import Split, Store


class Pictures:
    """A split's images by position; a context manager, because it holds the shards open."""

    def __init__(self, store: Store, split: str) -> None:
        """Raises StoreError where the store has no such split."""
        self.split: Split = store.split(split)
        self._size = store.size
        self._classes = store.classes
        self._files = ShardFiles()
        self._decode = make_decoder("auto")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def spaced(self, count: int) -> NDArray[np.int64]:
        """``count`` positions, or all where there are fewer: the middles of equal parts of the split.

        Samples are sorted by class, so they are of as many classes as can be; the same ones every time.
        """
        total = len(self.split)
        count = min(count, total)
        return (2 * np.arange(count, dtype=np.int64) + 1) * total // (2 * count)

    def pixels(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The whole stored images at positions (n,): (n,S,S,3), RGB. Raises StoreError, CorruptSampleError."""
        sizes = self.split.records["size"][positions].astype(np.int64)
        ends = np.cumsum(sizes)
        jpegs = memoryview(bytearray(int(ends[-1])))
        read_batch(self._files, ReadJob(None, self.split, positions, jpegs))
        pixels = np.empty((len(positions), self._size, self._size, 3), np.uint8)
        for image, begin, end, position in zip(pixels, ends - sizes, ends, positions, strict=True):
            try:
                self._decode(jpegs[begin:end], image)
            except CorruptSampleError as error:
                key = self.split.keys(np.array([position]))[0]
                raise CorruptSampleError(f"the stored image {key!r} cannot be decoded: {error}") from error
        return pixels

    def classes(self, positions: NDArray[np.int64]) -> list[str]:
        """The names of the classes at positions (n,)."""
        return [self._classes[label] for label in self.split.labels(positions)]
