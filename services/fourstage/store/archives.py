"""Every file of a folder or a tar, by name and by where its bytes lie; nothing is extracted, no link is
followed out of the source.

The archive of ILSVRC2012's training images is a tar of one tar per class. Both levels are plain, so an image
of an inner tar is a stretch of bytes of the outer file like any other.
"""

import bz2
import gzip
import io
import lzma
import os
import re
import shutil
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fourstage.errors import SettingsError, StoreError
from fourstage.store.files import create_file

WHOLE = -1
"""The size of a member that is a file of its own: to be read to its end."""

_LONGEST_HEADER = 1 << 17
"""Bytes of a tar member's header, with its long names and attributes."""
_LONGEST_NAME = 4096
"""Characters, of a path in Linux."""
_MOST_ATTRIBUTES = 1000
"""Of the whole archive, which tarfile keeps and hands on to every member; an archive of git has one."""
_LONG_NUMBER = re.compile(rb"[0-9]{256}")
"""tarfile's expressions go through such digits once more from each of them (CVE-2024-6232): hours for a header."""

_GARBLED = (tarfile.TarError, ValueError, OverflowError, IndexError, RecursionError)
"""What tarfile raises for headers that cannot be; the last for hundreds of headers of headers."""

_COMPRESSED: dict[bytes, Callable[[Path], io.BufferedIOBase]] = {
    b"\xfd7zXZ\x00": lzma.LZMAFile,
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
}


class Member(NamedTuple):
    """Where the bytes of one source file lie."""

    path: str
    offset: int
    size: int
    state: tuple[int, int] = (0, 0)
    """Of a file of its own, which has no place in an archive to know it by: its bytes, and when they last changed
    (nanoseconds)."""


class LeftOut(NamedTuple):
    """A source file that is not taken, and why."""

    name: str
    reason: str


@dataclass
class Listing:
    """What a source holds; names are relative, their parts joined by ``/``."""

    members: dict[str, Member] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    left_out: list[LeftOut] = field(default_factory=list)

    def add(self, name: str, member: Member) -> None:
        """Take a file; of two members with one name the later stands, as when a tar is extracted."""
        if name in self.members:
            self.left_out.append(LeftOut(name, "a later member of the archive has the same name"))
        self.members[name] = member


def list_files(source: Path, scratch: Path) -> Listing:
    """Every file of a folder or a tar (plain, or compressed by xz, gzip or bzip2: unpacked into ``scratch``).

    Raises SettingsError for a source that is missing or of no known kind, StoreError for a damaged archive.
    """
    listing = Listing()
    if source.is_dir():
        _list_folder(listing, str(source))
        return listing
    archive = source
    opener = _decompressor(source)
    if opener is not None:
        archive = scratch / "source.tar"
        _unpack(source, opener, archive)
    if not _is_tar(archive):
        raise SettingsError(
            f"{source} is neither a folder nor a tar archive",
            hint="unpack it and name the folder of class folders",
        )
    for name, member in _walk_tar(listing, archive, 0, archive.stat().st_size, ""):
        if name.endswith(".tar"):
            inner = name.removesuffix(".tar")
            listing.folders.add(inner)
            for inner_name, inner_member in _walk_tar(
                listing, archive, member.offset, member.offset + member.size, f"{inner}/"
            ):
                listing.add(inner_name, inner_member)
        else:
            listing.add(name, member)
    return listing


def check_source(source: Path) -> None:
    """SettingsError where a source does not exist, cannot be read, or is neither a folder nor a file."""
    try:
        mode = source.stat().st_mode
        if stat.S_ISDIR(mode):
            os.scandir(source).close()
        elif stat.S_ISREG(mode):
            source.open("rb").close()
        else:
            raise SettingsError(f"the source {source} is a device", hint="name a folder or a tar archive")
    except OSError as error:
        raise SettingsError(
            f"cannot read the source {source}: {error.strerror}", hint="name a folder or a tar archive"
        ) from error


def _decompressor(source: Path) -> Callable[[Path], io.BufferedIOBase] | None:
    with source.open("rb") as stream:
        head = stream.read(8)
    return next((opener for magic, opener in _COMPRESSED.items() if head.startswith(magic)), None)


def _unpack(source: Path, opener: Callable[[Path], io.BufferedIOBase], target: Path) -> None:
    try:
        with opener(source) as packed, create_file(target) as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's failure: a decompressor's own OSError has no number
        raise StoreError(
            f"the source {source} is damaged: {error}", hint="fetch it again and compare its checksum"
        ) from error


