"""A batch as YCbCr planes: 1.5 bytes a pixel instead of 3, finished on the device to the pixels that RGB would have.

An augmenter decodes a 4:2:0 JPEG without upsampling and colour conversion and cuts its crop out of three planes: of the
luma what the crop shows, of the chroma (half the width and height) a window with one sample more on each side, since
libjpeg's "fancy" upsampling mixes neighbours. What is left, ``finish``, is integer arithmetic and libjpeg's to the last
bit (libjpeg-turbo 2.1 and 3.1, jdsample.c h2v2_fancy_upsample and jdcolor.c build_ycc_rgb_table):

- each chroma sample stands for 2x2 pixels, and each pixel is mixed from four samples with the weights 9, 3, 3, 1;
- first the rows, 3 * near + far without rounding, then the columns, where the left pixel of a sample is rounded with 8
  and the right one with 7 before the sum is divided by 16;
- beyond the image's edge lies a copy of the edge. libjpeg's special cases there, (4 * this + 8 or 7) / 16, are the same
  number, so one replicated row and column around the plane makes them ordinary cases.
"""

import ctypes
import ctypes.util
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fourstage.augmenter.draws import Draws
from fourstage.errors import CorruptSampleError

LEAST_SIZE = 5
"""libjpeg repeats chroma samples, instead of mixing them, in images of four columns or fewer."""

_SUBSAMPLED_420, _COLOURS_YCBCR = 2, 1
_PIXELS_RGB = 0
_STOP_ON_WARNING = 8192


class NoPlanesError(Exception):
    """An image that is sound but has no planes of this form (4:4:4, grey, another size): RGB would have to carry it."""


def chroma_side(crop: int) -> int:
    """Samples along a side of the chroma window that a crop of ``crop`` pixels needs, wherever it is cut."""
    return crop // 2 + 2


def slot_bytes(crop: int) -> int:
    """Bytes of one image's crop as planes."""
    return crop**2 + 2 * chroma_side(crop) ** 2


class Planes:
    """Room for the planes of one image of S x S; whole images go through it, so it stays in the cache.

    luma: uint8 (S', S'), S' being S rounded up to an even number
    chroma: uint8 (2, S'/2 + 2, S'/2 + 2), blue and red difference with one row and column of border on each side
    """

    def __init__(self, size: int) -> None:
        """Raise ValueError for images so small that libjpeg upsamples them in another way."""
        if size < LEAST_SIZE:
            raise ValueError(f"images of {size} pixels are not upsampled like larger ones, from {LEAST_SIZE} on")
        self.size = size
        samples = (size + 1) // 2
        self.luma = np.empty((2 * samples, 2 * samples), np.uint8)
        self.chroma = np.empty((2, samples + 2, samples + 2), np.uint8)
        inner = self.chroma[:, 1:-1, 1:-1]
        self.addresses = (ctypes.c_void_p * 3)(*(plane.ctypes.data for plane in (self.luma, *inner)))
        self.strides = (ctypes.c_int * 3)(2 * samples, samples + 2, samples + 2)

    def replicate_edges(self) -> None:
        """Fill the chroma's border from the outermost samples."""
        chroma = self.chroma
        chroma[:, 0], chroma[:, -1] = chroma[:, 1], chroma[:, -2]
        chroma[:, :, 0], chroma[:, :, -1] = chroma[:, :, 1], chroma[:, :, -2]


