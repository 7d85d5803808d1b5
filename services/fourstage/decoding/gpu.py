"""Decoding on a GPU by nvImageCodec, NVIDIA's front to nvJPEG: whole images, then crop and reflection by indexing.

https://docs.nvidia.com/cuda/nvimagecodec/py_api.html. What is called of it was tried with its decoder for CPUs;
on a GPU this file has never run, and nothing of it is measured.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from fourstage.augmenter.transform import UNTRIED, identity
from fourstage.decoding.host import encoded_of
from fourstage.errors import CorruptSampleError, SettingsError
from fourstage.trainer.inbox import FeedBatch

DecodeImages = Callable[[Sequence[NDArray[np.uint8]]], Sequence[Tensor | None]]
"""JPEG images to uint8 (height, width, 3) on the device, ready on the thread's current stream; None: not decoded."""

_FAMILY = b"nvimagecodec"
_END = (0xFF, 0xD9)
"""The marker at the end of a JPEG file (ITU-T T.81, table B.1)."""


class GpuDecoder:
    """A batch at a time on the thread's current stream."""

    def __init__(self, decode: DecodeImages) -> None:
        """decode: as ``nvimagecodec`` makes it for the device of the batches."""
        self._decode = decode

    def __call__(self, batch: FeedBatch, out: Tensor) -> dict[int, str]:
        """As ``PixelDecoder``; the batch's bytes must stay until the stream has come this far."""
        encoded = encoded_of(batch)
        images = encoded.images()
        left_out = dict.fromkeys(encoded.skip, UNTRIED)
        for row, image in enumerate(images):
            # nvJPEG may decode a file that ends early as far as it goes.
            if row not in left_out and tuple(image[-2:]) != _END:
                left_out[row] = "it ends early"
        rows = [row for row in range(len(images)) if row not in left_out]
        crop, shape, made = out.shape[1], (encoded.size, encoded.size, 3), 0
        places, reflections = batch.offsets.tolist(), batch.reflections.tolist()
        for row, decoded in zip(rows, self._decode([images[row] for row in rows]), strict=True):
            if decoded is None:
                left_out[row] = "nvImageCodec does not take it"
            elif tuple(decoded.shape) != shape:
                left_out[row] = f"image of {tuple(decoded.shape)}, not {shape}"
            else:
                top, left = places[row]
                window = decoded[top : top + crop, left : left + crop]
                out[made].copy_(window.flip(1) if reflections[row] else window, non_blocking=True)
                made += 1
        return dict(sorted(left_out.items()))


def gpu_identity(decode: DecodeImages) -> bytes:
    """16 bytes: which pixels this device makes, by the golden image. Never equal to that of another decoder: one small
    image may come out alike where others do not."""

    def to_host(jpeg: memoryview, pixels: NDArray[np.uint8]) -> None:
        (decoded,) = decode([np.frombuffer(jpeg, np.uint8)])
        if decoded is None or tuple(decoded.shape) != pixels.shape:
            raise CorruptSampleError("nvImageCodec does not decode the golden image")
        pixels[...] = decoded.cpu().numpy()

    return hashlib.blake2b(_FAMILY + identity(to_host), digest_size=16).digest()


def nvimagecodec(device: torch.device) -> DecodeImages:
    """nvImageCodec on a GPU. Raises SettingsError where it is not installed or does not start."""
    try:
        import nvidia.nvimgcodec as codec

        # One kind of backend, whose entropy decoding may be the CPU's: with more, such as the engine for JPEG that some
        # GPUs have, an image's pixels would depend on how many others are in its batch.
        backends = [codec.Backend(codec.BackendKind.HYBRID_CPU_GPU)]
        decoder = codec.Decoder(device_id=device.index or 0, backends=backends, options=":fancy_upsampling=1")
    except (ImportError, RuntimeError) as error:
        raise SettingsError(
            f"decode = 'device' on {device}: nvImageCodec: {error}",
            hint="install the extra: pip install 'fourstage[dali]', or set decode = 'augmenter'",
        ) from error
    parameters = codec.DecodeParams(
        apply_exif_orientation=False, color_spec=codec.ColorSpec.SRGB, sample_format=codec.SampleFormat.I_RGB
    )

    def decode(images: Sequence[NDArray[np.uint8]]) -> Sequence[Tensor | None]:
        if not images:
            return []
        stream = torch.cuda.current_stream(device).cuda_stream
        streams = [codec.CodeStream(image) for image in images]
        decoded = decoder.decode(streams, params=parameters, cuda_stream=stream)
        # By DLPack, which orders torch's current stream behind the decoder's work.
        return [None if image is None else from_dlpack(image) for image in decoded]

    return decode
