"""Would a batch that travels as YCbCr planes, half the bytes of RGB, cost less from JPEG to pixels on the device?

Per image, on one core, in rounds that interleave the ways:

- decoding alone: to RGB with simplejpeg (what augmenters use) and with the system's libturbojpeg, to planes with the
  latter, so that the gain of planes is not mixed with the difference between the two libraries;
- the augmenter's whole work: decode, cut the crop, and for RGB reflect it (``fourstage.augmenter.transform``); with
  planes the reflection is left to the device;
- the finish on the device: upsample, convert, choose pixels, reflect (``benchmarks.planes``), for a whole batch at once
  and for a few images at a time, whose intermediate results stay in the cache; on a GPU too where there is one.

End to end on a CPU is the augmenter's work, with planes plus the cheaper finish. Before anything is measured both ways
must have made the same pixels of every image. Times of the CPU are the process's own, not the clock's.

    python -m benchmarks.half_bytes --store STORE [--rounds 5] [--json FILE]
"""

import argparse
import importlib.metadata
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.bench import spread, write_figures
from benchmarks.machine import machine
from benchmarks.planes import NoPlanesError, Planes, Turbo, chroma_side, finish, slot_bytes, transform_planes
from fourstage.augmenter.decode import Decoder, make_decoder
from fourstage.augmenter.draws import Draws, draw
from fourstage.augmenter.transform import scratch_for, transform
from fourstage.store import open_store
from fourstage.views import View

ROWS = 128
FEW = 4
"""The cheapest of 1, 2, 4, 8, 16, 32 and 128: with more, fresh pages for intermediate results cost more than sums."""

Way = Callable[[], None]
"""Does one thing to every image."""


@dataclass(frozen=True, slots=True)
class Work:
    """The store's images in batches, with the draws of each: what every way starts from."""

    size: int
    crop: int
    batches: list[tuple[list[memoryview], Draws]]

    @property
    def images(self) -> int:
        """All of them."""
        return sum(len(images) for images, _ in self.batches)


def read(store: Path, crop: int) -> Work:
    """All images of the training split, in memory."""
    opened = open_store(store)
    split = opened.split("train")
    shards = [memoryview(shard.read_bytes()) for shard in split.shards]
    places = [(int(r["shard"]), int(r["offset"]), int(r["size"])) for r in split.records]
    images = [shards[shard][offset : offset + size] for shard, offset, size in places]
    batches = []
    for first in range(0, len(images), ROWS):
        some = images[first : first + ROWS]
        draws = draw(View("random", crop), size=opened.size, seed=0, epoch=0, first=first, rows=len(some),
                     colours=np.zeros((3, 3)))  # fmt: skip
        batches.append((some, draws))
    return Work(opened.size, crop, batches)


def as_rgb(work: Work, decode: Decoder) -> Iterator[Tensor]:
    """Each batch's pixels, uint8 (rows, crop, crop, 3), in one slot that is used again."""
    scratch = scratch_for(work.size)
    slot = np.empty((ROWS, work.crop, work.crop, 3), np.uint8)
    for images, draws in work.batches:
        transform(images, draws, decode, scratch=scratch, out=slot[: len(images)])
        yield torch.from_numpy(slot[: len(images)])


def as_planes(work: Work, turbo: Turbo) -> Iterator[tuple[Tensor, ...]]:
    """The four tensors that ``finish`` takes of each batch, in one slot that is used again."""
    side, scratch = chroma_side(work.crop), Planes(work.size)
    luma, chroma = np.empty((ROWS, work.crop, work.crop), np.uint8), np.empty((ROWS, 2, side, side), np.uint8)
    for images, draws in work.batches:
        rows = len(images)
        transform_planes(images, draws, turbo, scratch=scratch, luma=luma[:rows], chroma=chroma[:rows])
        arrays = (luma[:rows], chroma[:rows], draws.offsets, draws.reflections)
        yield tuple(torch.from_numpy(array) for array in arrays)


def check(work: Work, turbo: Turbo) -> None:
    """Leave with a word where one pixel of one image differs, or where the store has no planes."""
    try:
        for number, (pixels, planes) in enumerate(
            zip(as_rgb(work, make_decoder("simplejpeg")), as_planes(work, turbo), strict=True)
        ):
            if not torch.equal(finish(*planes), pixels):
                sys.exit(f"the two ways differ in batch {number}")
    except NoPlanesError as error:
        sys.exit(f"a stored image cannot go as planes: {error}")