class Turbo:
    """The system's libturbojpeg, to RGB or to planes, with one handle for all images."""

    def __init__(self) -> None:
        """Raise OSError where there is no libturbojpeg."""
        self.name = ctypes.util.find_library("turbojpeg")
        if self.name is None:
            raise OSError("no libturbojpeg (Debian: apt-get install libturbojpeg0)")
        library = ctypes.CDLL(self.name)
        pointer, number, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_ulong
        library.tjInitDecompress.restype = pointer
        library.tjGetErrorStr2.argtypes, library.tjGetErrorStr2.restype = [pointer], ctypes.c_char_p
        library.tjDestroy.argtypes = [pointer]
        library.tjDecompressHeader3.argtypes = [pointer, pointer, size, *[ctypes.POINTER(number)] * 4]
        library.tjDecompress2.argtypes = [pointer, pointer, size, pointer, *[number] * 5]
        library.tjDecompressToYUVPlanes.argtypes = [pointer, pointer, size, pointer, number, pointer, number, number]
        self._library = library
        self._handle = library.tjInitDecompress()
        self._told = tuple(number() for _ in range(4))
        self._told_addresses = tuple(ctypes.byref(each) for each in self._told)

    def rgb(self, image: memoryview, pixels: NDArray[np.uint8]) -> None:
        """Fill ``pixels``, uint8 (S, S, 3), as the augmenter's decoders do; raise CorruptSampleError."""
        data, size = np.frombuffer(image, np.uint8), pixels.shape[0]
        address = data.ctypes.data
        if self._header(address, data.size)[:2] != (size, size):
            raise CorruptSampleError(f"image of another size than {size}")
        out = pixels.ctypes.data
        self._check(
            self._library.tjDecompress2(
                self._handle, address, data.size, out, size, 3 * size, size, _PIXELS_RGB, _STOP_ON_WARNING
            )
        )

    def planes(self, image: memoryview, planes: Planes) -> None:
        """Fill ``planes`` but for the border; raise CorruptSampleError, or NoPlanesError for an image of another form.

        The header is looked at first: the library scales an image of another size, and does not say how it was sampled.
        """
        data, size = np.frombuffer(image, np.uint8), planes.size
        address = data.ctypes.data
        found = self._header(address, data.size)
        if found != (size, size, _SUBSAMPLED_420, _COLOURS_YCBCR):
            raise NoPlanesError(
                f"width, height, sampling and colours are {found} in TurboJPEG's numbers, "
                f"not {(size, size, _SUBSAMPLED_420, _COLOURS_YCBCR)}"
            )
        self._check(
            self._library.tjDecompressToYUVPlanes(
                self._handle, address, data.size, planes.addresses, size, planes.strides, size, _STOP_ON_WARNING
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._library.tjDestroy(self._handle)

    def _header(self, address: int, size: int) -> tuple[int, ...]:
        self._check(self._library.tjDecompressHeader3(self._handle, address, size, *self._told_addresses))
        return tuple(each.value for each in self._told)

    def _check(self, status: int) -> None:
        if status != 0:
            raise CorruptSampleError(self._library.tjGetErrorStr2(self._handle).decode("utf-8", "replace"))


def transform_planes(
    images: Sequence[memoryview],
    draws: Draws,
    turbo: Turbo,
    *,
    scratch: Planes,
    luma: NDArray[np.uint8],
    chroma: NDArray[np.uint8],
) -> None:
    """Decode each image to planes and cut its crop; reflection is left to the device.

    A reflected crop would have to be upsampled with its two roundings exchanged.

    luma: uint8 (rows, crop, crop), filled
    chroma: uint8 (rows, 2, C, C) with C = ``chroma_side(crop)``, filled; its first sample in each direction is the one
    before the first pixel's own where the offset is even, the first pixel's own where it is odd
    """
    crop, side = luma.shape[1], chroma.shape[2]
    for row, (image, (top, left)) in enumerate(zip(images, draws.offsets.tolist(), strict=True)):
        turbo.planes(image, scratch)
        scratch.replicate_edges()
        luma[row] = scratch.luma[top : top + crop, left : left + crop]
        first_row, first_column = (top + 1) // 2, (left + 1) // 2
        chroma[row] = scratch.chroma[:, first_row : first_row + side, first_column : first_column + side]


def finish(luma: Tensor, chroma: Tensor, offsets: Tensor, reflections: Tensor) -> Tensor:
    """RGB, uint8 (rows, crop, crop, 3), of planes as ``transform_planes`` makes them, on the planes' device.

    The draws lie on the host: what is computed from them there never waits for the device.

    offsets: integers (rows, 2); only whether they are even counts here
    reflections: bool (rows,)
    """
    crop = luma.shape[1]
    odd = (offsets % 2 == 1)[:, :, None, None, None].to(luma.device)
    reflected = reflections.nonzero()[:, 0].to(luma.device)
    samples = chroma.to(torch.int16)  # sums reach 16 * 255 + 8
    one, next_ = samples[:, :, :-1], samples[:, :, 1:]
    rows = torch.stack((3 * one + next_, 3 * next_ + one), 3).flatten(2, 3)
    rows = torch.where(odd[:, 0], rows[:, :, :crop], rows[:, :, 1 : crop + 1])
    one, next_ = rows[..., :-1], rows[..., 1:]
    columns = torch.stack(((3 * one + next_ + 7) >> 4, (3 * next_ + one + 8) >> 4), 4).flatten(3, 4)
    columns = torch.where(odd[:, 1], columns[..., :crop], columns[..., 1 : crop + 1])
    pixels = to_rgb(luma, columns)
    pixels[reflected] = pixels[reflected].flip(2)
    return pixels


def to_rgb(luma: Tensor, chroma: Tensor) -> Tensor:
    """libjpeg's conversion in fixed point with 16 bits: uint8 (rows, H, W, 3) of (rows, H, W) and (rows, 2, H, W)."""
    y = luma.to(torch.int32)
    blue, red = (chroma.to(torch.int32) - 128).unbind(1)
    half = 1 << 15
    # 1.40200, 0.34414, 0.71414 and 1.77200 times 65536; >> rounds towards minus infinity, as libjpeg's does.
    channels = (
        y + ((91881 * red + half) >> 16),
        y + ((-22554 * blue - 46802 * red + half) >> 16),
        y + ((116130 * blue + half) >> 16),
    )
    return torch.stack(channels, 3).clamp_(0, 255).to(torch.uint8)
