"""Broken JPEGs: photographs whose bytes, segments, lengths and dimensions were changed by chance.

``python -m tests.fuzz.jpegs DECODER [--cases N] [--seed N]`` gives them to one decoder in this process, whose memory is
limited: it prints each case's number before it begins, so whoever reads knows at which one it died.
"""

import argparse
import faulthandler
import io
import resource
import signal
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import cast

import numpy as np
from PIL import Image

from fourstage.augmenter.decode import DecoderName, for_images, make_decoder
from fourstage.errors import CorruptSampleError
from fourstage.store.images import Converter, UnusableImageError
from tests.store.pictures import pixels

SIZE = 40
DECODERS = ("prepare", "simplejpeg", "turbojpeg", "dali", "host")
_MOST_PIXELS = 1 << 24
"""What ``prepare`` may be asked to decode here: 50 MB of pixels."""
_ADDRESSES = 2 << 30
"""Bytes beyond those that the process begins with."""
_SECONDS = 20
"""For one image."""
_GUARD = 4096
_SOF = (0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA, 0xCB)


def corpus(seed: int, number: int) -> bytes:
    """One broken JPEG; the same for the same numbers."""
    dice = Random(seed << 32 | number)
    data = dice.choice(photographs())
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        data = dice.choice(_BREAKS)(dice, data)
    return data


@cache
def photographs() -> tuple[bytes, ...]:
    """Whole ones: baseline, progressive, with restarts, grey, CMYK, of the stored size and others."""
    found = []
    for number, (width, height) in enumerate(((SIZE, SIZE), (SIZE, SIZE), (64, 48), (17, 90), (200, 150))):
        image = Image.fromarray(pixels(number, width, height))
        for mode in ("RGB", "L", "CMYK"):
            for options in ({}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 2}):
                buffer = io.BytesIO()
                image.convert(mode).save(buffer, "JPEG", quality=80, **options)
                found.append(buffer.getvalue())
    return tuple(found)


def segments(data: bytes) -> list[bytes]:
    """A JPEG's segments, each with its marker; the last one holds what follows the first scan's header."""
    parts, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        length = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        parts.append(data[at : at + length])
        at += length
        if parts[-1][1] == 0xDA:
            break
    return [*parts, data[at:]]


def _flip(dice: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.choice((1, 2, 8, 64))):
        if changed:
            changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def _cut(dice: Random, data: bytes) -> bytes:
    return data[: dice.randrange(len(data) + 1)]


def _exchange(dice: Random, data: bytes) -> bytes:
    parts = segments(data)
    first, second = dice.randrange(len(parts)), dice.randrange(len(parts))
    parts[first], parts[second] = parts[second], parts[first]
    return b"".join(parts)


def _repeat(dice: Random, data: bytes) -> bytes:
    parts = segments(data)
    at = dice.randrange(len(parts))
    return b"".join([*parts[:at], *[parts[at]] * dice.choice((2, 3, 300)), *parts[at + 1 :]])


def _leave_out(dice: Random, data: bytes) -> bytes:
    parts = segments(data)
    del parts[dice.randrange(len(parts))]
    return b"".join(parts)


def _wrong_length(dice: Random, data: bytes) -> bytes:
    parts = [bytearray(part) for part in segments(data)]
    part = dice.choice(parts)
    if len(part) >= 4:
        part[2:4] = dice.choice((0, 1, 2, 3, 17, 0x7FFF, 0xFFFF, dice.randrange(1 << 16))).to_bytes(2, "big")
    return b"".join(map(bytes, parts))


def _frame(change: Callable[[Random, bytearray], None]) -> Callable[[Random, bytes], bytes]:
    """A change of the frame header: 'FF SOFn', length, precision, height, width, components."""

    def apply(dice: Random, data: bytes) -> bytes:
        parts = [bytearray(part) for part in segments(data)]
        for part in parts:
            if len(part) > 9 and part[1] in _SOF:
                change(dice, part)
        return b"".join(map(bytes, parts))

    return apply


def _dimensions(dice: Random, frame: bytearray) -> None:
    choices = (0, 1, 7, SIZE, SIZE + 1, 4000, 65_500, 65_535)
    frame[5:7] = dice.choice(choices).to_bytes(2, "big")
    frame[7:9] = dice.choice(choices).to_bytes(2, "big")


def _kind(dice: Random, frame: bytearray) -> None:
    """Lossless, arithmetic coding, progressive where it is not."""
    frame[1] = dice.choice(_SOF)


def _components(dice: Random, frame: bytearray) -> None:
    frame[9] = dice.choice((0, 1, 2, 3, 4, 5, 255))


def _sampling(dice: Random, frame: bytearray) -> None:
    if len(frame) > 11:
        frame[11] = dice.choice((0, 0x11, 0x12, 0x41, 0x44, 0xFF))