def ways(work: Work, turbo: Turbo) -> dict[str, Way]:
    """What is measured on the CPU, by name."""
    simplejpeg = make_decoder("simplejpeg")
    pixels, planes = scratch_for(work.size), Planes(work.size)
    finished = [tuple(tensor.clone() for tensor in batch) for batch in as_planes(work, turbo)]

    def exhaust(batches: Iterator[object]) -> None:
        for _ in batches:
            pass

    def decode_all(decode: Callable[[memoryview], None]) -> None:
        for images, _ in work.batches:
            for image in images:
                decode(image)

    def finish_all(rows: int) -> None:
        for batch in finished:
            for first in range(0, len(batch[0]), rows):
                finish(*(tensor[first : first + rows] for tensor in batch))

    return {
        "decode to RGB, simplejpeg": lambda: decode_all(lambda image: simplejpeg(image, pixels)),
        "decode to RGB, libturbojpeg": lambda: decode_all(lambda image: turbo.rgb(image, pixels)),
        "decode to planes, libturbojpeg": lambda: decode_all(lambda image: turbo.planes(image, planes)),
        "augmenter, RGB, simplejpeg": lambda: exhaust(as_rgb(work, simplejpeg)),
        "augmenter, RGB, libturbojpeg": lambda: exhaust(as_rgb(work, turbo.rgb)),
        "augmenter, planes, libturbojpeg": lambda: exhaust(as_planes(work, turbo)),
        "finish on the CPU, whole batch": lambda: finish_all(ROWS),
        f"finish on the CPU, {FEW} at a time": lambda: finish_all(FEW),
    }


def processor_microseconds(way: Way, images: int) -> float:
    """CPU time per image."""
    began = time.process_time()
    way()
    return (time.process_time() - began) / images * 1e6


def gpu_microseconds(work: Work, turbo: Turbo) -> float:
    """Per image, of finishing batches that already lie on the GPU, one after another."""
    batches = [(luma.cuda(), chroma.cuda(), *draws) for luma, chroma, *draws in as_planes(work, turbo)]
    finish(*batches[0])
    torch.cuda.synchronize()
    began = time.perf_counter()
    for batch in batches:
        finish(*batch)
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / work.images * 1e6


def measure(work: Work, turbo: Turbo, rounds: int) -> list[dict[str, float]]:
    """Microseconds per image of each way in each round; every round begins with another way."""
    todo = list(ways(work, turbo).items())
    for _, way in todo:
        way()
    found = []
    for number in range(rounds):
        turned = itertools.islice(itertools.cycle(todo), number % len(todo), number % len(todo) + len(todo))
        entry = {name: processor_microseconds(way, work.images) for name, way in turned}
        if torch.cuda.is_available():
            entry["finish on the GPU, whole batch"] = gpu_microseconds(work, turbo)
        found.append({name: entry[name] for name in [*dict(todo), *entry]} | sums(entry))
    return found


def sums(entry: dict[str, float]) -> dict[str, float]:
    """End to end where the device is the CPU."""
    finishing = min(entry[name] for name in entry if name.startswith("finish on the CPU"))
    return {
        "end to end on the CPU, RGB": entry["augmenter, RGB, simplejpeg"],
        "end to end on the CPU, planes": entry["augmenter, planes, libturbojpeg"] + finishing,
    }


def ratios(found: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Planes over RGB, each within its round: less than 1 is a gain."""
    pairs = {
        "decode_ratio_same_library": ("decode to planes, libturbojpeg", "decode to RGB, libturbojpeg"),
        "augmenter_ratio_same_library": ("augmenter, planes, libturbojpeg", "augmenter, RGB, libturbojpeg"),
        "augmenter_ratio": ("augmenter, planes, libturbojpeg", "augmenter, RGB, simplejpeg"),
        "end_to_end_ratio": ("end to end on the CPU, planes", "end to end on the CPU, RGB"),
    }
    return {name: spread([entry[one] / entry[other] for entry in found]) for name, (one, other) in pairs.items()}


def main() -> None:
    """Parse, check, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True, help="store of 4:2:0 JPEGs, as fourstage prepare makes it")
    parser.add_argument("--crop", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    before, threads = machine(), torch.get_num_threads()
    work = read(arguments.store, arguments.crop)
    torch.set_num_threads(1)
    try:
        with Turbo() as turbo:
            check(work, turbo)
            print(f"{work.images} images, equal in every bit both ways; crops of {work.crop} out of {work.size}")
            found = measure(work, turbo, arguments.rounds)
            library = turbo.name
    except OSError as error:
        sys.exit(str(error))
    finally:
        torch.set_num_threads(threads)
    bytes_each = {"rgb": 3 * work.crop**2, "planes": slot_bytes(work.crop)}
    print(f"{'µs per image':<40}{'median':>9}{'least':>9}{'most':>9}")
    for name in found[0]:
        figures = spread([entry[name] for entry in found])
        print(f"{name:<40}" + "".join(f"{figures[key]:>9.0f}" for key in ("median", "least", "most")))
    compared = ratios(found)
    for name, figures in compared.items():
        print(f"{name.replace('_', ' '):<40}" + "".join(f"{figures[key]:>9.2f}" for key in figures))
    share = bytes_each["planes"] / bytes_each["rgb"]
    print(f"bytes of an image's slot: {bytes_each['rgb']:,} as RGB, {bytes_each['planes']:,} as planes ({share:.2f})")
    told = {
        "machine": before,
        "versions": {"libturbojpeg": library, "torch": torch.__version__}
        | {name: importlib.metadata.version(name) for name in ("simplejpeg", "numpy")},
        "images": work.images,
        "jpeg_bytes": statistics.mean(len(image) for images, _ in work.batches for image in images),
        "slot_bytes": bytes_each,
        "rounds": found,
        "microseconds": {name: spread([entry[name] for entry in found]) for name in found[0]},
    }
    write_figures(arguments.json, told | compared)


if __name__ == "__main__":
    main()
