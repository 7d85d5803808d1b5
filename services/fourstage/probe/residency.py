"""Samples put out of the page cache, and whether they went: if it can be only these, a run beside keeps its own."""

import ctypes
import mmap
import os
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fourstage.loader.reader import ShardFiles
from fourstage.probe.plan import RESIDENT
from fourstage.store import Split

_PAGE = mmap.PAGESIZE


class Residency:
    """The pages of a split's samples. Nothing is read or written."""

    def __init__(self, split: Split) -> None:
        self._split = split
        self._files = ShardFiles()
        self._maps: dict[int, mmap.mmap] = {}
        self._mincore = ctypes.CDLL(None, use_errno=True).mincore
        self._mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)

    def forget(self, indices: NDArray[np.int64]) -> float:
        """Ask the kernel to forget the pages of these samples; the share that it kept: dirty ones, mapped ones."""
        for record in self._split.records[indices].tolist():
            begin, end = _pages(record[2], record[1])
            self._drop(record[0], begin, end - begin)
        kept = self.share(indices)
        if kept <= RESIDENT:
            return kept
        # What was read or written in a row lies in large folios, which only go as a whole.
        for shard in np.unique(self._split.records["shard"][indices]).tolist():
            self._drop(shard, 0, 0)
        return self.share(indices)

    def share(self, indices: NDArray[np.int64]) -> float:
        """The share of the pages of these samples that are in memory. For files that this user may not write the
        kernel does not tell and calls all resident: 1."""
        resident = pages = 0
        for record in self._split.records[indices].tolist():
            begin, end = _pages(record[2], record[1])
            found = np.zeros((end - begin) // _PAGE, np.uint8)
            if self._mincore(self._address(record[0]) + begin, end - begin, found.ctypes.data) != 0:
                return 1.0
            resident += int(np.count_nonzero(found & 1))
            pages += len(found)
        return resident / pages if pages else 1.0

    def close(self) -> None:
        """Unmap and close everything."""
        while self._maps:
            self._maps.popitem()[1].close()
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _drop(self, shard: int, begin: int, length: int) -> None:
        os.posix_fadvise(self._files.open(self._split, shard), begin, length, os.POSIX_FADV_DONTNEED)

    def _address(self, shard: int) -> int:
        if shard not in self._maps:
            self._maps[shard] = mmap.mmap(self._files.open(self._split, shard), 0, prot=mmap.PROT_READ)
        # The array is gone at once, the mapping stays.
        return int(np.frombuffer(self._maps[shard], np.uint8).ctypes.data)


def _pages(offset: int, size: int) -> tuple[int, int]:
    """The whole pages around some bytes."""
    return offset // _PAGE * _PAGE, -(-(offset + size) // _PAGE) * _PAGE
