"""JPEG bytes to pixels by NVIDIA DALI on the CPU: one pipeline of one operator, whole images, one thread at work.

https://docs.nvidia.com/deeplearning/dali/user-guide/docs/operations/nvidia.dali.fn.decoders.image.html

Crop and reflection stay with ``transform``: by DALI's own slice and flip an image takes 1.3 times as long, and a
decoder that crops decodes only a part, whose edges differ.

What DALI makes of damaged images is not what a data loader may make of them. A file that ends early fails the whole
batch, and the pipeline with it. Data that are damaged or end early within the file are decoded as far as they go, the
rest grey, with a line on standard error. A PNG or an image of another size is decoded as well. So each image is
judged before by simplejpeg, which is strict: its header, then all its entropy-coded data at an eighth of the size,
for two thirds of the time of a whole decode. That finds what a whole strict decode finds: the warnings come from the
data, not from the transform behind them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from nvidia.dali import fn, types
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import pipeline_def

from fourstage.augmenter.decode import BatchDecoder, Decoder
from fourstage.errors import CorruptSampleError

_AT_ONCE = 16
"""Images of one run of the pipeline. Single ones take a tenth longer; more than these gain nothing."""

Pixels = NDArray[np.uint8]


class DaliDecoder(BatchDecoder):
    """Decodes by DALI what a strict decoder takes."""

    family = b"dali"

    def __init__(self, strict: Decoder) -> None:
        """strict: whose word it is that an image is corrupt, and why."""
        self._strict = strict
        self._pipeline = _pipeline()

    def for_images(self, images: Sequence[memoryview], size: int) -> Decoder:
        remaining = self._in_order(images, size)

        def decode(_: memoryview, pixels: Pixels) -> None:
            decoded = next(remaining)
            if isinstance(decoded, CorruptSampleError):
                raise decoded
            pixels[...] = decoded

        return decode

    def _in_order(self, images: Sequence[memoryview], size: int) -> Iterator[Pixels | CorruptSampleError]:
        """Each image's pixels, uint8 (size, size, 3), good until the next one is asked for, or its fault."""
        for begin in range(0, len(images), _AT_ONCE):
            part = images[begin : begin + _AT_ONCE]
            faults = [self._fault(jpeg, size) for jpeg in part]
            decoded = iter(self._decoded([jpeg for jpeg, fault in zip(part, faults, strict=True) if fault is None]))
            for fault in faults:
                yield fault or next(decoded)

    def _fault(self, jpeg: memoryview, size: int) -> CorruptSampleError | None:
        """What the strict decoder has against an image; it is asked only where a look at the data calls for it."""
        try:
            if simplejpeg.decode_jpeg_header(jpeg)[:2] == (size, size):
                simplejpeg.decode_jpeg(jpeg, "GRAY", True, True, min_height=1, min_width=1, min_factor=8)
                return None
        except ValueError:
            pass
        try:
            self._strict(jpeg, np.empty((size, size, 3), np.uint8))
        except CorruptSampleError as error:
            return error
        return None

    def _decoded(self, images: Sequence[memoryview]) -> Sequence[Pixels | CorruptSampleError]:
        """All of them by one run of the pipeline; where it fails, each by one of its own."""
        if not images:
            return []
        try:
            return self._run(images)
        except RuntimeError:
            # One image that DALI does not take fails all; whose it was it does not say, and the pipeline is void.
            self._pipeline = _pipeline()
            return [self._alone(jpeg) for jpeg in images]

    def _alone(self, jpeg: memoryview) -> Pixels | CorruptSampleError:
        try:
            return self._run([jpeg])[0].copy()
        except RuntimeError as error:
            self._pipeline = _pipeline()
            reason = str(error).rpartition("encountered:")[2].partition("Current pipeline object")[0]
            return CorruptSampleError(f"DALI does not take it: {' '.join(reason.split())}")

    def _run(self, images: Sequence[memoryview]) -> list[Pixels]:
        """The pixels lie in the pipeline and are good until its next run. Raises RuntimeError, after which the
        pipeline is void."""
        self._pipeline.feed_input("jpeg", [np.frombuffer(jpeg, np.uint8) for jpeg in images])
        (decoded,) = self._pipeline.run()
        return [np.asarray(decoded[row]) for row in range(len(images))]


@pipeline_def
def _decoding() -> DataNode:
    jpeg = fn.external_source(name="jpeg", dtype=types.DALIDataType.UINT8, ndim=1)
    # By default DALI turns images as EXIF says.
    return fn.decoders.image(jpeg, output_type=types.DALIImageType.RGB, adjust_orientation=False)


def _pipeline() -> Any:
    """Takes up to ``_AT_ONCE`` images by ``feed_input("jpeg", ...)``; made anew in a millisecond. DALI does not say the
    types of its methods."""
    # Nothing runs ahead: what is fed is decoded by the very next run, while this thread waits.
    pipeline: Any = _decoding(
        batch_size=_AT_ONCE,
        num_threads=1,
        device_id=None,
        prefetch_queue_depth=1,
        exec_pipelined=False,
        exec_async=False,
    )
    pipeline.build()
    return pipeline
