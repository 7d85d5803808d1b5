"""A finished store as the stages use it: mapped indexes, nothing read but what is asked for."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fourstage.errors import StoreError
from fourstage.store.files import RESTORE, sha256
from fourstage.store.index import Index, open_index
from fourstage.store.manifest import ShardEntry, read_manifest
from fourstage.store.statistics import Statistics

STATISTICS_NAME = "statistics.npz"


@dataclass(frozen=True, slots=True)
class Split:
    """One split; positions are those of the samples sorted by key, 0 to ``len``."""

    name: str
    shards: tuple[Path, ...]
    index: Index

    def __len__(self) -> int:
        return len(self.index.records)

    @property
    def records(self) -> NDArray[np.void]:
        """(N,) mapped, with the fields ``shard size offset checksum label`` (``store/index.py`` has the
        table).
        """
        return self.index.records

    def keys(self, indices: NDArray[np.int64]) -> list[str]:
        """The keys at positions (n,)."""
        return self.index.keys(indices)

    def labels(self, indices: NDArray[np.int64]) -> NDArray[np.int32]:
        """The class numbers at positions (n,)."""
        labels: NDArray[np.int32] = self.records["label"][indices].astype(np.int32)
        return labels

    def find(self, key: str) -> int:
        """The position of a key; raises StoreError if the split does not have it."""
        position = self.index.position(key)
        if position is None:
            raise StoreError(f"the split {self.name!r} has no sample {key!r}", hint="a key is CLASS/STEM")
        return position


@dataclass(frozen=True, slots=True)
class Store:
    """An open store."""

    path: Path
    size: int
    """Width and height of its images."""

    quality: int
    classes: tuple[str, ...]
    fingerprint: str
    splits: Mapping[str, Split]
    statistics: Statistics

    def split(self, name: str) -> Split:
        """A split by name; raises StoreError that names those there are."""
        if name not in self.splits:
            raise StoreError(
                f"the store {self.path} has no split {name!r}, only {', '.join(self.splits)}",
                hint=f"make it with fourstage prepare SOURCE {self.path} --split {name}",
            )
        return self.splits[name]


def open_store(path: Path | str) -> Store:
    """Open a finished store and check that its shards are as long as they were, and indexes and statistics unaltered.

    No shard is read, which ``verify`` does: 40 ms for an index of ImageNet's size. Raises StoreError with what is wrong
    and what to do.
    """
    path = Path(path)
    manifest = read_manifest(path)
    shards = [shard for entry in manifest.splits.values() for shard in entry.shards]
    for problem in missing_bytes(path, shards):
        raise StoreError(f"the store {path} is incomplete: {problem}", hint=RESTORE)
    splits: dict[str, Split] = {}
    for name, entry in manifest.splits.items():
        index = open_index(path / f"{name}.index")
        if len(index.records) != entry.images:
            raise StoreError(
                f"{path / name}.index has {len(index.records)} samples where store.json says {entry.images}",
                hint=RESTORE,
            )
        if problem := index.problem([shard.bytes for shard in entry.shards], len(manifest.classes)):
            raise StoreError(f"{path / name}.index {problem}", hint=RESTORE)
        _require_bytes(path / f"{name}.index", entry.index_sha256)
        splits[name] = Split(name, tuple(path / shard.name for shard in entry.shards), index)
    statistics = Statistics.load(path / STATISTICS_NAME)
    if problem := statistics.problem(manifest.size):
        raise StoreError(f"{path / STATISTICS_NAME} {problem}", hint=RESTORE)
    _require_bytes(path / STATISTICS_NAME, manifest.statistics_sha256)
    return Store(
        path=path,
        size=manifest.size,
        quality=manifest.quality,
        classes=manifest.classes,
        fingerprint=manifest.fingerprint,
        splits=splits,
        statistics=statistics,
    )


def _require_bytes(path: Path, digest: str) -> None:
    """The fingerprint, which runs and receipts are bound to, stands for these bytes: others would train in its name."""
    try:
        found = sha256(path)
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    if found != digest:
        raise StoreError(f"the bytes of {path} are not those that store.json was written with", hint=RESTORE)


def missing_bytes(path: Path, shards: Iterable[ShardEntry]) -> Iterator[str]:
    """The shards that are absent or not as long as ``store.json`` says."""
    for shard in shards:
        try:
            length = (path / shard.name).stat().st_size
        except OSError as error:
            yield f"{shard.name}: {error.strerror}"
            continue
        if length != shard.bytes:
            yield f"{shard.name} has {length} bytes instead of {shard.bytes}"
