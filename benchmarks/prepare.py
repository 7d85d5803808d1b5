"""How much of a bare loop's speed is left in ``fourstage prepare``, with its keys, checksums, order and files?

Bare: as many processes as ``prepare`` has workers, each going over its share of the same originals, which it holds in
memory: decode, cut out and rescale, encode, decode what was encoded, sum up; the same libraries, calls and settings,
and nothing else. ``resized`` sums up the pixels before they are encoded instead: a decoding less for each image, and
statistics of what nobody trains on (4:2:0 takes some of the colours' variance away).

All in turn, several rounds; the ratios of the medians are the answer. Every clock runs from the call to the last
result: the start of the processes is in all of them, with the same kind of pool and the same imports; ``prepare``'s has
the listing of the source and the flush of its files to disk besides.

    python -m benchmarks.prepare SOURCE [--images 12000] [--workers 2] [--rounds 5] [--json FILE]

The originals are repeated by hard links to ``--images``, so ``prepare`` reads them from the page cache: this measures
the work on the pixels, not the disk. They have to be JPEG files that libjpeg-turbo decodes to RGB by itself.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from benchmarks.bench import spread, write_figures
from benchmarks.machine import machine
from fourstage.store.archives import WHOLE
from fourstage.store.images import SUBSAMPLING, central_patch
from fourstage.store.prepare import PrepareReport, prepare
from fourstage.store.sources import SourceImage, read_source
from fourstage.store.sums import Sums

TARGET = 0.85
QUALITY = 90


@dataclass(frozen=True, slots=True)
class Work:
    """What is done to how many images."""

    originals: tuple[Path, ...]
    images: int
    """The originals over and over, in their order."""

    size: int
    workers: int


def repeat(images: Sequence[SourceImage], count: int, folder: Path) -> tuple[Path, ...]:
    """A source of ``count`` files, the images over and over in class folders that are one repetition each.

    Returns the originals. In the order of its keys the source is what ``Work`` says.
    """
    for number in range(count):
        turn, which = divmod(number, len(images))
        target = folder / f"{turn:06d}" / f"{which:06d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        if turn:
            target.hardlink_to(folder / "000000" / target.name)
            continue
        member = images[which].member
        with Path(member.path).open("rb") as stream:
            stream.seek(member.offset)
            target.write_bytes(stream.read(member.size if member.size != WHOLE else -1))
    return tuple(sorted((folder / "000000").iterdir()))


def bare_share(work: Work, share: int, stored: bool) -> tuple[int, Sums]:
    """One process's part of the bare loop: the bytes of its JPEG files, and the sums.

    stored: sum up what comes out of the JPEG file; else what goes into it.
    """
    originals = [path.read_bytes() for path in work.originals]
    headers = [simplejpeg.decode_jpeg_header(original) for original in originals]
    decoded = np.empty(max(height * width * 3 for height, width, *_ in headers), np.uint8)
    again = np.empty(work.size * work.size * 3, np.uint8)
    sums = Sums.empty(work.size, np.uint32)
    length = 0
    for number in range(share, work.images, work.workers):
        pixels = simplejpeg.decode_jpeg(originals[number % len(originals)], "RGB", buffer=decoded)
        patch = central_patch(pixels, work.size)
        jpeg = simplejpeg.encode_jpeg(patch, QUALITY, "RGB", SUBSAMPLING)
        sums.add(simplejpeg.decode_jpeg(jpeg, "RGB", buffer=again) if stored else patch)
        length += len(jpeg)
    return length, sums


def bare_rate(work: Work, *, stored: bool = True) -> tuple[float, Sums]:
    """Images per second of the bare loop in all its processes, and their sums together."""
    began = time.perf_counter()
    sums = Sums.empty(work.size, np.int64)
    with ProcessPoolExecutor(work.workers, multiprocessing.get_context("spawn"), cv2.setNumThreads, (1,)) as pool:
        shares = [pool.submit(bare_share, work, share, stored) for share in range(work.workers)]
        for future in shares:
            sums.merge(future.result()[1])
    return work.images / (time.perf_counter() - began), sums


def prepare_rate(source: Path, store: Path, work: Work) -> tuple[float, PrepareReport]:
    """Images per second of ``prepare``, and what it says."""
    began = time.perf_counter()
    report = prepare(source, store, size=work.size, quality=QUALITY, workers=work.workers)
    return work.images / (time.perf_counter() - began), report


def measure(source: Path, work: Work) -> dict[str, float]:
    """One round: images per second of all three, and what ``prepare`` keeps of either loop."""
    resized, _ = bare_rate(work, stored=False)
    bare, _ = bare_rate(work)
    with tempfile.TemporaryDirectory(prefix="fourstage-prepare-") as folder:
        rate, report = prepare_rate(source, Path(folder) / "store", work)
    return {
        "bare": bare,
        "resized": resized,
        "prepare": rate,
        "ratio": rate / bare,
        "ratio_resized": rate / resized,
        "left_out": report.left_out,
        "bytes_per_image": report.bytes / report.images,
    }


def main() -> None:
    """Parse, repeat, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--images", type=int, default=12_000, help="of one measurement")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    before = machine()
    names = ("bare", "resized", "prepare", "ratio", "ratio_resized")
    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="fourstage-prepare-") as folder:
        source = Path(folder) / "source"
        originals = repeat(read_source(arguments.source, Path(folder)).images, arguments.images, source)
        work = Work(originals, arguments.images, arguments.size, arguments.workers)
        print(f"{'round':>6}{'bare images/s':>15}{'resized':>9}{'prepare':>9}{'ratio':>8}{'resized':>9}")
        for number in range(1, arguments.rounds + 1):
            rounds.append(measure(source, work))
            print(f"{number:>6}{line(rounds[-1])}", flush=True)
    spreads = {name: spread([entry[name] for entry in rounds]) for name in names}
    medians = {name: statistics.median(entry[name] for entry in rounds) for name in names}
    medians["ratio"], medians["ratio_resized"] = (medians["prepare"] / medians[name] for name in ("bare", "resized"))
    print(f"median{line(medians)}   ({spreads['ratio']['least']:.3f} to {spreads['ratio']['most']:.3f}), "
          f"{'at least' if medians['ratio'] >= TARGET else 'less than'} {TARGET}")  # fmt: skip
    told = {
        "machine": before,
        "source": arguments.source.name,
        "originals": len(originals),
        "images": arguments.images,
        "workers": arguments.workers,
        "size": arguments.size,
        "target": TARGET,
        "rounds": rounds,
        "spreads": spreads,
        "medians": medians,
    }
    write_figures(arguments.json, told)


def line(entry: dict[str, float]) -> str:
    """A row of the table after its first column."""
    return (
        f"{entry['bare']:>15,.0f}{entry['resized']:>9,.0f}{entry['prepare']:>9,.0f}"
        f"{entry['ratio']:>8.3f}{entry['ratio_resized']:>9.3f}"
    )


if __name__ == "__main__":
    main()
