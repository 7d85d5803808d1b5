"""One source image to one stored JPEG: decode, central square, rescale, encode.

Every pixel of the source is decoded, with no scaled DCT, and the shorter side is brought to ``size`` by area
averaging (cubic interpolation where it has to grow). The central square is cut out before it is rescaled: the
same patch as the paper's to within half a pixel, less work, and a strip of one pixel by a million cannot blow
up. EXIF orientation is not applied, as in 2012 (ILSVRC's orientation tags are noise), and no metadata is
written. ICC profiles are ignored; transparent pixels are laid on white; 16-bit pixels are scaled.
"""

import io
import warnings
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

Pixels = NDArray[np.uint8]
"""RGB, (height, width, 3)."""

MAX_PIXELS = 178_956_970
"""Above this Pillow refuses an image as a decompression bomb; the default limit here, and the highest."""

SUBSAMPLING = "420"
_JPEG_MAGIC = b"\xff\xd8\xff"
_SCAN = b"\xff\xda"
_MOST_SCANS = 100
"""A progressive image has some ten."""
_DIRECT = {"YCbCr", "Gray", "RGB"}
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")


class UnusableImageError(Exception):
    """A source image that cannot be taken; the text is the reason."""


class Converter:
    """Makes stored JPEGs; keeps its decoding buffer from image to image. For one thread."""

    def __init__(self, size: int, quality: int, max_pixels: int) -> None:
        self._size = size
        self._quality = quality
        self._max_pixels = max_pixels
        self._buffer: Pixels = np.empty(0, np.uint8)
        self._stored: Pixels = np.empty(size * size * 3, np.uint8)

    def convert(self, data: bytes) -> bytes:
        """The JPEG file to store for a source file; raises UnusableImageError with the reason."""
        patch = central_patch(self.decode(data), self._size)
        encoded: bytes = simplejpeg.encode_jpeg(patch, self._quality, "RGB", SUBSAMPLING)
        return encoded

    def decode(self, data: bytes) -> Pixels:
        """The pixels of a source file of any supported kind, valid until the next call.

        Raises UnusableImageError, before any pixel is decoded if the header says more than ``max_pixels``.
        """
        if not data:
            raise UnusableImageError("empty file")
        if data.startswith(_JPEG_MAGIC):
            # Each scan passes over the whole image, and 30 bytes make one: a megabyte would take hours.
            if (scans := data.count(_SCAN)) > _MOST_SCANS:
                raise UnusableImageError(f"{scans} scans, more than {_MOST_SCANS}: taken for a decompression bomb")
            try:
                height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            except ValueError:
                return self._decode_other(data)
            if colours in _DIRECT:
                self._judge(width, height)
                return self._decode_jpeg(data, height * width * 3)
        return self._decode_other(data)

    def decode_stored(self, jpeg: bytes) -> Pixels:
        """The pixels (size, size, 3) of a JPEG that ``convert`` made, valid until the next call."""
        stored: Pixels = simplejpeg.decode_jpeg(jpeg, "RGB", buffer=self._stored)
        return stored

    def _judge(self, width: int, height: int) -> None:
        if width * height > self._max_pixels:
            raise UnusableImageError(
                f"{width}x{height} pixels, more than {self._max_pixels}: taken for a decompression bomb"
            )

    def _decode_jpeg(self, data: bytes, length: int) -> Pixels:
        # A fresh array for each image costs a page fault for every 4 KiB of it: a tenth of all time.
        if self._buffer.size < length:
            self._buffer = np.empty(length, np.uint8)
        try:
            pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", buffer=self._buffer)
        except ValueError as error:
            raise UnusableImageError(f"damaged JPEG: {error}") from error
        return pixels

    def _decode_other(self, data: bytes) -> Pixels:
        """All that libjpeg-turbo does not make RGB of by itself, CMYK JPEGs among it."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata, and about bombs, which _judge looks after
            try:
                with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                    self._judge(*image.size)
                    return _as_rgb(image)
            except UnusableImageError:
                raise
            except UnidentifiedImageError as error:
                raise UnusableImageError(f"not an image of a known kind ({', '.join(_FORMATS)})") from error
            except Exception as error:
                # Pillow's plugins raise whatever the damage makes them stumble over.
                raise UnusableImageError(f"cannot be decoded: {error or type(error).__name__}") from error


def central_patch(image: Pixels, size: int) -> Pixels:
    """The central square of an image (H, W, 3), rescaled to (size, size, 3), contiguous."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    if side < size:
        return _resized(square, size, cv2.INTER_CUBIC)
    if size < side < 2 * size:
        # Four bilinear samples a pixel instead of all of its area: 47 dB from it, in half the time.
        square = _resized(square, 2 * size, cv2.INTER_LINEAR)
    return _resized(square, size, cv2.INTER_AREA)


def _resized(image: Pixels, size: int, interpolation: int) -> Pixels:
    # cv2's annotations call every array Mat or integer-or-floating; uint8 in is uint8 out.
    resized: Any = cv2.resize(image, (size, size), interpolation=interpolation)
    return np.ascontiguousarray(resized, np.uint8)


def _as_rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise UnusableImageError("32-bit grey pixels, whose white is not defined")
        grey = ((values + 128) // 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise UnusableImageError("floating-point pixels, whose white is not defined")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, "white")
        canvas.alpha_composite(rgba)
        return np.asarray(canvas.convert("RGB"))
    return np.asarray(image.convert("RGB"))
