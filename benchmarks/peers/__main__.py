"""The pipeline side by side with the loaders that a user could pick instead, on the same images, cores and work.

Each decodes the same JPEG files of 256x256 from the page cache, takes a random crop of 224x224, reflects every other
one and delivers batches of 128 uint8 images (rows, height, width, channels) to one consumer that counts them. Every
system once a round, the order rotated; each in processes of its own, with its clock started after a warm-up.

    python -m benchmarks.peers install [--into FOLDER] [--torch-index URL]
    python -m benchmarks.peers [--store STORE] [--rounds 5] [--images 24000] [--only NAME,...] [--json FILE]

Without a store one of a thousand synthetic photographs, 256x256, is made and removed again.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path

import simplejpeg

from benchmarks.machine import machine
from benchmarks.peers.export import export_images
from benchmarks.peers.install import DEFAULT, install
from benchmarks.peers.systems import SYSTEMS, NotMeasuredError, Work
from benchmarks.peers.table import Measurement, rendered, rotated, rows
from fourstage.demo import write_photographs
from fourstage.store.prepare import prepare


def names(text: str) -> list[str]:
    """The systems that ``--only`` names."""
    chosen = text.split(",")
    if unknown := [name for name in chosen if name not in SYSTEMS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: there are {', '.join(SYSTEMS)}")
    return chosen


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs="?", choices=("measure", "install"), default="measure")
    parser.add_argument("--into", type=Path, default=DEFAULT, metavar="FOLDER", help="where the peers are installed")
    parser.add_argument("--torch-index", metavar="URL", help="install: take PyTorch from another index")
    parser.add_argument("--store", type=Path, help="store of 256x256 images")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="of every system")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=24_000, help="images of one measurement")
    parser.add_argument("--only", type=names, default=list(SYSTEMS), metavar="NAME,...", help=", ".join(SYSTEMS))
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser


def measure(
    work: Work, chosen: list[str], count: int
) -> tuple[dict[str, list[Measurement]], dict[str, str], dict[str, str]]:
    """The rounds of every system that ran, why the others did not, and the versions of what took part."""
    rounds: dict[str, list[Measurement]] = {}
    failures: dict[str, str] = {}
    versions = {"simplejpeg": simplejpeg.__version__}
    for number in range(count):
        for name in rotated(chosen, number):
            if name in failures:
                continue
            try:
                measurement, its_versions = SYSTEMS[name].measure(work)
            except NotMeasuredError as error:
                failures[name] = str(error)
                print(f"{name} is left out: {error}", file=sys.stderr)
                continue
            rounds.setdefault(name, []).append(measurement)
            versions |= its_versions
            print(f"round {number + 1} of {count}: {name} {measurement.rate:,.0f} images/s", file=sys.stderr)
    # One that failed in a later round has too few of them.
    return {name: measured for name, measured in rounds.items() if name not in failures}, failures, versions


def main() -> None:
    arguments = parser().parse_args()
    if arguments.command == "install":
        sys.exit(0 if install(arguments.into, arguments.torch_index) else 1)
    before = machine()
    with tempfile.TemporaryDirectory() as name:
        folder, store = Path(name), arguments.store
        if store is None:
            print("making a store of 1,000 photographs, 256x256 …", file=sys.stderr)
            write_photographs(folder / "photographs", seed=0, train_per_class=100, validation_per_class=0)
            store = folder / "store"
            prepare(folder / "photographs" / "train", store)
        size = export_images(store, folder / "files")
        work = Work(store, folder / "files", size, arguments.workers, arguments.images, arguments.into)
        rounds, failures, versions = measure(work, arguments.only, arguments.rounds)
    table = rows(rounds)
    print(rendered(table, {name: system.description for name, system in SYSTEMS.items()}))
    if arguments.json:
        result = {
            "machine": before,
            "versions": versions,
            "workers": arguments.workers,
            "images": arguments.images,
            "table": [dataclasses.asdict(row) for row in table],
            "rounds": {name: [dataclasses.asdict(one) for one in measured] for name, measured in rounds.items()},
            "left_out": failures,
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(0 if rounds else 1)


if __name__ == "__main__":
    main()
