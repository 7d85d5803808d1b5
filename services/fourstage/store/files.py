"""Files that are there whole or not at all, also after a power cut."""

import os
from pathlib import Path

RESTORE = "restore the store from a copy or prepare it again"
"""The hint of every error about a finished store whose files are not what they were."""


def write_file(path: Path, data: bytes) -> None:
    """Write beside the target, flush to disk, rename over it; raises OSError."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    move_file(temporary, path)


def move_file(path: Path, target: Path) -> None:
    """Rename a file that is already on disk, and put the rename itself on disk; raises OSError."""
    path.replace(target)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
