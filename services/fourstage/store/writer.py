"""One shard in the making: written beside its place, moved there whole, then noted as finished."""

import os
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import xxhash
from numpy.typing import NDArray

from fourstage.store.archives import LeftOut
from fourstage.store.batches import Batch
from fourstage.store.files import create_file, move_file, write_file
from fourstage.store.shards import END, dali_index, shard_name
from fourstage.store.sums import Sums
from fourstage.store.workspace import Part, write_part


class ShardWriter:
    """Appends batches to shard ``number`` of a split; a context manager that closes the file."""

    def __init__(self, store: Path, work: Path, split: str, number: int) -> None:
        self._target = store / shard_name(split, number)
        self._work = work
        self._number = number
        self._path = work / "shard.tar"
        self._stream = create_file(self._path)
        self._digest = xxhash.xxh3_128()
        self._records: list[NDArray[np.void]] = []
        self._keys: list[str] = []
        self._left_out: list[LeftOut] = []
        self._sums: Sums | None = None
        self._sources = 0
        self.bytes = 0

    def append(self, batch: Batch) -> None:
        """Write a batch behind the last one; raises OSError."""
        self._write(batch.stretch)
        records = batch.records
        records["offset"] += np.uint64(self.bytes - len(batch.stretch))
        records["shard"] = self._number
        self._records.append(records)
        self._keys += batch.keys
        self._left_out += batch.left_out
        self._sources += batch.sources
        if self._sums is None:
            self._sums = batch.sums
        elif batch.sums is not None:
            self._sums.merge(batch.sums)

    def finish(self) -> None:
        """Put shard, DALI index and part on disk, in this order; without a sample only the part."""
        records = np.concatenate(self._records)
        if len(records):
            self._write(END)
            self._stream.flush()
            os.fsync(self._stream.fileno())
            move_file(self._path, self._target)
            columns = (records[name].tolist() for name in ("label", "offset", "size"))
            samples = zip(self._keys, *columns, strict=True)
            write_file(self._target.with_suffix(".idx"), dali_index(samples))
        part = Part(
            sources=self._sources,
            bytes=self.bytes,
            xxh3_128=self._digest.hexdigest(),
            records=records,
            keys=self._keys,
            left_out=self._left_out,
            sums=self._sums,
        )
        write_part(self._work, self._number, part)

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._digest.update(data)
        self.bytes += len(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
