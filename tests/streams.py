"""What the tests of BatchStream share: small streams, and the same batches computed without any of the pipeline."""

import tarfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray

from fourstage import BatchStream, open_store
from fourstage.augmenter.draws import Draws, draw
from fourstage.order import permutation
from fourstage.store import Store
from fourstage.stream import StreamBatch
from fourstage.views import View, colour_matrix
from tests.pipeline.harness import CROP

PER_CLASS = 15
SAMPLES = 3 * PER_CLASS
BATCH, SEED = 8, 5
BATCHES = -(-SAMPLES // BATCH)
"""Of one epoch; the last has five samples."""
VIEW = View("random", CROP, colour_std=0.1)
DEFAULTS: dict[str, Any] = {"recipe": "drain", "batch_size": BATCH, "seed": SEED}


def make(where: Path | str, **arguments: Any) -> BatchStream:
    """A stream of small batches; more ``settings`` are added to the crop."""
    settings = {"augmenter.crop": CROP, **arguments.pop("settings", {})}
    return BatchStream(where, **{**DEFAULTS, "settings": settings, **arguments})


@dataclass
class Expected:
    """Batches by plain decoding, cutting and reflecting in this process."""

    store: Store
    images: dict[str, NDArray[np.uint8]]
    """By key: uint8 (size, size, 3)."""
    view: View

    @classmethod
    def of(cls, path: Path, split: str = "train", view: View = VIEW) -> "Expected":
        images = {}
        for shard in sorted(path.glob(f"{split}-*.tar")):
            with tarfile.open(shard) as tar:
                for member in tar:
                    name, _, kind = member.name.rpartition(".")
                    if kind == "jpg" and (file := tar.extractfile(member)) is not None:
                        images[name] = simplejpeg.decode_jpeg(file.read(), "RGB", False, False)
        return cls(open_store(path), images, view)

    def draws(self, first: int, rows: int, *, epoch: int = 0, seed: int = SEED) -> Draws:
        statistics = self.store.statistics
        colours = colour_matrix(statistics.eigenvectors, statistics.eigenvalues, self.view.colour_scale)
        return draw(self.view, size=self.store.size, seed=seed, epoch=epoch, first=first, rows=rows, colours=colours)

    def batch(self, number: int, *, epoch: int = 0, seed: int = SEED, size: int = BATCH) -> StreamBatch:
        """Batch ``number`` of an epoch of the training view."""
        positions = np.arange(number * size, min((number + 1) * size, SAMPLES))
        indices = permutation(seed, epoch, SAMPLES)[positions]
        split = self.store.split("train")
        keys = split.keys(indices)
        draws = self.draws(int(positions[0]), len(positions), epoch=epoch, seed=seed)
        pixels = []
        for key, (top, left), reflected in zip(keys, draws.offsets, draws.reflections, strict=True):
            crop = self.images[key][top : top + CROP, left : left + CROP]
            pixels.append(crop[:, ::-1] if reflected else crop)
        return StreamBatch(
            images=torch.tensor(np.stack(pixels)),
            labels=torch.tensor(split.labels(indices).astype(np.int64)),
            keys=keys,
            positions=torch.tensor(positions),
        )

    def epoch(self, epoch: int, **arguments: Any) -> list[StreamBatch]:
        """Every batch of an epoch."""
        return [self.batch(number, epoch=epoch, **arguments) for number in range(BATCHES)]


def without(batch: StreamBatch, keys: Collection[str]) -> StreamBatch:
    """A batch closed up over some of its samples."""
    there = [row for row, key in enumerate(batch["keys"]) if key not in keys]
    return StreamBatch(
        images=batch["images"][there], labels=batch["labels"][there], keys=[batch["keys"][row] for row in there],
        positions=batch["positions"][there],
    )  # fmt: skip


def assert_same(received: list[StreamBatch], expected: list[StreamBatch]) -> None:
    """Equal in every byte."""
    assert [batch["keys"] for batch in received] == [batch["keys"] for batch in expected]
    for mine, theirs in zip(received, expected, strict=True):
        assert torch.equal(mine["images"], theirs["images"])
        assert torch.equal(mine["labels"], theirs["labels"])
        assert torch.equal(mine["positions"], theirs["positions"])
        assert mine["images"].dtype == torch.uint8
        assert mine["labels"].dtype == mine["positions"].dtype == torch.int64
