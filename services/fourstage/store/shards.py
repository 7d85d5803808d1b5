"""Shards: plain tars of ``KEY.jpg`` and ``KEY.cls``, pair after pair, each with DALI's index beside it.

A shard is a pure function of its samples (no times, owners or names of machines), so it can be made of
stretches from several workers, and checked by making it again::

    header KEY.jpg | JPEG, zeros to 512 | header KEY.cls | number, zeros to 512 | next sample ... | 1024 zeros

A header is 512 bytes, or 1536 and more for keys over 96 characters (pax). ``KEY.cls`` is the class number in
decimal digits. The index (``.idx``, v1.2) has a line ``jpg OFFSET SIZE NAME cls OFFSET SIZE NAME`` per
sample.
"""

import tarfile
from collections.abc import Iterable

BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)
_NAME_BYTES = 100
_TAIL = (b"0" + bytes(100) + b"ustar\x0000").ljust(356, b"\0")
"""What follows the checksum in each header: a regular file, no link, no owner's name."""


def shard_name(split: str, number: int) -> str:
    """The file name of a shard."""
    return f"{split}-{number:06}.tar"


def sample_bytes(key: str, label: int, jpeg: bytes) -> tuple[bytes, int]:
    """A sample's stretch of a shard, and where in it the JPEG begins."""
    image = _header(f"{key}.jpg", len(jpeg))
    digits = b"%d" % label
    return (
        b"".join(
            (
                image,
                jpeg,
                _padding(len(jpeg)),
                _header(f"{key}.cls", len(digits)),
                digits,
                _padding(len(digits)),
            )
        ),
        len(image),
    )


def dali_index(samples: Iterable[tuple[str, int, int, int]]) -> bytes:
    """DALI's index of a shard's samples, given as (key, label, offset of the JPEG in the shard, its size)."""
    lines = []
    for key, label, offset, size in samples:
        digits = len(str(label))
        label_offset = offset + size + len(_padding(size)) + len(_header(f"{key}.cls", digits))
        lines.append(f"jpg {offset} {size} {key}.jpg cls {label_offset} {digits} {key}.cls\n")
    return f"v1.2 {len(lines)}\n{''.join(lines)}".encode("ascii")


def _header(name: str, size: int) -> bytes:
    if len(name) > _NAME_BYTES:
        info = tarfile.TarInfo(name)
        info.size = size
        return info.tobuf(tarfile.PAX_FORMAT)
    # The same header at a tenth of the time, which counts at three headers an image.
    head = b"%b0000644\x000000000\x000000000\x00%011o\x0000000000000\x00" % (
        name.encode("ascii").ljust(_NAME_BYTES, b"\0"),
        size,
    )
    checksum = sum(head) + sum(_TAIL) + 8 * ord(" ")
    return b"%b%06o\x00 %b" % (head, checksum, _TAIL)


def _padding(size: int) -> bytes:
    return bytes(-size % BLOCK)
