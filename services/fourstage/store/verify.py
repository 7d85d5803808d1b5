"""``fourstage verify``: whether every byte of a store is what ``prepare`` wrote.

A shard is a pure function of its samples, so each stretch of it is made again from the index and the JPEG,
and compared: tar headers, class numbers and padding are checked with it, and each wrong sample is named.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import simplejpeg
import xxhash

from fourstage.errors import StoreError
from fourstage.store.index import Index, open_index
from fourstage.store.manifest import Manifest, ShardEntry, SplitEntry, read_manifest
from fourstage.store.opened import STATISTICS_NAME, missing_bytes
from fourstage.store.progress import Progress, ProgressCallback
from fourstage.store.shards import BLOCK, END, dali_index, sample_bytes
from fourstage.store.statistics import Statistics

_REPORT_EVERY = 64


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What ``verify`` found; ``problems`` is empty for a store that is whole."""

    images: int
    bytes: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every byte is right."""
        return not self.problems


def verify(path: Path | str, *, decode: bool = False, progress: ProgressCallback | None = None) -> VerifyReport:
    """Read a whole store and compare it with its checksums; ``decode`` also decodes each JPEG.

    Raises StoreError only where there is no store of a known version at ``path``; all else is a problem in
    the report, named by file and, where it is one, by sample.
    """
    path = Path(path)
    manifest = read_manifest(path)
    check = _Check(path, manifest, decode, progress)
    check.statistics()
    for name, split in manifest.splits.items():
        check.split(name, split)
    return VerifyReport(check.images, check.bytes_read, tuple(check.problems))


@dataclass
class _Check:
    path: Path
    manifest: Manifest
    decode: bool
    progress: ProgressCallback | None
    images: int = 0
    bytes_read: int = 0
    problems: list[str] = field(default_factory=list)

    def statistics(self) -> None:
        path = self.path / STATISTICS_NAME
        if not self._is(path, self.manifest.statistics_sha256):
            return
        try:
            Statistics.load(path)
        except StoreError as error:
            self.problems.append(str(error))

    def split(self, name: str, split: SplitEntry) -> None:
        path = self.path / f"{name}.index"
        index = None
        if self._is(path, split.index_sha256):
            try:
                index = open_index(path)
            except StoreError as error:
                self.problems.append(str(error))
        if index is None:
            self.problems += missing_bytes(self.path, split.shards)
            self.problems.append(f"{name}: the samples cannot be checked one by one without their index")
            return
        bounds = np.searchsorted(index.records["shard"], range(len(split.shards) + 1))
        for number, shard in enumerate(split.shards):
            first, last = int(bounds[number]), int(bounds[number + 1])
            try:
                self._shard(shard, index, first, last)
            except OSError as error:
                self.problems.append(f"{shard.name}: {error.strerror}")
            self._dali_index(shard, index, first, last)

    def _shard(self, shard: ShardEntry, index: Index, first: int, last: int) -> None:
        digest = xxhash.xxh3_128()
        with (self.path / shard.name).open("rb") as stream:
            for position in range(first, last):
                record = index.records[position]
                header = int(record["offset"]) - stream.tell()
                size = int(record["size"])
                # The class number has as long a header as the JPEG, and its digits fill one block.
                stretch = stream.read(2 * header + size + -size % BLOCK + BLOCK)
                digest.update(stretch)
                key = index.key(position)
                problem = self._problem(stretch, stretch[header : header + size], key, record)
                if problem:
                    self.problems.append(f"{shard.name}: {key}: {problem}")
                self._count(len(stretch))
            tail = stream.read()
        digest.update(tail)
        self.bytes_read += len(tail)
        if tail != END:
            self.problems.append(f"{shard.name}: it does not end where its last sample ends")
        if digest.hexdigest() != shard.xxh3_128:
            self.problems.append(f"{shard.name}: its checksum does not match its bytes")

    def _problem(self, stretch: bytes, jpeg: bytes, key: str, record: np.void) -> str | None:
        if len(jpeg) < record["size"]:
            return "the shard is cut off"
        if xxhash.xxh3_64_intdigest(jpeg) != record["checksum"]:
            return "the JPEG's checksum does not match its bytes"
        if sample_bytes(key, int(record["label"]), jpeg)[0] != stretch:
            return "tar header, class number or padding is not what the index says"
        if self.decode:
            try:
                height, width, _ = simplejpeg.decode_jpeg(jpeg, "RGB").shape
            except ValueError as error:
                return f"the JPEG cannot be decoded: {error}"
            if (height, width) != (self.manifest.size, self.manifest.size):
                return f"the JPEG is {width}x{height} pixels"
        return None

    def _dali_index(self, shard: ShardEntry, index: Index, first: int, last: int) -> None:
        columns = (index.records[name][first:last].tolist() for name in ("label", "offset", "size"))
        keys = (index.key(position) for position in range(first, last))
        path = (self.path / shard.name).with_suffix(".idx")
        self._compare(path, path.exists() and path.read_bytes() == dali_index(zip(keys, *columns, strict=True)))

    def _is(self, path: Path, sha256: str) -> bool:
        return self._compare(path, path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256)

    def _compare(self, path: Path, equal: bool) -> bool:
        if not equal:
            what = "its bytes are not those that were written" if path.exists() else "it is missing"
            self.problems.append(f"{path.name}: {what}")
        return equal

    def _count(self, length: int) -> None:
        self.images += 1
        self.bytes_read += length
        total = sum(split.images for split in self.manifest.splits.values())
        if self.progress is not None and (self.images % _REPORT_EVERY == 0 or self.images == total):
            self.progress(Progress(self.images, total, self.bytes_read, len(self.problems)))
