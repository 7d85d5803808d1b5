"""Decode, crop, reflect, as an augmenter does it: real samples of the store into slots of an arena."""

import time
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from fourstage.arena import Arena, slot_bytes_for
from fourstage.augmenter.decode import for_images, make_decoder
from fourstage.augmenter.draws import draw
from fourstage.augmenter.transform import CorruptRowError, scratch_for, transform
from fourstage.errors import FourstageError
from fourstage.loader.reader import ReadJob, ShardFiles, read_batch
from fourstage.order import permutation
from fourstage.probe.windows import WINDOWS, timed
from fourstage.settings import Settings
from fourstage.store import Split, Store
from fourstage.views import colour_matrix, view_of

_JPEG_BYTES = 16 << 20
_CHUNK = 64
"""Images between two looks at the clock, as an augmenter's between two looks at its sockets."""


@dataclass(frozen=True, slots=True)
class Transformed:
    """What one process has measured: seconds per image of each window, and CPU time."""

    image_seconds: list[float]
    image_cpu_seconds: float
    """CPU time of an image, on average."""
    decode_seconds: list[float]
    cpu_seconds: float
    """Of everything."""


class Bench:
    """One augmenter's memory, and samples to work on."""

    def __init__(self, store: Store, settings: Settings, *, rows: int, number: int) -> None:
        """rows: of one slot. number: of this process; each takes other samples."""
        cv2.setNumThreads(1)
        self._decode = make_decoder(settings.augmenter.decoder)
        self._view = view_of(settings, "random")
        self._seed, self._size, self._rows = settings.seed, store.size, rows
        statistics = store.statistics
        self._colours = colour_matrix(statistics.eigenvectors, statistics.eigenvalues, self._view.colour_scale)
        self._split = store.split(settings.train_split)
        self._indices, self._images = _samples(self._split, settings.seed, number)
        crop = settings.augmenter.crop
        self._arena = Arena.create(settings.augmenter.slots + 1, slot_bytes_for(rows * 3 * crop * crop))
        self._slots = [
            np.frombuffer(self._arena.slot(slot, rows * 3 * crop * crop), np.uint8).reshape(rows, crop, crop, 3)
            for slot in range(self._arena.slots)
        ]
        for slot in self._slots:
            slot.fill(0)
        self._scratch = scratch_for(store.size)
        self._at = self._decoded = 0

    def measure(self, seconds: float, *, decode: bool) -> Transformed:
        """For about ``seconds``; windows of the decoder alone in turn with those of the whole where ``decode``."""
        each = seconds / WINDOWS / (2 if decode else 1)
        whole, alone = [], []
        transforming, made = 0.0, 0
        used = time.process_time()
        for _ in range(WINDOWS):
            before = time.process_time()
            images, elapsed = timed(self._transform, each)
            transforming += time.process_time() - before
            made += images
            whole.append(elapsed / images)
            if decode:
                images, elapsed = timed(self._only_decode, each)
                alone.append(elapsed / images)
        return Transformed(whole, transforming / made, alone, time.process_time() - used)

    def _transform(self) -> int:
        """The next rows of the next slot: long enough ago written that no cache has them."""
        slot, row = divmod(self._at, self._rows)
        out = self._slots[slot % len(self._slots)][row : row + _CHUNK]
        draws = draw(
            self._view, size=self._size, seed=self._seed, epoch=0, first=self._at, rows=len(out), colours=self._colours
        )
        picked = [(self._at + row) % len(self._images) for row in range(len(out))]
        try:
            transform([self._images[number] for number in picked], draws, self._decode, scratch=self._scratch, out=out)
        except CorruptRowError as error:
            key = self._split.keys(self._indices[[picked[error.row]]])[0]
            raise FourstageError(
                f"sample {key!r} cannot be decoded: {error}", hint="run fourstage verify on the store"
            ) from error
        self._at += len(out)
        return len(out)

    def _only_decode(self) -> int:
        images = [self._images[(self._decoded + row) % len(self._images)] for row in range(_CHUNK)]
        decode = for_images(self._decode, images, len(self._scratch))
        for image in images:
            decode(image, self._scratch)
        self._decoded += _CHUNK
        return _CHUNK


def _samples(split: Split, seed: int, number: int) -> tuple[NDArray[np.int64], list[memoryview]]:
    """Some random samples, the indices and the JPEG bytes: read as the loader reads them."""
    order = permutation(seed, number, len(split))
    ends = np.cumsum(split.records["size"][order[:4096]], dtype=np.int64)
    count = max(1, int(np.searchsorted(ends, _JPEG_BYTES)))
    indices, bounds = order[:count], [0, *ends[:count].tolist()]
    into = memoryview(bytearray(bounds[-1]))
    files = ShardFiles()
    try:
        read_batch(files, ReadJob(None, split, indices, into))
    finally:
        files.close()
    return indices, [into[begin:end] for begin, end in pairwise(bounds)]