def _precision(dice: Random, frame: bytearray) -> None:
    frame[4] = dice.choice((0, 1, 12, 16, 255))


def _scans(dice: Random, data: bytes) -> bytes:
    """The first scan again and again: every one passes over the whole image."""
    parts = segments(data)
    scan = parts[-2] + parts[-1][: dice.choice((0, 2, 40))] if len(parts) > 2 else b""
    return data[:-2] + scan * dice.choice((10, 1000)) + data[-2:]


def _metadata(dice: Random, data: bytes) -> bytes:
    """EXIF and ICC profiles, of impossible content or size."""
    marker = dice.choice((b"\xff\xe1", b"\xff\xe2", b"\xff\xee", b"\xff\xfe"))
    head = dice.choice((b"Exif\0\0MM\0*\0\0\0\x08", b"ICC_PROFILE\0\x01\xff", b"Adobe\0d\0\0\0\0\x02", b""))
    body = head + dice.randbytes(dice.choice((0, 12, 65_000)))
    return data[:2] + (marker + (len(body) + 2).to_bytes(2, "big") + body) * dice.choice((1, 3, 60)) + data[2:]


def _adobe(dice: Random, data: bytes) -> bytes:
    """Another meaning of the components."""
    body = b"Adobe\0d\0\0\0\0" + bytes((dice.choice((0, 1, 2, 3, 255)),))
    return data[:2] + b"\xff\xee" + (len(body) + 2).to_bytes(2, "big") + body + data[2:]


def _join(dice: Random, data: bytes) -> bytes:
    other = dice.choice(photographs())
    return data[: dice.randrange(len(data) + 1)] + other[dice.randrange(len(other) + 1) :]


_BREAKS: tuple[Callable[[Random, bytes], bytes], ...] = (
    _flip, _flip, _flip, _cut, _exchange, _repeat, _leave_out, _wrong_length, _scans, _metadata, _adobe, _join,
    _frame(_dimensions), _frame(_kind), _frame(_components), _frame(_sampling), _frame(_precision),
)  # fmt: skip


def _prepared() -> Callable[[bytes], bool]:
    converter = Converter(SIZE, 90, _MOST_PIXELS)

    def convert(data: bytes) -> bool:
        try:
            stored = converter.convert(data)
        except UnusableImageError:
            return False
        if converter.decode_stored(stored).shape != (SIZE, SIZE, 3):
            raise ValueError("what was stored has another size")
        return True

    return convert


def _decoded(name: DecoderName) -> Callable[[bytes], bool]:
    """An augmenter's decoder, with guards before and behind the pixels."""
    decode = make_decoder(name)
    memory = np.full(SIZE * SIZE * 3 + 2 * _GUARD, 0xA5, np.uint8)
    into = memory[_GUARD:-_GUARD].reshape(SIZE, SIZE, 3)

    def fill(data: bytes) -> bool:
        try:
            for_images(decode, [memoryview(data)], SIZE)(memoryview(data), into)
            return True
        except CorruptSampleError:
            return False
        finally:
            if (memory[:_GUARD] != 0xA5).any() or (memory[-_GUARD:] != 0xA5).any():
                raise ValueError("it wrote outside of the pixels")

    return fill


def _on_the_host() -> Callable[[bytes], bool]:
    """The trainer's own decoder."""
    import torch

    from fourstage.augmenter.draws import Draws
    from fourstage.augmenter.transform import scratch_for, transform_decodable

    decode, scratch = make_decoder("auto"), scratch_for(SIZE)
    draws = Draws(np.zeros((1, 2), np.int32), np.zeros(1, np.bool_), np.zeros((1, 3), np.float32))
    out = torch.empty((1, 32, 32, 3), dtype=torch.uint8)

    def fill(data: bytes) -> bool:
        return not transform_decodable([memoryview(data)], draws, decode, scratch=scratch, out=out.numpy())

    return fill


def _decoder(name: str) -> Callable[[bytes], bool]:
    match name:
        case "prepare":
            return _prepared()
        case "host":
            return _on_the_host()
        case _:
            return _decoded(cast(DecoderName, name))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.jpegs")
    parser.add_argument("decoder", choices=DECODERS)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    faulthandler.enable()
    decode = _decoder(arguments.decoder)
    addresses = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (addresses + _ADDRESSES,) * 2)
    whole = 0
    for number in range(arguments.first, arguments.first + arguments.cases):
        data = corpus(arguments.seed, number)
        print(number, flush=True)
        # Its default is to end the process: a decoder that hangs holds the interpreter.
        signal.alarm(_SECONDS)
        whole += decode(data)
    signal.alarm(0)
    print(f"{whole} of {arguments.cases} decoded")
    return 0


if __name__ == "__main__":
    sys.exit(main())
