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
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import simplejpeg

from benchmarks.machine import machine
from fourstage.demo import write_photographs
from fourstage.store import open_store
from fourstage.store.prepare import prepare


def raw_rate(store: Path, threads: int, images: int) -> float:
    """Images per second of the decoder alone on all threads."""
    split = open_store(store).split("train")
    shards = [path.read_bytes() for path in split.shards]
    jpegs = [
        shards[int(record["shard"])][int(record["offset"]) : int(record["offset"]) + int(record["size"])]
        for record in split.records
    ]
    size = open_store(store).size
    each = images // threads

    def work() -> None:
        pixels = np.empty((size, size, 3), np.uint8)
        for number in range(each):
            simplejpeg.decode_jpeg(jpegs[number % len(jpegs)], "RGB", False, False, 0, 0, 1, pixels)

    workers = [threading.Thread(target=work) for _ in range(threads)]
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
        done = subprocess.run(
            [sys.executable, "-m", "fourstage", "run", "--store", str(store), "--recipe", "drain", "--run-dir",
             f"{folder}/run", "--augmenters", str(augmenters), "--epochs", str(epochs), "--transport", transport,
             "--json"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    summary = json.loads(done.stdout)
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
