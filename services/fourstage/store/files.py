"""Files that are there whole or not at all, also after a power cut; and none is read that has no end."""

import errno
import hashlib
import os
import stat
from io import BufferedReader, BufferedWriter
from pathlib import Path

RESTORE = "restore the store from a copy or prepare it again"
"""The hint of every error about a finished store whose files are not what they were."""


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read it; raises OSError, also where it is a device, a pipe or a folder."""
    # A pipe without a writer would be waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def file_length(stream: BufferedReader) -> int:
    """The bytes of an open file."""
    return os.fstat(stream.fileno()).st_size


def sha256(path: Path) -> str:
    """64 hexadecimal digits over a file's bytes; raises OSError, also where it is a device, a pipe or a folder."""
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def create_file(path: Path) -> BufferedWriter:
    """Open a new file for writing in place of what is there, be it a link to elsewhere; raises OSError."""
    path.unlink(missing_ok=True)
    return path.open("xb")


def write_file(path: Path, data: bytes) -> None:
    """Write beside the target, flush to disk, rename over it; raises OSError."""
    temporary = path.with_name(f"{path.name}.tmp")
    with create_file(temporary) as stream:
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
