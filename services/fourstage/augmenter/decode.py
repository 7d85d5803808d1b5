"""JPEG bytes to pixels: two libraries behind one signature, with equal pixels.

Both run libjpeg-turbo's accurate inverse transform and fancy upsampling and refuse what the library warns about:
a truncated image must not pass as half grey. EXIF orientation is not applied (the 2012 pipeline ignored it).
"""

import warnings
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fourstage.errors import CorruptSampleError, SettingsError

Decoder = Callable[[memoryview, NDArray[np.uint8]], None]
"""(JPEG bytes, uint8 (size, size, 3) C-contiguous): fills the array with RGB; raises CorruptSampleError."""

DecoderName = Literal["auto", "simplejpeg", "turbojpeg"]


def make_decoder(name: DecoderName) -> Decoder:
    """The decoder of that name; ``auto`` is simplejpeg, measured faster (docs/performance.md)."""
    return _turbojpeg() if name == "turbojpeg" else _simplejpeg()


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
                decoded = library.decode(jpeg, turbojpeg.TJPF_RGB, flags=turbojpeg.TJFLAG_STOPONWARNING, dst=pixels)
        except (OSError, ValueError, UserWarning) as error:
            raise CorruptSampleError(str(error)) from error
        if decoded is not pixels:
            raise CorruptSampleError(f"image of {decoded.shape}, not {pixels.shape}")

    return decode
