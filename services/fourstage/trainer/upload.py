"""The copy stage's way to a GPU: bytes up and finished there on a stream of its own, beside training.

Everything of one batch runs on that stream in order, so one device buffer takes the bytes of every batch. What
training reads, finished images and labels, there is once for each batch in flight. Nothing is allocated per batch.
"""

import torch
from torch import Tensor

from fourstage.telemetry import StageMeter
from fourstage.trainer.encoded import PixelDecoder, decode
from fourstage.trainer.finish import Finish
from fourstage.trainer.inbox import FeedBatch
from fourstage.trainer.registration import Registrations, cuda_runtime
from fourstage.wire.messages import OnCorrupt


class Upload:
    """Called from the copy stage's thread; ``trained`` from the one that trains."""

    def __init__(
        self, finish: Finish, *, rows: int, crop: int, buffers: int, device: torch.device, meter: StageMeter,
        decoder: PixelDecoder | None = None, on_corrupt: OnCorrupt = "fail",
    ) -> None:  # fmt: skip
        """rows: of the largest batch. buffers: batches that training may hold at a time, numbered from 0. decoder: on
        the device, of batches that come as JPEG bytes. on_corrupt: what it does with those that it cannot decode."""
        self._finish = finish
        self._decoder = decoder
        self._on_corrupt = on_corrupt
        self._device = device
        self._meter = meter
        self._registrations = Registrations(cuda_runtime(device))
        self._pixels = torch.empty((rows, crop, crop, 3), dtype=torch.uint8, device=device)
        self._labels = [torch.empty(rows, dtype=torch.int64, device=device) for _ in range(buffers)]
        self._host_labels = pinned((rows,), torch.int64)
        self._staging: Tensor | None = None
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # The buffers' memory may have been used on the stream that they were made on.
        self._stream.wait_stream(torch.cuda.current_stream(device))
        # Blocking: whoever waits sleeps, and leaves its core to the augmenters.
        self._uploaded = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._trained = [torch.cuda.Event(blocking=True) for _ in range(buffers)]  # type: ignore[no-untyped-call]
        self._ready = [torch.cuda.Event() for _ in range(buffers)]  # type: ignore[no-untyped-call]

    def wait(self, buffer: int) -> None:
        """Until training has used what the buffer holds; at once where it holds nothing yet."""
        self._trained[buffer].synchronize()

    def trained(self, buffer: int) -> None:
        """Training has been told to use the buffer, on this thread's current stream, and nothing later will."""
        self._trained[buffer].record(torch.cuda.current_stream(self._device))

    def __call__(self, buffer: int, batch: FeedBatch, pixels: Tensor, out: Tensor) -> tuple[Tensor, "torch.cuda.Event"]:
        """Upload a batch, give its slot back, finish it; returns its labels and when a stream may read both.

        pixels: the batch's, uint8 (rows, crop, crop, 3) on the CPU; with a decoder none. out: float32
        (most rows, crop, crop, 3) on the device, what ``buffer`` holds. The labels are int64 (rows,) on the device.
        """
        with torch.cuda.stream(self._stream):
            with self._registrations.reading(batch.arena) as registered:
                if self._decoder is not None:
                    decode(self._decoder, batch, self._pixels, self._on_corrupt)
                rows = len(batch.keys)
                if self._decoder is None:
                    self._pixels[:rows].copy_(pixels if registered else self._staged(pixels), non_blocking=True)
                labels = self._labels[buffer][:rows]
                self._host_labels.numpy()[:rows] = batch.labels
                labels.copy_(self._host_labels[:rows], non_blocking=True)
                self._uploaded.record(self._stream)
                # PyTorch guards only memory that it locked itself: our own event says when the slot was read.
                self._uploaded.synchronize()
            if self._decoder is None:
                self._meter.uploaded("registered" if registered else "staged", pixels.nbytes)
            batch.release()
            self._finish(
                self._pixels[:rows], batch.offsets, batch.reflections, batch.shifts, out[:rows],
                epoch=batch.place.epoch,
            )  # fmt: skip
            self._ready[buffer].record(self._stream)
        return labels, self._ready[buffer]

    def _staged(self, pixels: Tensor) -> Tensor:
        """The same pixels in page-locked memory, which is free again when the upload is over."""
        if self._staging is None:
            self._staging = pinned(tuple(self._pixels.shape), torch.uint8)
        return self._staging[: len(pixels)].copy_(pixels)


def pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Page-locked memory of the CPU."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)
