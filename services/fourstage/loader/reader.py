"""Reads whole batches from the store into slots, several at a time, in threads.

``preadv`` straight into the slot: an input error is an exception (a mapping would raise SIGBUS), and the
interpreter is free meanwhile. The order is known, so the kernel is told beforehand what will be wanted.

A read that fails, comes short or brings other bytes than the checksum says is made again, for it may have been the
network's or the memory's fault; what stays wrong is the store's. So bytes that leave here are those that were stored.
"""

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from fourstage.errors import FourstageError, StoreError
from fourstage.store import Split

log = logging.getLogger(__name__)

T = TypeVar("T")

PAUSES = (0.05, 0.25, 0.7)
"""Seconds before a sample is read again, and again."""
_CACHED_SECONDS = 50e-6
"""A sample of 24 KB takes 10 microseconds from the page cache and 80 or more from the fastest disks."""


@dataclass(frozen=True, slots=True)
class ReadJob(Generic[T]):
    """Read these samples, one behind another, into this slot. ``tag`` says what it is to the asker."""

    tag: T
    split: Split
    indices: NDArray[np.int64]
    into: memoryview


@dataclass(frozen=True, slots=True)
class ReadResult(Generic[T]):
    """A job that is done; ``error`` where it failed. began and ended: monotonic seconds."""

    job: ReadJob[T]
    began: float
    ended: float
    error: FourstageError | None


class Reader(Generic[T]):
    """A pool of reading threads; ``done`` is called in one of them with each result."""

    def __init__(
        self,
        threads: int,
        done: Callable[[ReadResult[T]], None],
        batch_seconds: float = 0.0,
        repeated: Callable[[], None] = lambda: None,
    ) -> None:
        """batch_seconds: of a simulated disk, which reads one batch at a time; 0: none. repeated: called in a reading
        thread whenever a sample is read again."""
        self._jobs: queue.SimpleQueue[ReadJob[T] | None] = queue.SimpleQueue()
        self._done = done
        self._repeated = repeated
        self._closing = threading.Event()
        self._files = ShardFiles()
        self._from_disk = True
        self._batch_seconds = batch_seconds
        self._disk = threading.Lock()
        self._threads = [
            threading.Thread(target=self._work, name=f"reader-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: ReadJob[T]) -> None:
        """Queue a job; jobs are begun in the order they are given."""
        self._jobs.put(job)

    def prefetch(self, split: Split, indices: NDArray[np.int64]) -> None:
        """Ask the kernel to read these samples soon (POSIX_FADV_WILLNEED); returns at once.

        Nothing is asked while the reads are so fast that they come from the page cache: there the asking costs as
        much as the reading.
        """
        if not self._from_disk:
            return
        # Advice only: what cannot be opened is said when it is to be read.
        with contextlib.suppress(StoreError, OSError):
            for record in split.records[indices].tolist():
                shard, size, offset = record[0], record[1], record[2]
                descriptor = self._files.open(split, shard)
                os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Finish the jobs begun, without reading anything again, drop the others, close the files."""
        self._closing.set()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._files.close()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            with self._disk if self._batch_seconds else contextlib.nullcontext():
                began = time.monotonic()
                error = self._read(job)
                if self._batch_seconds:
                    time.sleep(max(0.0, began + self._batch_seconds - time.monotonic()))
            ended = time.monotonic()
            self._from_disk = ended - began > len(job.indices) * _CACHED_SECONDS
            self._done(ReadResult(job, began, ended, error))

    def _read(self, job: ReadJob[T]) -> FourstageError | None:
        try:
            read_batch(self._files, job, self._again)
        except StoreError as failure:
            return failure
        # A thread that ended of it would leave its batch unread, and whoever waits for that waiting.
        except Exception as failure:
            what = f"{type(failure).__name__}: {failure}".removesuffix(": ")
            words = f"cannot read {len(job.indices)} samples of the split {job.split.name!r}: {what}"
            log.error(words, exc_info=failure)
            return FourstageError(words)
        return None

    def _again(self, tries: int, words: str) -> bool:
        """Wait before the next try of a sample, which failed with these words; False where there is none."""
        if tries > len(PAUSES):
            return False
        pause = PAUSES[tries - 1]
        log.warning("%s; it is read again in %g s", words, pause)
        self._repeated()
        return not self._closing.wait(pause)


class ShardFiles:
    """Descriptors of shards, opened when first needed, with the kernel's own readahead switched off: the samples
    of a shuffled epoch lie apart."""

    def __init__(self) -> None:
        self._descriptors: dict[str, int] = {}
        self._lock = threading.Lock()

    def open(self, split: Split, shard: int) -> int:
        """The descriptor of a shard. Raises StoreError."""
        path = split.shards[shard]
        name = os.fspath(path)
        descriptor = self._descriptors.get(name)
        if descriptor is not None:
            return descriptor
        with self._lock:
            if name not in self._descriptors:
                self._descriptors[name] = _open(path)
            return self._descriptors[name]

    def reopen(self, split: Split, shard: int) -> None:
        """Open a shard anew under the same descriptor, also while others read from it: a network's file system may
        have lost the old one. Where it cannot be opened, the old one stays."""
        path = split.shards[shard]
        with self._lock, contextlib.suppress(StoreError):
            if (descriptor := self._descriptors.get(os.fspath(path))) is not None:
                fresh = _open(path)
                os.dup2(fresh, descriptor, inheritable=False)
                os.close(fresh)

    def close(self) -> None:
        """Close every descriptor."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])


def _open(path: Path) -> int:
    try:
        opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        os.posix_fadvise(opened, 0, 0, os.POSIX_FADV_RANDOM)
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    return opened


def read_batch(
    files: ShardFiles, job: ReadJob[Any], again: Callable[[int, str], bool] = lambda _tries, _words: False
) -> None:
    """Read and check every sample of a job. Raises StoreError that names the first bad one and its file.

    again: asked after so many tries of a sample, with what is wrong, whether there is another one; it may wait first
    """
    at = 0
    into, split, digest = job.into, job.split, xxhash.xxh3_64_intdigest
    descriptors: dict[int, int] = {}
    for index, record in zip(job.indices.tolist(), split.records[job.indices].tolist(), strict=True):
        shard, size, offset, checksum = record[:4]
        target = into[at : at + size]
        tries = 0
        while True:
            try:
                if shard not in descriptors:
                    descriptors[shard] = files.open(split, shard)
                _read_exactly(descriptors[shard], target, offset)
                if digest(target) == checksum:
                    break
                what, hint = "it was altered: its checksum does not match", "run fourstage verify on the store"
            except EOFError:
                what, hint = (
                    "it lies beyond the end of its shard",
                    "the store was truncated: run fourstage verify on it",
                )
            except OSError as failure:
                what, hint = str(failure.strerror), ""
            except StoreError as failure:
                what, hint = str(failure), ""
            tries += 1
            words = f"cannot read sample {split.keys(np.array([index]))[0]!r} in {split.shards[shard]}: {what}"
            if not again(tries, words):
                raise StoreError(words if tries == 1 else f"{words} (tried {tries} times)", hint=hint)
            files.reopen(split, shard)
        at += size


def _read_exactly(descriptor: int, target: memoryview, offset: int) -> None:
    """Fill ``target`` from a file. Raises OSError, EOFError where the file ends."""
    done = 0
    while done < len(target):
        count = os.preadv(descriptor, [target[done:] if done else target], offset + done)
        if count == 0:
            raise EOFError
        done += count
