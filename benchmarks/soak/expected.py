"""The receipt of a run's first steps as nothing but arithmetic makes it: no process, no socket, no order of events.

Batches are made again by the same pure functions that loader and augmenters use (``fourstage.replay``), which the
tests compare with an independent account of the protocol. A soak uses each image thousands of times, so decoded images
and digests of crops are remembered; samples with the same bytes, of which a store made large by copies is full, count
as one image.
"""

from functools import lru_cache

import cv2
import numpy as np
import xxhash
from numpy.typing import NDArray

from fourstage.figures.pictures import Pictures
from fourstage.order import BatchPlan
from fourstage.replay.remake import Remaker
from fourstage.settings import Settings
from fourstage.store import Store
from fourstage.trainer.receipt import Receipt, batch_digest, sample_digests

_IMAGES = 4_000
"""Decoded ones in memory: 790 MB of 256x256."""
_CROPS = 2_000_000
"""Their digests in memory: some 400 MB; 600 images have 1.2 million crops of 224."""


def expected_digest(settings: Settings, store: Store, steps: int) -> str:
    """The digest of the chain after so many steps. Raises StoreError, CorruptSampleError."""
    crop, split = settings.augmenter.crop, settings.train_split

    with Remaker(settings, store) as remaker, Pictures(store, split) as pictures:

        @lru_cache(_IMAGES)
        def image(index: int) -> NDArray[np.uint8]:
            return np.asarray(pictures.pixels(np.array([index], np.int64))[0])

        @lru_cache(_CROPS)
        def pixel_digest(index: int, top: int, left: int, reflected: bool) -> bytes:
            window = image(index)[top : top + crop, left : left + crop]
            # NumPy's copy of reversed rows takes ten times as long as OpenCV's.
            return xxhash.xxh3_128_digest(np.asarray(cv2.flip(window, 1) if reflected else window.copy()).data)

        records = store.split(split).records
        _, firsts, groups = np.unique(records[["size", "checksum"]], return_index=True, return_inverse=True)
        alike: NDArray[np.int64] = firsts[groups]
        receipt = Receipt(settings.receipt)
        plan = BatchPlan(len(records), settings.batch_size, settings.remainder)
        for step in range(1, steps + 1):
            batch = remaker.batch(step)
            rows = zip(alike[batch.indices].tolist(), batch.offsets.tolist(), batch.reflections.tolist(), strict=True)
            pixels = (
                b"".join([pixel_digest(index, top, left, reflected) for index, (top, left), reflected in rows])
                if settings.receipt == "pixels"
                else b""
            )
            last = step % plan.batches_per_epoch == 0
            receipt.add(batch_digest(step - 1, sample_digests(batch, pixels)), batch.place.rows, last_of_epoch=last)
            receipt.lines.clear()
    return receipt.digest.hex()
