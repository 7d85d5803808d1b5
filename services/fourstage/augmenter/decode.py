"""JPEG bytes to pixels: simplejpeg and turbojpeg behind one signature, with equal pixels, and DALI, which takes many
images at once.

All run libjpeg-turbo's accurate inverse transform and fancy upsampling and refuse what the library warns about:
a truncated image must not pass as half grey. EXIF orientation is not applied (the 2012 pipeline ignored it).
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fourstage.errors import CorruptSampleError, SettingsError

Decoder = Callable[[memoryview, NDArray[np.uint8]], None]
"""(JPEG bytes, uint8 (size, size, 3) C-contiguous): fills the array with RGB; raises CorruptSampleError."""

DecoderName = Literal["auto", "simplejpeg", "turbojpeg", "dali"]


class BatchDecoder(ABC):
    """A decoder whose library is at its best with many images at once; for a single one it is called as any other."""

    family: bytes
    """Begins the identity of a worker with this decoder, which so never equals that of another one."""

    @abstractmethod
    def for_images(self, images: Sequence[memoryview], size: int) -> Decoder:
        """A decoder of just these JPEG images of size x size, to be called with each of them once, in their order.

        It works ahead, and raises CorruptSampleError at the image whose fault it is.
        """

    def __call__(self, jpeg: memoryview, pixels: NDArray[np.uint8]) -> None:
        self.for_images([jpeg], len(pixels))(jpeg, pixels)


def for_images(decode: Decoder, images: Sequence[memoryview], size: int) -> Decoder:
    """What to call with each of these images in turn: the decoder itself, or one that works ahead for them all."""
    return decode.for_images(images, size) if isinstance(decode, BatchDecoder) else decode


def make_decoder(name: DecoderName) -> Decoder:
    """The decoder of that name; ``auto`` is simplejpeg, measured fastest (docs/performance.md).

    Raises SettingsError where what it needs is not installed.
    """
    match name:
        case "dali":
            return _dali()
        case "turbojpeg":
            return _turbojpeg()
        case _:
            return _simplejpeg()


def _simplejpeg() -> Decoder:
    import simplejpeg

    decode_jpeg = simplejpeg.decode_jpeg

    def decode(jpeg: memoryview, pixels: NDArray[np.uint8]) -> None:
        try:
            # The buffer's size bounds the output, but not which shape comes out of it: hence the comparison.
            decoded = decode_jpeg(jpeg, "RGB", False, False, 0, 0, 1, pixels)
        except ValueError as error:
            raise CorruptSampleError(str(error)) from error
        if decoded.shape != pixels.shape:
            raise CorruptSampleError(f"image of {decoded.shape}, not {pixels.shape}")

    return decode


def _turbojpeg() -> Decoder:
    import turbojpeg

    try:
        library = turbojpeg.TurboJPEG()
    except RuntimeError as error:
        raise SettingsError(
            f'augmenter.decoder = "turbojpeg": {error}',
            hint='install libturbojpeg (Debian: apt-get install libturbojpeg0) or use "simplejpeg"',
        ) from error

    def decode(jpeg: memoryview, pixels: NDArray[np.uint8]) -> None:
        try:
            with warnings.catch_warnings():
                # PyTurboJPEG 1.8 only warns of a truncated image and returns it partly grey.
                warnings.simplefilter("error", UserWarning)
                width, height, *_ = library.decode_header(jpeg)
                if (height, width) != pixels.shape[:2]:
                    # It would make an array of whatever size the image says.
                    raise CorruptSampleError(f"image of {width}x{height}, not {len(pixels)}x{len(pixels)}")
                decoded = library.decode(jpeg, turbojpeg.TJPF_RGB, flags=turbojpeg.TJFLAG_STOPONWARNING, dst=pixels)
        except (OSError, ValueError, UserWarning) as error:
            raise CorruptSampleError(str(error)) from error
        if decoded is not pixels:
            raise CorruptSampleError(f"image of {decoded.shape}, not {pixels.shape}")

    return decode


def _dali() -> Decoder:
    try:
        from fourstage.augmenter.dali import DaliDecoder
    except ImportError as error:
        raise SettingsError(
            f'augmenter.decoder = "dali": {error}',
            hint="install the extra: pip install 'fourstage[dali]', or use \"simplejpeg\"",
        ) from error
    return DaliDecoder(_simplejpeg())
