"""Random batches of the store through the loader's own reading threads: from the disk, then from the page cache."""

import queue
import time
from collections.abc import Sequence
from itertools import count

import numpy as np
from numpy.typing import NDArray

from fourstage.arena import Arena, slot_bytes_for
from fourstage.loader.reader import Reader, ReadJob, ReadResult
from fourstage.order import permutation
from fourstage.probe.plan import Reading
from fourstage.probe.residency import Residency
from fourstage.probe.windows import WINDOWS, spread
from fourstage.settings import Settings
from fourstage.store import Split

_POOL = 4096
"""Images of one round: 96 MB of ImageNet, more than most caches of processors."""
_POOL_BYTES = 256 << 20
_LEAST_JOBS = 4
"""Jobs of a round for each thread: with fewer some threads would be idle at its end."""
_AHEAD = 8
"""Jobs that the kernel is told of beforehand, as the loader tells it of those in its window."""

Jobs = Sequence[NDArray[np.int64]]


class ReadingBench:
    """The loader's threads and slots. ``close`` in the end."""

    def __init__(self, split: Split, settings: Settings) -> None:
        self._split, self._threads, self._seed = split, settings.loader.threads, settings.seed
        sizes = split.records["size"]
        self._pool = max(1, min(len(split), _POOL, int(_POOL_BYTES / max(1.0, float(sizes.mean())))))
        self._rows = max(1, min(settings.batch_size, self._pool // (_LEAST_JOBS * self._threads)))
        self._results: queue.SimpleQueue[ReadResult[int]] = queue.SimpleQueue()
        self._reader = Reader(self._threads, self._results.put, settings.loader.batch_seconds)
        largest = int(np.sort(sizes)[-self._rows :].sum())
        self._arena = Arena.create(self._threads, slot_bytes_for(largest))
        self._jobs: Jobs = ()

    def cold(self, seconds: float) -> Reading:
        """Rounds of samples that were put out of the page cache before, for about ``seconds``."""
        rates, resident, used, images = [], [], 0.0, 0
        until = time.monotonic() + seconds
        with Residency(self._split) as residency:
            for number in count():
                self._jobs = self._round(number)
                picked = np.sort(np.concatenate(self._jobs))
                resident.append(residency.forget(picked))
                began, before = time.monotonic(), time.process_time()
                done = self._read(self._jobs, until)
                rates.append(done / (time.monotonic() - began))
                used += time.process_time() - before
                images += done
                if time.monotonic() >= until:
                    break
        return Reading(spread(rates), used / images, max(resident))

    def warm(self, seconds: float) -> Reading:
        """The samples of the last cold round again and again, for about ``seconds``."""
        self._jobs = self._jobs or self._round(0)
        self._read(self._jobs, float("inf"))
        rates, used, images = [], time.process_time(), 0
        for _ in range(WINDOWS):
            began = time.monotonic()
            until, done = began + seconds / WINDOWS, 0
            while not done or time.monotonic() < until:
                done += self._read(self._jobs, until)
            rates.append(done / (time.monotonic() - began))
            images += done
        return Reading(spread(rates), (time.process_time() - used) / images)

    def close(self) -> None:
        """Stop the threads, give the memory back."""
        self._reader.close()
        self._arena.close()

    def _round(self, number: int) -> Jobs:
        """A pool of samples that differs with each number, in jobs of some rows."""
        rounds = len(self._split) // self._pool
        epoch, part = divmod(number, rounds)
        pool = permutation(self._seed, epoch, len(self._split))[part * self._pool : (part + 1) * self._pool]
        return [pool[at : at + self._rows] for at in range(0, len(pool), self._rows)]

    def _read(self, jobs: Jobs, until: float) -> int:
        """Read jobs, begun before ``until`` and one at least, each slot by one thread at a time; images read.

        Raises the first error of a read, a FourstageError.
        """
        slots = list(range(self._threads))
        done = under_way = announced = 0
        for number, indices in enumerate(jobs):
            if number and time.monotonic() >= until:
                break
            if not slots:
                done += self._take(slots)
                under_way -= 1
            total = int(self._split.records["size"][indices].sum(dtype=np.int64))
            slot = slots.pop()
            self._reader.submit(ReadJob(slot, self._split, indices, self._arena.slot(slot, total)))
            under_way += 1
            for later in range(max(announced, number + 1), min(len(jobs), number + 1 + _AHEAD)):
                self._reader.prefetch(self._split, jobs[later])
            announced = number + 1 + _AHEAD
        for _ in range(under_way):
            done += self._take(slots)
        return done

    def _take(self, slots: list[int]) -> int:
        result = self._results.get()
        slots.append(result.job.tag)
        if result.error is not None:
            raise result.error
        return len(result.job.indices)
