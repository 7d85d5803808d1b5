"""The parallel part of ``prepare``: batches of source images become stretches of a shard, in order.

A worker is a spawned process: it reads, decodes, rescales, encodes and sums up by itself and sends back bytes
that the caller only has to append. What comes back does not depend on who made it.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

import cv2
import numpy as np
import xxhash
from numpy.typing import NDArray

from fourstage.errors import StoreError
from fourstage.store.archives import WHOLE, LeftOut, Member
from fourstage.store.images import Converter, UnusableImageError
from fourstage.store.index import RECORD
from fourstage.store.shards import sample_bytes
from fourstage.store.sources import SourceImage
from fourstage.store.sums import Sums

BATCH = 64
"""Images of one batch; a shard is a whole number of batches."""

_AHEAD = 4
"""Batches under way for each worker: enough to bridge the flush of a shard to disk."""

_MAX_FILE = 1 << 30
"""Bytes; a longer file holds more pixels than any limit allows, and is not read."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker needs to make a batch."""

    images: tuple[SourceImage, ...]
    labels: tuple[int, ...]
    size: int
    quality: int
    max_pixels: int
    with_sums: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """A stretch of a shard; in ``records`` offsets count from its beginning, shard and key columns are zero."""

    sources: int
    stretch: bytes
    records: NDArray[np.void]
    keys: list[str]
    left_out: list[LeftOut]
    sums: Sums | None


def make_batches(tasks: Iterable[Task], workers: int) -> Generator[Batch]:
    """The batches of the tasks, in order; one worker is the caller itself.

    Raises StoreError when a worker process dies.
    """
    if workers == 1:
        yield from map(make_batch, tasks)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin_worker)
    pending: deque[Future[Batch]] = deque()
    try:
        for task in tasks:
            pending.append(pool.submit(make_batch, task))
            if len(pending) >= _AHEAD * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise StoreError(
            "a worker process of prepare died: killed, or out of memory",
            hint="give the same command again, perhaps with fewer --workers: it goes on where it was",
        ) from error
    finally:
        _end(pool)


def _end(pool: ProcessPoolExecutor) -> None:
    try:
        pool.shutdown(cancel_futures=True)
    except RuntimeError:
        # Interrupted amid its own start: it has a thread that cannot be joined, and workers that would wait for ever.
        for process in multiprocessing.active_children():
            process.kill()


def make_batch(task: Task) -> Batch:
    """Convert the images of a task, one after the other."""
    converter = Converter(task.size, task.quality, task.max_pixels)
    sums = Sums.empty(task.size, np.uint32) if task.with_sums else None
    stretches: list[bytes] = []
    rows: list[tuple[int, ...]] = []
    keys: list[str] = []
    left_out: list[LeftOut] = []
    position = 0
    for image, label in zip(task.images, task.labels, strict=True):
        try:
            jpeg = converter.convert(_read(image.member))
        except UnusableImageError as error:
            left_out.append(LeftOut(image.name, str(error)))
            continue
        if sums is not None:
            sums.add(converter.decode_stored(jpeg))
        stretch, begin = sample_bytes(image.key, label, jpeg)
        rows.append((0, len(jpeg), position + begin, xxhash.xxh3_64_intdigest(jpeg), label, 0, 0))
        keys.append(image.key)
        stretches.append(stretch)
        position += len(stretch)
    return Batch(len(task.images), b"".join(stretches), np.array(rows, RECORD), keys, left_out, sums)


def _read(member: Member) -> bytes:
    try:
        with Path(member.path).open("rb", buffering=0) as stream:
            size = os.fstat(stream.fileno()).st_size if member.size == WHOLE else member.size
            if size > _MAX_FILE:
                raise UnusableImageError(f"a file of {size} bytes, more than {_MAX_FILE}")
            stream.seek(member.offset)
            data = stream.read(size)
    except OSError as error:
        raise UnusableImageError(f"cannot be read: {error.strerror}") from error
    if len(data) != size:
        raise UnusableImageError(f"cannot be read: {len(data)} of {size} bytes are there")
    return data


def _begin_worker() -> None:
    """Leave interrupts from the terminal to the caller, and end when the caller dies, however it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    # The pool's own workers would wait for ever: each of them holds the other end of the queue open.
    wait([sentinel])
    os._exit(1)
