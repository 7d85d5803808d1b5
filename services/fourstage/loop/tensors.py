"""From a batch in its slot to tensors for somebody's own loop: copied out, borrowed, on a device, finished."""

from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from fourstage.trainer.copy import slot_tensor
from fourstage.trainer.finish import Finish
from fourstage.trainer.inbox import FeedBatch


class StreamBatch(TypedDict):
    """One batch of a ``BatchStream``.

    Where samples were left out (``on_corrupt = "skip"``), ``rows`` are those that are there; there may be none.

    images: uint8 (rows, crop, crop, 3), or, finished, float32 (rows, 3, crop, crop) channels_last; on the stream's
    device
    labels: int64 (rows,), class numbers; on the stream's device
    keys: the samples' names in the store
    positions: int64 (rows,), the samples' places in the epoch; always on the CPU
    """

    images: Tensor
    labels: Tensor
    keys: list[str]
    positions: Tensor


class Unpack:
    """Makes a ``StreamBatch`` of each batch; only a borrowed one still needs its slot afterwards."""

    def __init__(self, *, device: torch.device, finish: Finish | None, borrow: bool) -> None:
        """finish: None leaves the pixels as they are. borrow: the images are a view on the slot."""
        self._device = device
        self._finish = finish
        self._borrow = borrow

    def __call__(self, batch: FeedBatch) -> StreamBatch:
        """The tensors of a batch that holds its slot."""
        place = batch.place
        positions = torch.arange(place.first, place.first + place.rows)
        if batch.skipped:
            there = torch.ones(place.rows, dtype=torch.bool)
            there[[sample.row for sample in batch.skipped]] = False
            positions = positions[there]
        return StreamBatch(
            images=self._images(batch),
            labels=self._on_device(torch.from_numpy(batch.labels.astype(np.int64))),
            keys=list(batch.keys),
            positions=positions,
        )

    def _images(self, batch: FeedBatch) -> Tensor:
        if self._borrow:
            return slot_tensor(batch.pixels)
        if self._finish is None:
            return self._on_device(slot_tensor(batch.pixels), copied=False)
        out = torch.empty(batch.pixels.shape, dtype=torch.float32, device=self._device)
        if self._device.type == "cpu":
            return self._finish(
                batch.pixels, batch.offsets, batch.reflections, batch.shifts, out, epoch=batch.place.epoch
            )
        pixels = self._on_device(slot_tensor(batch.pixels), copied=False)
        return self._finish(pixels, batch.offsets, batch.reflections, batch.shifts, out, epoch=batch.place.epoch)

    def _on_device(self, values: Tensor, *, copied: bool = True) -> Tensor:
        """On the device, in memory of its own. copied: ``values`` already is nobody else's."""
        if self._device.type == "cuda":
            # Through pinned memory, which PyTorch keeps until the upload is over: neither the slot nor the loop waits.
            return values.pin_memory().to(self._device, non_blocking=True)
        return values.to(self._device, copy=not copied)
