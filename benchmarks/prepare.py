"""Images a second of ``fourstage prepare`` on a source, repeated to a number of images.

    python benchmarks/prepare.py SOURCE --images 12000 --workers 2 --json prepare.json

The repetitions are hard links with names of their own, so the source is read from the page cache: this measures
the work on the pixels, not the disk. Start-up of the workers and listing of the source are included.
"""

import argparse
import datetime
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

from fourstage.store.archives import WHOLE
from fourstage.store.prepare import prepare
from fourstage.store.sources import SourceImage, read_source


def main() -> None:
    """Parse, repeat, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--images", type=int, default=12_000)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--json", type=Path, help="write the figures and the machine here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fourstage-prepare-") as folder:
        repeated = Path(folder) / "source"
        images = read_source(arguments.source, Path(folder)).images
        repeat(images, arguments.images, repeated)
        load = os.getloadavg()[0]
        report = prepare(repeated, Path(folder) / "store", size=arguments.size, workers=arguments.workers)
    figures = {
        "images_per_second": round((report.images + report.left_out) / report.seconds, 1),
        "images": report.images,
        "left_out": report.left_out,
        "workers": arguments.workers,
        "size": arguments.size,
        "seconds": round(report.seconds, 2),
        "bytes_per_image": round(report.bytes / report.images),
        "source": arguments.source.name,
        "load_before": round(load, 2),
        "machine": machine(),
    }
    print("| source | images | workers | seconds | images/s |")
    print("|---|---|---|---|---|")
    print(
        f"| {figures['source']} | {figures['images']} | {figures['workers']} | {figures['seconds']}"
        f" | {figures['images_per_second']} |"
    )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def repeat(images: tuple[SourceImage, ...], count: int, folder: Path) -> None:
    """A folder of class folders of ``count`` files, the images over and over."""
    for number in range(count):
        turn, which = divmod(number, len(images))
        image = images[which]
        target = folder / image.key.partition("/")[0] / f"{which}-{turn}"
        if turn:
            target.hardlink_to(target.with_name(f"{which}-0"))
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with Path(image.member.path).open("rb") as stream:
            stream.seek(image.member.offset)
            target.write_bytes(stream.read(image.member.size if image.member.size != WHOLE else -1))


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


if __name__ == "__main__":
    main()
