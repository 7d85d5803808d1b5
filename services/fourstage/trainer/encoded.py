"""Batches whose images are still JPEG bytes, for a trainer that decodes them itself, and what it needs for that.

Who takes leases and who decodes is made outside the trainer (``fourstage.decoding``) and handed in.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from fourstage.errors import CorruptSampleError
from fourstage.trace import Passage
from fourstage.wire.messages import OnCorrupt, Times
from fourstage.wire.sockets import Waiter

if TYPE_CHECKING:
    from torch import Tensor

    from fourstage.trainer.inbox import FeedBatch, Inbox

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Encoded:
    """The stored images of one batch, valid until the batch is released.

    data: uint8 (bytes,), the JPEG images one behind another; sizes: uint32 (rows,), bytes of each
    size: width and height of every image in pixels
    skip: rows that are not to be decoded
    """

    data: NDArray[np.uint8]
    sizes: NDArray[np.uint32]
    size: int
    skip: tuple[int, ...] = ()

    def images(self) -> list[NDArray[np.uint8]]:
        """Each image's bytes, a view."""
        ends = np.cumsum(self.sizes, dtype=np.int64).tolist()
        return [self.data[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


class PixelDecoder(Protocol):
    """Decodes the batches of one copy stage, in its thread."""

    def __call__(self, batch: "FeedBatch", out: "Tensor") -> Mapping[int, str]:
        """Decode, cut and reflect a batch that is ``encoded`` into ``out``, uint8 (rows, crop, crop, 3), where all rows
        lie one behind another but those that cannot be decoded. Returns these, ascending, and why.

        On a GPU all of it is told to the thread's current stream.
        """


def decode(decoder: PixelDecoder, batch: "FeedBatch", out: "Tensor", on_corrupt: OnCorrupt) -> None:
    """Decode a batch into the beginning of ``out`` and close it up.

    Raises CorruptSampleError, which names the sample, where nothing may be left out.
    """
    left_out = decoder(batch, out[: batch.place.rows])
    for row, why in left_out.items():
        # In the loader's words for what an augmenter could not decode.
        words = f"sample {batch.keys[row]!r} cannot be decoded: {why}"
        if on_corrupt == "fail":
            raise CorruptSampleError(words)
        log.error("batch %d row %d: %s", batch.seq, row, words)
    batch.leave_out(tuple(left_out))


class Taker(Protocol):
    """The trainer's own augmenter at the loader; called from the feed's thread."""

    @property
    def peer(self) -> bytes:
        """The 16 bytes that OPEN names."""

    def turn(self, now: float, inboxes: "Mapping[bytes, Inbox]", passage: Callable[[str, Times], Passage]) -> bool:
        """Take what the loader leases for these streams and put it into their inboxes; whether there was any.

        now: monotonic seconds. passage: of a batch that was made by a worker of that name.
        """

    def close(self) -> None:
        """Say goodbye."""


class Decoding(Protocol):
    """How a trainer decodes."""

    @property
    def identity(self) -> bytes:
        """Which pixels come of it."""

    def taker(self, waiter: Waiter) -> Taker:
        """The one that takes leases; its socket is added to the feed's waiter."""

    def decoder(self) -> PixelDecoder:
        """A new decoder, for one copy stage."""
