"""How fast does stage 1 read: from the page cache, and from the disk?

The loader's own reader fills slots with the batches of a shuffled epoch, checksums compared, from ``--threads``
threads. Cold: the kernel was asked to drop the shards from its cache first (POSIX_FADV_DONTNEED; what another
process has mapped stays). Warm: they were read just before. A store smaller than a disk's own cache says nothing of
the disk.

    python -m benchmarks.reads --store STORE [--threads 1,2,4] [--rounds 3] [--json FILE]
"""

import argparse
import os
import threading
import time
from pathlib import Path

from benchmarks.bench import spread, write_figures
from benchmarks.machine import machine
from fourstage.arena import Arena, slot_bytes_for
from fourstage.errors import FourstageError
from fourstage.loader.reader import Reader, ReadJob, ReadResult
from fourstage.loader.streams import largest_batch_bytes
from fourstage.order import BatchPlan, Order
from fourstage.store import Split, open_store

ROWS = 128


def read_epoch(split: Split, threads: int) -> dict[str, float]:
    """Images and 10^6 bytes a second of one shuffled epoch, and microseconds of CPU per image.

    Raises FourstageError where a sample cannot be read.
    """
    plan = BatchPlan(len(split), ROWS, "drop")
    order = Order(plan, seed=0, shuffle=True)
    arena = Arena.create(2 * threads, slot_bytes_for(largest_batch_bytes(split, ROWS)))
    free = threading.Semaphore(arena.slots)
    slots = list(range(arena.slots))
    failed: list[FourstageError] = []

    def done(result: ReadResult[int]) -> None:
        if result.error is not None:
            failed.append(result.error)
        slots.append(result.job.tag)
        free.release()

    reader = Reader(threads, done)
    total = 0
    began, spent = time.perf_counter(), time.process_time()
    for seq in range(plan.batches_per_epoch):
        free.acquire()
        slot, indices = slots.pop(), order.indices(seq)
        size = int(split.records["size"][indices].sum())
        total += size
        reader.prefetch(split, indices)
        reader.submit(ReadJob(slot, split, indices, arena.slot(slot, size)))
    reader.close()
    seconds, spent = time.perf_counter() - began, time.process_time() - spent
    arena.close()
    if failed:
        raise failed[0]
    images = plan.batches_per_epoch * ROWS
    return {
        "images_per_second": images / seconds,
        "megabytes_per_second": total / seconds / 1e6,
        "microseconds_per_image": spent / images * 1e6,
    }


def forget(split: Split) -> None:
    """Ask the kernel to drop a split's shards from its cache."""
    for shard in split.shards:
        descriptor = os.open(shard, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def main() -> None:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--threads", default="1,2,4", help="numbers of reading threads")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    before = machine()
    split = open_store(arguments.store).split("train")
    size = sum(shard.stat().st_size for shard in split.shards)
    numbers = [int(number) for number in arguments.threads.split(",")]
    rounds: dict[tuple[str, int], list[dict[str, float]]] = {(k, n): [] for k in ("cold", "warm") for n in numbers}
    for _ in range(arguments.rounds):
        for number in numbers:
            forget(split)
            rounds["cold", number].append(read_epoch(split, number))
            rounds["warm", number].append(read_epoch(split, number))
    print(f"{size / 1e6:,.0f} MB in {len(split.shards)} shards")
    print(f"{'cache':<6}{'threads':>8}{'images/s':>10}{'least':>9}{'most':>9}{'MB/s':>8}{'µs CPU/image':>14}")
    found = []
    for (cache, number), entries in rounds.items():
        figures = {name: spread([entry[name] for entry in entries]) for name in entries[0]}
        found.append({"cache": cache, "threads": number} | figures)
        rate = figures["images_per_second"]
        print(f"{cache:<6}{number:>8}{rate['median']:>10,.0f}{rate['least']:>9,.0f}{rate['most']:>9,.0f}"
              f"{figures['megabytes_per_second']['median']:>8,.0f}"
              f"{figures['microseconds_per_image']['median']:>14.1f}")  # fmt: skip
    write_figures(arguments.json, {"machine": before, "store_bytes": size, "reads": found})


if __name__ == "__main__":
    main()