def _list_folder(listing: Listing, source: str) -> None:
    folders = [(source, "")]
    while folders:
        path, prefix = folders.pop()
        try:
            with os.scandir(path) as scan:
                entries = list(scan)
        except OSError as error:
            listing.left_out.append(LeftOut(prefix, f"cannot read the folder: {error.strerror}"))
            continue
        for entry in entries:
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                listing.folders.add(name)
                folders.append((entry.path, f"{name}/"))
            else:
                _list_file(listing, name, entry)


def _list_file(listing: Listing, name: str, entry: os.DirEntry[str]) -> None:
    try:
        status = entry.stat()
    except OSError as error:
        listing.left_out.append(LeftOut(name, f"cannot be opened: {error.strerror}"))
        return
    if stat.S_ISREG(status.st_mode):
        listing.add(name, Member(entry.path, 0, WHOLE, (status.st_size, status.st_mtime_ns)))
    elif stat.S_ISDIR(status.st_mode):
        listing.left_out.append(LeftOut(name, "a link to a folder, not followed"))
    else:
        listing.left_out.append(LeftOut(name, "not a regular file"))


class _HeaderReader(io.BufferedReader):
    """A tar for tarfile, which takes the length of a header from the header; ``allowance`` bytes may be read."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.allowance = _LONGEST_HEADER

    def read(self, size: int | None = -1, /) -> bytes:
        """Read; raises ValueError beyond the allowance."""
        if size is None or not 0 <= size <= self.allowance:
            raise ValueError(f"a header of more than {_LONGEST_HEADER} bytes")
        self.allowance -= size
        data = super().read(size)
        if size > tarfile.BLOCKSIZE and _LONG_NUMBER.search(data):
            raise ValueError("a header with a number of hundreds of digits")
        return data


def _is_tar(path: Path) -> bool:
    with _HeaderReader(path) as stream:
        try:
            tarfile.open(fileobj=stream, mode="r:").close()
        except tarfile.TarError:
            return False
        except _GARBLED as error:
            raise _damaged(path, 0) from error
    return True


def _walk_tar(listing: Listing, path: Path, start: int, end: int, prefix: str) -> Iterator[tuple[str, Member]]:
    """The regular files of the tar that lies at ``start`` to ``end`` of a file."""
    with _HeaderReader(path) as stream:
        stream.seek(start)
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                while (info := tar.next()) is not None and info.offset < end:
                    # TarFile keeps every header it has seen; of a million they would fill the memory.
                    vars(tar)["members"].clear()
                    stream.allowance = _LONGEST_HEADER
                    # A negative size may lead back to the same header for ever, a huge one where no file ends.
                    if info.size < 0 or not info.offset < tar.offset < end + tarfile.BLOCKSIZE:
                        raise _damaged(path, info.offset)
                    if len(tar.pax_headers) > _MOST_ATTRIBUTES:
                        raise _damaged(path, info.offset)
                    name = _safe_name(info.name)
                    if len(info.name) > _LONGEST_NAME:
                        reason = f"its name has {len(info.name)} characters"
                        listing.left_out.append(LeftOut(f"{prefix}{info.name[:100]}…", reason))
                    elif name is None:
                        listing.left_out.append(LeftOut(prefix + info.name, "its name leads out of the archive"))
                    elif info.isdir():
                        listing.folders.add(prefix + name)
                    elif not info.isreg() or info.issparse():
                        listing.left_out.append(LeftOut(prefix + name, "a link, device or sparse file in a tar"))
                    elif info.offset_data + info.size > end:
                        raise _damaged(path, info.offset)
                    else:
                        yield prefix + name, Member(str(path), info.offset_data, info.size)
                stop = tar.offset
        except _GARBLED as error:
            raise _damaged(path, stream.tell()) from error
        # tarfile ends silently at a header that it cannot read; a real end is zeros or the end of the file.
        stream.seek(stop)
        stream.allowance = tarfile.BLOCKSIZE
        if stop < end and stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise _damaged(path, stop)


def _safe_name(name: str) -> str | None:
    """A member's name without empty and ``.`` parts; None if it is absolute or climbs."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts:
        return None
    return "/".join(part for part in parts if part not in ("", "."))


def _damaged(path: Path, offset: int) -> StoreError:
    return StoreError(
        f"the archive {path} is damaged or cut off at byte {offset}",
        hint="fetch it again and compare its checksum",
    )
