"""Decoding in the trainer on a CPU: by the functions that augmenters use, so to the same pixels."""

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fourstage.augmenter.decode import Decoder
from fourstage.augmenter.draws import Draws
from fourstage.augmenter.transform import scratch_for, transform_decodable
from fourstage.errors import PeerError
from fourstage.trainer.encoded import Encoded
from fourstage.trainer.inbox import FeedBatch


class HostDecoder:
    """One image after another, in the copy stage's thread."""

    def __init__(self, decode: Decoder) -> None:
        # As in an augmenter: threads of OpenCV's own would take the train stage's cores for a few microseconds' work.
        cv2.setNumThreads(1)
        self._decode = decode
        self._scratch: NDArray[np.uint8] = np.empty((0, 0, 3), np.uint8)

    def __call__(self, batch: FeedBatch, out: Tensor) -> dict[int, str]:
        """As ``PixelDecoder``; out: on the CPU."""
        encoded = encoded_of(batch)
        if len(self._scratch) != encoded.size:
            self._scratch = scratch_for(encoded.size)
        draws = Draws(batch.offsets, batch.reflections, batch.shifts)
        images = [image.data for image in encoded.images()]
        return transform_decodable(
            images, draws, self._decode, scratch=self._scratch, out=out.numpy(), skip=encoded.skip
        )


def encoded_of(batch: FeedBatch) -> Encoded:
    """The JPEG bytes of a batch. Raises PeerError for one that has pixels already."""
    if batch.encoded is None:
        raise PeerError(f"batch {batch.seq} came with pixels to a trainer that decodes")
    return batch.encoded
