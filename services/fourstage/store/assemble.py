"""From finished shards to a whole split: index, statistics, images left out, and last ``store.json``."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fourstage.errors import StoreError
from fourstage.store.archives import LeftOut
from fourstage.store.files import write_file
from fourstage.store.index import index_bytes
from fourstage.store.manifest import Manifest, ShardEntry, SplitEntry, write_manifest
from fourstage.store.opened import STATISTICS_NAME
from fourstage.store.shards import shard_name
from fourstage.store.statistics import Statistics
from fourstage.store.sums import Sums
from fourstage.store.workspace import discard_parts, read_parts

LEFT_OUT_NAME = "left-out.jsonl"


def assemble(
    store: Path,
    work: Path,
    split: str,
    *,
    size: int,
    quality: int,
    classes: tuple[str, ...],
    left_out: Sequence[LeftOut],
    base: Manifest | None,
) -> Manifest:
    """Finish a split whose parts are complete; ``base`` is the manifest that it is added to, None at first.

    Raises StoreError where not one image could be taken, OSError.
    """
    records: list[NDArray[np.void]] = []
    keys: list[str] = []
    shards: list[ShardEntry] = []
    all_left_out = list(left_out)
    sums = Sums.empty(size, np.int64)
    for number, part in enumerate(read_parts(work)):
        records.append(part.records)
        keys += part.keys
        all_left_out += part.left_out
        if part.sums is not None:
            sums.merge(part.sums)
        if part.bytes:
            name = shard_name(split, number)
            shards.append(ShardEntry(name=name, bytes=part.bytes, images=len(part.records), xxh3_128=part.xxh3_128))
    if not keys:
        discard_parts(work)
        name, reason = all_left_out[0]
        raise StoreError(
            f"not one image of the source could be taken; the first: {name!r}: {reason}",
            hint="is it the right source?",
        )
    merged = np.concatenate(records)
    if base is None:
        counts = np.bincount(merged["label"], minlength=len(classes))
        all_left_out += [
            LeftOut(name, "a class without any image that could be taken")
            for name, count in zip(classes, counts, strict=True)
            if count == 0
        ]
    index = index_bytes(merged, keys)
    write_file(store / f"{split}.index", index)
    _write_left_out(store, split, all_left_out, () if base is None else tuple(base.splits))
    if base is None:
        statistics = Statistics.from_sums(sums.count, sums.pixels, sums.products).to_bytes()
        write_file(store / STATISTICS_NAME, statistics)
        statistics_sha256 = hashlib.sha256(statistics).hexdigest()
    else:
        statistics_sha256 = base.statistics_sha256
    entry = SplitEntry(
        images=len(keys),
        left_out=len(all_left_out),
        bytes=sum(shard.bytes for shard in shards),
        index_sha256=hashlib.sha256(index).hexdigest(),
        shards=tuple(shards),
    )
    manifest = Manifest(
        size=size,
        quality=quality,
        classes=classes,
        splits=({} if base is None else base.splits) | {split: entry},
        statistics_sha256=statistics_sha256,
    )
    write_manifest(store, manifest)
    return manifest


def _write_left_out(store: Path, split: str, left_out: Sequence[LeftOut], others: tuple[str, ...]) -> None:
    """Put a split's lines behind those of the finished splits, in place of an unfinished prepare's."""
    path = store / LEFT_OUT_NAME
    lines = path.read_text("ascii").splitlines() if others else []
    kept = [line for line in lines if json.loads(line)["split"] in others]
    new = [json.dumps({"split": split, "name": name, "reason": reason}) for name, reason in left_out]
    write_file(path, "".join(f"{line}\n" for line in kept + new).encode("ascii"))
