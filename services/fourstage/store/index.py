"""``SPLIT.index``: where each sample of a split lies. Mapped into memory, never read whole.

Little-endian. Samples are sorted by key and lie in the shards in that order::

    offset  bytes
         0      8   magic "4STGIDX\\0"
         8      4   version, 1
        12      4   bytes of a record, 40
        16      8   number of records, N
        24      8   bytes of keys, K
        32      8   xxh3_64 of everything from byte 64 on
        40     24   zeros
        64   40*N   records
    64+40N      K   keys, ASCII, one after the other

    record       0  u4  shard       number of the shard
                 4  u4  size        bytes of the JPEG
                 8  u8  offset      of the JPEG in its shard
                16  u8  checksum    xxh3_64 of the JPEG
                24  u4  label       class number
                28  u4  key_size    bytes of the key
                32  u8  key_offset  of the key, from the beginning of the keys
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from fourstage.errors import StoreError
from fourstage.store.files import RESTORE, file_length, open_regular

MAGIC = b"4STGIDX\0"
VERSION = 1
RECORD = np.dtype(
    [
        ("shard", "<u4"),
        ("size", "<u4"),
        ("offset", "<u8"),
        ("checksum", "<u8"),
        ("label", "<u4"),
        ("key_size", "<u4"),
        ("key_offset", "<u8"),
    ]
)
_HEADER = struct.Struct("<8sIIQQQ24x")
_ASCII = 128
LONGEST_KEY = 1024
"""Characters, of a message's text."""


@dataclass(frozen=True, slots=True)
class Index:
    """A mapped index: ``records`` is (N,) of RECORD, ``key_bytes`` (K,) of uint8."""

    records: NDArray[np.void]
    key_bytes: NDArray[np.uint8]

    def problem(self, shard_bytes: Sequence[int], classes: int) -> str:
        """What a record says that cannot be, so that nobody who uses one reads where nothing is; empty: nothing.

        Takes some 30 ms for ImageNet.
        """
        records, keys = self.records, len(self.key_bytes)
        if not len(records):
            return "has no samples"
        shards = records["shard"]
        if int(shards.max()) >= len(shard_bytes):
            return f"names shard {int(shards.max())} of {len(shard_bytes)}"
        # Each part by itself first: the sum of two huge ones may be small.
        room = np.asarray(shard_bytes, np.uint64)[shards]
        offset, size = records["offset"], records["size"]
        if (offset > room).any() or (size > room - offset).any():
            return "names samples beyond the end of their shards"
        if int(records["label"].max()) >= classes:
            return f"names class {int(records['label'].max())} of {classes}"
        begin, length = records["key_offset"], records["key_size"]
        if (begin > keys).any() or (length > np.uint64(keys) - begin).any() or int(length.max()) > LONGEST_KEY:
            return "names keys that are not there"
        if keys and int(self.key_bytes.max()) >= _ASCII:
            return "has keys that are not ASCII"
        return ""

    def key(self, position: int) -> str:
        """The key of the record at a position."""
        record = self.records[position]
        start = int(record["key_offset"])
        return self.key_bytes[start : start + int(record["key_size"])].tobytes().decode("ascii")

    def keys(self, positions: NDArray[np.int64]) -> list[str]:
        """The keys of the records at positions (n,)."""
        records = self.records[positions]
        starts, sizes = records["key_offset"].tolist(), records["key_size"].tolist()
        text = self.key_bytes.data
        return [str(text[start : start + size], "ascii") for start, size in zip(starts, sizes, strict=True)]

    def position(self, key: str) -> int | None:
        """The record with a key, by bisection; None if there is none."""
        low, high = 0, len(self.records)
        while low < high:
            middle = (low + high) // 2
            if self.key(middle) < key:
                low = middle + 1
            else:
                high = middle
        return low if low < len(self.records) and self.key(low) == key else None


def join_keys(records: NDArray[np.void], keys: Sequence[str]) -> bytes:
    """Fill in where each record's key lies, and return the keys as they lie there."""
    sizes = np.fromiter((len(key) for key in keys), np.uint64, len(keys))
    records["key_size"] = sizes
    records["key_offset"] = np.cumsum(sizes, dtype=np.uint64) - sizes
    return "".join(keys).encode("ascii")


def index_bytes(records: NDArray[np.void], keys: Sequence[str]) -> bytes:
    """The index file of samples sorted by key; fills in the key columns of ``records``."""
    key_bytes = join_keys(records, keys)
    body = records.tobytes() + key_bytes
    checksum = xxhash.xxh3_64_intdigest(body)
    return _HEADER.pack(MAGIC, VERSION, RECORD.itemsize, len(records), len(key_bytes), checksum) + body


def open_index(path: Path) -> Index:
    """Map an index; raises StoreError where it is missing, foreign, of another version or cut off."""
    try:
        with open_regular(path) as stream:
            head = stream.read(_HEADER.size)
            length = file_length(stream)
    except OSError as error:
        raise _unusable(path, f"cannot be read: {error.strerror}") from error
    if len(head) < _HEADER.size or head[:8] != MAGIC:
        raise _unusable(path, "is no index of a fourstage store")
    _, version, record_bytes, count, key_bytes, _ = _HEADER.unpack(head)
    if version != VERSION or record_bytes != RECORD.itemsize:
        raise _unusable(path, f"has format version {version}, and this fourstage reads {VERSION}")
    expected = _HEADER.size + count * RECORD.itemsize + key_bytes
    if length != expected:
        raise _unusable(path, f"has {length} bytes where its header says {expected}")
    mapped: NDArray[np.uint8] = np.asarray(np.memmap(path, np.uint8, "r"))
    split = _HEADER.size + count * RECORD.itemsize
    return Index(mapped[_HEADER.size : split].view(RECORD), mapped[split:])


def _unusable(path: Path, what: str) -> StoreError:
    return StoreError(f"the index {path} {what}", hint=RESTORE)
