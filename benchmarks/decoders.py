"""What the decoders make of a store's images, and what an augmenter's core costs with each.

Pixels: images of the training split decoded whole, against the default decoder's. Time: decode, crop, reflection into
slots as an augmenter does them; CPU time of all threads, short windows of each decoder in turn, one process, one core.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.bench import spread
from benchmarks.machine import machine
from fourstage.augmenter.decode import DecoderName, for_images, make_decoder
from fourstage.errors import SettingsError
from fourstage.loader.reader import ReadJob, ShardFiles, read_batch
from fourstage.probe.measure_transform import Bench
from fourstage.resolve import load_settings
from fourstage.store import Store, open_store

NAMES: tuple[DecoderName, ...] = ("simplejpeg", "turbojpeg", "dali")
_AT_ONCE, _ROWS = 64, 128


def differences(store: Store, name: DecoderName, images: int) -> dict[str, float]:
    """Of the first ``images`` images: the largest difference of a channel from the default decoder's, and the share of
    pixels that differ."""
    split = store.split("train")
    files, decode, default = ShardFiles(), make_decoder(name), make_decoder("auto")
    pixels, expected = np.zeros((2, store.size, store.size, 3), np.uint8)
    largest = differing = total = 0
    for begin in range(0, min(images, len(split)), _AT_ONCE):
        indices = np.arange(begin, min(begin + _AT_ONCE, images, len(split)))
        ends = np.cumsum(split.records["size"][indices], dtype=np.int64).tolist()
        into = memoryview(bytearray(ends[-1]))
        read_batch(files, ReadJob((b"", 0, 0), split, indices, into))
        jpegs = [into[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        decode_each = for_images(decode, jpegs, store.size)
        for jpeg in jpegs:
            decode_each(jpeg, pixels)
            default(jpeg, expected)
            difference = np.abs(pixels.astype(np.int16) - expected).max(axis=2)
            largest = max(largest, int(difference.max()))
            differing += int(np.count_nonzero(difference))
            total += difference.size
    files.close()
    return {"largest_difference": largest, "differing_share": differing / total}


def cost(
    store: Store, names: tuple[DecoderName, ...], rounds: int, seconds: float, overrides: Sequence[str] = ()
) -> dict[str, dict[str, list[float]]]:
    """For each decoder and round: microseconds of CPU an image, and how often the first decoder's time that is."""
    benches = {
        name: Bench(
            store,
            load_settings("drain", overrides=[f"augmenter.decoder={name}", *overrides], environment={}),
            rows=_ROWS,
            number=0,
        )
        for name in names
    }
    figures: dict[str, dict[str, list[float]]] = {name: {"microseconds": [], "ratio": []} for name in names}
    for _ in range(rounds):
        for name, bench in benches.items():
            figures[name]["microseconds"].append(1e6 * bench.measure(seconds, decode=False).image_cpu_seconds)
            figures[name]["ratio"].append(figures[name]["microseconds"][-1] / figures[names[0]]["microseconds"][-1])
    return figures


def main() -> None:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.5, help="of one decoder in one round")
    parser.add_argument("--images", type=int, default=10_000, help="the most whose pixels are compared")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    store, before = open_store(arguments.store), machine()
    names: list[DecoderName] = []
    pixels = {}
    for name in NAMES:
        try:
            pixels[name] = differences(store, name, arguments.images)
        except SettingsError as error:
            print(f"left out: {error}", file=sys.stderr)
        else:
            names.append(name)
    times = cost(store, tuple(names), arguments.rounds, arguments.seconds)
    print(
        f"{'':<12}{'µs/image':>9}{'least':>7}{'most':>7}{'times':>8}{'least':>7}{'most':>7}{'largest difference':>20}"
    )
    for name in names:
        each, ratio = spread(times[name]["microseconds"]), spread(times[name]["ratio"])
        line = "".join(f"{each[key]:>{width}.0f}" for key, width in (("median", 9), ("least", 7), ("most", 7)))
        line += "".join(f"{ratio[key]:>{width}.2f}" for key, width in (("median", 8), ("least", 7), ("most", 7)))
        largest, share = pixels[name]["largest_difference"], pixels[name]["differing_share"]
        print(f"{name:<12}{line}{largest:>8.0f} in {share:.2%} of pixels")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": before, "pixels": pixels, "times": times}, indent=1))


if __name__ == "__main__":
    main()
