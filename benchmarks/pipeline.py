"""How much of raw JPEG decoding is left after order, leases, carriers and stages: recipe drain against the decoder.

Raw: one thread per core decodes the same images into a buffer, nothing else. Pipeline: ``fourstage run --recipe
drain`` with one augmenter per core: random crops of 224, reflections and colour draws, delivered in order, consumed.
Both in turn, several rounds; the medians' ratio is the answer.

    python -m benchmarks.pipeline [--store STORE] [--augmenters 2] [--rounds 5] [--json FILE]

Without a store one of a thousand synthetic photographs, 256x256, is made and removed again.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import simplejpeg

from benchmarks.bench import complete, run_command
from benchmarks.machine import machine
from fourstage.augmenter.transform import scratch_for
from fourstage.demo import write_photographs
from fourstage.order import permutation
from fourstage.store import open_store
from fourstage.store.prepare import prepare


class Images:
    """The JPEG bytes of a store's training split, in memory, in the order of an epoch: processors learn images that
    come again and again."""

    def __init__(self, path: Path) -> None:
        store = open_store(path)
        split = store.split("train")
        shards = [memoryview(path.read_bytes()) for path in split.shards]
        self.size = store.size
        self.jpegs = [
            shards[int(record["shard"])][int(record["offset"]) : int(record["offset"]) + int(record["size"])]
            for record in split.records[permutation(0, 0, len(split))]
        ]


def decode_all(images: Images, count: int) -> None:
    """Decode ``count`` images, over and over the same, in this thread, as the pipeline does and nothing else."""
    pixels = scratch_for(images.size)
    for number in range(count):
        simplejpeg.decode_jpeg(images.jpegs[number % len(images.jpegs)], "RGB", False, False, 0, 0, 1, pixels)


def raw_rate(store: Path, threads: int, count: int) -> float:
    """Images per second of the decoder alone on all threads."""
    images, each = Images(store), count // threads
    workers = [threading.Thread(target=decode_all, args=(images, each)) for _ in range(threads)]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return threads * each / (time.perf_counter() - began)


def pipeline_rate(store: Path, augmenters: int, images: int, transport: str) -> tuple[float, dict[str, float]]:
    """Images per second of recipe drain after its first batch, and its processes' shares."""
    epochs = max(1, round(images / len(open_store(store).split("train"))))
    with tempfile.TemporaryDirectory() as folder:
        flags = ("--epochs", str(epochs), "--transport", transport)
        summary = complete(run_command(store, Path(folder) / "run", augmenters, {}, *flags))
    busy = {f"{name}_busy": stage["busy_seconds"] / summary["seconds"] for name, stage in summary["stages"].items()}
    return float(summary["images_per_second"]), busy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="store of 256x256 images")
    parser.add_argument("--augmenters", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=24_000, help="images of one measurement")
    parser.add_argument("--transport", choices=("arena", "inline"), default="arena")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    before = machine()
    with tempfile.TemporaryDirectory() as folder:
        store = arguments.store
        if store is None:
            print("making a store of 1,000 photographs, 256x256 …", file=sys.stderr)
            photographs, store = Path(folder) / "photographs", Path(folder) / "store"
            write_photographs(photographs, seed=0, train_per_class=100, validation_per_class=0)
            prepare(photographs / "train", store)
        figures: list[dict[str, float]] = []
        print(f"{'round':>5} {'raw images/s':>13} {'pipeline':>9} {'ratio':>6}")
        for number in range(1, arguments.rounds + 1):
            raw = raw_rate(store, arguments.augmenters, arguments.images)
            rate, busy = pipeline_rate(store, arguments.augmenters, arguments.images, arguments.transport)
            figures.append({"raw": raw, "pipeline": rate, "ratio": rate / raw} | busy)
            print(f"{number:>5} {raw:>13,.0f} {rate:>9,.0f} {rate / raw:>6.3f}")
    raws, rates, ratios = ([entry[name] for entry in figures] for name in ("raw", "pipeline", "ratio"))
    raw, rate = statistics.median(raws), statistics.median(rates)
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    print(f"{'median':>5} {raw:>12,.0f} {rate:>9,.0f} {rate / raw:>6.3f}   ({spread})")
    if arguments.json:
        result = {"machine": before, "rounds": figures, "raw": raw, "pipeline": rate, "ratio": rate / raw}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
