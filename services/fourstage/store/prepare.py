"""``fourstage prepare``: a source of images of any size becomes a store of small JPEGs.

The source is listed and sorted, cut into batches of 64, and the batches are converted in parallel and
appended in order, so the store's bytes depend on the source and the settings alone. Shards are finished one
by one; a ``prepare`` that was killed keeps them and makes the rest. ``store.json`` comes last.
"""

import importlib.metadata
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import xxhash

from fourstage.errors import SettingsError, StoreError
from fourstage.store.archives import check_source
from fourstage.store.assemble import assemble
from fourstage.store.batches import BATCH, Task, make_batches
from fourstage.store.images import MAX_PIXELS
from fourstage.store.manifest import MANIFEST_NAME, VERSION, Manifest, read_manifest
from fourstage.store.progress import Progress, ProgressCallback
from fourstage.store.shards import shard_name
from fourstage.store.sources import SourceImage, read_source
from fourstage.store.workspace import check_plan, discard_parts, read_parts, workspace
from fourstage.store.writer import ShardWriter

TRAINING_SPLIT = "train"
MAX_SIZE = 4096
SHARD_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class PrepareReport:
    """What ``prepare`` has made."""

    store: Path
    split: str
    images: int
    left_out: int
    classes: int
    shards: int
    bytes: int
    """Of the split's shards."""

    resumed: int
    """Source images that an earlier, interrupted prepare had dealt with."""

    seconds: float
    fingerprint: str


@dataclass(frozen=True, slots=True)
class _Job:
    """What the shards of a split are made of and how."""

    store: Path
    work: Path
    split: str
    images: Sequence[SourceImage]
    classes: tuple[str, ...]
    size: int
    quality: int
    max_pixels: int
    shard_bytes: int


def prepare(
    source: Path | str,
    store: Path | str,
    *,
    split: str = TRAINING_SPLIT,
    labels: Path | str | None = None,
    labels_map: Path | str | None = None,
    inside: str = "",
    size: int = 256,
    quality: int = 90,
    workers: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    max_pixels: int = MAX_PIXELS,
    progress: ProgressCallback | None = None,
) -> PrepareReport:
    """Make a store, or add a split to one; interrupted, the same call goes on.

    ``source``: a folder or tar (also .xz, .gz, .bz2) of class folders, ILSVRC2012's tar of one tar per class,
    or with ``labels`` (lines ``FILENAME CLASS``; numbers need ``labels_map``, lines ``NUMBER CLASS``) any
    folder or tar; ``inside`` names the folder of it to take. Images are brought to ``size`` x ``size`` pixels
    and stored as JPEG of ``quality`` (1 to 100), 4:2:0. ``workers`` processes (default: one for each core)
    are spawned if more than one, so a script needs its ``if __name__ == "__main__"``. A shard ends with the
    batch of 64 images that takes it to ``shard_bytes``. An image of more than ``max_pixels`` is left out
    unopened.

    The first split is ``train``: the order of the classes and the statistics are its. ``progress`` is called
    in this thread. Raises SettingsError before anything is made, StoreError if the work fails.
    """
    started = time.monotonic()
    source, store = Path(source), Path(store)
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    _check_settings(split, size, quality, workers, shard_bytes, max_pixels)
    check_source(source)
    if source.is_dir() and store.resolve().is_relative_to(source.resolve()):
        raise SettingsError(f"the store {store} would lie in its own source", hint="name a STORE elsewhere")
    try:
        with workspace(store, split) as work:
            manifest = _existing(store, work, split, size, quality)
            found = read_source(
                source,
                work,
                labels=None if labels is None else Path(labels),
                labels_map=None if labels_map is None else Path(labels_map),
                inside=inside,
            )
            classes = found.classes if manifest is None else manifest.classes
            _check_classes(split, found.classes, classes)
            job = _Job(store, work, split, found.images, classes, size, quality, max_pixels, shard_bytes)
            check_plan(work, _plan(job))
            resumed = _make_shards(job, workers, progress)
            made = assemble(
                store,
                work,
                split,
                size=size,
                quality=quality,
                classes=classes,
                left_out=found.left_out,
                base=manifest,
            )
    except OSError as error:
        raise StoreError(
            f"prepare failed at {error.filename or store}: {error.strerror}",
            hint="when that is put right, give the same command again: it goes on where it was",
        ) from error
    entry = made.splits[split]
    return PrepareReport(
        store=store,
        split=split,
        images=entry.images,
        left_out=entry.left_out,
        classes=len(classes),
        shards=len(entry.shards),
        bytes=entry.bytes,
        resumed=resumed,
        seconds=time.monotonic() - started,
        fingerprint=made.fingerprint,
    )


