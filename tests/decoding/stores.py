"""Stores with an image that cannot be decoded, though its checksum is right."""

import hashlib
from pathlib import Path

import numpy as np
import xxhash

from fourstage.store import open_store
from fourstage.store.index import index_bytes
from fourstage.store.manifest import read_manifest, write_manifest

_CUT = 100


def with_a_truncated_image(store: Path, number: int, *, split: str = "train") -> str:
    """Let an image end a hundred bytes early, as the store's own index has it; its key."""
    opened = open_store(store).split(split)
    records = np.array(opened.records)
    keys = opened.keys(np.arange(len(records)))
    record = records[number]
    size = int(record["size"]) - _CUT
    with opened.shards[int(record["shard"])].open("rb") as shard:
        shard.seek(int(record["offset"]))
        jpeg = shard.read(size)
    records[number]["size"], records[number]["checksum"] = size, xxhash.xxh3_64_intdigest(jpeg)
    index = index_bytes(records, keys)
    (store / f"{split}.index").write_bytes(index)
    manifest = read_manifest(store)
    altered = manifest.splits[split].model_copy(update={"index_sha256": hashlib.sha256(index).hexdigest()})
    write_manifest(store, manifest.model_copy(update={"splits": manifest.splits | {split: altered}}))
    return keys[number]
