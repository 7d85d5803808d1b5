"""The images of a store as plain files, for loaders that know no store."""

from pathlib import Path

from fourstage.store import open_store


def export_images(store: Path, folder: Path) -> int:
    """Write split train's JPEG files, byte for byte, as FOLDER/NUMBER.jpg; returns their width and height.

    What was just written lies in the page cache.
    """
    opened = open_store(store)
    split = opened.split("train")
    shards = [path.read_bytes() for path in split.shards]
    folder.mkdir(parents=True, exist_ok=True)
    for number, record in enumerate(split.records):
        offset, size = int(record["offset"]), int(record["size"])
        (folder / f"{number:07d}.jpg").write_bytes(shards[int(record["shard"])][offset : offset + size])
    return opened.size