def _check_settings(split: str, size: int, quality: int, workers: int, shard_bytes: int, max_pixels: int) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", split):
        raise SettingsError(f"a split cannot be called {split!r}", hint="use letters, digits, - and _, such as val")
    ranges = (
        ("size", size, MAX_SIZE),
        ("quality", quality, 100),
        ("workers", workers, 1024),
        ("shard_bytes", shard_bytes, 1 << 40),
        ("max_pixels", max_pixels, MAX_PIXELS),
    )
    for name, value, highest in ranges:
        if not 1 <= value <= highest:
            raise SettingsError(f"{name} = {value} is out of range", hint=f"it goes from 1 to {highest}")


def _existing(store: Path, work: Path, split: str, size: int, quality: int) -> Manifest | None:
    """The manifest that a further split is added to; None for the first."""
    if not (store / MANIFEST_NAME).exists():
        if split != TRAINING_SPLIT:
            raise SettingsError(
                f"{store} has no training split yet, and the classes of {split!r} follow from it",
                hint="prepare the training images first, without --split",
            )
        return None
    manifest = read_manifest(store)
    if split in manifest.splits:
        discard_parts(work)  # killed between store.json and the removal of its work
        raise SettingsError(f"{store} already has the split {split!r}", hint="name another store or another --split")
    for name, asked, kept in (("size", size, manifest.size), ("quality", quality, manifest.quality)):
        if asked != kept:
            raise SettingsError(
                f"{name} = {asked}, and the images of {store} have {name} {kept}",
                hint=f"give --{name} {kept}",
            )
    return manifest


def _check_classes(split: str, found: tuple[str, ...], classes: tuple[str, ...]) -> None:
    unknown = sorted(set(found) - set(classes))
    if unknown:
        raise SettingsError(
            f"the training split has no class {', '.join(map(repr, unknown[:10]))}, and {split!r} does"
            + (f" ({len(unknown)} such classes)" if len(unknown) > 10 else ""),
            hint="class names must be those of the training split",
        )


def _plan(job: _Job) -> dict[str, str | int]:
    """All that the bytes of the shards depend on."""
    digest = xxhash.xxh3_128()
    for name in job.classes:
        digest.update(f"{name!r}\n".encode())
    for image in job.images:
        _, offset, size, state = image.member
        digest.update(f"{image.key} {image.label!r} {offset} {size} {state}\n".encode())
    return {
        "source": digest.hexdigest(),
        "size": job.size,
        "quality": job.quality,
        "max_pixels": job.max_pixels,
        "shard_bytes": job.shard_bytes,
        "format version": VERSION,
        "fourstage": importlib.metadata.version("fourstage"),
        "simplejpeg": importlib.metadata.version("simplejpeg"),
        "opencv": importlib.metadata.version("opencv-python-headless"),
    }


def _make_shards(job: _Job, workers: int, progress: ProgressCallback | None) -> int:
    """Make the shards that are not finished; returns the source images in those that were."""
    done = written = left_out = number = 0
    for part in read_parts(job.work):
        if part.bytes and not _has_length(job.store / shard_name(job.split, number), part.bytes):
            break
        done, written, left_out = done + part.sources, written + part.bytes, left_out + len(part.left_out)
        number += 1
    resumed = done

    def report() -> None:
        if progress is not None:
            progress(Progress(done, len(job.images), written, left_out))

    report()
    with closing(make_batches(_tasks(job, done), workers)) as batches:
        while done < len(job.images):
            with ShardWriter(job.store, job.work, job.split, number) as shard:
                for batch in batches:
                    shard.append(batch)
                    done, written, left_out = (
                        done + batch.sources,
                        written + len(batch.stretch),
                        left_out + len(batch.left_out),
                    )
                    report()
                    if shard.bytes >= job.shard_bytes:
                        break
                shard.finish()
            number += 1
    return resumed


def _tasks(job: _Job, start: int) -> Iterator[Task]:
    numbers = {name: number for number, name in enumerate(job.classes)}
    for position in range(start, len(job.images), BATCH):
        images = tuple(job.images[position : position + BATCH])
        yield Task(
            images=images,
            labels=tuple(numbers[image.label] for image in images),
            size=job.size,
            quality=job.quality,
            max_pixels=job.max_pixels,
            with_sums=job.split == TRAINING_SPLIT,
        )


def _has_length(path: Path, length: int) -> bool:
    return path.is_file() and path.stat().st_size == length
