"""``fourstage verify``: whether every byte of a store is what ``prepare`` wrote.

A shard is a pure function of its samples, so each stretch of it is made again from the index and the JPEG,
and compared: tar headers, class numbers and padding are checked with it, and each wrong sample is named.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path

import numpy as np
import simplejpeg
import xxhash

from fourstage.errors import StoreError
from fourstage.store.files import file_length, open_regular
from fourstage.store.index import Index, open_index
from fourstage.store.manifest import Manifest, ShardEntry, SplitEntry, read_manifest
from fourstage.store.opened import STATISTICS_NAME, missing_bytes
from fourstage.store.progress import Progress, ProgressCallback
from fourstage.store.shards import BLOCK, END, dali_index, sample_bytes
from fourstage.store.statistics import Statistics

_REPORT_EVERY = 64
_LONGEST_HEADER = 16 * BLOCK
"""Bytes; that of the longest key has 5 blocks."""


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
            problem = Statistics.load(path).problem(self.manifest.size)
        except StoreError as error:
            self.problems.append(str(error))
        else:
            if problem:
                self.problems.append(f"{path.name} {problem}")

    def split(self, name: str, split: SplitEntry) -> None:
        index = self._index(self.path / f"{name}.index", split)
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

    def _index(self, path: Path, split: SplitEntry) -> Index | None:
        """The index, None where its records cannot be followed."""
        if not self._is(path, split.index_sha256):
            return None
        try:
            index = open_index(path)
        except StoreError as error:
            self.problems.append(str(error))
            return None
        problem = index.problem([shard.bytes for shard in split.shards], len(self.manifest.classes))
        if len(index.records) != split.images:
            problem = f"has {len(index.records)} samples where store.json says {split.images}"
        shards = index.records["shard"]
        if not problem and (shards[1:] < shards[:-1]).any():
            problem = "does not name the shards in their order"
        if problem:
            self.problems.append(f"{path.name} {problem}")
            return None
        return index

    def _shard(self, shard: ShardEntry, index: Index, first: int, last: int) -> None:
        digest = xxhash.xxh3_128()
        # What libjpeg-turbo sets aside for 4:2:0; its blocks are of 16 pixels.
        longest = 3 * (self.manifest.size + -self.manifest.size % 16) ** 2 + 2048
        with open_regular(self.path / shard.name) as stream:
            if (length := file_length(stream)) != shard.bytes:
                self.problems.append(f"{shard.name} has {length} bytes instead of {shard.bytes}")
            for position in range(first, last):
                record = index.records[position]
                header = int(record["offset"]) - stream.tell()
                size = int(record["size"])
                key = index.key(position)
                if not BLOCK <= header <= _LONGEST_HEADER:
                    self.problems.append(f"{shard.name}: {key}: it does not begin where the sample before it ends")
                    return
                if size > longest:
                    self.problems.append(f"{shard.name}: {key}: {size} bytes are more than its pixels can make")
                    return
                # The class number has as long a header as the JPEG, and its digits fill one block.
                stretch = stream.read(2 * header + size + -size % BLOCK + BLOCK)
                digest.update(stretch)
                problem = self._problem(stretch, stretch[header : header + size], key, record)
                if problem:
                    self.problems.append(f"{shard.name}: {key}: {problem}")
                self._count(len(stretch))
            tail = stream.read(len(END) + 1)
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
                height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)
                if (height, width) != (self.manifest.size, self.manifest.size):
                    return f"the JPEG is {width}x{height} pixels"
                simplejpeg.decode_jpeg(jpeg, "RGB")
            except ValueError as error:
                return f"the JPEG cannot be decoded: {error}"
        return None

    def _dali_index(self, shard: ShardEntry, index: Index, first: int, last: int) -> None:
        columns = (index.records[name][first:last].tolist() for name in ("label", "offset", "size"))
        keys = (index.key(position) for position in range(first, last))
        path = (self.path / shard.name).with_suffix(".idx")
        written = dali_index(zip(keys, *columns, strict=True))
        self._compare(path, lambda stream: stream.read(len(written) + 1) == written)

    def _is(self, path: Path, sha256: str) -> bool:
        return self._compare(path, lambda stream: hashlib.file_digest(stream, "sha256").hexdigest() == sha256)

    def _compare(self, path: Path, equal: Callable[[BufferedReader], bool]) -> bool:
        try:
            with open_regular(path) as stream:
                problem = "" if equal(stream) else "its bytes are not those that were written"
        except FileNotFoundError:
            problem = "it is missing"
        except OSError as error:
            problem = str(error.strerror)
        if problem:
            self.problems.append(f"{path.name}: {problem}")
        return not problem

    def _count(self, length: int) -> None:
        self.images += 1
        self.bytes_read += length
        total = sum(split.images for split in self.manifest.splits.values())
        if self.progress is not None and (self.images % _REPORT_EVERY == 0 or self.images == total):
            self.progress(Progress(self.images, total, self.bytes_read, len(self.problems)))
