"""One batch of JPEG images into one slot of pixels, and the digest that says which pixels a worker makes."""

import hashlib
from collections.abc import Collection, Sequence
from importlib import resources

import cv2
import numpy as np
from numpy.typing import NDArray

from fourstage.augmenter.decode import BatchDecoder, Decoder, for_images
from fourstage.augmenter.draws import Draws, draw
from fourstage.errors import CorruptSampleError
from fourstage.views import View

UNTRIED = "it has ended the workers that tried to"
"""Why a row cannot be decoded that the loader says to skip."""
_LINE = 64
"""Bytes of a cache line."""


class CorruptRowError(CorruptSampleError):
    """A row of a batch that cannot be decoded."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(reason)
        self.row = row


def scratch_for(size: int) -> NDArray[np.uint8]:
    """Memory to decode images of that size into: uint8 (size, size, 3), at an address that no 16 divides.

    libjpeg-turbo writes rows that lie on 32 bytes (16 without AVX2) past the cache, by non-temporal stores
    (simd/x86_64/jdcolext-avx2.asm); cutting the crop then reads all of it from memory again. An image of 256x256
    takes 22 microseconds more so, a tenth of its decoding, and whether an ordinary array lies there is chance.
    """
    memory = np.empty(size * size * 3 + 2 * _LINE, np.uint8)
    begin = -memory.ctypes.data % _LINE + _LINE // 8
    return memory[begin : begin + size * size * 3].reshape(size, size, 3)


def transform(
    images: Sequence[memoryview],
    draws: Draws,
    decode: Decoder,
    *,
    scratch: NDArray[np.uint8],
    out: NDArray[np.uint8],
) -> None:
    """Decode each image, cut its crop, reflect it where drawn.

    images: JPEG bytes of ``rows`` stored images of S x S
    scratch: of ``scratch_for(S)``, overwritten; it stays in the cache, which is why whole images go through it
    out: uint8 (rows, crop, crop, 3), filled

    Raises CorruptRowError for the first image that cannot be decoded.
    """
    decode = for_images(decode, images, len(scratch))
    crop = out.shape[1]
    copy, flip = cv2.copyTo, cv2.flip
    reflected = np.empty((crop, crop, 3), np.uint8)
    places = draws.offsets.tolist()
    reflections = draws.reflections.tolist()
    for row, image in enumerate(images):
        try:
            decode(image, scratch)
        except CorruptSampleError as error:
            raise CorruptRowError(row, str(error)) from error
        top, left = places[row]
        window = scratch[top : top + crop, left : left + crop]
        if reflections[row]:
            # A reversed NumPy copy takes 257 microseconds for 224x224, as long as the decode; OpenCV's takes 4 within
            # the cache and 14 straight into a slot, so the slot gets a plain copy (4).
            flip(window, 1, reflected)
            window = reflected
        # NumPy's copy of rows that lie apart takes 9 microseconds, OpenCV's 5.
        copy(window, None, out[row])  # type: ignore[call-overload]  # OpenCV's stub knows no missing mask


def transform_decodable(
    images: Sequence[memoryview],
    draws: Draws,
    decode: Decoder,
    *,
    scratch: NDArray[np.uint8],
    out: NDArray[np.uint8],
    skip: Collection[int] = (),
) -> dict[int, str]:
    """As ``transform``, but what cannot be decoded is left out: the crops of the others lie one behind another from
    the beginning of ``out``, each as it is drawn for its own row. Returns the rows left out, ascending, and why.

    skip: rows that are left out untried
    """
    left_out: dict[int, str] = {}
    untried = sorted(skip)
    begin = made = 0
    while begin < len(images):
        end = next((row for row in untried if row >= begin), len(images))
        rows = slice(begin, end)
        try:
            transform(images[rows], draws.rows(rows), decode, scratch=scratch, out=out[made : made + end - begin])
        except CorruptRowError as error:
            end, why = begin + error.row, str(error)
        else:
            why = UNTRIED
        made += end - begin
        if end < len(images):
            left_out[end] = why
        begin = end + 1
    return left_out


def identity(decode: Decoder) -> bytes:
    """16 bytes: the digest of a golden image's decode, draws and transform by this process.

    Workers with equal identities make equal pixels; loader and checkpoint refuse any other.
    """
    golden = (resources.files("fourstage.augmenter") / "golden.jpg").read_bytes()
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(decode, BatchDecoder):
        digest.update(decode.family)
    scratch = scratch_for(64)
    colours = np.array([[96.0, -32.0, 8.0], [64.0, 16.0, -24.0], [80.0, 24.0, 16.0]])
    for view in (
        View("random", 48, colour_std=0.1),
        View("random", 48, colour_std=0.1, colour_epochs=3, crop_positions="inclusive", crop_chunk=4),
        View("centre", 48),
        View("full", 64),
    ):
        draws = draw(view, size=64, seed=2012, epoch=3, first=5, rows=8, colours=colours)
        pixels = np.empty((8, view.crop, view.crop, 3), np.uint8)
        transform([memoryview(golden)] * 8, draws, decode, scratch=scratch, out=pixels)
        for array in (pixels, draws.offsets, draws.reflections, draws.shifts):
            digest.update(np.ascontiguousarray(array).data)
    return digest.digest()
