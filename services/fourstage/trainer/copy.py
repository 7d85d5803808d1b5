"""Stage 3: from the slot to the device, one batch ahead of training, in two buffers.

While training reads one buffer the other is filled. On a GPU the bytes go up and are finished there (``upload``);
on a CPU the finish step reads straight out of the slot.
"""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fourstage.errors import FourstageError, of_the_machine
from fourstage.process import StopFlag
from fourstage.telemetry import StageMeter
from fourstage.trainer.encoded import PixelDecoder, decode
from fourstage.trainer.finish import Finish
from fourstage.trainer.inbox import FeedBatch
from fourstage.trainer.receipt import pixel_digests, sample_digests, with_gaps
from fourstage.trainer.relay import Batches
from fourstage.trainer.upload import Upload

_BUFFERS = 2
_POLL_SECONDS = 0.2


@dataclass(slots=True)
class DeviceBatch:
    """A batch on the device.

    images: float32 (rows, 3, crop, crop), channels_last; labels: int64 (rows,); both belong to a buffer that is
    used again after ``CopyStage.recycle``. Without a finish step both are empty.
    """

    batch: FeedBatch
    samples: bytes
    """The digests of its planned rows, 16 bytes each, zeros where one was skipped."""
    images: Tensor
    labels: Tensor
    ready: "torch.cuda.Event | None"
    buffer: int


class CopyStage:
    """A thread that takes batches from an inbox and puts them on the device."""

    def __init__(
        self,
        inbox: Batches,
        finish: Finish | None,
        *,
        rows: int,
        crop: int,
        device: torch.device,
        digest_pixels: bool,
        meter: StageMeter,
        label: str,
        copy_seconds: float = 0.0,
        decoder: PixelDecoder | None = None,
    ) -> None:
        """finish None: nothing is made of the pixels. copy_seconds: of a simulated copy; as after a real one the slot
        is free. decoder: of batches that come as JPEG bytes."""
        self._inbox = inbox
        self._finish = finish
        self._device = device
        self._digest_pixels = digest_pixels
        self._meter = meter
        self._copy_seconds = copy_seconds
        shape = (rows if finish else 0, crop, crop, 3)
        self._images = [torch.empty(shape, dtype=torch.float32, device=device) for _ in range(_BUFFERS)]
        self._no_labels = torch.empty(0, dtype=torch.int64)
        self._upload: Upload | None = None
        if device.type == "cuda" and finish is not None:
            self._upload = Upload(
                finish, rows=rows, crop=crop, buffers=_BUFFERS, device=device, meter=meter,
                on_corrupt=inbox.spec.on_corrupt, decoder=decoder,
            )  # fmt: skip
        self._decoder = decoder if self._upload is None else None
        self._decoded = torch.empty((rows if self._decoder else 0, crop, crop, 3), dtype=torch.uint8)
        """On the host: what the finish step reads of a batch that was decoded here."""
        self._image_bytes = 3 * crop * crop
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for buffer in range(_BUFFERS):
            self._free.put(buffer)
        self._ready: queue.SimpleQueue[DeviceBatch | FourstageError | None] = queue.SimpleQueue()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"copy-{label}", daemon=True)
        self._thread.start()

    def next(self, stop: StopFlag, waiting: Callable[[], None] = lambda: None) -> DeviceBatch | None:
        """The next batch in order; None after the last one or once ``stop`` is set.

        waiting: called a few times a second while none comes. Raises what went wrong upstream.
        """
        while True:
            try:
                item = self._ready.get(timeout=_POLL_SECONDS)
                break
            except queue.Empty:
                if stop:
                    return None
                waiting()
        if isinstance(item, FourstageError):
            raise item
        if item is not None and item.ready is not None:
            torch.cuda.current_stream(self._device).wait_event(item.ready)
        return item

    def recycle(self, item: DeviceBatch) -> None:
        """Training has been told to use the batch and nothing later will: its buffer may be filled again."""
        if self._upload is not None:
            self._upload.trained(item.buffer)
        self._free.put(item.buffer)

    def close(self) -> None:
        """Stop taking batches and wait for the thread."""
        self._stopping = True
        self._inbox.close()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping and not self._inbox.done:
                if (item := self._one()) is not None:
                    self._ready.put(item)
        except FourstageError as error:
            self._ready.put(error)
        except Exception as error:
            self._ready.put(of_the_machine(error) or FourstageError(f"the copy stage failed: {error!r}"))
        self._ready.put(None)

    def _one(self) -> DeviceBatch | None:
        """Fill one buffer with the next batch; None where there was neither in time."""
        mark = time.monotonic()
        try:
            buffer = self._free.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            self._meter.waited(time.monotonic() - mark, "downstream")
            return None
        if self._upload is not None:
            self._upload.wait(buffer)
        free_at = time.monotonic()
        self._meter.waited(free_at - mark, "downstream")
        batch = self._inbox.next(_POLL_SECONDS)
        began = time.monotonic()
        self._meter.waited(began - free_at, "upstream")
        if batch is None:
            self._free.put(buffer)
            return None
        if self._decoder is not None:
            decode(self._decoder, batch, self._decoded, self._inbox.spec.on_corrupt)
            batch.pixels = self._decoded[: len(batch.keys)].numpy()
        pixels = pixel_digests(batch.pixels) if self._digest_pixels else b""
        images, labels, ready = self._fill(buffer, batch)
        # Only now: a GPU may have closed the batch up, and reads it no more.
        samples = with_gaps(sample_digests(batch, pixels), [sample.row for sample in batch.skipped])
        rows = len(batch.keys)
        if self._copy_seconds:
            time.sleep(max(0.0, began + self._copy_seconds - time.monotonic()))
        if self._finish is None:
            batch.release()
        ended = time.monotonic()
        self._meter.done(ended - began, items=rows, size=rows * self._image_bytes)
        batch.passage.copied_from, batch.passage.copied_to = began, ended
        return DeviceBatch(batch, samples, images, labels, ready, buffer)

    def _fill(self, buffer: int, batch: FeedBatch) -> "tuple[Tensor, Tensor, torch.cuda.Event | None]":
        if self._finish is None:
            return self._images[buffer], self._no_labels, None
        if self._upload is not None:
            labels, ready = self._upload(buffer, batch, slot_tensor(batch.pixels), self._images[buffer])
            return self._images[buffer][: len(labels)].permute(0, 3, 1, 2), labels, ready
        out = self._images[buffer][: len(batch.keys)]
        self._finish(batch.pixels, batch.offsets, batch.reflections, batch.shifts, out, epoch=batch.place.epoch)
        batch.release()
        return out.permute(0, 3, 1, 2), torch.from_numpy(batch.labels.astype(np.int64)), None


class _Writable:
    """Says of an array that it may be written, and keeps it alive."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels
        address, _ = pixels.__array_interface__["data"]
        self.__array_interface__ = {**pixels.__array_interface__, "data": (address, False)}


def slot_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """A tensor over the slot's own memory, also without rows: uint8 (rows, crop, crop, 3).

    torch has no read-only tensors and warns of read-only arrays; whoever writes into a mapped slot dies of it.
    """
    return torch.from_numpy(np.asarray(_Writable(pixels)))
